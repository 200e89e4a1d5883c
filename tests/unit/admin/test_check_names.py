"""Names, addresses and cards: asked of this machine's own resolver, with names of our making."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kadeploy.admin.check import names
from kadeploy.config.cluster import Node
from tests.unit.admin.sound_site import SoundSite

SCRIPT = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'

in_private = pytest.mark.skipif(os.geteuid() != 0, reason="hosts of our own need root")


def asked(sound: SoundSite, hosts: Sequence[str]) -> list[dict[str, str]]:
    """What the tool finds where ``/etc/hosts`` has these lines and no DNS server is known."""
    files = {
        "hosts": "127.0.0.1 localhost\n" + "".join(f"{line}\n" for line in hosts),
        "resolv": "nameserver 127.9.9.9\n",
    }
    for name, text in files.items():
        (sound.folder.parent / name).write_text(text)
    tool = Path(sys.executable).with_name("kadeploy-site")
    paths = [str(sound.folder.parent / name) for name in files]
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        *paths,
        str(tool),
        "check",
        "--topic",
        "names",
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def worst(found: Sequence[dict[str, str]], name: str) -> list[tuple[str, str]]:
    return [(each["level"], each["text"]) for each in found if each["name"] == name and each["level"] != "ok"]


def hosts(count: int) -> list[str]:
    return [
        f"127.9.{1 + number // 250}.{number % 250} gdx-{number}.site gdx-{number}" for number in range(1, count + 1)
    ]


@in_private
def test_names_that_lead_to_their_nodes_and_back_are_sound(sound: SoundSite) -> None:
    found = asked(sound, hosts(4))
    assert {each["level"] for each in found} == {"ok"}
    assert {each["name"] for each in found} == {"mac", "twice", "forward", "reverse", "route"}


@in_private
def test_a_name_of_another_address_is_told_with_both(sound: SoundSite) -> None:
    lines = hosts(4)
    lines[1] = "127.9.1.22 gdx-2.site gdx-2"
    found = asked(sound, lines)
    (forward,) = worst(found, "forward")
    assert forward == (
        "warn",
        "gdx-2.site: the name resolves to another address than the cluster file has (127.9.1.22, not 127.9.1.2)",
    )
    assert worst(found, "reverse") == [("warn", "gdx-2.site: the address has no name")]


@in_private
def test_an_address_with_the_name_of_another_machine_is_told(sound: SoundSite) -> None:
    found = asked(sound, [*hosts(3), "127.9.1.4 elsewhere.site", "127.9.1.4 gdx-4.site"])
    (reverse,) = worst(found, "reverse")
    assert reverse[1].startswith("gdx-4.site: the address has the name of another machine (elsewhere.site")


@in_private
def test_names_that_do_not_resolve_are_wrong_where_nodes_are_reached_by_name(sound: SoundSite) -> None:
    assert worst(asked(sound, hosts(2)), "forward") == [("warn", "gdx-[3-4].site: the name does not resolve")]
    sound.change("site", use_address=False)
    ((level, text),) = worst(asked(sound, hosts(2)), "forward")
    assert (level, text.partition(":")[0]) == ("fail", "gdx-[3-4].site")


@in_private
def test_a_thousand_nodes_are_asked_for_within_seconds(sound: SoundSite) -> None:
    ranges = [
        {"name": f"gdx-[{first}-{last}].site", "address": f"127.9.{1 + first // 250}.[{first % 250}-{last % 250}]"}
        for first, last in ((1, 249), (250, 499), (500, 749), (750, 999))
    ]
    sound.change("gdx", nodes=ranges)
    begun = time.monotonic()
    found = asked(sound, hosts(999))
    assert time.monotonic() - begun < 30
    assert ("ok", "gdx-[1-999].site: the name resolves to the node's address") in [
        (each["level"], each["text"]) for each in found
    ]


def test_resolvers_that_never_answer_cost_one_time_limit_in_all() -> None:
    gate = threading.Event()

    asked = []

    def ask(node: Node) -> names._Answer:
        asked.append(node.name)
        if node.name != "n-1":
            gate.wait()
        return names._Answer(("10.0.0.1",))

    nodes = [Node(name=f"n-{number}") for number in range(1, 501)]
    begun = time.monotonic()
    answers = names.in_threads(nodes, ask, 0.3)
    assert time.monotonic() - begun < 3
    assert set(answers) == {"n-1"}
    gate.set()
    time.sleep(0.2)
    assert len(asked) == names.THREADS + 1  # nobody is asked when the time is over


def test_late_answers_are_told_as_such(sound: SoundSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "LIMIT", 0.0)
    found = [each for each in sound.found(names.check) if each.name == "forward"]
    assert [(each.level, each.text.partition(":")[0]) for each in found] == [("warn", "gdx-[1-4].site")]


def test_nodes_without_a_card_are_told(sound: SoundSite) -> None:
    sound.change("gdx", nodes=[{"name": "n-1", "address": "127.9.1.1", "bmc": "127.9.8.1"}])
    assert sound.one(names.check, "mac", "warn").text.startswith("n-1 has no mac")


@pytest.mark.parametrize(
    ("bmc", "said"),
    [("127.9.1.1", "127.9.1.1 is the address of gdx-1.site and the BMC of gdx-1.site"), ("SERVER", "server_address")],
)
def test_an_address_that_stands_for_two_things_is_told(sound: SoundSite, bmc: str, said: str) -> None:
    server = str(sound.subject().site.server_address)
    where = bmc.replace("SERVER", server)
    sound.change("gdx", nodes=[{"name": "gdx-1.site", "address": "127.9.1.1", "bmc": where}])
    assert said in sound.one(names.check, "twice", "fail").text


@in_private
def test_nodes_to_which_no_route_leads_are_told(sound: SoundSite) -> None:
    sound.change(
        "gdx", nodes=[{"name": "n-1", "address": "198.51.100.1", "bmc": "127.9.8.1", "mac": "52:54:00:00:00:01"}]
    )
    tool = Path(sys.executable).with_name("kadeploy-site")
    command = ["unshare", "--net", str(tool), "check", "--topic", "names", "--format", "json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert worst(found, "route") == [("fail", "n-1: there is no route to the address")]
