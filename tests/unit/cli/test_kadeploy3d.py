"""kadeploy3d: tokens and passwords, as administrators make, list and take them away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml

from kadeploy.cli import kadeploy3d, shell
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.server.htpasswd import Htpasswd
from kadeploy.state import database, rights, tokens
from kadeploy.state.tables import Token
from tests.unit.conftest import Tool

NAME = "kadeploy3d"
LATER = ("--until", "2999-12-31")


def run(*argv: str) -> int:
    return shell.run(kadeploy3d.app, NAME, argv)


@pytest.fixture
def htpasswd(site_folder: Path, tmp_path: Path) -> Path:
    """The file that the site names; it is not there yet."""
    file = site_folder / "site.yml"
    path = tmp_path / "htpasswd"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}service: {{htpasswd: {path}}}\n", encoding="utf-8")
    return path


@pytest.fixture
def known(site: Site) -> Site:
    """A site on which alice has rights, so that nobody warns of her name."""
    rights.add(site, "alice", ["gdx-1.site"], ["*"])
    return site


# --- tokens -----------------------------------------------------------------------------------------------------


def test_a_token_is_made_found_listed_and_revoked_by_processes(tool: Tool, known: Site) -> None:
    made = tool(NAME, "token", "create", "alice", *LATER, "--note", "CI of paris")
    assert (made.returncode, made.stderr) == (0, "")
    assert re.fullmatch(r"kd3_[a-z2-7]{16}_[a-z2-7]{52}\n", made.stdout), "the token is alone on standard output"
    text = made.stdout.strip()
    assert tokens.find(known, text) == "alice"
    shown = tool(NAME, "token", "list")
    used = time.strftime("%Y-%m-%d", time.localtime())
    line = (
        rf"{tokens.id_of(text)}  alice {{11}}valid    until 2999-12-31 23:59  used {used} \d\d:\d\d {{2}}CI of paris\n"
    )
    assert re.fullmatch(line, shown.stdout)
    assert text.rpartition("_")[2] not in shown.stdout
    gone = tool(NAME, "token", "revoke", tokens.id_of(text))
    assert (gone.returncode, gone.stdout, gone.stderr) == (0, "", "")
    assert "alice           revoked" in tool(NAME, "token", "list", "alice").stdout


def test_a_token_that_somebody_has_found_is_revoked_as_it_is(known: Site, capsys: pytest.CaptureFixture[str]) -> None:
    text = tokens.create(known, "alice", 2**33)
    assert run("token", "revoke", text) == 0
    assert [each.revoked is None for each in tokens.listed(known)] == [False]


def test_tokens_are_listed_for_programs(known: Site, capsys: pytest.CaptureFixture[str]) -> None:
    tokens.create(known, "alice", 2**33, "é")
    tokens.create(known, "bob", 1)
    for form, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        assert run("token", "list", "--format", form) == 0
        [alice, bob] = load(capsys.readouterr().out)
        assert set(alice) == {"id", "user", "note", "created", "until", "used", "revoked", "state"}
        assert [alice[key] for key in ("user", "note", "until", "used", "revoked", "state")] == [
            *("alice", "é", 2**33, None, None, "valid"),
        ]
        assert (bob["user"], bob["state"]) == ("bob", "over")
    assert run("token", "list", "--format", "json", "carol") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_no_token_is_told_beside_the_output(known: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("token", "list", "bob") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "There are no tokens of bob.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "alice"), "Missing option '--until'. See kadeploy3d token create --help"),
        (("create", "alice", "--until", "tomorrow"), "--until tomorrow: not a date. Expected yyyy:mm:dd"),
        (("create", "alice", "--until", "2020-01-01"), "--until 2020-01-01: this date is over."),
        (("create", "../alice", *LATER), "'../alice' is no name of a user: it has no blanks, no / or :"),
        (("create", "", *LATER), "'' is no name of a user"),
        (("create", "a" * 256, *LATER), "is no name of a user"),
        (("create", "alice", *LATER, "--note", "a\nb"), "--note: expected one line of at most 255 characters."),
        (("create", "alice", *LATER, "--note", "x" * 256), "--note: expected one line"),
        (("revoke", "nothing"), "The token nothing is not revoked: there is none, see kadeploy3d token list."),
        (("creat", "alice"), "There is no command creat. The commands are create, list, revoke. Did you mean create?"),
        (
            ("create", "alice", "--untl", "2999-12-31"),
            "There is no option --untl. Did you mean --until? See kadeploy3d",
        ),
        (("list", "--format", "jsn"), "--format jsn: expected one of text, json, yaml. Did you mean json?"),
        ((), "Missing command. See kadeploy3d token --help"),
    ],
)
def test_what_is_refused_leaves_no_token(
    known: Site, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("token", *words) == 1
    assert f"ERROR: {said}" in capsys.readouterr().err.replace("'" + "a" * 60 + "' ", "")
    assert Token.select().count() == 0


def test_a_mistyped_id_is_refused_with_the_one_that_was_meant_and_a_second_time_as_done(
    known: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tokens.id_of(tokens.create(known, "alice", 2**33))
    assert run("token", "revoke", name[:-1]) == 1
    assert f"Did you mean {name}?" in capsys.readouterr().err
    assert run("token", "revoke", name) == 0
    assert run("token", "revoke", name) == 1
    assert f"ERROR: The token {name} is not revoked: it was revoked before.\n" in capsys.readouterr().err


def test_a_name_that_nobody_has_is_warned_of_and_taken(known: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("token", "create", "alcie", *LATER) == 0
    said = capsys.readouterr()
    assert said.err.startswith("WARNING: alcie has no account on this machine and no rights")
    assert "Did you mean alice?" in said.err
    assert tokens.find(known, said.out.strip()) == "alcie"


# --- who may ----------------------------------------------------------------------------------------------------

COMMANDS = (
    ("token", "create", "alice", *LATER),
    ("token", "list"),
    ("token", "revoke", "x"),
    ("password", "alice"),
    ("password", "alice", "--print"),
    ("password", "alice", "--delete"),
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called with sudo")
@pytest.mark.parametrize("words", COMMANDS)
def test_who_is_neither_root_nor_the_services_account_nor_almighty_is_refused(
    tool: Tool, known: Site, htpasswd: Path, words: tuple[str, ...]
) -> None:
    done = tool(NAME, *words, SUDO_UID="65534", stdin="correct horse\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ERROR: Only administrators may do this (root: almighty_users in site.yml)")
    assert not htpasswd.exists()
    assert Token.select().count() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
@pytest.mark.parametrize("how", ["almighty", "the service's account"])
def test_almighty_users_and_the_services_account_may(tool: Tool, known: Site, site_folder: Path, how: str) -> None:
    if how == "almighty":
        file = site_folder / "site.yml"
        file.write_text(file.read_text().replace("almighty_users: [root]", "almighty_users: [ada, nobody]"))
    else:
        os.chown(known.state, 65534, 65534)
    assert tool(NAME, "token", "create", "alice", *LATER, SUDO_UID="65534").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="the suite runs as root")
def test_root_may_though_the_site_does_not_call_it_almighty(tool: Tool, known: Site, site_folder: Path) -> None:
    file = site_folder / "site.yml"
    file.write_text(file.read_text().replace("almighty_users: [root]", "almighty_users: [ada]"))
    assert tool(NAME, "token", "create", "alice", *LATER).returncode == 0


# --- passwords --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestPasswords:
    def test_one_is_read_from_standard_input_and_written_for_the_service(
        self, tool: Tool, htpasswd: Path, known: Site
    ) -> None:
        for password in ("correct horse é", "battery staple"):
            done = tool(NAME, "password", "alice", stdin=f"{password}\n")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert Htpasswd(Path(load_site().service.htpasswd)).check("alice", password)
        assert len(htpasswd.read_text().splitlines()) == 1
        assert htpasswd.stat().st_mode & 0o777 == 0o600

    def test_it_is_printed_as_a_line_for_the_file_on_demand(self, tool: Tool, known: Site, tmp_path: Path) -> None:
        done = tool(NAME, "password", "alice", "--print", stdin="correct horse\n")
        assert re.fullmatch(r"alice:\$argon2id\$\S+\n", done.stdout)
        path = tmp_path / "elsewhere"
        path.write_text(done.stdout)
        assert Htpasswd(path).check("alice", "correct horse")

    def test_it_is_taken_away(self, tool: Tool, htpasswd: Path, known: Site) -> None:
        tool(NAME, "password", "alice", stdin="correct horse\n")
        assert tool(NAME, "password", "alice", "--delete").returncode == 0
        assert not Htpasswd(htpasswd).check("alice", "correct horse")
        again = tool(NAME, "password", "alice", "-d")
        assert (again.returncode, again.stderr) == (1, f"ERROR: alice has no password in {htpasswd}.\n")

    @pytest.mark.parametrize(
        ("words", "stdin", "said"),
        [
            (("alice",), "short\n", "A password has at least 8 characters, and at most 1024 bytes."),
            (("alice",), "", "A password has at least 8 characters"),
            (("alice",), "é" * 513, "A password has at least 8 characters, and at most 1024 bytes."),
            (("alice",), "nul \0 inside\n", "The password is no text (UTF-8)."),
            (("a:b",), "correct horse\n", "'a:b' is no name of a user"),
            (("a b",), "correct horse\n", "'a b' is no name of a user"),
            (("alice", "--print", "--delete"), "", "--print and --delete contradict each other: choose one."),
        ],
    )
    def test_what_is_refused_leaves_no_file(
        self, tool: Tool, htpasswd: Path, known: Site, words: tuple[str, ...], stdin: str, said: str
    ) -> None:
        done = tool(NAME, "password", *words, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"ERROR: {said}" in done.stderr
        assert not htpasswd.exists()

    def test_a_site_that_takes_no_passwords_says_how_it_would(self, tool: Tool, known: Site) -> None:
        for words in ((), ("--delete",)):
            done = tool(NAME, "password", "alice", *words, stdin="correct horse\n")
            assert done.returncode == 1
            assert done.stderr.startswith("ERROR: This site takes no passwords: name a file as `service.htpasswd` in")

    def test_without_the_libraries_of_the_service_it_says_what_to_install_and_tokens_work(self, known: Site) -> None:
        code = (
            "import sys; sys.modules['argon2'] = sys.modules['bcrypt'] = None\n"
            "from kadeploy.cli import kadeploy3d, shell\n"
            "print(shell.run(kadeploy3d.app, 'kadeploy3d', sys.argv[1:]))"
        )
        for words, status, said in (
            (("password", "alice", "--print"), 1, "ERROR: argon2 is missing: pip install 'kadeploy[server]'.\n"),
            (("run",), 1, "ERROR: argon2 is missing: pip install 'kadeploy[server]'.\n"),
            (("token", "list"), 0, "There are no tokens.\n"),
        ):
            done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
            assert (done.stdout, done.stderr) == (f"{status}\n", said)

    def test_on_a_terminal_it_is_typed_twice_and_never_seen(self, htpasswd: Path, known: Site) -> None:
        database.disconnect()
        for second, status in (("correct horse", 0), ("correct house", 1)):
            terminal = pexpect.spawn(
                str(Path(sys.executable).parent / NAME), ["password", "alice"], encoding="utf-8", timeout=60
            )
            terminal.expect("Password: ")
            terminal.sendline("correct horse")
            terminal.expect("Again: ")
            terminal.sendline(second)
            terminal.expect(pexpect.EOF)
            terminal.close()
            assert terminal.exitstatus == status
            assert "horse" not in (terminal.before or "")
        assert "These were two different passwords" in (terminal.before or "")
        assert Htpasswd(htpasswd).check("alice", "correct horse")


# --- help -------------------------------------------------------------------------------------------------------


def test_each_command_explains_itself(tool: Any) -> None:
    for words, said in (
        (("token",), "Commands:\n  create Make a token for a user and print it.\n"),
        (("token", "create"), "Usage: kadeploy3d token create [OPTIONS] {USER}"),
        (("token", "list"), "Usage: kadeploy3d token list [OPTIONS] [USER]"),
        (("token", "revoke"), "Usage: kadeploy3d token revoke [OPTIONS] {ID}"),
        (("password",), "Usage: kadeploy3d password [OPTIONS] {USER}"),
    ):
        for option in ("-h", "--help"):
            done = tool(NAME, *words, option, KADEPLOY_CONFIG_DIR="/nowhere", COLUMNS="100")
            assert (done.returncode, done.stderr) == (0, "")
            assert said in done.stdout


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_tab_key_offers_commands_users_and_ids_of_tokens_that_count(tool: Any, known: Site) -> None:
    valid, over = (tokens.id_of(tokens.create(known, "alice", until)) for until in (2**33, 1))

    def offers(*words: str) -> list[str]:
        variables = {"_KADEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join((NAME, *words))}
        return list(tool(NAME, **variables, COMP_CWORD=str(len(words))).stdout.split())

    assert offers("token", "") == ["create", "list", "revoke"]
    assert "root" in offers("token", "create", "ro")
    assert offers("token", "revoke", "") == [valid]
    assert over not in offers("token", "revoke", over[:3])
