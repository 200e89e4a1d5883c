"""kadeploy-site inspect: what a sweep proposes is shown, asked for and written; wrong words are refused before that."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest
import yaml

from kadeploy.config.folder import load_configuration

if TYPE_CHECKING:
    from tests.unit.admin.sound_site import SoundSite
    from tests.unit.bmc import Bmc
    from tests.unit.conftest import Tool

pytest_plugins = ["tests.unit.admin.sound_site", "tests.unit.bmc"]

SWEEP = ("inspect", "--sweep", "127.9.8.[1-2]")
NEW = ("gdx-9.site", "--addresses", "127.9.1.9")


@pytest.fixture
def site(sound: SoundSite, bmcs: list[Bmc]) -> SoundSite:
    """The site; a BMC that it does not know of is at the first address, and one that it knows of is silent."""
    from tests.unit.bmc import PASSWORD, USER

    sound.change("gdx", power__user=USER, power__driver="ipmi", power__port=bmcs[0].port, power__address=None)
    sound.change("gdx", nodes=[{"name": "gdx-1.site", "address": "127.9.1.1", "bmc": "127.9.8.2"}])
    (sound.folder / "keys/bmc").write_text(f"{PASSWORD}\n")
    (sound.folder / "clusters/gdx.yml").chmod(0o640)
    return sound


def test_a_sweep_proposes_and_what_is_written_is_shown_before(site: SoundSite, tool: Tool) -> None:
    file = site.folder / "clusters/gdx.yml"
    before = file.read_text()
    done = tool("kadeploy-site", *SWEEP)
    assert done.stdout.splitlines() == [
        "new   127.9.8.1  of no cluster file: Acme Roadrunner 9 serial SN-0042",
        "fail  127.9.8.2  gdx-1.site: nobody answers",
        "Choose names, in the order of these addresses:  kadeploy-site inspect --sweep '127.9.8.[1-2]' --cluster gdx "
        "--addresses … 'gdx-1'",
    ]
    assert (done.returncode, file.read_text()) == (0, before)

    done = tool("kadeploy-site", *SWEEP, *NEW, "--format", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["written"], told["proposed"]) == (2, False, ["127.9.8.1"])
    assert "+- {name: gdx-9.site, address: 127.9.1.9, bmc: 127.9.8.1}" in told["changes"][str(file)]
    assert "Say --yes" in done.stderr
    assert file.read_text() == before

    done = tool("kadeploy-site", *SWEEP, *NEW, "--yes")
    assert done.returncode == 0, done.stderr
    assert f"Written: {file}" in done.stdout
    assert load_configuration(site.folder).clusters["gdx"].members["gdx-9.site"].bmc == "127.9.8.1"
    assert file.stat().st_mode & 0o777 == 0o640
    again = tool("kadeploy-site", *SWEEP)
    assert again.stdout.splitlines()[0] == "ok    127.9.8.1  gdx-9.site: Acme Roadrunner 9 serial SN-0042"


@pytest.mark.parametrize(("answer", "status"), [("n", 2), ("y", 0)])
def test_at_a_terminal_it_is_asked(site: SoundSite, answer: str, status: int) -> None:
    program = Path(sys.executable).parent / "kadeploy-site"
    environment = os.environ | {"TERM": "xterm"}
    child = pexpect.spawn(str(program), [*SWEEP, *NEW], env=environment, encoding="utf-8", timeout=60)
    child.expect("Change the cluster file so")
    assert "\x1b[32m+- {name: gdx-9.site" in (child.before or "")
    child.sendline(answer)
    child.read()
    child.close()
    assert child.exitstatus == status
    names = [part["name"] for part in yaml.safe_load((site.folder / "clusters/gdx.yml").read_text())["nodes"]]
    assert ("gdx-9.site" in names) == (status == 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Name the nodes to inspect, or a range of BMCs with --sweep"),
        (("gdx-99",), "Unknown node: gdx-99"),
        (("gdx-[1-",), "Invalid node range"),
        (("gdx-1", "--addresses", "10.0.0.1"), "--addresses goes with --sweep alone"),
        (("gdx-1", "--cluster", "gdx"), "--cluster goes with --sweep alone"),
        (("--sweep", "127.9.8.1", "--stay"), "asks BMCs alone and boots no node"),
        (("--sweep", "127.9.8.1", "--cluster", "gdy"), "Did you mean gdx?"),
        (("--sweep", "10.0.3"), "expected addresses, such as 10.0.3.[1-254]"),
        (("--sweep", "127.9.8.1", "--addresses", "10.0.0.1"), "name the machines as well"),
        (("--sweep", "127.9.8.1", "gdx-1.site", "--yes"), "gdx-1.site is listed twice"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line_and_nothing_is_written(
    site: SoundSite, tool: Tool, words: tuple[str, ...], said: str
) -> None:
    before = (site.folder / "clusters/gdx.yml").read_bytes()
    done = tool("kadeploy-site", "inspect", *words)
    assert done.returncode == 1, done.stdout
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ERROR:")
    assert (site.folder / "clusters/gdx.yml").read_bytes() == before
