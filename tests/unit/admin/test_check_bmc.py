"""BMCs are logged in to and asked: real ones on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from kadeploy.admin.check import bmc
from kadeploy.admin.findings import Finding, Look, grouped
from kadeploy.config.cluster import NodeRange
from tests.unit.admin.sound_site import SoundSite

if TYPE_CHECKING:
    from tests.unit.bmc import Bmc, Redfish

pytest_plugins = ["tests.unit.bmc"]


def nodes(*addresses: str) -> list[dict[str, str]]:
    return [
        {"name": f"gdx-{number}.site", "address": f"127.9.1.{number}", "bmc": address}
        for number, address in enumerate(addresses, start=1)
    ]


def found_at(site: SoundSite, *addresses: str) -> list[Finding]:
    """What is found of BMCs that have ports of their own, which no cluster file can say."""
    subject = site.subject()
    ranges = tuple(NodeRange(**each) for each in nodes(*addresses))
    cluster = structs.replace(subject.configuration.clusters["gdx"], nodes=ranges)
    configuration = structs.replace(subject.configuration, clusters={"gdx": cluster})
    return list(bmc.check(replace(subject, configuration=configuration, nodes=tuple(cluster.members))))


@pytest.fixture
def ipmi(sound: SoundSite) -> SoundSite:
    """The site, with the name and password of the BMCs of tests."""
    from tests.unit.bmc import PASSWORD, USER

    sound.change("gdx", power__user=USER, power__timeout=3)
    (sound.folder / "keys/bmc").write_text(f"{PASSWORD}\n")
    return sound


def test_bmcs_that_answer_are_told_together_with_the_state_of_their_machines(ipmi: SoundSite, bmcs: list[Bmc]) -> None:
    bmcs[1].turn(on=False)
    found = found_at(ipmi, *(each.address for each in bmcs))
    assert [(each.level, each.text) for each in found] == [
        ("ok", "gdx-[1,3].site: the BMC answers: on"),
        ("ok", "gdx-2.site: the BMC answers: off"),
    ]
    assert not any(each.done for each in bmcs)


def test_nobody_at_an_address_is_told_apart_from_who_answers(ipmi: SoundSite, bmcs: list[Bmc], black_hole: str) -> None:
    found = found_at(ipmi, bmcs[0].address, black_hole, "127.9.8.77")
    assert [(each.level, each.text) for each in found] == [
        ("ok", "gdx-1.site: the BMC answers: on"),
        ("fail", "gdx-[2-3].site: nobody answers at the BMC's address"),
    ]
    assert "IPMI over LAN" in found[1].advice


def test_a_wrong_password_is_named_as_what_silence_may_mean(ipmi: SoundSite, bmcs: list[Bmc]) -> None:
    (ipmi.folder / "keys/bmc").write_text("wrong\n")
    (found,) = found_at(ipmi, bmcs[0].address)
    assert (found.name, found.level) == ("login", "fail")
    assert "password" in found.text + found.advice


def test_a_bmc_that_refuses_the_user_is_told_in_its_words(
    ipmi: SoundSite, refusing_bmc: Callable[[int | None], AbstractContextManager[str]]
) -> None:
    with refusing_bmc(0x0D) as first, refusing_bmc(None) as second:  # unauthorized name; silence
        found = {each.text.partition(":")[0]: each for each in found_at(ipmi, first, second)}
    assert "nauthorized name" in found["gdx-1.site"].text
    assert "stays silent at the login" in found["gdx-2.site"].text
    assert "power.user" in found["gdx-2.site"].advice


def test_a_bmc_that_speaks_redfish_alone_is_told(ipmi: SoundSite, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.9.8.78", 0)) as listening:
        monkeypatch.setattr(bmc, "_HTTPS", listening.getsockname()[1])
        ipmi.change("gdx", nodes=nodes("127.9.8.78"))
        assert "driver: redfish" in ipmi.one(bmc.check, "protocol", "warn").advice


def test_redfish_bmcs_are_asked_too(sound: SoundSite, redfish_liar: Redfish) -> None:
    sound.change("gdx", nodes=nodes(redfish_liar.url), power__driver="redfish")
    assert sound.levels(bmc.check) == {"login": "ok"}
    sound.change("gdx", nodes=nodes("http://127.9.8.79:1"), power__timeout=9)
    assert "nobody answers" in sound.one(bmc.check, "login", "fail").text


def test_a_password_file_that_cannot_be_used_is_told(sound: SoundSite) -> None:
    (sound.folder / "keys/bmc").chmod(0o644)
    assert "others may read" in sound.one(bmc.check, "password", "fail").text


@pytest.mark.parametrize(
    ("command", "level", "said"),
    [
        ("true HOSTNAME_FQDN", "ok", "says on"),
        ("false HOSTNAME_FQDN", "ok", "says off"),
        ("cat /no/such/HOSTNAME_SHORT", "fail", "No such file"),
        ("/no/such/program", "fail", "No such file"),
        ("", "warn", "not set"),
    ],
)
def test_a_command_of_the_site_is_run(sound: SoundSite, command: str, level: str, said: str) -> None:
    commands = {"hard_reboot": "true"} | ({"status": command} if command else {})
    sound.change("gdx", power={"driver": "command", "commands": commands})
    found = sound.found(bmc.check)
    assert {(each.name, each.level) for each in found} == {("status-command", level)}
    assert said in found[0].text


def test_bmcs_that_are_silent_are_waited_for_together(ipmi: SoundSite) -> None:
    silent = [f"127.9.66.{number}" for number in range(1, 61)]
    ipmi.change("gdx", nodes=nodes(*silent), power__timeout=3)
    begun = time.monotonic()
    assert ipmi.one(bmc.check, "login", "fail").text.startswith("gdx-[1-60].site: nobody answers")
    assert time.monotonic() - begun < 40  # one after the other they would take three minutes


def test_what_differs_within_a_group_is_told_of_its_first_node() -> None:
    look = Look("names", "forward")
    found: dict[str, Finding] = {f"n-{number}": look.warn("elsewhere", "correct it") for number in (10, 9, 8)}
    (one,) = grouped(found, {"n-8": "10.0.0.8", "n-9": "10.0.0.9"})
    assert one.text == "n-[8-10]: elsewhere (n-8: 10.0.0.8)"
