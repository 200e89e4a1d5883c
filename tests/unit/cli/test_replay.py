"""kaconsole3 --list and --replay: recordings that consoles have made, on real terminals and as text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

from kadeploy.caller import account, caller
from kadeploy.cli import replay
from kadeploy.config.site import Site
from kadeploy.operations.recording import Piece, Recording, folder
from kadeploy.state import database, rights

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for others")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One kind of database will do."""
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


Run = Callable[..., "subprocess.CompletedProcess[str]"]
Play = Callable[..., pexpect.spawn]
PROGRAM = str(Path(sys.executable).parent / "kaconsole3")


def cast(path: Path, *pieces: tuple[float, str, str], **header: object) -> Path:
    lines = [{"version": 2, "width": 80, "height": 24, "timestamp": 1, "title": "gdx-1.site", "user": "alice"} | header]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, *pieces)), encoding="utf-8")
    return path


@pytest.fixture
def play(site_folder: Path) -> Iterator[Play]:
    """``play("--replay", …)``: the tool on a terminal of its own, which stays there when the tool has ended."""
    opened: list[pexpect.spawn] = []

    def run(*words: str) -> pexpect.spawn:
        variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
        child = pexpect.spawn(
            "sh", ["-c", 'trap : INT; "$@"; echo STATUS $?; read x', "sh", PROGRAM, *words], env=variables
        )
        child.before_replay = termios.tcgetattr(child.child_fd)
        opened.append(child)
        return child

    yield run
    for child in opened:
        child.close(force=True)


# --- playing ----------------------------------------------------------------------------------------------------------


def test_what_a_console_showed_is_listed_and_shown_again(site: Site, site_folder: Path, tool: Run, play: Play) -> None:
    """From the console's program to the reader's eyes."""
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("service: {record_consoles: true}\n")
    with (site_folder / "clusters" / "gdx.yml").open("a", encoding="utf-8") as file:
        file.write(
            'console: "sh -c \'stty -echo; printf Password:; read -r word; printf \\"\\\\033[1mwelcome\\\\n\\"\'"\n'
        )
    database.connect(site)
    rights.add(site, caller().name, ["gdx-1.site"], ["*"])
    child = play("-m", "gdx-1.site")
    child.expect("Password:")
    child.send("hunter2\r")
    child.expect("STATUS 0")
    listed = tool("kaconsole3", "--list").stdout
    assert re.fullmatch(rf"gdx-1.site/\S+\.cast {caller().name} \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d 0:0\d\n", listed)
    for name in ("gdx-1.site", "gdx-1", listed.split()[0]):
        done = tool("kaconsole3", "--replay", name)
        assert (done.returncode, done.stdout) == (0, "Password:welcome\n")
    child = play("--replay", "gdx-1.site")
    child.expect_exact("Password:\x1b[1mwelcome\r\n")
    child.expect("STATUS 0")


def test_gaps_are_two_seconds_at_most_and_the_speed_divides_them(tmp_path: Path, site: Site, play: Play) -> None:
    path = cast(tmp_path / "a.cast", (0.5, "o", "first"), (3600.0, "o", "second"), (3600.2, "o", "third"))
    begun = time.monotonic()
    child = play("--replay", str(path), "--speed", "2")
    child.expect("first")
    first = time.monotonic()
    child.expect("second")
    second = time.monotonic()
    child.expect("third")
    assert 0.8 < second - first < 1.8
    assert first - begun > 0.2


def test_ctrl_c_leaves_and_the_terminal_is_as_it_was(tmp_path: Path, site: Site, play: Play) -> None:
    mess = "\x1b[?1049h\x1b[?25l\x1b[31m\x1b[?1000h\x1b[2;5rmess"
    child = play("--replay", str(cast(tmp_path / "a.cast", (0.1, "o", mess), *((t, "o", ".") for t in range(1, 99)))))
    child.expect("mess")
    assert not termios.tcgetattr(child.child_fd)[3] & termios.ECHO
    child.send("\x1a\x1cq")  # keys that do nothing
    child.send("\x03")
    child.expect("STATUS 0")
    assert termios.tcgetattr(child.child_fd) == child.before_replay
    for restored in (b"\x1b[?1047l", b"\x1b[!p", b"\x1b[?1000;1002;1003;1006l"):
        assert restored in child.before


def test_a_signal_restores_the_terminal_as_well(tmp_path: Path, site: Site) -> None:
    path = cast(tmp_path / "a.cast", *((t, "o", f"line {t}\r\n") for t in range(99)))
    child = pexpect.spawn(PROGRAM, ["--replay", str(path)], env=os.environ | {"TERM": "xterm", "NO_COLOR": ""})
    before = termios.tcgetattr(child.child_fd)
    child.expect("line 1")
    child.kill(15)
    child.expect("ERROR:.* closed by SIGTERM")
    assert termios.tcgetattr(child.child_fd) == before
    child.close(force=True)


def test_the_screen_is_what_it_was_in_the_live_session(tmp_path: Path, site: Site, play: Play) -> None:
    """Cursor movements go to the terminal as they are; line ends are not touched."""
    said = "one\r\ntwo\x1b[1;1HONE\x1b[3;1Hthree\nfour"
    child = play("--replay", str(cast(tmp_path / "a.cast", (0.0, "o", said))))
    child.expect("STATUS 0")
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(child.before.decode().partition("\x1b[?1047l")[0])
    assert [line.rstrip() for line in screen.display[:4]] == ["ONE", "two", "three", "     four"]


def test_without_a_terminal_it_is_text_at_once_without_escapes(tmp_path: Path, site: Site, tool: Run) -> None:
    pieces = [
        (1.0, "o", "\x1b]0;title\x07\x1b[1mlogin: \x1b[0"),
        (99.0, "o", "mroot\r\n\x1bP1$r0m\x1b\\\x07\x1b(Bbell\x08\r\n"),
        (99.5, "r", "100x40"),
        (99.6, "m", "recording ended: it may not be larger"),
    ]
    path = cast(tmp_path / "a.cast", *pieces)
    begun = time.monotonic()
    done = tool("kaconsole3", "--replay", str(path))
    assert done.stdout == "login: root\nbell\n\n[recording ended: it may not be larger]\n"
    assert time.monotonic() - begun < 5


def test_a_recording_that_its_writer_left_unfinished_is_played_up_to_there(
    tmp_path: Path, site: Site, tool: Run
) -> None:
    path = cast(tmp_path / "a.cast", (0.0, "o", "hello\r\n"))
    with path.open("a", encoding="utf-8") as file:
        file.write('[1.0, "o", "wor')
    assert tool("kaconsole3", "--replay", str(path)).stdout == "hello\n"


@pytest.mark.parametrize("text", ["\x1b", "\x1b]", "\x1b]" * 50_000, "\x1b[" + "1" * 100_000, "\x1bP" * 9 + "x"])
def test_escapes_without_end_are_removed_in_no_time(text: str) -> None:
    begun = time.monotonic()
    assert "\x1b" not in replay.plain(text)
    assert time.monotonic() - begun < 2


def test_an_escape_in_two_pieces_is_removed_whole(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        replay.write_plain([Piece(0, "o", "a\x1b[3"), Piece(0, "o", "1mb"), Piece(0, "o", "\n")], out)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "ab\n"


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSALS = {
    "two nodes": (("--replay", "gdx-1.site", "-m", "gdx-2.site"), "--replay goes alone"),
    "list and replay": (("--replay", "gdx-1.site", "--list"), "--replay goes alone"),
    "speed of nothing": (("--speed", "2", "-m", "gdx-1.site"), "--speed is that of a recording"),
    "no speed": (("--replay", "gdx-1.site", "--speed", "0"), "--speed 0"),
    "endless speed": (("--replay", "gdx-1.site", "--speed", "nan"), "--speed nan"),
    "no recording": (("--replay", "gdx-1.site"), "gdx-1.site: no recording of its console"),
    "no file": (("--replay", "/no/such.cast"), "/no/such.cast: "),
    "no node": (("--list", "-m", "mars-1"), "Unknown node: mars-1"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line(name: str, site: Site, tool: Run) -> None:
    words, said = REFUSALS[name]
    done = tool("kaconsole3", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


WRONG = {
    "nothing": b"",
    "no JSON": b"hello\n",
    "another version": b'{"version": 3, "term": {"cols": 80}, "width": 1, "height": 1}\n',
    "a header that is none": b"[]\n",
    "a piece that is none": b'{"version":2,"width":80,"height":24}\n["a","o","x"]\n',
    "binary": bytes(range(256)) * 100,
    "a line without end": b'{"version":2,"width":80,"height":24}\n[0.0,"o","' + b"x" * (5 << 20),
    "nested without end": b"[" * 100_000,
    "a header nested without end": b'{"version":2,"x":' + b"[" * 100_000 + b"\n",
    "a piece nested without end": b'{"version":2,"width":80,"height":24}\n[0,"o",' + b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_recording_is_refused_by_name(name: str, site: Site, tmp_path: Path, tool: Run) -> None:
    path = tmp_path / "wrong.cast"
    path.write_bytes(WRONG[name])
    done = tool("kaconsole3", "--replay", str(path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"ERROR: {path}: ")
    assert done.stderr.count("\n") == 1


# --- who may see what -------------------------------------------------------------------------------------------------


@pytest.fixture
def three(site: Site) -> Site:
    """Recordings of nobody's and of games' on gdx-1, of games' on gdx-2; nobody has rights on gdx-1."""
    for node, user, said in (("gdx-1", "nobody", "mine"), ("gdx-1", "games", "theirs"), ("gdx-2", "games", "far")):
        recording = Recording.begin(site, f"{node}.site", user, 24, 80)
        recording.shown(said.encode())
        recording.end()
    database.connect(site)
    rights.add(site, "nobody", ["gdx-1.site"], ["/dev/sda3"])
    return site


def listed(tool: Run, user: str) -> list[tuple[str, str]]:
    """Node and user of each line of --list, as root shows it to *user* under sudo."""
    done = tool("kaconsole3", "--list", SUDO_UID=str(account(user).uid))
    assert (done.returncode, done.stderr) == (0, "")
    return sorted((line.split("/")[0], line.split()[1]) for line in done.stdout.splitlines())


@as_root
def test_administrators_list_all_and_others_what_is_theirs_or_of_their_nodes(three: Site, tool: Run) -> None:
    assert len(listed(tool, "root")) == 3
    assert listed(tool, "nobody") == [("gdx-1.site", "games"), ("gdx-1.site", "nobody")]
    assert listed(tool, "games") == [("gdx-1.site", "games"), ("gdx-2.site", "games")]
    assert listed(tool, "daemon") == []


@as_root
def test_only_who_opened_a_console_and_administrators_see_its_recording(three: Site, tool: Run) -> None:
    (theirs,) = [path for path in folder(three).glob("gdx-1.site/*") if "-games-" in path.name]
    name = f"gdx-1.site/{theirs.name}"
    for word in (name, str(theirs), f"../consoles/{name}"):
        done = tool("kaconsole3", "--replay", word, SUDO_UID=str(account("nobody").uid))
        assert (done.returncode, done.stdout) == (1, "")
        assert "only who opened a console may see its recording" in done.stderr
        assert tool("kaconsole3", "--replay", word, SUDO_UID=str(account("games").uid)).stdout == "theirs"
        assert tool("kaconsole3", "--replay", word).stdout == "theirs"
    assert tool("kaconsole3", "--replay", "gdx-1.site", SUDO_UID=str(account("nobody").uid)).stdout == "mine"


@as_root
def test_a_file_is_read_with_the_rights_of_the_caller(three: Site, tmp_path: Path, tool: Run) -> None:
    path = cast(tmp_path / "secret.cast", (0.0, "o", "secret"))
    path.chmod(0o600)
    link = folder(three) / "gdx-1.site" / "link.cast"
    link.symlink_to(path)
    for word in (str(path), str(link), "gdx-1.site/link.cast"):
        done = tool("kaconsole3", "--replay", word, SUDO_UID=str(account("nobody").uid))
        assert (done.returncode, done.stdout) == (1, "")
