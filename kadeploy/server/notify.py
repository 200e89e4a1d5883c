"""What systemd tells the daemon, by sd_listen_fds(3), and what it hears from it, by sd_notify(3)."""

from __future__ import annotations

import os
import socket

_FIRST = 3
"""Where the file descriptors begin that systemd passes on."""


def notify(text: str) -> None:
    """Tell systemd *text*, such as ``READY=1`` or ``STOPPING=1``; without systemd nothing happens.

    Raises:
        OSError: systemd's socket is gone.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_systemd:
            to_systemd.connect("\0" + address[1:] if address.startswith("@") else address)
            to_systemd.sendall(text.encode())


def listen_fds() -> list[int]:
    """The listening sockets that systemd has opened for this very process; no child inherits or finds them again."""
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    pid, count, _ = (os.environ.pop(name, "") for name in names)
    given = range(_FIRST, _FIRST + int(count or 0)) if pid == str(os.getpid()) else ()
    for number in given:
        os.set_inheritable(number, False)
    return list(given)
