"""kaenv3: every use case of the wiki page, every option, and what is refused."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kadeploy.caller import caller
from kadeploy.cli import kaenv3, shell
from kadeploy.config.site import Site
from kadeploy.environments import description
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.state.database import connect
from kadeploy.state.tables import EnvironmentRow, environment_columns
from tests.unit import build

ME = caller().name
FREEBSD = Environment(
    name="FreeBSD",
    version=3,
    user="johnsmith",
    description="FreeBSD for everybody",
    author="John Smith",
    image=Image(file="/grid5000/freebsd.dd.gz", kind="ddgz", md5="0" * 32, sha256="0" * 64),
    fdisktype="a5",
    environment_kind="other",
    visibility="public",
)
SIDX64 = Environment(
    name="sidx64-base",
    version=1,
    user="johnsmith",
    description="https://www.grid5000.fr/index.php/Sid-x64-base-1.0",
    image=Image(file="http://images.site/sid.tgz", kind="tgz"),
    preinstall=Archive(file="/home/john/pre.tgz", kind="tgz", script="breakpoint"),
    postinstalls=(
        Archive(file="/home/john/post.tgz", kind="tgz", script="run.sh -v /rambin"),
        Archive(file="/home/john/more.tbz2", kind="tbz2"),
    ),
    kernel="/boot/vmlinuz",
    kernel_params="console=tty0 console=ttyS1,38400n8",
    initrd="/boot/initrd.img",
    filesystem="ext4",
    visibility="shared",
    part="/dev/sda3",
)

pytestmark = pytest.mark.usefixtures("way")
DESCRIPTION = """\
name : new env
description : made for tests
tarball : {files}/image.tgz|tgz
postinstall : {files}/post.tgz|tgz|run.sh
kernel : /vmlinuz
fdisktype : 83
filesystem : ext4
environment_kind : linux
"""


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """SQLite alone: tests/unit/state/test_environments.py has both databases."""
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


@pytest.fixture
def johns(site: Site) -> None:
    """What johnsmith has recorded: public, shared and private."""
    put(site, msgspec.structs.replace(FREEBSD, version=2, visibility="shared"), FREEBSD, SIDX64)
    put(site, msgspec.structs.replace(SIDX64, name="secret", visibility="private"))


@pytest.fixture
def new_env(tmp_path: Path) -> str:
    """A description whose files exist."""
    for name in ("image.tgz", "post.tgz"):
        (tmp_path / name).write_bytes(build.packed(name))
    (tmp_path / "new_env.dsc").write_text(DESCRIPTION.format(files=tmp_path), encoding="utf-8")
    return str(tmp_path / "new_env.dsc")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Where a web server shows the files of *tmp_path*."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def put(site: Site, *environments: Environment) -> None:
    """Record environments as they stand, their files unread."""
    connect(site)
    for environment in environments:
        EnvironmentRow.insert(**environment_columns(environment)).execute()


def recorded(site: Site) -> list[Environment]:
    connect(site)
    return [row.environment for row in EnvironmentRow.select().order_by(EnvironmentRow.id)]


def run(*argv: str) -> int:
    return shell.run(kaenv3.app, "kaenv3", argv)


def ok(done: Any) -> str:
    """What a tool printed, which succeeded without a complaint."""
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def md5(text: str) -> str:
    return hashlib.md5(build.packed(text)).hexdigest()


def mine(**fields: Any) -> Environment:
    return msgspec.structs.replace(SIDX64, **{"user": ME, "visibility": "private"} | fields)


# --- use cases, as processes ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("johns")
def test_use_case_1_own_and_public_environments_are_listed(tool: Any, golden: Callable[[str], str]) -> None:
    assert ok(tool("kaenv3", "-l")) == golden("kaenv3-l.txt")


@pytest.mark.usefixtures("johns")
def test_use_case_2_what_another_user_shares_is_listed(tool: Any, golden: Callable[[str], str]) -> None:
    assert ok(tool("kaenv3", "-l", "-u", "johnsmith", "-s")) == golden("kaenv3-l-u-s.txt")


@pytest.mark.usefixtures("johns")
def test_use_case_2_a_star_stands_for_all_users(site: Site, tool: Any) -> None:
    put(site, mine(visibility="shared"), mine(name="hidden"))
    lines = ok(tool("kaenv3", "-l", "-u", "*")).splitlines()[2:]
    assert [line.split()[:3] for line in lines] == [
        ["FreeBSD", "3", "johnsmith"],
        ["sidx64-base", "1", "johnsmith"],
        ["sidx64-base", "1", ME],
    ]


@pytest.mark.usefixtures("johns")
def test_use_case_3_an_environment_of_another_user_is_printed(tool: Any, golden: Callable[[str], str]) -> None:
    printed = ok(tool("kaenv3", "-p", "FreeBSD", "--env-version", "3", "-u", "johnsmith"))
    assert printed == golden("kaenv3-p.txt")
    assert ok(tool("kaenv3", "-p", "sidx64-base", "-u", "johnsmith")) == golden("kaenv3-p-linux.txt")


def test_use_case_4_an_environment_described_in_a_file_is_added(site: Site, tool: Any, new_env: str) -> None:
    assert ok(tool("kaenv3", "-a", new_env)) == f"Added: new env version 1 of {ME}, private\n"
    [environment] = recorded(site)
    assert (environment.name, environment.user, environment.image.md5) == ("new env", ME, md5("image.tgz"))


def test_use_case_5_an_environment_described_on_the_web_is_added(
    site: Site, tool: Any, tmp_path: Path, url: str
) -> None:
    """Its files may be there too, and have checksums all the same."""
    (tmp_path / "image.tgz").write_bytes(build.packed("from the web"))
    (tmp_path / "post.tgz").write_bytes(build.packed("post"))
    (tmp_path / "env.desc").write_text(DESCRIPTION.format(files=url), encoding="utf-8")
    ok(tool("kaenv3", "-a", f"{url}/env.desc", no_proxy="127.0.0.1"))
    [environment] = recorded(site)
    assert (environment.image.file, environment.image.md5) == (f"{url}/image.tgz", md5("from the web"))


def test_use_case_6_a_version_is_deleted_or_all_of_them(site: Site, tool: Any) -> None:
    put(site, *(mine(version=version) for version in (1, 2, 3)))
    done = tool("kaenv3", "-d", "sidx64-base", "--env-version", "2")
    assert ok(done) == f"Deleted: sidx64-base version 2 of {ME}\n"
    assert [each.version for each in recorded(site)] == [1, 3]
    done = tool("kaenv3", "-d", "sidx64-base")
    assert ok(done) == f"Deleted: sidx64-base version 1 of {ME}\nDeleted: sidx64-base version 3 of {ME}\n"
    assert recorded(site) == []


def test_use_case_7_the_demolishing_counter_is_reset(site: Site, tool: Any) -> None:
    put(site, *(mine(version=version, demolishing_env=10000) for version in (2, 3, 4)))
    ok(tool("kaenv3", "--remove-demolishing-tag", "sidx64-base", "--env-version", "3"))
    assert [each.demolishing_env for each in recorded(site)] == [10000, 0, 10000]
    ok(tool("kaenv3", "--remove-demolishing-tag", "sidx64-base"))
    assert [each.demolishing_env for each in recorded(site)] == [10000, 0, 0]


@pytest.mark.parametrize(
    ("option", "file"), [("--update-tarball-md5", "image.tgz"), ("--update-postinstalls-md5", "post.tgz")]
)
def test_use_cases_8_and_9_a_changed_file_is_recorded_anew(
    site: Site, tool: Any, tmp_path: Path, new_env: str, option: str, file: str
) -> None:
    ok(tool("kaenv3", "-a", new_env))
    (tmp_path / file).write_bytes(build.packed("changed"))
    printed = ok(tool("kaenv3", option, "new env"))
    assert printed.startswith(f"Updated: {tmp_path}/{file} of new env version 1 of {ME}: MD5 {md5(file)} -> ")
    assert md5("changed") in printed
    [environment] = recorded(site)
    assert md5("changed") in {environment.image.md5, environment.postinstalls[0].md5}
    assert ok(tool("kaenv3", option, "new env")).startswith("Unchanged: ")


def test_a_changed_preinstall_is_recorded_anew(site: Site, tmp_path: Path) -> None:
    (tmp_path / "pre.tgz").write_bytes(build.packed("pre"))
    put(site, mine(preinstall=Archive(file=str(tmp_path / "pre.tgz"), kind="tgz", script="run")))
    assert run("--update-preinstall-md5", "sidx64-base", "--env-version", "1") == 0
    [environment] = recorded(site)
    assert environment.preinstall is not None
    assert environment.preinstall.md5 == md5("pre")


def test_use_case_10_the_visibility_of_a_version_is_set(site: Site, tool: Any) -> None:
    put(site, *(mine(version=version, visibility="shared") for version in (3, 4)))
    done = tool("kaenv3", "--set-visibility-tag", "sidx64-base", "--env-version", "3", "-t", "private")
    assert ok(done) == f"Now private: sidx64-base version 3 of {ME}\n"
    assert [each.visibility for each in recorded(site)] == ["private", "shared"]


def test_files_are_moved(site: Site, tool: Any, tmp_path: Path, new_env: str) -> None:
    ok(tool("kaenv3", "-a", new_env))
    (tmp_path / "new").mkdir()
    for name in ("image.tgz", "post.tgz"):
        (tmp_path / "new" / name).write_bytes(build.packed(f"new {name}"))
    moves = f"{tmp_path}/image.tgz:{tmp_path}/new/image.tgz,{tmp_path}/post.tgz:{tmp_path}/new/post.tgz"
    lines = ok(tool("kaenv3", "--move-files", "-m", moves)).splitlines()
    assert lines[0] == f"Moved: {tmp_path}/image.tgz -> {tmp_path}/new/image.tgz in new env version 1 of {ME}"
    [environment] = recorded(site)
    assert environment.postinstalls[0].file == f"{tmp_path}/new/post.tgz"
    assert environment.image.md5 == md5("new image.tgz")


def test_when_no_environment_has_such_files_it_is_said_and_an_error(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--move-files", "-m", "/a:/b") == 1
    assert capsys.readouterr() == ("", "No environment has such files: nothing moved.\n")


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("/a:/b", [("/a", "/b")]),
        ("/a:/b,/c/:/d,e", [("/a", "/b"), ("/c/", "/d,e")]),
        ("http://old:8080/a:http://new/a", [("http://old:8080/a", "http://new/a")]),
        ("/a:https://new/a,https://old/b:/b", [("/a", "https://new/a"), ("https://old/b", "/b")]),
        ("/a:server:///b,server:///c::/d", [("/a", "server:///b"), ("server:///c", "/d")]),
    ],
)
def test_colons_and_commas_part_moves_but_not_urls(text: str, moves: list[tuple[str, str]]) -> None:
    assert kaenv3._moves(text) == moves


@pytest.mark.usefixtures("johns")
@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ([], ["FreeBSD"]),
        (["-l", "side*", "-u", "johnsmith"], []),
        (["-l", "sid*", "-u", "johnsmith"], ["sidx64-base"]),
        (["--list", "%BSD"], ["FreeBSD"]),
        (["-l", "[FS]*"], []),
        (["-l", "FreeBSD"], ["FreeBSD"]),
    ],
)
def test_a_list_may_be_of_names_that_are_alike(
    argv: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == names


def test_who_sees_an_environment_is_set_for_its_highest_version(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    put(site, mine(version=1), mine(version=2))
    assert run("--set-visibility-tag", mine().name, "-t", "shared") == 0
    assert capsys.readouterr().out.startswith(f"Now shared: {mine().name} version 2 of ")


# --- lists and printed environments -----------------------------------------------------------------------------


def test_an_empty_list_says_so(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-l") == 0
    assert run("-l", "--format", "json") == 0
    assert capsys.readouterr().out == "No environment has been found\n[]\n"


@pytest.mark.usefixtures("johns")
@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_other_formats_list_all_that_is_known_checksums_included(
    form: str, read: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-l", "--format", form) == 0
    assert msgspec.convert(read(capsys.readouterr().out), list[Environment]) == [FREEBSD]


@pytest.mark.usefixtures("johns")
@pytest.mark.parametrize("form", ["text", "json", "yaml"])
def test_what_is_printed_describes_the_same_environment(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-p", "sidx64-base", "-u", "johnsmith", "--format", form) == 0
    again = description.parse(capsys.readouterr().out, source="-")
    assert again == msgspec.structs.replace(SIDX64, user="")


@pytest.mark.parametrize("form", ["text", "json", "yaml"])
def test_what_is_printed_can_be_added_again(site: Site, tool: Any, new_env: str, form: str) -> None:
    """All versions at once, from standard input."""
    ok(tool("kaenv3", "-a", new_env))
    second = Path(new_env).read_text(encoding="utf-8") + "version : 2\nvisibility : shared\n"
    ok(tool("kaenv3", "-a", "-", stdin=second))
    before = recorded(site)
    printed = ok(tool("kaenv3", "-p", "new env", "-s", "--format", form))
    ok(tool("kaenv3", "-d", "new env"))
    ok(tool("kaenv3", "-a", "-", stdin=printed))
    assert recorded(site) == before


def test_the_highest_version_is_printed_unless_one_or_all_are_wanted(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    put(site, *(mine(version=version) for version in (10, 9, 1)))
    for argv, versions in (([], [10]), (["--env-version", "9"], [9]), (["-s"], [1, 9, 10])):
        assert run("-p", "sidx64-base", *argv) == 0
        printed = description.parse_all(capsys.readouterr().out, source="-")
        assert [each.version for each in printed] == versions


def test_terminal_escapes_cannot_come_in_by_a_description(
    site: Site, new_env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(new_env).read_text(encoding="utf-8").replace("made for tests", "\x1b]0;owned\x07")
    Path(new_env).write_text(text, encoding="utf-8")
    assert run("-a", new_env) == 1
    assert "\x1b" not in "".join(capsys.readouterr())
    assert recorded(site) == []


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["-l", "-d", "x"], "Choose one operation, not -d and -l together"),
        (["-p", "x", "-p", "y", "-l"], "not -l and -p together"),
        (["-l", "--env-version", "1"], "--env-version does not go with -l, but with -d, -p,"),
        (["-l", "-t", "public"], "-t does not go with -l, but with --set-visibility-tag."),
        (["-l", "-m", "/a:/b"], "-m does not go with -l, but with --move-files."),
        (["-d", "x", "-s"], "-s does not go with -d, but with -l, -p."),
        (["-a", "x", "-u", "john"], "-u does not go with -a"),
        (["-d", "x", "--format", "json"], "--format does not go with -d"),
        (["-l", "--format", "xml"], "xml"),
        (["-p", "x", "--env-version", "new"], "--env-version 'new': expected a number"),
        (["-p", "x", "--env-version", "-1"], "--env-version '-1': expected a number"),
        (["-p", "x", "--env-version", "9" * 30], "expected a number"),
        (["-l", "-u", ""], "name of the user is empty"),
        (["-p", ""], "name of the environment is empty"),
        (["-p", "FreeBSD", "-u", "*"], "-u '*' goes with -l alone"),
        (["-p", "FreeBSD", "--env-version", "7"], "no version 7 of environment 'FreeBSD'; there is 3."),
        (["-p", "nope"], "There is no environment 'nope' for you; `kaenv3 -l` lists"),
        (["-p", "secret", "-u", "johnsmith"], "There is no environment 'secret' of johnsmith for you"),
        (["-p", "sidx64-base"], "One that is shared needs its owner: -u USER."),
        (["-d", "nope"], "There is no environment 'nope'"),
        (["-d", "FreeBSD"], "Environment 'FreeBSD' belongs to johnsmith; administrators add -u johnsmith."),
        (["--remove-demolishing-tag", "nope"], "There is no environment 'nope'"),
        (["--set-visibility-tag", "FreeBSD", "--env-version", "3"], "needs a visibility"),
        (["--toggle-destructive-tag", "FreeBSD"], "--remove-demolishing-tag NAME takes the tag off"),
        (["--set-visibility-tag", "FreeBSD", "--env-version", "3", "-t", "mine"], "private, shared, public"),
        (["--update-tarball-md5", "nope"], "There is no environment 'nope'"),
        (["--update-preinstall-md5", "FreeBSD", "-u", "johnsmith"], "has no preinstall to update"),
        (["--update-postinstalls-md5", "FreeBSD", "-u", "johnsmith"], "has no postinstalls to update"),
        (["--update-tarball-md5", "FreeBSD", "-u", "johnsmith"], "/grid5000/freebsd.dd.gz: No such file"),
        (["--move-files"], "needs the files or folders: -m"),
        (["--move-files", "-m", "/a"], "-m '/a': expected src:dst"),
        (["--move-files", "-m", "a:b"], "-m 'a:b': expected src:dst"),
        (["--move-files", "-m", "/grid5000:/nowhere"], "/nowhere/freebsd.dd.gz: No such file"),
        (["-a", "/nowhere/env.dsc"], "/nowhere/env.dsc: No such file"),
        (["-a", "ftp://host/env.dsc"], "only paths, file:// and http(s):// are accepted"),
        (["-a", "http://127.0.0.1:1/env.dsc"], "cannot be fetched"),
        (["-l", "--server", "lille"], "--server lille: no such server."),
        (["-l", "extra", "another"], "another"),
    ],
)
@pytest.mark.usefixtures("johns")
def test_a_refusal_is_one_line_with_a_reason_and_changes_nothing(
    site: Site, argv: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    before = recorded(site)
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert reason in err
    assert recorded(site) == before


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("kernel : ", "kernal : "), "line 5: unknown key 'kernal'"),
        (("fdisktype : 83\n", ""), "fdisktype is missing"),
        (("image.tgz|", "missing.tgz|"), "missing.tgz: No such file"),
        (("image.tgz|tgz", "image.tgz"), "expected file|kind"),
    ],
)
def test_a_description_with_a_mistake_is_refused_by_its_line(
    site: Site, new_env: str, changed: tuple[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(new_env).read_text(encoding="utf-8")
    assert changed[0] in text
    Path(new_env).write_text(text.replace(*changed), encoding="utf-8")
    assert run("-a", new_env) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert reason in err
    assert recorded(site) == []


def test_what_is_recorded_already_is_refused_with_a_way_out(
    site: Site, new_env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-a", new_env) == 0
    assert run("-a", new_env) == 1
    assert "kaenv3 -d 'new env' --env-version 1" in capsys.readouterr().err


def test_a_web_servers_error_is_told(site: Site, tool: Any, url: str) -> None:
    done = tool("kaenv3", "-a", f"{url}/missing.dsc", no_proxy="127.0.0.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ERROR: {url}/missing.dsc: the server answers 404 File not found.\n"


def test_a_web_page_is_no_description(site: Site, tool: Any, tmp_path: Path, url: str) -> None:
    (tmp_path / "index.html").write_text("<html>", encoding="utf-8")
    done = tool("kaenv3", "-a", f"{url}/index.html", no_proxy="127.0.0.1")
    assert done.returncode == 1
    assert "is a web page (HTML)" in done.stderr


@pytest.mark.usefixtures("johns")
@pytest.mark.parametrize(
    "argv",
    [
        ["--move-files", "-m", "/grid5000:/srv"],
        ["-d", "FreeBSD", "-u", "johnsmith"],
        ["--set-visibility-tag", "FreeBSD", "--env-version", "3", "-t", "private", "-u", "johnsmith"],
        ["--remove-demolishing-tag", "FreeBSD", "-u", "johnsmith"],
        ["--update-tarball-md5", "FreeBSD", "-u", "johnsmith"],
    ],
)
def test_only_administrators_change_what_others_own(
    site: Site, site_folder: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (site_folder / "site.yml").read_text(encoding="utf-8")
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("almighty_users"))
    (site_folder / "site.yml").write_text(f"{kept}\nalmighty_users: [god]\n", encoding="utf-8")
    before = recorded(site)
    assert run(*argv) == 1
    assert f"and you are {ME}" in capsys.readouterr().err
    assert recorded(site) == before


def test_only_administrators_publish(
    site: Site, site_folder: Path, new_env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (site_folder / "site.yml").read_text(encoding="utf-8")
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("almighty_users"))
    (site_folder / "site.yml").write_text(f"{kept}\nalmighty_users: [god]\n", encoding="utf-8")
    put(site, mine())
    Path(new_env).write_text(Path(new_env).read_text(encoding="utf-8") + "visibility : public\n", encoding="utf-8")
    assert run("-a", new_env) == 1
    assert run("--set-visibility-tag", "sidx64-base", "--env-version", "1", "-t", "public") == 1
    assert capsys.readouterr().err.count("Only administrators make environments public") == 2
    assert recorded(site) == [mine()]


def test_administrators_change_what_others_own(site: Site, johns: None) -> None:
    who = ("-u", "johnsmith")
    assert run("--set-visibility-tag", "FreeBSD", "--env-version", "3", "-t", "shared", *who) == 0
    assert run("-d", "FreeBSD", "--env-version", "2", *who) == 0
    assert [each.visibility for each in recorded(site) if each.name == "FreeBSD"] == ["shared"]


def test_an_environment_of_a_caller_of_sudo_is_theirs(site: Site, tool: Any, tmp_path: Path, url: str) -> None:
    """The tool runs as root for everybody: who called sudo owns what it records."""
    user, uid = ("nobody", "65534") if os.getuid() == 0 else (ME, str(os.getuid()))
    for name in ("image.tgz", "post.tgz"):
        (tmp_path / name).write_bytes(build.packed(name))
    ok(tool("kaenv3", "-a", "-", stdin=DESCRIPTION.format(files=url), SUDO_UID=uid, no_proxy="127.0.0.1"))
    assert [each.user for each in recorded(site)] == [user]


# --- speed ------------------------------------------------------------------------------------------------------


def test_a_list_needs_no_description_parser(site: Site, tool: Any) -> None:
    """Nor Ansible, ssh and friends: the modules that Python says it imports."""
    done = tool("kaenv3", "-l", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "kadeploy.environments" in loaded
    slow = {
        "ansible",
        "asyncssh",
        "rich",
        "pydantic",
        "jinja2",
        "kadeploy.environments.description",
        "kadeploy.operations.launch",
    }
    assert not slow & loaded


# --- newer environments -------------------------------------------------------------------------------------------

DEBIAN = msgspec.structs.replace(SIDX64, name="debian12", user=ME, version=2024090216, arch="x86_64", alias="deb12")


def test_the_list_shows_architectures_where_there_are_any(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    put(site, DEBIAN, msgspec.structs.replace(DEBIAN, arch="aarch64"), msgspec.structs.replace(FREEBSD, user=ME))
    assert run("-l") == 0
    printed = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == ["Name", "Version", "Arch", "User"]
    assert printed[2:] == [
        ["FreeBSD", "3", ME, "FreeBSD"],
        ["debian12", "2024090216", "aarch64", ME],
        ["debian12", "2024090216", "x86_64", ME],
    ]


@pytest.mark.parametrize(
    "argv",
    [
        ["-p", "debian12%x86_64"],
        ["-p", f"debian12@{ME}:2024090216%x86_64"],
        ["-p", "debian12", "--env-arch", "x86_64", "--env-version", "2024090216"],
    ],
)
def test_one_of_several_architectures_is_printed_when_it_is_named(
    site: Site, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    put(site, DEBIAN, msgspec.structs.replace(DEBIAN, arch="aarch64"))
    assert run(*argv) == 0
    assert "arch : x86_64\n" in capsys.readouterr().out
    assert run("-p", "deb12") == 1
    assert "debian12%aarch64 or debian12%x86_64" in capsys.readouterr().err
    assert run("-p", "debian12", "-s") == 0
    assert capsys.readouterr().out.count("###\n") == 2


def test_what_lines_cannot_hold_is_printed_as_yaml_which_is_said_in_one_line(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    put(site, msgspec.structs.replace(DEBIAN, kexec=False, custom_variables={"A": "1"}))
    assert run("-p", "debian12") == 0
    printed = capsys.readouterr()
    assert printed.err == "Printed as YAML: lines of `key : value` cannot hold custom_variables, options.kexec.\n"
    (again,) = description.parse_all(printed.out, source="-")
    assert (again.kexec, again.custom_variables) == (False, {"A": "1"})


@pytest.mark.usefixtures("johns")
@pytest.mark.parametrize("form", ["wiki", "yaml"])
def test_the_site_chooses_the_form_that_is_printed(
    site_folder: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(f"\nenvironment_form: {form}\n")
    assert run("-p", "FreeBSD") == 0
    assert ("\nname: FreeBSD\n" in capsys.readouterr().out) == (form == "yaml")
    assert run("-p", "FreeBSD", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "FreeBSD"


@pytest.mark.usefixtures("site")
def test_unknown_keys_are_warned_about_and_the_environment_is_recorded(tmp_path: Path, tool: Any, new_env: str) -> None:
    text = description.write(description.parse_all(Path(new_env).read_text(), source=new_env), "yaml")
    (tmp_path / "newer.yml").write_text(f"{text}secure_boot: true\nfuture: {{a: 1}}\n", encoding="utf-8")
    done = tool("kaenv3", "-a", str(tmp_path / "newer.yml"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"WARNING: {tmp_path}/newer.yml: unknown keys, left out: secure_boot, future.\n"


@pytest.mark.usefixtures("site")
def test_a_description_over_http_is_judged_by_what_is_in_it(tmp_path: Path, tool: Any, new_env: str, url: str) -> None:
    """Debian's web servers call it text/prs.lines.tag, others whatever they like."""
    (tmp_path / "new.weird").write_bytes(Path(new_env).read_bytes())
    (tmp_path / "listing.dsc").write_text("\n<!DOCTYPE html>\n<title>Index</title>", encoding="utf-8")
    assert tool("kaenv3", "-a", f"{url}/new.weird", no_proxy="127.0.0.1").returncode == 0
    done = tool("kaenv3", "-a", f"{url}/listing.dsc", no_proxy="127.0.0.1")
    assert (done.returncode, "is a web page (HTML)" in done.stderr) == (1, True)
