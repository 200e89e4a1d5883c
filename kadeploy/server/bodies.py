"""Files on their way to us: whoever waits for more of one holds no thread.

The event loop collects what arrives. A thread writes and hashes it, a batch at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from litestar.exceptions import ClientException

from kadeploy.errors import FileBusyError, FileError
from kadeploy.files import MEGA
from kadeploy.server.places import Places
from kadeploy.state.sent import Arrival

_PATIENCE = 60.0
"""Seconds that a sender may take for the next piece."""
_BATCH = MEGA
"""Bytes that are written and hashed at a time."""
_THREADS = ThreadPoolExecutor(8, "bodies")
_uploads = Places()


async def receive(stream: AsyncIterator[bytes], arrival: Arrival, user: str, most: int) -> int:
    """Take what *stream* brings of a file, as one of the *most* that *user* may send at a time; how much is here then.

    Raises:
        FileBusyError: the user sends as many already.
        FileError: the sender is too slow or gone; what `kadeploy.state.sent.append` says.
    """
    refusal = FileBusyError(
        f"{user} is sending {most} files, which is all that the site allows at a time (service.quota.uploads). Try "
        "again when one of them is here."
    )
    with _uploads.one(user, most, refusal):
        work = _Work()
        try:
            await work.begin(arrival.open)
            async for batch in _batches(stream):
                await work.begin(partial(arrival.take, batch))
            await work.begin(arrival.complete)
            return int(await work.ended())
        finally:
            await work.over()
            arrival.close()


async def _batches(stream: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """What comes, in larger portions; also what came before the sender was too slow, or gone (FileError)."""
    batch = bytearray()
    try:
        while (piece := await _next(stream)) is not None:
            batch += piece
            if len(batch) >= _BATCH:
                yield batch
                batch = bytearray()
    except FileError:
        yield batch
        raise
    yield batch


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    """The next piece; None at the end."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await anext(stream, None)
    except TimeoutError as error:
        raise FileError(f"Nothing has come for {_PATIENCE:.0f} s: send the rest anew.") from error
    except ClientException as error:
        raise FileError("The sender is gone: send the rest anew.") from error


class _Work:
    """What threads do for one file, one thing after another, while more is collected."""

    def __init__(self) -> None:
        self._last: asyncio.Future[Any] | None = None

    async def begin(self, function: Callable[[], object]) -> None:
        """Do something as soon as what was begun before has ended; raises what that raised."""
        await self.ended()
        self._last = asyncio.get_running_loop().run_in_executor(_THREADS, function)

    async def ended(self) -> Any:
        """The result of what was begun last."""
        return await asyncio.shield(self._last) if self._last else None

    async def over(self) -> None:
        """Wait until no thread uses the file any more."""
        if self._last:
            await asyncio.wait([self._last])
