"""Node ranges: what they stand for, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import time

import pytest
from ClusterShell.NodeSet import NodeSet
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.errors import NodeListError
from kadeploy.nodeset import count, expand, fold, natural_key, parse_lines


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("gdx-5.site", ["gdx-5.site"]),
        ("gdx-[5-7].site", ["gdx-5.site", "gdx-6.site", "gdx-7.site"]),
        ("gdx-[1,3,5-6]", ["gdx-1", "gdx-3", "gdx-5", "gdx-6"]),
        ("n[01-03]", ["n01", "n02", "n03"]),
        ("n[998-1001]", ["n998", "n999", "n1000", "n1001"]),
        ("r[1-2]-n[1-2]", ["r1-n1", "r1-n2", "r2-n1", "r2-n2"]),
        (" gdx-1 ", ["gdx-1"]),
    ],
)
def test_a_range_stands_for_its_nodes(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize(
    "pattern", ["gdx-[7-5]", "gdx-[]", "gdx-[1-", "", "a b", "@all", "$(id)", "a;b", "n[1-2]!n1", "é"]
)
def test_a_malformed_or_empty_range_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(NodeListError):
        expand(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "n-[1-999999999]",
        "n-[1-2000]-[1-2000]",
        "[1-99999],[1-99999]",
        "n-[0-999999999999999]",
        f"n-{'9' * 5000}",
        f"n-[1-{'9' * 5000}]",
        "n-[1-10]" * 200,
        "n-[1-2-99999999]",
        "n-[-99999999-5]",
    ],
)
def test_a_range_is_counted_before_it_is_expanded(pattern: str) -> None:
    """What would take gigabytes is refused in no time, in a line."""
    begun = time.process_time()
    with pytest.raises(NodeListError) as refusal:
        expand(pattern)
    assert time.process_time() - begun < 0.5
    assert len(str(refusal.value)) < 500


def test_the_limit_counts_the_names_of_a_whole_file() -> None:
    assert len(parse_lines("n-[1-5]\nn-[6-10]\nn-[1-10]\n", 10)) == 10
    with pytest.raises(NodeListError, match=r"11 nodes, and at most 10 .*limits\.nodes in site\.yml"):
        parse_lines("n-[1-5]\nn-[6-11]\n", 10)


def test_lines_that_name_the_same_nodes_again_and_again_are_not_expanded_for_hours() -> None:
    assert parse_lines("n-[1-1000]\n" * 5000, 1000) == expand("n-[1-1000]")
    begun = time.process_time()
    with pytest.raises(NodeListError, match="name each once"):
        parse_lines("".join(f"n-[{number}-1000]\n" for number in range(1, 1000)), 1000)
    assert time.process_time() - begun < 1


@given(st.lists(st.sampled_from(["a", "n-", "[1-3]", "[02-04,7]", "[5,1-2]", ".site", ","]), min_size=1, max_size=7))
def test_as_many_names_are_counted_as_there_are_or_more(words: list[str]) -> None:
    pattern = "".join(words)
    with contextlib.suppress(NodeListError):
        assert len(expand(pattern)) <= count(pattern)


def test_a_node_file_may_hold_ranges_comments_and_blank_lines() -> None:
    assert parse_lines("# rack 1\n\ngdx-[1-2]\n gdx-2 # twice\ngdx-9\n") == ["gdx-1", "gdx-2", "gdx-9"]


def test_folding_keeps_every_node_of_unrelated_families() -> None:
    assert set(expand(fold(["a-1.x", "b-1.x"]))) == {"a-1.x", "b-1.x"}


@given(st.sets(st.builds("n-{}.{}".format, st.integers(0, 2000), st.sampled_from(["x", "y.z"])), min_size=1))
def test_folding_and_expanding_again_loses_nothing(names: set[str]) -> None:
    assert set(expand(fold(names))) == names


_PARTS = st.tuples(st.sampled_from(["n-", "m", "", "n-1."]), st.integers(0, 130), st.sampled_from(["", ".site", "-2"]))
_NAMES = _PARTS.map(lambda parts: "".join(map(str, parts))) | st.sampled_from(["n-007", "n-08", "front", "n-09.site"])


@given(st.lists(_NAMES, min_size=1, max_size=60))
def test_names_are_folded_as_clustershell_folds_them_one_by_one(names: list[str]) -> None:
    assert fold(names) == str(NodeSet.fromlist(names, resolver=None))


@given(st.text(max_size=30))
def test_expand_answers_with_names_or_a_refusal_whatever_is_typed(text: str) -> None:
    with contextlib.suppress(NodeListError):
        assert expand(text)


def test_neighbours_follow_each_other_in_natural_order() -> None:
    assert sorted(["gdx-10", "gdx-2", "gdx-1"], key=natural_key) == ["gdx-1", "gdx-2", "gdx-10"]
    assert sorted(["n008", "n7", "n06"], key=natural_key) == ["n06", "n7", "n008"]


@given(st.lists(st.text(max_size=8)), st.integers(0, 9999))
def test_any_names_have_a_natural_order_and_numbers_have_theirs(names: list[str], number: int) -> None:
    ordered = sorted(names, key=natural_key)
    assert all(natural_key(one) <= natural_key(next_one) for one, next_one in itertools.pairwise(ordered))
    assert natural_key(f"n-{number}") < natural_key(f"n-{number + 1}") < natural_key(f"n-1{'0' * 5000}")


def test_what_stands_for_many_names_is_not_made_into_them_to_be_told() -> None:
    """A name that is asked for may be a range, of more names than there is memory for."""
    for names in (["n-[1-999999999999]"], ["n-1", "n-[1-9][1-999999999999].site"], ["n-2,n-[1-999999999999]"]):
        assert fold(names) == ",".join(names)
