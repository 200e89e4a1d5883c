"""The TAB key: what is offered, and the shells themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from kadeploy.cli import TOOLS, completion
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import OptionError
from kadeploy.state import database
from kadeploy.state.tables import EnvironmentRow

HOSTILE = "$(touch pwned)"
"""A name that another user chose for a public environment, to run something in a shell that completes it."""


def offers(tool: Any, *words: str, **variables: str) -> list[str]:
    """What the tool *words[0]* offers for the last word."""
    typed = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1), completion.VARIABLE: "complete_bash"}
    done = tool(words[0], **typed, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line]


@pytest.fixture
def recorded(site: Site) -> Site:
    """A site with environments of the caller and of others."""
    database.connect(site)
    me = load_site().almighty_users[0]
    for name, user, visibility in (
        ("debian-mine", me, "private"),
        ("debian-mine", me, "shared"),
        ("debian-public", "bob", "public"),
        ("debian-shared", "bob", "shared"),
        ("debian-hidden", "bob", "private"),
        ("FreeBSD 7.1", me, "private"),
        (HOSTILE, "bob", "public"),
    ):
        version = EnvironmentRow.select().where(EnvironmentRow.name == name).count() + 1
        image = '{"file": "/srv/image.tgz", "kind": "tgz"}'
        EnvironmentRow.insert(name=name, user=user, visibility=visibility, version=version, image=image).execute()
    return site


@pytest.fixture
def of_architectures(site: Site) -> Site:
    """Debian for two architectures, and an environment for one."""
    database.connect(site)
    for name, arch in (("debian12", "aarch64"), ("debian12", "x86_64"), ("rocky9", "x86_64")):
        columns = {"image": '{"file": "/srv/image.tgz", "kind": "tgz"}', "user": load_site().almighty_users[0]}
        EnvironmentRow.insert(name=name, arch=arch, second_name=f"{name}-{arch}", **columns).execute()
    return site


# --- offers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("kanodes3", "-d", "-m", "nvm-"),
        ("kadeploy3", "-k", "-m", "nvm-"),
        ("kapower3", "--on", "--machine", "nvm-"),
        ("kaconsole3", "-m", "nvm-"),
        ("karights3", "-a", "-m", "nvm-"),
        ("kareboot3", "--server", "lille", "-m", "nvm-"),
        ("kastat3", "-v", "-m", "nvm-"),
        ("kanodes3", "--no-such-option", "-m", "nvm-"),
    ],
)
def test_nodes_are_offered_whatever_stands_before(tool: Any, site_folder: Path, words: tuple[str, ...]) -> None:
    assert offers(tool, *words) == [f"nvm-{rank}.site" for rank in (1, 2, 3, 4)]


@pytest.mark.usefixtures("of_architectures")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("deb", ["debian12", "debian12%aarch64", "debian12%x86_64", "debian12-aarch64", "debian12-x86_64"]),
        ("debian12%x", ["debian12%x86_64"]),
        ("rocky", ["rocky9", "rocky9-x86_64"]),
        ("rocky9%", ["rocky9%x86_64"]),
    ],
)
def test_architectures_and_aliases_are_offered_where_they_help(tool: Any, typed: str, offered: list[str]) -> None:
    assert offers(tool, "kadeploy3", "-e", typed) == offered


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("kaenv3", "-p", "debian"), ["debian-mine", "debian-public"]),
        (("kadeploy3", "-e", "deb"), ["debian-mine", "debian-public"]),
        (("kadeploy3", "-u", "bob", "-e", "debian"), ["debian-public", "debian-shared"]),
        (("kareboot3", "-e", r"FreeBSD\ 7"), ["FreeBSD 7.1"]),
        (("kaenv3", "--update-tarball-md5", "'Free"), ["FreeBSD 7.1"]),
    ],
)
def test_environments_that_the_caller_sees_are_offered(
    tool: Any, recorded: Site, words: tuple[str, ...], names: list[str]
) -> None:
    assert offers(tool, *words) == names


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("kaenv3", "--update"), ["--update-tarball-md5", "--update-preinstall-md5", "--update-postinstalls-md5"]),
        (("kaenv3", "-t", "p"), ["private", "public"]),
        (("kaenv2to3", "-k", ""), ["linux", "xen", "other"]),
        (("kapower3", "-l", ""), ["soft", "hard", "very_hard"]),
        (("kastat3", "-f", "retry"), ["retry_step1", "retry_step2", "retry_step3"]),
        (("kanodes3", "--show-completion", ""), ["bash", "zsh", "fish"]),
        (("kadeploy-lab", "st"), ["status"]),
    ],
)
def test_options_and_words_are_offered(tool: Any, words: tuple[str, ...], names: list[str]) -> None:
    assert offers(tool, *words, KADEPLOY_CONFIG_DIR="/nowhere") == names


@pytest.mark.parametrize("words", [("kanodes3", "-m", "gdx-1"), ("kaenv3", "-p", "debian"), ("kanodes3", "-m", "'")])
@pytest.mark.parametrize("site_text", [None, "{", "name: [paris]\n"])
def test_what_is_wrong_is_not_said_at_the_prompt(
    tool: Any, tmp_path: Path, words: tuple[str, ...], site_text: str | None
) -> None:
    if site_text is not None:
        (tmp_path / "site.yml").write_text(site_text, encoding="utf-8")
    assert offers(tool, *words, KADEPLOY_CONFIG_DIR=str(tmp_path)) == []


# --- scripts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_one_script_serves_all_tools(tool: Any, shell: str) -> None:
    done = tool("kastat3", "--show-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in TOOLS)


def test_the_login_shell_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert completion.script() == completion.script("fish")
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    with pytest.raises(OptionError, match="expected bash, zsh, fish"):
        completion.script()


START = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(kadeploy3 --show-completion bash)"'),
    "zsh": (["-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$(kadeploy3 --show-completion zsh)"'),
    "fish": (["--no-config", "-i"], "kadeploy3 --show-completion fish | source"),
}


@pytest.fixture(params=START)
def prompt(request: pytest.FixtureRequest, recorded: Site, tmp_path: Path) -> Iterator[Any]:
    """A shell that has evaluated its script, and waits for keys."""
    options, script = START[request.param]
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    terminal = pexpect.spawn(
        request.param,
        options,
        env=variables | {"TERM": "xterm"},
        cwd=tmp_path,
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 200),
    )
    terminal.sendline(f"{script}; echo rea''dy")
    terminal.expect("ready")
    yield terminal
    terminal.close(force=True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("keys", "printed"),
    [
        ("kaenv3 -p Free\t", "name : FreeBSD 7.1"),
        ("kaenv3 -p 'Free\t", "name : FreeBSD 7.1"),
        ("kaenv3 --format json --pr\tFree\t", '"name": "FreeBSD 7.1"'),
        ("kaenv3 -a nod\t", "nodes.dsc, line 1"),
    ],
)
def test_the_shell_inserts_what_the_tool_offers(prompt: Any, tmp_path: Path, keys: str, printed: str) -> None:
    (tmp_path / "nodes.dsc").write_text("no description\n", encoding="utf-8")
    *first, last = keys.split("\t")[:-1]
    for part in (*first, last):
        prompt.send(f"{part}\t")
        prompt.expect(r"(?s).+", timeout=60)
        settle(prompt)
    prompt.send("\r")
    prompt.expect_exact(printed)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_name_does_nothing_to_the_shell_that_completes_it(prompt: Any, tmp_path: Path) -> None:
    prompt.send(r"kaenv3 -u bob -p \$" + "\t")
    settle(prompt)
    prompt.send("\r")
    prompt.expect_exact(f"name : {HOSTILE}")
    assert not (tmp_path / "pwned").exists()


def settle(terminal: Any, quiet: float = 1.5) -> None:
    """Wait until the shell has written nothing for *quiet* seconds."""
    while terminal.expect([r"(?s).+", pexpect.TIMEOUT], timeout=quiet) == 0:
        pass
