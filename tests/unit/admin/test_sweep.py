"""BMCs are found in a range of addresses, and tell what their machines are: real ones on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from kadeploy.admin import sweep
from kadeploy.admin.sweep import Swept
from kadeploy.config.cluster import NodeRange
from kadeploy.errors import NodeListError, OptionError
from tests.unit.admin.sound_site import SoundSite

if TYPE_CHECKING:
    from tests.unit.bmc import Bmc, Redfish

pytest_plugins = ["tests.unit.bmc"]

FIVE = "127.9.8.[1-5]"
"""BMCs listen at the first of these."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """BMCs of this machine answer at once."""
    monkeypatch.setattr(sweep, "ROUND", 0.3)


def swept(site: SoundSite, pattern: str, bmc: str = "", **power: Any) -> list[Swept]:
    """What is found; *bmc*: that of the cluster's only node."""
    configuration = site.subject().configuration
    known = configuration.clusters["gdx"]
    cluster = structs.replace(
        known,
        nodes=(NodeRange(name="gdx-1.site", address="127.9.1.1", bmc=bmc),),
        power=structs.replace(known.power, address="", **power),
    )
    return sweep.sweep(structs.replace(configuration, clusters={"gdx": cluster}), cluster, pattern)


@pytest.fixture
def ipmi(sound: SoundSite, quick: None) -> SoundSite:
    """The site, with the name and password of the BMCs of tests."""
    from tests.unit.bmc import PASSWORD, USER

    sound.change("gdx", power__user=USER, power__driver="ipmi")
    (sound.folder / "keys/bmc").write_text(f"{PASSWORD}\n")
    return sound


def test_a_bmc_that_no_file_names_is_found_and_tells_its_machine(ipmi: SoundSite, bmcs: list[Bmc]) -> None:
    from tests.unit.bmc import PRODUCT

    (found,) = swept(ipmi, FIVE, port=bmcs[0].port)
    assert (found.address, found.node, found.entered) == ("127.9.8.1", "", True)
    assert (found.identity.vendor, found.identity.product, found.identity.serial) == tuple(PRODUCT.values())
    assert sweep.proposed([found]) == [found]
    assert not bmcs[0].done, "nothing is switched"


def test_bmcs_of_nodes_are_told_as_theirs_also_where_nobody_answers(ipmi: SoundSite, bmcs: list[Bmc]) -> None:
    (found,) = swept(ipmi, FIVE, "127.9.8.1", port=bmcs[1].port)
    assert (found.node, found.answers, found.entered) == ("gdx-1.site", True, True)
    silent, new = sorted(swept(ipmi, FIVE, "127.9.8.4", port=bmcs[1].port), key=lambda each: each.answers)
    assert (silent.address, silent.node, silent.answers) == ("127.9.8.4", "gdx-1.site", False)
    assert sweep.proposed([silent, new]) == [new]
    assert swept(ipmi, "127.9.8.[3-5]", "127.9.8.1", port=bmcs[1].port) == []


def test_who_lets_nobody_in_is_told_with_the_reason_and_not_proposed(
    ipmi: SoundSite, refusing_bmc: Callable[[int | None], AbstractContextManager[str]], bmcs: list[Bmc]
) -> None:
    with refusing_bmc(0x0D) as address:
        (found,) = swept(ipmi, FIVE, port=int(address.split(":")[1]))
    assert (found.answers, found.entered) == (True, False)
    assert "lets nobody in" in found.reason
    (ipmi.folder / "keys/bmc").write_text("another\n")
    (wrong,) = swept(ipmi, FIVE, port=bmcs[0].port)
    assert not wrong.entered
    assert "password" in wrong.reason
    assert sweep.proposed([found, wrong]) == []


def test_a_network_of_many_addresses_takes_seconds(ipmi: SoundSite) -> None:
    begun = time.monotonic()
    assert swept(ipmi, "127.9.16.0/22", port=6399) == []
    assert time.monotonic() - begun < 20


def test_redfish_is_found_by_the_root_of_its_service(ipmi: SoundSite, redfish_liar: Redfish) -> None:
    """Its answer may come in pieces."""
    redfish_liar.pause = 0.05
    port = redfish_liar.url.rsplit(":", 1)[1]
    power = {"driver": "redfish", "user": "", "password_file": ""}
    found, silent = swept(ipmi, FIVE, f"http://127.9.8.2:{port}", **power)
    assert (found.address, found.entered, found.node) == (redfish_liar.url, True, "")
    assert found.identity.product == "Roadrunner 9"
    assert found.identity.cards == ("52:54:00:aa:bb:01",)
    assert (silent.node, silent.answers) == ("gdx-1.site", False)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("10.0.3", "expected addresses, such as 10.0.3"),
        ("bmc-[1-9]", "expected addresses"),
        ("10.0.3.[1-300]", "expected addresses"),
        ("10.0.0.0/8", "more than 65536 addresses"),
        ("10.[0-9].[0-255].[0-255]", "more than 65536 addresses"),
        ("10.0.3.0/44", "expected addresses"),
        ("10.0.3.1;reboot", "Invalid node range"),
    ],
)
def test_what_is_no_range_of_addresses_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        sweep.addresses(pattern)


def test_a_cluster_that_is_switched_by_commands_has_no_bmcs_to_ask(sound: SoundSite) -> None:
    with pytest.raises(OptionError, match="switched by commands"):
        swept(sound, FIVE, driver="command")


def test_names_and_addresses_are_given_in_the_order_of_the_bmcs() -> None:
    new = [Swept(address=f"10.0.3.{number}", entered=True) for number in (7, 9)]
    entries = sweep.entries(new, ["gdx-4", "gdx-5"], "10.0.1.[4-5]")
    assert [(each.name, each.address, each.bmc) for each in entries] == [
        ("gdx-4", "10.0.1.4", "10.0.3.7"),
        ("gdx-5", "10.0.1.5", "10.0.3.9"),
    ]
    with pytest.raises(OptionError, match=r"1 names \(gdx-4\) for 2 machines.*10\.0\.3\.\[7,9\]"):
        sweep.entries(new, ["gdx-4"], "")
    with pytest.raises(NodeListError, match="3 values for 2 nodes"):
        sweep.entries(new, ["gdx-4", "gdx-5"], "10.0.1.[1-3]")
