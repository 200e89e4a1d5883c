"""Consoles over WebSockets: many of them in one process, each joined to its program by two tasks and no thread.

The client's first message is the size of its terminal. Binary messages are bytes, both ways. Text messages are JSON:
`Size` from the client, `Opened`, `Refused` and `End` to it. A client that does not read is waited for: at most
`PENDING` bytes are kept for it (by the transport), then its program is not read any more. A program that does not read
is waited for likewise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import msgspec
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect

from kadeploy.config.folder import Configuration
from kadeploy.errors import AuthenticationError, KadeployError, LimitError, RightsError, UnsoundMessageError
from kadeploy.operations import console
from kadeploy.operations.console import Console, Refused, Session, Size, admit
from kadeploy.server import pages
from kadeploy.server.auth import grouped
from kadeploy.server.places import Places
from kadeploy.server.standing import Require

FIRST_WORD = 10.0
"""Seconds in which a client has to say how large its terminal is."""
LAST_WORD = 1.0
"""Seconds in which it has to take the reason of the end."""
ANSWER = 10.0
"""Seconds in which the database has to say whether a user may stay."""
PROBE = 1.0
"""Seconds after which it is looked whether a client is still there that has typed more than its program reads."""
LARGEST = 1 << 20
"""Bytes of a client's largest message."""

Noted = Callable[[KadeployError | None], Awaitable[None]]

_log = logging.getLogger(__name__)
_Reason = Literal["left", "ended", "revoked", "unchecked"]


class _Way(NamedTuple):
    """How a console comes to its end."""

    reason: _Reason
    message: str = ""
    """Why the user may not stay, if it is not for want of a right."""


_NORMAL, _UNSUPPORTED, _POLICY, _TOO_BIG, _FAULT = 1000, 1003, 1008, 1009, 1011  # RFC 6455, section 7.4.1


class Consoles:
    """The open consoles of this process, counted by user."""

    def __init__(self) -> None:
        self._open = Places()

    @property
    def number(self) -> int:
        """How many there are."""
        return self._open.number

    async def serve(
        self,
        socket: WebSocket[Any, Any, Any],
        user: str,
        node: str,
        configuration: Configuration,
        noted: Noted,
        require: Require,
    ) -> None:
        """Show *user*, who has been authenticated, the console of *node* until one of both sides ends it.

        To be called by a handler of Litestar's that has not accepted the connection yet. *noted* hears that the console
        is open, or why it is not. *require* is asked every `console.CHECK` seconds, as are the user's rights.
        """
        with suppress(WebSocketDisconnect):
            await socket.accept()
            try:
                _require_own_page(socket)
                most = configuration.site.service.quota.consoles
                with self._open.one(user, most, _all_open(user, most)):
                    await _serve(socket, await asyncio.to_thread(admit, configuration, user, node), noted, require)
            except KadeployError as error:
                await noted(error)
                await _tell(socket, Refused(str(error)), _POLICY)
            except UnsoundMessageError as error:
                await _close(socket, error.code, str(error))
            except TimeoutError:
                await _close(socket, _POLICY, "nothing was said")


def _all_open(user: str, most: int) -> LimitError:
    return LimitError(
        f"{user} has {most} consoles open, which is all that the site allows (service.quota.consoles): leave one of "
        "them first."
    )


def _require_own_page(socket: WebSocket[Any, Any, Any]) -> None:
    """Browsers let any page open a WebSocket, whoever it is that asks (RFC 6455, section 10.2).

    Raises:
        RightsError: a page of somebody else's asks.
    """
    if page := pages.foreign(grouped(socket.scope["headers"])):
        raise RightsError(f"The page of {page} may not open consoles here.")


# --- one console ----------------------------------------------------------------------------------------------------


async def _serve(socket: WebSocket[Any, Any, Any], admitted: Console, noted: Noted, require: Require) -> None:
    async with asyncio.timeout(FIRST_WORD):
        first = await _receive(socket)
    if not isinstance(first, Size):
        raise UnsoundMessageError(_POLICY, "the first message has to be the size of the terminal")
    session = await asyncio.to_thread(admitted.open, first)
    way = _Way("left")
    try:
        await noted(None)
        await _say(socket, admitted.opened)
        way = await _joined(socket, session, _watch(admitted, require))
    finally:
        end = await asyncio.shield(asyncio.to_thread(session.end, way.reason))
    if way.reason != "left":
        await _tell(socket, msgspec.structs.replace(end, message=way.message), _NORMAL)


async def _joined(socket: WebSocket[Any, Any, Any], session: Session, watch: Coroutine[Any, Any, _Way]) -> _Way:
    """Copy until somebody ends it."""
    tasks = [asyncio.create_task(each) for each in (_listen(socket, session), _show(socket, session), watch)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task for task in tasks if task in done).result()


async def _show(socket: WebSocket[Any, Any, Any], session: Session) -> _Way:
    """What the program shows goes to the client, as fast as the client takes it."""
    loop = asyncio.get_running_loop()
    with suppress(WebSocketDisconnect):
        while not session.over:
            await _ready(session, loop.add_reader, loop.remove_reader)
            if piece := session.read():
                await _say(socket, piece)
        return _Way("ended")
    return _Way("left")


async def _listen(socket: WebSocket[Any, Any, Any], session: Session) -> _Way:
    """What the client says goes to the program, as fast as the program takes it."""
    with suppress(WebSocketDisconnect):
        while True:
            said = await _receive(socket)
            if isinstance(said, Size):
                session.resize(said)
            else:
                await _type(socket, session, said)
    return _Way("left")


async def _type(socket: WebSocket[Any, Any, Any], session: Session, keys: bytes) -> None:
    loop = asyncio.get_running_loop()
    while keys := keys[session.write(keys) :]:
        try:
            async with asyncio.timeout(PROBE):
                await _ready(session, loop.add_writer, loop.remove_writer)
        except TimeoutError:
            await _say(socket, b"")  # whose end is noticed by writing, while it is not read


async def _watch(admitted: Console, require: Require) -> _Way:
    """Until the user may not stay, or nobody can tell."""
    while True:
        await asyncio.sleep(console.CHECK)
        try:
            async with asyncio.timeout(ANSWER):
                await asyncio.to_thread(require)
                if not await asyncio.to_thread(admitted.may_stay):
                    return _Way("revoked")
        except AuthenticationError as error:
            return _Way("revoked", str(error))
        except Exception:
            _log.exception("The rights of %s on %s cannot be looked up", admitted.user, admitted.node)
            return _Way("unchecked")


async def _ready(
    session: Session, add: Callable[[int, Callable[[], None]], object], remove: Callable[[int], bool]
) -> None:
    """Wait until the session can be read from or written to."""
    ready = asyncio.Event()
    add(session.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        remove(session.fileno())


# --- messages -------------------------------------------------------------------------------------------------------


async def _receive(socket: WebSocket[Any, Any, Any]) -> Size | bytes:
    """The client's next message.

    Raises:
        WebSocketDisconnect: it has gone.
        UnsoundMessageError: there is none like that.
    """
    event: Any = await socket.receive()
    if event["type"] != "websocket.receive":
        raise WebSocketDisconnect(detail="gone", code=event.get("code") or _NORMAL)
    data, text = event.get("bytes"), event.get("text")
    if len(data or text or "") > LARGEST:
        raise UnsoundMessageError(_TOO_BIG, f"a message has {LARGEST} bytes at most")
    if text is None:
        return bytes(data or b"")
    try:
        return msgspec.json.decode(text, type=Size)
    except (ValueError, RecursionError) as error:
        raise UnsoundMessageError(_UNSUPPORTED, "the text is no message of a console's") from error


async def _say(socket: WebSocket[Any, Any, Any], message: msgspec.Struct | bytes) -> None:
    """Send *message* as soon as the client takes it.

    Raises:
        WebSocketDisconnect: it has gone.
    """
    try:
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_text(msgspec.json.encode(message).decode())
    except OSError as error:  # as ASGI has it
        raise WebSocketDisconnect(detail="gone") from error


async def _tell(socket: WebSocket[Any, Any, Any], message: msgspec.Struct, code: int) -> None:
    """A last word, if the client takes it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORD):
            await _say(socket, message)
    await _close(socket, code, "")


async def _close(socket: WebSocket[Any, Any, Any], code: int, reason: str) -> None:
    with suppress(OSError):  # it has gone, or does not take it
        async with asyncio.timeout(LAST_WORD):
            await socket.close(code, reason)
