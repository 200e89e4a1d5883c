"""Consoles on real pseudo terminals: what the user types and sees, and what is left when they end."""

from __future__ import annotations

import hashlib
import os
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

PROGRAM = """\
import os
import sys
from pathlib import Path
from kadeploy.cli.console import attach, size_of
from kadeploy.operations import console
from kadeploy.remote import terminal

def may_stay():
    if Path("broken").exists():
        raise RuntimeError("the database is gone")
    return not Path("revoked").exists()

console.CHECK, terminal.GRACE = 0.2, 0.5
print("start", flush=True)
try:
    program = terminal.Program(sys.argv[1:], os.environ, size_of(0).cells)
    print("END", attach(console.Session(program), may_stay), flush=True)
except Exception as error:
    print("RAISED", type(error).__name__, error, flush=True)
print("LFLAG", flush=True)
sys.stdin.read()
"""

Attach = Callable[..., pexpect.spawn]


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    """``attach("cat")``: a terminal on which a console with that program is open; it stays open after its end."""
    opened: list[pexpect.spawn] = []

    def run(*command: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable, ["-c", PROGRAM, *command], cwd=str(tmp_path), timeout=20, dimensions=(31, 97)
        )
        opened.append(child)
        child.before_console = termios.tcgetattr(child.child_fd)
        child.expect("start\r\n")
        return child

    yield run
    for child in opened:
        child.close(force=True)


def is_restored(child: pexpect.spawn) -> bool:
    child.expect("LFLAG")
    settings: list[object] = termios.tcgetattr(child.child_fd)
    return settings == child.before_console


def test_keys_go_to_the_program_as_they_are_and_its_words_come_back(attach: Attach) -> None:
    """Ctrl-C too: it is the program's, not ours."""
    child = attach("sh", "-c", "trap 'echo interrupted' INT; echo ready; cat; cat")
    child.expect("ready")
    child.send("word\r")
    child.expect("word\r\nword")
    child.send("\x03")
    child.expect("interrupted")


def test_escape_four_times_leaves_and_three_times_does_not(attach: Attach) -> None:
    child = attach("sh", "-c", "stty -echo; echo ready; cat -v")
    child.expect("ready")
    child.send("\x1b\x1b\x1bx\r")
    child.expect_exact("^[^[^[x")
    child.send("\x1b\x1b\x1b\x1b")
    child.expect_exact("END End(reason='left', status=0")
    assert is_restored(child)


def test_the_program_sees_the_terminals_size_and_its_changes(attach: Attach) -> None:
    child = attach("sh", "-c", "trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done")
    child.expect("31 97")
    child.setwinsize(44, 132)
    child.expect("44 132")


def test_the_program_has_a_controlling_terminal_of_its_own(attach: Attach) -> None:
    child = attach("sh", "-c", "echo from-the-terminal >/dev/tty; tty")
    child.expect("from-the-terminal")
    child.expect(r"/dev/pts/\d+")
    assert child.after.decode() != os.ttyname(os.open(f"/proc/{child.pid}/fd/0", os.O_RDWR | os.O_NOCTTY))


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 9", 9), ("kill -TERM $$", 143)])
def test_the_programs_end_and_its_last_words_are_told(attach: Attach, command: str, status: int) -> None:
    child = attach("sh", "-c", f"seq 2000; {command}")
    child.expect("\r\n2000\r\n")
    child.expect_exact(f"END End(reason='ended', status={status}")
    assert is_restored(child)


def test_a_program_that_is_not_there_is_told_by_name(attach: Attach) -> None:
    child = attach("/no/such/program")
    child.expect("/no/such/program: No such file or directory")
    child.expect("status=127")
    assert is_restored(child)


def test_when_the_user_may_stay_no_longer_the_program_is_ended_even_if_it_ignores_the_hangup(
    attach: Attach, tmp_path: Path
) -> None:
    child = attach("sh", "-c", "trap '' HUP; echo pid $$; while :; do sleep 0.1; done")
    child.expect(r"pid (\d+)")
    pid = int(child.match[1])
    (tmp_path / "revoked").touch()
    child.expect_exact("END End(reason='revoked', status=0")
    assert not Path(f"/proc/{pid}").exists()
    assert is_restored(child)


def test_a_program_that_floods_the_screen_is_ended_all_the_same(attach: Attach, tmp_path: Path) -> None:
    """Nobody reads what it says: neither the look at the rights nor the end waits for that."""
    child = attach("sh", "-c", "echo pid $$ >pid; exec yes")
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
    pid = (tmp_path / "pid").read_text(encoding="utf-8").split()[1]
    (tmp_path / "revoked").touch()
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.02)
    child.expect_exact("reason='revoked'")


def test_when_the_rights_cannot_be_looked_up_the_console_is_closed(attach: Attach, tmp_path: Path) -> None:
    child = attach("sh", "-c", "echo ready; cat")
    child.expect("ready")
    (tmp_path / "broken").touch()
    child.expect("RAISED RuntimeError the database is gone")
    assert is_restored(child)


@pytest.mark.parametrize("number", [15, 1])
def test_a_signal_closes_the_console_and_restores_the_terminal(attach: Attach, number: int) -> None:
    child = attach("sh", "-c", "echo pid $$; cat")
    child.expect(r"pid (\d+)")
    pid = int(child.match[1])
    child.kill(number)
    child.expect("RAISED UserInterruptError Console closed by SIG")
    assert not Path(f"/proc/{pid}").exists()
    assert is_restored(child)


def test_a_long_paste_arrives_whole(attach: Attach) -> None:
    """More than a terminal's buffer holds, to a program that is slow to begin."""
    text = "".join(f"{number:05d}\r" for number in range(3000))
    child = attach("sh", "-c", "stty raw -echo; echo ready; sleep 0.3; head -c 18000 | md5sum")
    child.expect("ready")
    child.delaybeforesend = None
    child.send(text)
    child.expect(hashlib.md5(text.encode()).hexdigest())
