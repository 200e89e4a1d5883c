"""Programs of consoles under an account of their own: the process that starts them, and the service that asks it to.

The service cannot become another account, and what people reach by the escapes of a console's program is what the
account of that program can do. So the program is started by a process of another account, which has no secrets. It
needs no configuration, and nothing but the standard library.

They speak over a unix socket that keeps messages apart (SOCK_SEQPACKET), in JSON:

    service   {"command": ["telnet", …], "environment": {…}, "cells": [24, 80], "account": ""}
    helper    {"refused": "why"}; or {"started": true}, and with it the terminal's descriptor (unix(7), SCM_RIGHTS)
    helper    {"status": 0}, once the program has ended

The connection stands for the console. When the service closes it, or dies, the program loses its terminal and is ended;
when the helper dies, so does the program, and the service is told no status.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kadeploy import caller
from kadeploy.errors import ConfigError, KadeployError
from kadeploy.remote import sockets
from kadeploy.remote.terminal import Cells, Program

KIND = socket.SOCK_SEQPACKET
ANSWER = 10.0
"""Seconds that the helper may take to start a program."""
_LARGEST = 128 << 10
"""Bytes of a message; the kernel takes no larger one by default."""
_WITH_HELPER = ("/usr/bin/setpriv", "--pdeathsig", "KILL", "--")
"""Lets the kernel end the program with the process that has started it."""


# --- the service ----------------------------------------------------------------------------------------------------


class Hosted:
    """A program that the helper has started; see `kadeploy.remote.terminal.Program`.

    Args:
        path: the helper's socket.
        command: program and arguments.
        environment: its variables, but for those that say who it is.
        cells: size of its terminal, at first.
        account: as whom it has to run; empty: as whom the helper runs.

    Raises:
        KadeployError: there is no helper, or it refuses.
    """

    def __init__(
        self, path: Path, command: Sequence[str], environment: Mapping[str, str], cells: Cells, account: str = ""
    ) -> None:
        self._helper = socket.socket(socket.AF_UNIX, KIND)
        try:
            _connect(self._helper, path)
            with contextlib.suppress(BrokenPipeError):  # it does not listen to us, and says why
                _tell(self._helper, command=command, environment=dict(environment), cells=cells, account=account)
            self.line = _taken(self._helper)
        except OSError as error:
            self._helper.close()
            raise _unanswered(path, error.strerror or "no answer") from error
        except KadeployError:
            self._helper.close()
            raise

    def end(self) -> int | None:
        """Its exit status, once its terminal has been taken away; None when the helper was lost with it."""
        with self._helper, contextlib.suppress(OSError):
            self._helper.settimeout(ANSWER)
            self._helper.shutdown(socket.SHUT_WR)
            status = _understood(self._helper.recv(_LARGEST)).get("status")
            return status if isinstance(status, int) else None
        return None


def _connect(helper: socket.socket, path: Path) -> None:
    helper.settimeout(ANSWER)
    with sockets.address(path.parent, path.name) as short:
        helper.connect(short)


def _taken(helper: socket.socket) -> int:
    """The terminal that the helper sends; whatever else it may send is closed."""
    text, descriptors, _, _ = socket.recv_fds(helper, _LARGEST, 1, socket.MSG_CMSG_CLOEXEC)
    answer = _understood(text)
    if answer.get("started") and len(descriptors) == 1 and os.isatty(descriptors[0]):
        return descriptors[0]
    for each in descriptors:
        os.close(each)
    raise KadeployError(f"The console cannot be opened: {answer.get('refused') or 'no terminal came'}.")


def _unanswered(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"The console cannot be opened: {path}: {why}. What runs consoles has to be started on the controller: "
        "systemctl enable --now kadeploy3d-consoles.socket."
    )


# --- the helper -----------------------------------------------------------------------------------------------------


def serve(listener: socket.socket) -> NoReturn:
    """Start programs, as this process's own account, for the account that owns the socket; each from a process apart.

    Raises:
        OSError: nobody can connect any more.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        visitor, _ = listener.accept()
        with visitor, contextlib.suppress(OSError):  # who asked has gone, or the machine has no process left
            if _is_trusted(visitor, listener) and os.fork() == 0:
                listener.close()
                _serve_in_process_apart(visitor)


def _is_trusted(visitor: socket.socket, listener: socket.socket) -> bool:
    """Whether the account that owns the socket asks; another one is told who that is."""
    owner = Path(listener.getsockname()).stat().st_uid
    if sockets.credentials(visitor).uid == owner:
        return True
    visitor.shutdown(socket.SHUT_RD)
    while visitor.recv(_LARGEST):
        pass  # what is left unread would make the kernel drop what is said
    _tell(visitor, refused=f"{listener.getsockname()} serves the account that owns it, number {owner}")
    return False


def _serve_in_process_apart(service: socket.socket) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.suppress(BrokenPipeError):  # the service has gone
            _host(service)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _host(service: socket.socket) -> None:
    """Start what *service* asks for, and stay until it ends or the service leaves."""
    try:
        program = _started(_understood(service.recv(_LARGEST)))
    except KadeployError as error:
        _tell(service, refused=str(error).rstrip("."))
        return
    try:
        _tell(service, program.line, started=True)
        os.close(program.line)
        _wait(service, program)
    finally:
        status = program.end()
    _tell(service, status=status)


def _started(asked: Mapping[str, Any]) -> Program:
    own = caller.own()
    if asked.get("account", "") not in ("", own.name):
        raise KadeployError(f"console_account is {asked.get('account')}, but consoles run as {own.name} here")
    who = {"HOME": str(own.home), "USER": own.name, "LOGNAME": own.name}
    try:
        return Program(asked["command"], asked["environment"] | who, Cells(*asked["cells"]), under=_WITH_HELPER)
    except (KeyError, TypeError, ValueError) as error:
        raise KadeployError(f"the request is not understood: {error}") from error


def _wait(service: socket.socket, program: Program) -> None:
    """Until the program has ended, or the service has left or died."""
    ended = os.pidfd_open(program.pid)
    try:
        select.select([service.fileno(), ended], [], [])
    finally:
        os.close(ended)


# --- messages -------------------------------------------------------------------------------------------------------


def _tell(to: socket.socket, *descriptors: int, **message: Any) -> None:
    socket.send_fds(to, [json.dumps(message).encode()], descriptors)


def _understood(text: bytes) -> dict[str, Any]:
    """A message; nothing at all when it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}
