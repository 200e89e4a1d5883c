"""client.yml: which servers a user can name, how one of them is chosen, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kadeploy.caller import Account, account, as_user
from kadeploy.client import servers, sites
from kadeploy.client.servers import Server
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError, ServiceError
from kadeploy.state import rights
from tests.unit.conftest import Tool
from tests.unit.serving import served

FILE = """\
default: lyon
servers:
  lyon: {url: "https://lyon.example:25301", token_file: token}
  lille: {url: "https://lille.example"}
"""
LIST = """\
default: lille
servers:
  - {name: lille, hostname: lille.example, port: 25300, secure: true, auth_headers_prefix: X-Kadeploy-}
  - {name: lyon, hostname: lyon.example}
"""
Write = Callable[[str], Path]
ONCE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def alice(tmp_path: Path) -> Account:
    (tmp_path / "home/.config/kadeploy").mkdir(parents=True)
    return Account("alice", os.geteuid(), os.getegid(), tmp_path / "home")


@pytest.fixture
def own(alice: Account) -> Write:
    """Writes alice's client.yml."""

    def write(text: str) -> Path:
        path = alice.home / ".config/kadeploy/client.yml"
        path.write_text(text)
        return path

    return write


def test_both_forms_of_the_file_name_servers_and_a_default(alice: Account, own: Write) -> None:
    own(FILE)
    found = servers.known(alice)
    assert (found.default, found.named["lille"]) == ("lyon", Server(url="https://lille.example"))
    own(LIST)
    found = servers.known(alice)
    assert (found.default, found.named["lyon"]) == ("lille", Server(url="https://lyon.example:25300"))


def test_the_file_that_the_variable_names_counts_in_place_of_the_own_one(
    alice: Account, own: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(FILE)
    other = tmp_path / "other.yml"
    other.write_text('servers: {nancy: {url: "unix:/run/nancy.sock"}}\n')
    monkeypatch.setenv(servers.VARIABLE, str(other))
    assert list(servers.known(alice).named) == ["nancy"]
    other.unlink()
    with pytest.raises(KadeployError, match="No such file"):
        servers.known(alice)


WRONG = {
    'servers: {lyon: {url: "https://x", tokenfile: t}}': "servers.*unknown key tokenfile.* Did you mean token_file?",
    "defualt: lyon": "unknown key defualt.*Did you mean default?",
    "default: nancy\nservers: {}": "default: nancy is none of the servers",
    "servers: [{name: a, hostname: b, secure: false}]": "speaks HTTPS alone",
    "servers: {lyon: {}}": "url",
    "servers: {": "not valid YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_in_the_file_is_refused_with_file_key_and_reason(alice: Account, own: Write, text: str) -> None:
    path = own(text)
    with pytest.raises(KadeployError, match=WRONG[text]) as refused:
        servers.known(alice)
    assert re.match(rf"{re.escape(str(path))}:(\d+:)? ", str(refused.value))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://lyon.example", "expected https://HOST:25300"),
        ("https://lyon.example:99999", "is no address"),
        ("https://lyon.example/v1/", "is no address of a service"),
        ("https://alice:secret@lyon.example", "no user and no password here"),
        ("https://", "is no address of a service"),
        ("https://a..b", "is no address"),
        ("unix:run/lyon.sock", "whole path"),
        ("lyon.example", "is no address of a service"),
    ],
)
def test_an_address_that_is_none_is_refused(alice: Account, url: str, said: str) -> None:
    with pytest.raises(KadeployError, match=said) as refused:
        servers.address_of(Server(url=url), alice, "lyon", alice.home / "client.yml")
    assert "alice:secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://lyon.example", "lyon.example:25300"),
        ("https://lyon.example:443/", "lyon.example:443"),
        ("https://[2001:db8::1]", "[2001:db8::1]:25300"),
        ("unix:/run/lyon.sock", "localhost"),
        ("unix:///run/lyon.sock", "localhost"),
        ("/run/lyon.sock", "localhost"),
    ],
)
def test_an_address_may_leave_out_the_port_and_be_a_socket(alice: Account, url: str, host: str) -> None:
    assert servers.address_of(Server(url=url), alice).host == host


# --- secrets ----------------------------------------------------------------------------------------------------


def headers(alice: Account, **words: str) -> dict[str, str]:
    path = alice.home / ".config/kadeploy/client.yml"
    return dict(servers.address_of(Server(url="https://lyon.example", **words), alice, "lyon", path).headers)


def test_a_token_is_read_beside_the_file_and_below_the_home_of_the_user(alice: Account) -> None:
    for name, path in (("token", alice.home / ".config/kadeploy/token"), ("~/token", alice.home / "token")):
        path.write_text("kd3_abc_def\n")
        path.chmod(0o600)
        assert headers(alice, token_file=name) == {"Authorization": "Bearer kd3_abc_def"}


def test_a_password_goes_with_the_user_or_the_name_of_the_account(alice: Account) -> None:
    path = alice.home / "password"
    path.write_text("sécret: 1\n")
    path.chmod(0o600)
    assert headers(alice, password_file=str(path)) == {"Authorization": "Basic YWxpY2U6c8OpY3JldDogMQ=="}
    assert headers(alice, password_file=str(path), user="bob") == {"Authorization": "Basic Ym9iOnPDqWNyZXQ6IDE="}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_a_secret_that_others_can_read_is_refused_with_the_command_to_give(alice: Account, mode: int) -> None:
    path = alice.home / "token"
    path.write_text("kd3_abc_def\n")
    path.chmod(mode)
    with pytest.raises(KadeployError, match=f"chmod 600 {path}") as refused:
        headers(alice, token_file=str(path))
    assert "kd3_abc" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "is empty"), ("\n", "is empty"), ("two words\n", "not one token"), ("x\r: y", "not one token")],
)
def test_a_file_without_one_token_is_refused(alice: Account, content: str, said: str) -> None:
    path = alice.home / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KadeployError, match=said):
        headers(alice, token_file=str(path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"token_file": "/nowhere/token"}, "/nowhere/token: No such file"),
        ({"token_file": "a", "password_file": "b"}, "leave out one of the two"),
        ({"user": "bob"}, "goes with a password_file"),
    ],
)
def test_secrets_that_make_no_sense_are_refused(alice: Account, words: dict[str, str], said: str) -> None:
    with pytest.raises(KadeployError, match=said):
        headers(alice, **words)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_under_sudo_file_and_secret_are_opened_as_the_caller(open_folder: Path) -> None:
    nobody = Account("nobody", 65534, 65534, open_folder)
    path = open_folder / ".config/kadeploy/client.yml"
    path.parent.mkdir(parents=True)
    path.write_text(FILE)
    path.chmod(0o600)
    with pytest.raises(KadeployError, match="Permission denied"):
        servers.known(nobody)
    token = open_folder / "token"
    token.write_text("kd3_roots_own\n")
    token.chmod(0o600)
    with pytest.raises(KadeployError, match="Permission denied"):
        servers.address_of(Server(url="https://lyon.example", token_file=str(token)), nobody)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_the_page_tells_each_key_of_the_file_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \|", page.split("## Clients")[1].split("\n## ")[0], re.MULTILINE)
    told = {name.rpartition(".")[2] for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert told == {"default", *Server.__struct_fields__}


# --- which one is asked -----------------------------------------------------------------------------------------


@ONCE
def test_the_option_counts_before_the_variable_the_default_and_the_site_here(
    site: Site, site_folder: Path, tool: Tool, tmp_path: Path
) -> None:
    """Each of them leads to a socket where nothing is, whose name the refusal tells."""
    client = tmp_path / "client.yml"
    client.write_text("default: one\nservers: {one: {url: /nowhere/one}, two: {url: /nowhere/two}}\n")

    def asked(*words: str, **variables: str) -> str:
        return tool("kanodes3", "-l", *words, **variables).stderr

    assert asked() == ""
    known = {servers.VARIABLE: str(client)}
    assert "/nowhere/one" in asked(**known)
    assert "/nowhere/two" in asked(**known, KADEPLOY_SERVER="two")
    assert "/nowhere/one" in asked("--server", "one", **known, KADEPLOY_SERVER="two")
    assert "/nowhere/three" in asked("--server", "/nowhere/three", **known)
    assert "/nowhere/four" in asked("-S", "unix:/nowhere/four", **known)
    assert asked("--server", site.name, **known) == ""
    with served(site_folder, site_folder / "state" / "kadeploy3d.sock"):
        assert asked("--server", site.name, **known) == ""


def left_behind(path: Path) -> Path:
    """A socket at *path*, as a service leaves it that is killed."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    return path


@ONCE
def test_who_can_do_the_work_needs_no_service_that_was_killed(site: Site, tool: Tool) -> None:
    path = left_behind(site.state / "kadeploy3d.sock")
    done = tool("karights3", "-a", "-u", "nobody", "-m", "gdx-1.site", "-p", "/dev/sda3")
    assert (done.returncode, done.stderr) == (0, "")
    assert [right.user for right in rights.holders(site, ["gdx-1.site"])["gdx-1.site"]] == ["nobody"]
    named = tool("kanodes3", "-l", KADEPLOY_SERVER=str(path))
    assert (named.returncode, "Is kadeploy3d running?" in named.stderr) == (1, True), named.stderr


@ONCE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_cannot_is_told_that_the_service_is_not_there(
    site_folder: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_behind(open_folder / "kadeploy3d.sock")
    with (site_folder / "site.yml").open("a") as file:
        file.write(f"service: {{socket: {path}}}\n")
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(shutil.copytree(site_folder, open_folder / "etc")))
    with as_user(account("nobody")), pytest.raises(ServiceError, match="Is kadeploy3d running"):
        list(sites.service().states())


@ONCE
def test_an_unknown_server_is_refused_with_those_that_are_known(site: Site, tool: Tool, tmp_path: Path) -> None:
    client = tmp_path / "client.yml"
    client.write_text(FILE)
    done = tool("kanodes3", "-l", "--server", "lile", **{servers.VARIABLE: str(client)})
    assert (done.returncode, done.stderr) == (
        1,
        f"ERROR: --server lile: no such server. {client} and this machine know lyon, lille, {site.name}. "
        "Did you mean lille?\n",
    )
    done = tool("kanodes3", "-l", HOME=str(tmp_path), KADEPLOY_SERVER="x", KADEPLOY_CONFIG_DIR="/nowhere")
    assert (done.returncode, "KADEPLOY_SERVER x: no such server. Name it in" in done.stderr) == (1, True), done.stderr


@ONCE
def test_the_tab_key_completes_names_of_servers(site: Site, tool: Tool, tmp_path: Path) -> None:
    client = tmp_path / "client.yml"
    client.write_text(FILE)
    typed = {"_KADEPLOY_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    done = tool("kanodes3", **typed, COMP_WORDS="kanodes3\n--server\nl", **{servers.VARIABLE: str(client)})
    assert done.stdout.split() == ["lyon", "lille"]
    done = tool("kanodes3", **typed, COMP_WORDS="kanodes3\n-S\n", **{servers.VARIABLE: str(client)})
    assert done.stdout.split() == ["lyon", "lille", site.name]
