"""Rights: exact ones, stars, ends, and nodes that are taken (reference §4)."""

from __future__ import annotations

import time

import msgspec
import pytest

from kadeploy.config.site import Site
from kadeploy.errors import RightsError
from kadeploy.state import rights
from kadeploy.state.rights import Given
from kadeploy.state.tables import Right

NAMES = ["gdx-1.site", "gdx-2.site", "gdx-3.site"]
SDA3, SDA5 = "/dev/sda3", "/dev/sda5"


def all_rights() -> set[tuple[str, str, str]]:
    return {(row.user, row.node, row.part) for row in Right.select()}


def test_without_a_row_the_right_is_missing_on_every_node(site: Site) -> None:
    assert rights.missing(site, "alice", NAMES, SDA3) == NAMES


@pytest.mark.parametrize(
    ("node", "part", "missing"),
    [
        ("gdx-1.site", SDA3, NAMES[1:]),
        ("gdx-1.site", "*", NAMES[1:]),
        ("*", SDA3, []),
        ("*", "*", []),
        ("gdx-1.site", SDA5, NAMES),
        ("*", SDA5, NAMES),
    ],
)
def test_a_right_counts_for_its_node_and_partition_or_for_any_with_a_star(
    site: Site, node: str, part: str, missing: list[str]
) -> None:
    rights.add(site, "alice", [node], [part])
    assert rights.missing(site, "alice", NAMES, SDA3) == missing


def test_a_right_is_its_users_alone(site: Site) -> None:
    rights.add(site, "alice", ["*"], ["*"])
    assert rights.missing(site, "bob", NAMES, SDA3) == NAMES
    assert rights.missing(site, "Alice", NAMES, SDA3) == NAMES


def test_almighty_users_have_no_right_to_deploy_by_themselves(site: Site) -> None:
    assert rights.missing(site, site.almighty_users[0], NAMES, SDA3) == NAMES


def test_a_site_with_dummy_rights_allows_everything(site: Site) -> None:
    anything = msgspec.structs.replace(site, rights="dummy")
    assert rights.missing(anything, "nobody", NAMES, SDA3) == []


def test_a_refusal_names_the_nodes_the_partition_and_the_command(site: Site) -> None:
    rights.add(site, "alice", NAMES[:1], [SDA3])
    with pytest.raises(RightsError) as refusal:
        rights.require(site, "alice", NAMES, SDA3)
    assert "alice does not have the right to use /dev/sda3 of gdx-[2-3].site" in str(refusal.value)
    assert "karights3 -a -m 'gdx-[2-3].site' -p /dev/sda3 -u alice" in str(refusal.value)


def test_nothing_is_refused_when_nothing_is_missing(site: Site) -> None:
    rights.add(site, "alice", NAMES, [SDA3])
    rights.require(site, "alice", NAMES, SDA3)


def test_only_administrators_pass_as_almighty(site: Site) -> None:
    rights.require_almighty(site, site.almighty_users[0])
    with pytest.raises(RightsError, match="you are mallory"):
        rights.require_almighty(site, "mallory")


# --- until ------------------------------------------------------------------------------------------------------


def test_an_expired_right_counts_for_nothing(site: Site) -> None:
    rights.add(site, "alice", NAMES, [SDA3], until=int(time.time()) - 1)
    assert rights.missing(site, "alice", NAMES, SDA3) == NAMES
    assert rights.show(site, "alice") == []


def test_a_right_counts_until_its_end(site: Site) -> None:
    end = int(time.time()) + 3600
    rights.add(site, "alice", NAMES[:1], [SDA3], until=end)
    assert rights.missing(site, "alice", NAMES[:1], SDA3) == []
    assert rights.show(site, "alice") == [Given(NAMES[0], SDA3, end)]


def test_an_expired_right_does_not_make_its_node_taken(site: Site) -> None:
    rights.add(site, "alice", NAMES[:1], [SDA3], until=int(time.time()) - 1)
    new, skipped = rights.add(site, "bob", NAMES[:1], [SDA3])
    assert (new, skipped) == ([Given(NAMES[0], SDA3)], [])
    assert all_rights() == {("bob", NAMES[0], SDA3)}


# --- add --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_a_node_with_a_right_on_a_partition_is_taken_for_everybody(site: Site, user: str) -> None:
    rights.add(site, "alice", NAMES[:1], [SDA3])
    new, skipped = rights.add(site, user, NAMES[:2], [SDA5])
    assert (new, skipped) == ([Given(NAMES[1], SDA5)], NAMES[:1])


def test_two_partitions_given_at_once_are_both_given(site: Site) -> None:
    rights.add(site, "alice", NAMES[:1], [SDA3, SDA5])
    assert rights.show(site, "alice") == [Given(NAMES[0], SDA3), Given(NAMES[0], SDA5)]


def test_overwriting_removes_the_fine_rights_of_all_users_on_these_nodes_and_keeps_stars(site: Site) -> None:
    rights.add(site, "alice", NAMES[:1], ["*"])
    rights.add(site, "alice", NAMES[:2], [SDA3])
    rights.add(site, "carol", ["*"], [SDA3])
    new, skipped = rights.add(site, "bob", NAMES[:1], [SDA5], overwrite=True)
    assert (new, skipped) == ([Given(NAMES[0], SDA5)], [])
    assert all_rights() == {
        ("alice", NAMES[0], "*"),
        ("alice", NAMES[1], SDA3),
        ("carol", "*", SDA3),
        ("bob", NAMES[0], SDA5),
    }


def test_stars_are_added_once_and_beside_finer_rights_of_other_nodes(site: Site) -> None:
    rights.add(site, "alice", NAMES[:1], [SDA3])
    assert rights.add(site, "alice", ["*"], ["*"]) == ([Given("*", "*")], [])
    assert rights.add(site, "alice", ["*"], ["*"]) == ([], [])


# --- delete -----------------------------------------------------------------------------------------------------


def test_deletion_is_exact_and_goes_on_after_a_pair_without_row(site: Site) -> None:
    rights.add(site, "alice", NAMES[:2], [SDA3])
    rights.add(site, "alice", ["*"], ["*"])
    removed, unknown = rights.delete(site, "alice", [NAMES[2], NAMES[0]], [SDA3])
    assert (removed, unknown) == ([Given(NAMES[0], SDA3)], [Given(NAMES[2], SDA3)])
    assert all_rights() == {("alice", NAMES[1], SDA3), ("alice", "*", "*")}


def test_a_star_deletes_the_row_with_the_star_alone(site: Site) -> None:
    rights.add(site, "alice", NAMES[:1], [SDA3])
    rights.add(site, "alice", ["*"], ["*"])
    rights.delete(site, "alice", ["*"], ["*"])
    assert all_rights() == {("alice", NAMES[0], SDA3)}


def test_text_that_looks_like_sql_is_text(site: Site) -> None:
    name = "x' OR '1'='1"
    rights.add(site, name, NAMES[:1], [SDA3])
    rights.delete(site, name + "' --", NAMES[:1], [SDA3])
    assert all_rights() == {(name, NAMES[0], SDA3)}
