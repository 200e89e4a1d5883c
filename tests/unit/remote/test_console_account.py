"""Programs of consoles started by another process: its own account's in the unit, the test's here."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kadeploy import caller
from kadeploy.errors import ConfigError, KadeployError
from kadeploy.operations.console import End, Session, Size
from kadeploy.process import children
from kadeploy.remote import console_account, sockets, terminal
from kadeploy.remote.console_account import Hosted
from kadeploy.remote.terminal import Cells
from tests.descriptors import descriptors

DEAF = ("sh", "-c", "trap '' HUP; echo deaf; while :; do sleep 0.1; done")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, console_account.KIND) as bound, sockets.address(tmp_path, "sock") as short:
        bound.bind(short)
        bound.listen()
        yield bound


@pytest.fixture
def helper(listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The process that starts programs."""
    monkeypatch.setattr(socket.socket, "getsockname", lambda _: str(tmp_path / "sock"))  # which systemd's own has
    pid = os.fork()
    if pid == 0:
        try:
            console_account.serve(listener)
        finally:
            os._exit(1)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def opened(folder: Path, *command: str, account: str = "") -> Session:
    return Session(Hosted(folder / "sock", command, {"PATH": os.environ["PATH"]}, Cells(31, 97), account))


def shown(session: Session, wanted: bytes = b"\0", seconds: float = 20.0) -> bytes:
    """What a program shows until it says *wanted*, or to its end."""
    said, limit = b"", time.monotonic() + seconds
    while not session.over and wanted not in said:
        assert select.select([session], [], [], limit - time.monotonic())[0], said
        said += session.read()
    return said


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.02)


def family(pid: int) -> list[int]:
    return [inner for child in children(pid) for inner in (child, *family(child))]


def test_size_variables_and_exit_status_get_through(helper: int, tmp_path: Path) -> None:
    session = opened(tmp_path, "sh", "-c", "stty size; echo $USER $HOME; tty >/dev/tty; env | wc -l; exit 7")
    me = caller.own()
    said = shown(session).decode().splitlines()
    assert said[:2] == ["31 97", f"{me.name} {me.home}"]
    assert said[2].startswith("/dev/pts/")
    assert session.end("ended") == End("ended", 7)


def test_the_terminal_is_the_services_to_resize_to_read_and_to_write(helper: int, tmp_path: Path) -> None:
    session = opened(tmp_path, "sh", "-c", "read -r word; echo got $word of $(stty size)")
    session.resize(Size(40, 100))
    session.write(b"word\r")
    assert b"got word of 40 100" in shown(session)
    assert session.end("ended") == End("ended", 0)


def test_a_program_that_is_not_there_says_so(helper: int, tmp_path: Path) -> None:
    session = opened(tmp_path, "no-such-program")
    assert b"No such file or directory" in shown(session)
    assert session.end("ended").status == 127


def test_whoever_leaves_ends_the_program_though_it_ignores_the_hangup(helper: int, tmp_path: Path) -> None:
    session = opened(tmp_path, *DEAF)
    shown(session, b"deaf")
    assert family(helper)
    assert session.end("revoked") == End("revoked")
    until(lambda: not family(helper))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs have the time to end that a busy machine needs."""
    monkeypatch.setattr(terminal, "GRACE", 100.0)


def test_the_program_hears_of_it_first(patient: None, helper: int, tmp_path: Path) -> None:
    session = opened(
        tmp_path, "sh", "-c", f"trap 'touch {tmp_path}/heard; exit' HUP; echo on; while :; do sleep 0.1; done"
    )
    shown(session, b"on")
    session.end("left")
    assert (tmp_path / "heard").exists()


def test_a_service_that_is_killed_ends_the_program(helper: int, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        shown(opened(tmp_path, *DEAF), b"deaf")
        (tmp_path / "begun").touch()
        time.sleep(99)
    until((tmp_path / "begun").exists)
    assert family(helper)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: not family(helper))


def test_a_helper_that_is_killed_takes_its_program_along_and_the_others_stay(helper: int, tmp_path: Path) -> None:
    other, session = opened(tmp_path, "cat"), opened(tmp_path, *DEAF)
    shown(session, b"deaf")
    os.kill(children(helper)[-1], signal.SIGKILL)
    shown(session)
    assert session.end("ended") == End("lost")
    other.write(b"word\r")
    shown(other, b"word")
    assert other.end("left") == End("left")


def test_it_runs_as_one_account_and_no_other(helper: int, tmp_path: Path) -> None:
    name = caller.own().name
    with pytest.raises(KadeployError, match=f"console_account is games, but consoles run as {name} here"):
        opened(tmp_path, "cat", account="games")
    opened(tmp_path, "cat", account=name).end("left")


@pytest.mark.parametrize(
    "said", [b"x", b"[]", b"\xff", b"{}", b"[" * 50_000, b'{"command": ["cat"]}', b'{"command": 1, "environment": 2}']
)
def test_what_is_no_request_is_refused_and_the_helper_goes_on(said: bytes, helper: int, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, console_account.KIND) as connection:
        connection.settimeout(20)
        connection.connect(str(tmp_path / "sock"))
        connection.send(said)
        assert "not understood" in json.loads(connection.recv(1000))["refused"]
    opened(tmp_path, "cat").end("left")


def test_without_a_helper_it_is_said_what_to_start(tmp_path: Path, listener: socket.socket) -> None:
    wanted = "systemctl enable --now kadeploy3d-consoles.socket"
    with pytest.raises(ConfigError, match=rf"nowhere/sock: No such file or directory.*{wanted}"):
        opened(tmp_path / "nowhere", "cat")
    listener.close()
    with pytest.raises(ConfigError, match=rf"sock: Connection refused.*{wanted}"):
        opened(tmp_path, "cat")


@pytest.mark.parametrize("says", ["nothing", "nonsense", "a file", "two", "a refusal"])
def test_a_helper_that_somebody_has_taken_over_gets_nothing_for_it(
    says: str, listener: socket.socket, tmp_path: Path
) -> None:
    """What people reach by an escape runs as its account."""
    before = descriptors()
    thread = threading.Thread(target=_mischievous, args=[listener, says])
    thread.start()
    with pytest.raises(KadeployError, match="The console cannot be opened: "):
        opened(tmp_path, "cat")
    thread.join(20)
    assert descriptors() <= before


def _mischievous(listener: socket.socket, says: str) -> None:
    visitor, _ = listener.accept()
    answers: dict[str, tuple[Any, int]] = {
        "nonsense": ("\0", 0),
        "a file": ({"started": True}, 1),
        "two": ({"started": True}, 2),
        "a refusal": ({"refused": ["\x1b]0;"]}, 0),
    }
    with visitor, Path("/etc/hostname").open() as file:
        visitor.recv(100_000)
        if says in answers:
            message, count = answers[says]
            socket.send_fds(visitor, [json.dumps(message).encode()], [file.fileno()] * count)
