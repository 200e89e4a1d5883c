"""The TAB key: what is offered, and the shells themselves."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pytest

from kadeploy.cli import TOOLS, completion
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import OptionError
from kadeploy.lab.lab import MARKER, Lab
from kadeploy.state import database, rights
from kadeploy.state.tables import EnvironmentRow, Workflow
from tests.unit.conftest import STRANGE

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


@pytest.fixture
def lived_in(recorded: Site) -> Site:
    """A site with a user who has rights, an operation that runs and one that has ended."""
    rights.add(recorded, "zoe", ["*"], ["*"])
    for wid, ended in (("D-running", None), ("R-ended", 1_700_000_060)):
        controller = {"host": "elsewhere", "pid": 1, "process_start": "1", "boot_id": "b", "seen": 1_700_000_000}
        columns = {"operation": "deploy", "user": "zoe", "started": 1_700_000_000, "ended": ended}
        Workflow.insert(wid=wid, **columns, **controller).execute()
    return recorded


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("kadeploy3", "--breakpoint", "Broad"), ["BroadcastEnv", "BroadcastEnvChain"]),
        (
            ("kadeploy3", "--breakpoint", "BroadcastEnv:s"),
            ["BroadcastEnv:send_environment", "BroadcastEnv:send_key", "BroadcastEnv:sync"],
        ),
        (("kadeploy3", "--breakpoint=BroadcastEnvChain:sy"), ["--breakpoint=BroadcastEnvChain:sync"]),
        (("kadeploy3", "-p", ""), ["1", "2", "3", "5"]),
        (("kadeploy3", "-m", "gdx-[1-3].site", "-p", ""), ["2", "3", "5"]),
        (("kareboot3", "-m", "nvm-1", "-p", ""), ["1", "2"]),
        (("kadeploy3", "-m", "nvm-1.site", "-b", ""), ["/dev/nvme0n1"]),
        (("kadeploy3", "-r", "ext"), ["ext2", "ext3", "ext4"]),
        (("kadeploy3", "-u", "b"), ["bob"]),
        (("kaenv3", "-l", "-u", "b"), ["bob"]),
        (("kadeploy3", "-m", "nvm-1.site,nvm-2"), ["nvm-1.site,nvm-2.site"]),
        (("kareboot3", "simple"), ["simple_reboot"]),
        (("kapower3", "o"), ["on", "off"]),
        (("karights3", "-a", "-m", "nvm-1", "-p", ""), ["/dev/nvme0n1p1", "/dev/nvme0n1p2", "*"]),
        (("karights3", "-a", "-p", "/dev/sda"), ["/dev/sda1", "/dev/sda2", "/dev/sda3", "/dev/sda5"]),
        (("karights3", "-a", "-u", "roo"), ["root"]),
        (("karights3", "-s", "-u", "zo"), ["zoe"]),
        (("kanodes3", "-y", "-w", ""), ["D-running", "R-ended"]),
        (("kastat3", "-d", "-w", "R-"), ["R-ended"]),
        (("kastat3", "-d", "-F", "user,hostn"), ["user,hostname"]),
        (("kastat3", "-d", "--sort", "user,-sta"), ["user,-start"]),
        (("kastat3", "-d", "--sort=sta"), ["--sort=start"]),
        (("kastat3", "-d", "--sort=-sta"), []),
        (("kastat3", "-a", "-s", ""), ["1", "2", "3"]),
    ],
)
def test_what_an_option_takes_is_offered(tool: Any, lived_in: Site, words: tuple[str, ...], names: list[str]) -> None:
    assert offers(tool, *words) == names


@pytest.mark.skipif(os.getuid() != 0, reason="takes another user's place")
def test_whoever_is_no_administrator_is_not_offered_who_has_rights(tool: Any, lived_in: Site) -> None:
    assert offers(tool, "karights3", "-s", "-u", "zo", SUDO_UID="65534") == []


def test_labs_and_their_nodes_and_logs_are_offered(tool: Any, tmp_path: Path) -> None:
    lab = Lab(name="tabtest", nodes=3, folder=str(tmp_path / "lab"))
    lab.logs.mkdir(parents=True)
    (lab.logs / "dhcp.log").touch()
    (lab.root / MARKER).write_bytes(msgspec.json.encode(lab))
    place = ("--name", "tabtest", "--folder", lab.folder)
    assert offers(tool, "kadeploy-lab", "ssh", *place, "node-") == ["node-1", "node-2", "node-3"]
    assert offers(tool, "kadeploy-lab", "console", *place, "node-3") == ["node-3"]
    assert offers(tool, "kadeploy-lab", "logs", *place, "") == ["node-1", "node-2", "node-3", "dhcp"]
    assert offers(tool, "kadeploy-lab", "ssh", "--name", "no-such-lab", "node-") == []


@pytest.mark.skipif(os.getuid() != 0, reason="labs are root's")
def test_the_labs_of_this_machine_are_offered(tool: Any) -> None:
    lab = Lab(name="tabtest-run")
    lab.run.mkdir(parents=True)
    try:
        (lab.run / MARKER).write_bytes(msgspec.json.encode(lab))
        assert offers(tool, "kadeploy-lab", "down", "--name", "tabtest-r") == ["tabtest-run"]
    finally:
        shutil.rmtree(lab.run)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("kadeploy-lab", "up", "--kind", ""), ["vm", "light", "sim"]),
        (("kadeploy-lab", "up", "--environments", "tiny,deb"), ["tiny,debian12-min"]),
        (("kadeploy-lab", "up", "--faults", "bmc-i"), ["bmc-idle"]),
        (("kadeploy-lab", "power", "re"), ["reset"]),
    ],
)
def test_words_of_the_lab_are_offered(tool: Any, words: tuple[str, ...], names: list[str]) -> None:
    assert offers(tool, *words, KADEPLOY_CONFIG_DIR="/nowhere") == names


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_that_hangs_does_not_hold_back_the_prompt(tool: Any, site_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = site_folder / "site.yml"
        text = file.read_text(encoding="utf-8")
        database = f"database: postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        file.write_text(re.sub("database:.*", database, text), encoding="utf-8")
        start = time.monotonic()
        assert offers(tool, "kaenv3", "-p", "deb") == []
        assert completion.PATIENCE <= time.monotonic() - start < completion.PATIENCE + 10


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
    "zsh without compinit": (["-f", "-i"], 'eval "$(kadeploy3 --show-completion zsh)"'),
    "fish": (["--no-config", "-i"], "kadeploy3 --show-completion fish | source"),
}


@pytest.fixture(scope="module", params=START)
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A shell that has evaluated its script, which takes longer than what it is asked then."""
    options, script = START[request.param]
    home = tmp_path_factory.mktemp("home")
    ours = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home), "TERM": "xterm"}
    terminal = pexpect.spawn(
        request.param.split()[0],
        options,
        env={name: value for name, value in os.environ.items() if name not in STRANGE} | ours,
        cwd=home,
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 200),
    )
    terminal.sendline(script)
    yield terminal
    terminal.close(force=True)


@pytest.fixture
def prompt(shell: Any, recorded: Site, site_folder: Path, tmp_path: Path) -> Any:
    """The shell in the test's folder, with the site of the test alone; it waits for keys."""
    shell.sendline(f"cd {tmp_path}; export TZ=UTC KADEPLOY_CONFIG_DIR={site_folder}; echo '{tmp_path.name}' 'is ready'")
    shell.expect_exact(f"{tmp_path.name} is ready")
    return shell


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("keys", "printed"),
    [
        ("kaenv3 -p Free\t", "name : FreeBSD 7.1"),
        ("kaenv3 -p 'Free\t", "name : FreeBSD 7.1"),
        ("kaenv3 --format json --pr\tFree\t", '"name": "FreeBSD 7.1"'),
        ("kaenv3 -a nod\t", "nodes.dsc, line 1"),
        ("true; kaenv3 -p Free\t", "name : FreeBSD 7.1"),
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
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("kadeploy3 --breakpoint BroadcastEnvChain:sy", "<kadeploy3><--breakpoint><BroadcastEnvChain:sync>"),
        ("kadeploy3 --breakpoint=BroadcastEnvChain:sy", "<kadeploy3><--breakpoint=BroadcastEnvChain:sync>"),
        ("kastat3 -d -F user,hostn", "<kastat3><-d><-F><user,hostname>"),
        ("karights3 -p /dev/nvme0n1p2 -u roo", "<karights3><-p></dev/nvme0n1p2><-u><root>"),
        ("kareboot3 -m nvm-1.site simp", "<kareboot3><-m><nvm-1.site><simple_reboot>"),
    ],
)
def test_the_word_is_completed_whatever_signs_are_in_it(prompt: Any, keys: str, words: str) -> None:
    prompt.send(f"{keys}\t")
    settle(prompt)
    prompt.send("\x01printf '<%s>' \r")
    prompt.expect_exact(words)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_site_that_cannot_be_read_leaves_the_prompt_as_it_is(prompt: Any, site_folder: Path) -> None:
    (site_folder / "site.yml").write_text("{", encoding="utf-8")
    prompt.send("kadeploy3 -e debian-mi\t")
    settle(prompt)
    prompt.send("\x01printf '<%s>' \r")
    prompt.expect_exact("<kadeploy3><-e><debian-mi>")
    assert not re.search("rror|Traceback|Alarm", prompt.before)


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
