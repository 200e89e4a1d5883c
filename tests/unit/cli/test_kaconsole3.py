"""kaconsole3 on a real terminal: who may open a console, for how long, and what is said."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from kadeploy.caller import account, caller
from kadeploy.config.site import Site
from kadeploy.state import rights
from kadeploy.state.database import connect

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = """\
console: >-
    sh -c 'echo "console of $0 ($1)"; while read -r word; do echo "got $word"; [ "$word" != quit ] || exit 7; done'
    HOSTNAME_FQDN HOSTNAME_SHORT
"""


@pytest.fixture
def ready(site: Site, site_folder: Path) -> Site:
    """A site whose gdx nodes have a console, on one of which the caller has rights."""
    with (site_folder / "clusters" / "gdx.yml").open("a", encoding="utf-8") as file:
        file.write(COMMAND)
    connect(site)
    rights.add(site, caller().name, ["gdx-1.site", "nvm-1.site"], ["*"])
    return site


@pytest.fixture
def console(ready: Site) -> Iterator[pexpect.spawn]:
    """The console of gdx-1, opened and ready."""
    program = str(Path(sys.executable).parent / "kaconsole3")
    child = pexpect.spawn(
        program, ["-m", "gdx-1.site"], timeout=20, encoding="utf-8", env=os.environ | {"NO_COLOR": "1"}
    )
    child.expect_exact("Console of gdx-1.site; ESC typed four times leaves it.\r\n")
    child.expect_exact("console of gdx-1.site (gdx-1)")
    yield child
    child.close(force=True)


REFUSALS = {
    "no node": ((), "-m NODE"),
    "several nodes": (("-m", "gdx-[1-2].site"), "2 nodes"),
    "unknown node": (("-m", "mars-1"), "Unknown node: mars-1"),
    "no right": (("-m", "gdx-2.site"), "karights3 -a -m gdx-2.site -p /dev/sda3"),
    "no console": (("-m", "nvm-1.site"), "clusters/nvm.yml: console is not set"),
    "no terminal": (("-m", "gdx-1.site"), "ssh -t"),
    "another server": (("-m", "gdx-1.site", "--server", "lille"), "lille"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line_and_open_nothing(name: str, ready: Site, tool: Run) -> None:
    words, said = REFUSALS[name]
    done = tool("kaconsole3", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_typed_reaches_the_console_until_the_user_leaves(console: pexpect.spawn) -> None:
    console.send("word\r")
    console.expect_exact("got word")
    console.send("\x1b\x1b\x1b\x1b")
    console.expect_exact("Console closed.")
    console.expect(pexpect.EOF)
    console.wait()
    assert console.exitstatus == 0


def test_the_end_of_the_command_is_told_with_its_status(console: pexpect.spawn) -> None:
    console.send("quit\r")
    console.expect_exact("got quit")
    console.expect("ERROR: sh ended with status 7")
    console.expect(pexpect.EOF)
    console.wait()
    assert console.exitstatus == 1


def test_the_console_is_closed_when_the_rights_end(ready: Site, console: pexpect.spawn) -> None:
    """Wiki page, Kaconsole; the terminal is usable afterwards."""
    raw = termios.tcgetattr(console.child_fd)
    rights.delete(ready, caller().name, ["gdx-1.site"], ["*"])
    console.expect("ERROR: Console closed: .* does not have the right to use /dev/sda3 of gdx-1.site any more")
    restored = termios.tcgetattr(console.child_fd)
    console.expect(pexpect.EOF)
    console.wait()
    assert console.exitstatus == 1
    assert not raw[3] & termios.ECHO
    assert restored[3] & termios.ECHO


def test_rights_that_run_out_close_the_console_too(ready: Site, console: pexpect.spawn) -> None:
    who = caller().name
    rights.add(ready, who, ["*"], ["*"], until=int(time.time()) + 2)
    rights.delete(ready, who, ["gdx-1.site"], ["*"])
    console.expect("ERROR: Console closed")


# --- as whom the program runs ---------------------------------------------------------------------------------------


def opened_by(uid: int, site_folder: Path, settings: str) -> str:
    """What a console says that tells who it is, when root opens it for the user *uid* as sudo does."""
    path = site_folder / "clusters" / "gdx.yml"
    text = path.read_text(encoding="utf-8").partition("console: ")[0]
    path.write_text(f"{text}console: sh -c 'id; echo $HOME $USER; stat -c %U $(tty)'\n{settings}", encoding="utf-8")
    program = str(Path(sys.executable).parent / "kaconsole3")
    child = pexpect.spawn(
        program, ["-m", "gdx-1.site"], timeout=20, encoding="utf-8", env=os.environ | {"SUDO_UID": str(uid)}
    )
    said = child.read()
    child.close()
    return str(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for others")
@pytest.mark.parametrize(("settings", "name"), [("", "nobody"), ("console_account: games\n", "games")])
def test_the_program_never_runs_as_root_for_another_user(
    ready: Site, site_folder: Path, settings: str, name: str
) -> None:
    rights.add(ready, "nobody", ["gdx-1.site"], ["*"])
    runs_as = account(name)
    said = opened_by(account("nobody").uid, site_folder, settings)
    assert f"uid={runs_as.uid}({name}) gid={runs_as.gid}" in said
    assert "(root)" not in said
    assert f"{runs_as.home} {name}\r\n{name}\r\n" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for others")
@pytest.mark.parametrize(("who", "reason"), [("root", "root is refused"), ("nobody-at-all", "has no account")])
def test_an_account_that_may_not_run_consoles_is_refused(ready: Site, site_folder: Path, who: str, reason: str) -> None:
    rights.add(ready, "nobody", ["gdx-1.site"], ["*"])
    said = opened_by(account("nobody").uid, site_folder, f"console_account: {who}\n")
    assert "clusters/gdx.yml: console_account" in said
    assert reason in said
    assert "uid=" not in said
