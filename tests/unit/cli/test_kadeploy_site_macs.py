"""kadeploy-site inspect --macs: the site's own operation reboots nodes in turn, and what their cards ask is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kadeploy.config.folder import load_configuration

if TYPE_CHECKING:
    from tests.unit.admin.sound_site import SoundSite
    from tests.unit.conftest import Tool

pytest_plugins = ["tests.unit.admin.sound_site"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone hears all packets")

KNOWN, NEW = "52:54:00:00:00:09", "52:54:00:00:00:01"
REBOOT = """\
import socket, sys, time
from kadeploy.admin.dhcp import packet
time.sleep(0.3)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
    for mac in {"gdx-1": ("52:54:00:00:00:09", "52:54:00:00:00:01")}.get(sys.argv[1], ()):
        mouth.sendto(packet.discover(7, mac, packet.UEFI), ("127.0.0.1", packet.SERVER_PORT))
sys.exit(sys.argv[1] == "gdx-3")
"""
"""What stands for power and firmware: gdx-1 asks, and so does a known node; gdx-2 says nothing, gdx-3 has no power."""


@pytest.fixture
def site(sound: SoundSite, tool: Tool) -> SoundSite:
    """The site, of whose first three nodes no card is known."""
    program = sound.folder / "reboot.py"
    program.write_text(REBOOT)
    nodes: list[dict[str, str]] = [{"name": "gdx-[1-3].site", "address": "127.9.1.[1-3]"}]
    nodes.append({"name": "gdx-9.site", "address": "127.9.1.9", "mac": KNOWN})
    how = {"driver": "command", "commands": {"hard_reboot": f"{sys.executable} {program} HOSTNAME_SHORT"}}
    sound.change("gdx", nodes=nodes, power=how)
    done = tool("karights3", "-a", "-m", "gdx-[1-3].site,gdx-9.site", "-p", "*", "-u", "root")
    assert done.returncode == 0, done.stderr
    return sound


def test_the_card_of_each_node_that_asks_is_written_and_the_others_are_told(site: SoundSite, tool: Tool) -> None:
    file = site.folder / "clusters/gdx.yml"
    before = file.read_text()
    words = ("inspect", "--macs", "gdx-[1-3].site", "gdx-9.site", "--timeout", "5", "--format", "json")
    done = tool("kadeploy-site", *words)
    told = json.loads(done.stdout)
    assert (done.returncode, told["macs"], told["written"]) == (3, {"gdx-1.site": NEW}, False), done.stderr
    assert "its card was not heard within 5 s" in told["ko"]["gdx-2.site"]
    assert "hard_reboot" in told["ko"]["gdx-3.site"]
    assert [each["name"] for each in told["findings"]] == ["firmware", "boot", "boot"]
    assert file.read_text() == before

    done = tool("kadeploy-site", "inspect", "--macs", "gdx-1", "gdx-9", "--yes")
    assert done.returncode == 0, done.stderr
    assert "rebooting from the network, and listening on lo" in done.stderr
    assert "Next: kadeploy-site dhcp" in done.stdout
    members = load_configuration(site.folder).clusters["gdx"].members
    assert [members[f"gdx-{rank}.site"].mac for rank in (1, 2, 3, 9)] == [NEW, "", "", KNOWN]
    again = tool("kadeploy-site", "inspect", "--macs", "gdx-1", "--yes")
    assert (again.returncode, again.stdout) == (0, "The cluster file says so already.\n")


def test_a_node_that_is_refused_costs_no_other_one(site: SoundSite, tool: Tool) -> None:
    assert tool("karights3", "-d", "-m", "gdx-2.site", "-p", "*", "-u", "root").returncode == 0
    done = tool("kadeploy-site", "inspect", "--macs", "gdx-2", "gdx-1", "--yes", "--format", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["macs"], told["written"]) == (3, {"gdx-1.site": NEW}, True), done.stderr
    assert "does not have the right" in told["ko"]["gdx-2.site"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_who_leaves_keeps_what_was_learned(site: SoundSite, number: signal.Signals) -> None:
    command = [Path(sys.executable).parent / "kadeploy-site", "inspect", "--macs", "gdx-1", "gdx-2", "--yes"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asked:
        assert asked.stderr is not None
        assert any("gdx-2.site: rebooting" in line for line in asked.stderr)
        asked.send_signal(number)
        output, said = asked.communicate(timeout=60)
    assert asked.returncode == 130, said
    assert "Interrupted: gdx-2.site are still to be asked" in said
    assert "Written: " in output
    members = load_configuration(site.folder).clusters["gdx"].members
    assert [members[f"gdx-{rank}.site"].mac for rank in (1, 2)] == [NEW, ""]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--macs", "gdx-1", "--stay"), "leave out --sweep, --no-reboot and --stay"),
        (("--macs", "--sweep", "127.9.8.1"), "leave out --sweep"),
        (("--macs", "gdx-1", "--timeout", "20+n"), "it is a number of seconds, such as 300"),
        (("--macs", "gdx-1", "--interface", "loo"), "no network interface 'loo'"),
        (("gdx-1", "--interface", "lo"), "--interface goes with --macs alone"),
        (("--macs",), "Name the nodes to inspect"),
    ],
)
def test_what_cannot_work_is_refused_before_any_node_is_rebooted(
    site: SoundSite, tool: Tool, words: tuple[str, ...], said: str
) -> None:
    done = tool("kadeploy-site", "inspect", *words)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert "rebooting" not in done.stderr
