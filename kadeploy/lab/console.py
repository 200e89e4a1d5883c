"""A terminal on a machine's serial line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path

from kadeploy.errors import KadeployError
from kadeploy.lab.lab import Lab, LabNode

ESCAPE = b"\x1d"
"""Ctrl-] leaves."""


def make_locks(lab: Lab) -> None:
    """Make the files that keep consoles apart, for root and for the lab's service."""
    for node in lab.members:
        lab.serial_lock(node).touch(mode=0o600)
        lab.lend(lab.serial_lock(node))


def attach(lab: Lab, node: LabNode) -> None:
    """Copy between the terminal and *node*'s serial line until Ctrl-] or the end of the input.

    Stays attached when the machine is switched off, and goes on when it is switched on again.

    Raises:
        KadeployError: the console is open elsewhere, for a serial line has one end; or it is not this account's.
    """
    with _alone(lab.serial_lock(node.name)), _raw_terminal():
        _say(f"[{node.name}: Ctrl-] leaves]")
        while True:
            line = _connect(lab.serial(node.name))
            if line is None:
                return
            with line:
                if not _copy(line):
                    return
            _say(f"[{node.name} was switched off]")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    try:
        stream = path.open()
    except FileNotFoundError as error:
        raise KadeployError("The lab is not up: `kadeploy-lab up` starts it.") from error
    except PermissionError as error:
        raise KadeployError(
            f"This is root's: `kaconsole3 -m {path.stem}` opens the console with your rights."
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KadeployError(f"{path.stem}'s console is open elsewhere: close it there first.") from error
        yield


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        print(flush=True)


def _connect(path: Path) -> socket.socket | None:
    """The serial line, once the machine is on; None when the user leaves before."""
    told = False
    while True:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(str(path))
        except OSError:
            line.close()
        else:
            return line
        if not told:
            _say("[off; waiting until it is switched on]")
            told = True
        if _leaves(0.5):
            return None


def _leaves(seconds: float) -> bool:
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    typed = os.read(sys.stdin.fileno(), 1024)
    return not typed or ESCAPE in typed


def _copy(line: socket.socket) -> bool:
    """Copy both ways; False when the user leaves, True when the machine goes off."""
    while True:
        ready, _, _ = select.select([line, sys.stdin], [], [])
        if line in ready:
            try:
                received = line.recv(4096)
            except OSError:
                received = b""
            if not received:
                time.sleep(0.2)
                return True
            sys.stdout.buffer.write(received)
            sys.stdout.buffer.flush()
        if sys.stdin in ready:
            typed = os.read(sys.stdin.fileno(), 1024)
            before, escape, _ = typed.partition(ESCAPE)
            if before:
                line.sendall(before)
            if escape or not typed:
                return False


def _say(text: str) -> None:
    print(f"\r\n{text}\r", file=sys.stderr, flush=True)
