"""Whatever is typed: each tool answers, or refuses in one line; no traceback, no hanging, nothing touched."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kadeploy.cli import TOOLS, manpages, shell
from kadeploy.config.site import Site
from kadeploy.state.database import connect
from kadeploy.state.tables import Claim, Workflow
from tests.unit.conftest import Tool

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

LAB = "kadeploy-lab"
LEFT_ALONE = {"--watch", "--show-completion", "-h", "--help", "-v", "--version"}
"""Options of which one never ends, and others that end at once."""
VALUES = [
    *("gdx-1.site", "gdx-1", "gdx-[1-3].site", "gdx-[1-999999999]", "[1,2,x", "[", "*", "%", "n" * 300, "-", ""),
    *("9" * 20, "9" * 5000, "-1", "0", "1", "3", "1e9", "inf", "0.5", "²", "\udcff", "é", "\u202e", "a\nb", " "),
    *("/dev/zero", "/dev/null", "/dev/full", "/dev/sda", "fifo", "binary", "empty", "text", "folder", "none/x"),
    *("linux", "public", "deploy_env", "recorded_env", "hard", "on", "hostname", "json", "2026-02-12", "9999-99-99"),
    *("2026-02-12T08:00:00+99:99", "BroadcastEnv:sync", "BootNewEnv|x:1:1", "http://", "https://[x/", "file://x"),
    *("a:b,c:d", "200+5*n", "9**9**9", "tiny", "root", "nobody", "pict.svg", "-start"),
]


@pytest.fixture
def ready(site: Site, site_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site on which the caller may do nothing, in a folder with files of every kind."""
    text = (site_folder / "site.yml").read_text(encoding="utf-8")
    (site_folder / "site.yml").write_text(f"{text.partition('almighty_users')[0]}almighty_users: [ada]\n")
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    os.mkfifo(home / "fifo")
    (home / "binary").write_bytes(bytes(range(256)))
    (home / "empty").touch()
    (home / "text").write_text("[1,2,x\n: ][ {\n", encoding="utf-8")
    monkeypatch.chdir(home)
    connect(site)
    return site


def options(command: Any) -> list[str]:
    """Options of a tool or of one of its commands, and one that is gone."""
    spelt = {word for each in command.params for word in (*each.opts, *each.secondary_opts) if word.startswith("-")}
    gone = getattr(command, "spelt", ((), ()))
    return sorted((spelt | {*gone[0], *gone[1]} | {"--debug-http"}) - LEFT_ALONE)


NEVER_ENDING = {"kadeploy3d run"}
SITE = "kadeploy-site"
OF_ROOT = {f"{SITE} {verb}" for verb in ("init", "build", "build env", "loaders", "check", "inspect", "try", "capture")}
"""Commands that write wherever a word says, take minutes, or reach out: an ordinary account types these."""
COMMANDS = {
    context.command_path: command
    for name in TOOLS
    for command, context in manpages.described(name)
    if name != LAB and context.command_path not in NEVER_ENDING | OF_ROOT
}
"""Every tool, and every command of a tool, by what is typed to call it."""


@pytest.mark.parametrize("typed_first", COMMANDS)
def test_whatever_is_typed_is_answered_or_refused_in_a_line(typed_first: str, ready: Site) -> None:
    name, *verbs = typed_first.split()
    app = manpages.tool(name)
    values = st.sampled_from(VALUES) | st.text(st.characters(exclude_characters="/\0"), max_size=6)
    words = st.lists(st.sampled_from(options(COMMANDS[typed_first])) | values, max_size=8)

    @settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
    @given(words)
    def typed(argv: list[str]) -> None:
        out, err = io.StringIO(), io.StringIO()
        stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(b"gdx-1.site\n"))
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = shell.run(app, name, [*verbs, *argv])
        finally:
            sys.stdin = stdin
        assert status in {0, 1, 2}, argv
        lines = [line for line in err.getvalue().split("\n") if line and not line.startswith("WARNING: ")]
        if status and not out.getvalue():
            assert [line for line in lines if line.startswith("ERROR: ")], argv

    typed()
    connect(ready)
    assert (Claim.select().count(), Workflow.select().count()) == (0, 0)


WORST = [
    (["kaenv3", "-p", b"\xff"], 1, "Word 2 of the command line is no text (UTF-8): '\\udcff'."),
    (["kanodes3", "-d", "-m", "9" * 5000], 1, "it has a number of more than 15 digits"),
    (["kastat3", "-a", "9" * 20], 1, "expected the number of retries"),
    (["kastat3", "-d", "-l", "9" * 20], 1, "--limit: this number is too large"),
    (["kadeploy3", "-m", "gdx-1.site", "-e", "x", "--env-version", "9" * 20], 1, "this number is too large"),
    (["kadeploy3", "-m", "gdx-1.site", "-e", "x", "-s", "n" * 300], 1, "File name too long. Name a script"),
    (["kadeploy3", "-m", "gdx-1.site", "-e", "x", "-o", "fifo"], 1, "fifo: No such device or address. Name a file"),
    (["kadeploy3", "-m", "gdx-1.site", "-e", "x", "-f", "fifo"], 1, "fifo: not a regular file"),
    (["kadeploy3", "-m", "gdx-1.site", "-e", "x", "--set-pxe-pattern", "text"], 1, "text, line 2: expected node,value"),
]


@pytest.mark.parametrize(("command", "status", "said"), WORST, ids=lambda each: str(each)[:40])
def test_what_once_ended_in_a_traceback(
    command: list[str | bytes], status: int, said: str, ready: Site, tool: Tool
) -> None:
    name, *words = command
    done = tool(str(name), *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_pattern_of_a_name_that_is_no_range_is_refused_by_that_name(ready: Site, tool: Tool) -> None:
    Path("bad").write_text("[1,2,x\n", encoding="utf-8")
    done = tool("kareboot3", "-m", "gdx-1.site", "-r", "set_pxe", "-w", "text", "--set-pxe-pattern", "bad")
    assert (done.returncode, done.stderr) == (
        1,
        "ERROR: --set-pxe-pattern: not among the nodes of this request: [1.\n",
    )


def test_streams_that_are_full_or_closed_are_no_traceback(ready: Site, tool: Tool) -> None:
    program = Path(sys.executable).parent / "kanodes3"
    for line, status, said in (
        (f"{program} -d >/dev/full", 1, "ERROR: The output cannot be written: No space left on device.\n"),
        (f"{program} -d >&-", 0, ""),
        (f"{program} -d <&- >/dev/null 2>&-", 0, ""),
        (f"{program} -d -f - <&-", 1, "ERROR: -: no node in this file (one node or range per line).\n"),
    ):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (status, said)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else's")
def test_a_state_folder_of_somebody_else_is_refused_by_its_name(ready: Site, site_folder: Path, tool: Tool) -> None:
    text = (site_folder / "site.yml").read_text(encoding="utf-8")
    for before, after in (("/state\n", "/proc/1/state\n"), ("/state/kadeploy.db", "/proc/1/kadeploy.db")):
        text = text.replace(f"{site_folder}{before}", after)
    (site_folder / "site.yml").write_text(text, encoding="utf-8")
    for words in (("kanodes3", "-d"), ("kastat3", "-d"), ("kaenv3", "-l")):
        done = tool(*words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "/proc/1/" in done.stderr


LAB_AS_USER = """
import os, sys
from contextlib import redirect_stderr
from io import StringIO
from kadeploy.cli import kadeploy_lab, shell
with redirect_stderr(StringIO()):  # so that all is imported while it may be read
    shell.run(kadeploy_lab.app, "kadeploy-lab", ["up", "--nodes", "0"])
    shell.run(kadeploy_lab.app, "kadeploy-lab", ["status", "--name", "nobodys"])
os.setgid(65534); os.setuid(65534)
for verb in ("up", "down", "build", "status", "env"):
    print(verb, shell.run(kadeploy_lab.app, "kadeploy-lab", [verb]))
print(shell.run(kadeploy_lab.app, "kadeploy-lab", ["up", "--nodes", "99999999999"]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_is_told_that_a_lab_takes_root(ready: Site) -> None:
    done = subprocess.run([sys.executable, "-c", LAB_AS_USER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[1::2][:5]) == (0, ["1", "1", "1", "1", "1"])
    assert done.stderr.count("\n") == done.stderr.count("ERROR: ") == 6
    assert done.stderr.count("run it with sudo") == 3
    assert "--nodes 99999999999: expected a number from 1 to" in done.stderr


SITE_AS_USER = """
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from kadeploy.cli import manpages, shell
app = manpages.tool("kadeploy-site")
lines = [line.split() for line in sys.stdin.read().splitlines()]
with redirect_stderr(StringIO()), redirect_stdout(StringIO()):  # so that all is imported while it may be read
    for words in lines:
        shell.run(app, "kadeploy-site", [*words, "--help"])
import os
import kadeploy.images.container, kadeploy.admin.initial, kadeploy.admin.check.topics, kadeploy.boot.loader_files
os.setgid(65534); os.setuid(65534)
for words in lines:
    print(shell.run(app, "kadeploy-site", words))
"""
SITE_LINES = [
    *("init --name x --address 10.0.0.1 --yes", "init --config /dev/null", "init --cluster x --nodes [1,2,x"),
    *("build", "build --kernel [ --yes", "build env x", "build env ../x", "build env x --from oci://[", "loaders"),
    *("try", "try gdx-9.site", "capture -x y", "capture gdx-1.site [", "capture gdx-1.site x -p /dev/sda"),
    *("capture gdx-1.site x --ssh /nowhere/ssh", "check --topic nonsense"),
    *("inspect", "inspect gdx-9.site", "inspect [", "inspect --sweep [", "inspect --sweep 10.0.0.0/8", "inspect -x"),
]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_what_root_alone_may_is_refused_in_a_line_and_so_is_nonsense(ready: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SITE_AS_USER],
        input="\n".join(SITE_LINES),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["1"] * len(SITE_LINES), done.stdout + done.stderr
    assert done.stderr.count("ERROR: ") == len(SITE_LINES)
    assert "Traceback" not in done.stderr
