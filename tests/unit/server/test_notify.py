"""systemd on one side, the daemon on the other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kadeploy.server.notify import listen_fds, notify

DAEMON = """\
import socket, subprocess, sys
from kadeploy.server.notify import listen_fds
(number,) = listen_fds()
here, _ = socket.socket(fileno=number).accept()
child = f"import os; from kadeploy.server.notify import listen_fds; os.fstat({number}); print(listen_fds())"
seen = subprocess.run([sys.executable, "-c", child], close_fds=False, capture_output=True, text=True).stderr
here.sendall(f"{listen_fds()} {seen.splitlines()[-1]}".encode())
"""


@pytest.mark.parametrize("name", ["{folder}/notify", "@kadeploy-test-{pid}"])
def test_systemd_hears_what_the_daemon_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = name.format(folder=tmp_path, pid=os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1\nSTATUS=Serving paris.")
        assert systemd.recv(100) == b"READY=1\nSTATUS=Serving paris."


def test_without_systemd_nobody_is_told_and_nothing_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert listen_fds() == []


def test_sockets_that_were_meant_for_another_process_are_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert listen_fds() == []
    assert "LISTEN_FDS" not in os.environ, "no child shall believe it either"


def test_a_daemon_that_systemd_starts_for_its_first_caller_has_the_socket_once_and_its_children_never(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    command = ["systemd-socket-activate", "--listen", path, sys.executable, "-c", DAEMON]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as systemd:
        try:
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(20)
                _connect(caller, path)
                answer = caller.recv(1000).decode()
        finally:
            systemd.kill()
    assert answer == "[] OSError: [Errno 9] Bad file descriptor"


def _connect(caller: socket.socket, path: Path) -> None:
    for _ in range(200):
        try:
            return caller.connect(str(path))
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nobody listens on {path}")
