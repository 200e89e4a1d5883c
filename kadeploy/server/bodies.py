"""Bodies of requests that are too large to be kept in memory: taken piece by piece, in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from typing import TypeVar

from litestar.exceptions import ClientException

from kadeploy.errors import FileError

_ResultT = TypeVar("_ResultT")
_PATIENCE = 60.0
"""Seconds that a sender may take for the next piece."""
_MOST = 64
"""Files that are received at a time; each holds a thread."""


def pieces(stream: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """For a thread: the pieces of a *stream* of *loop*.

    Raises:
        FileError: the sender is too slow, or gone.
    """

    async def following() -> bytes | None:
        return await anext(stream, None)

    while True:
        coming = asyncio.run_coroutine_threadsafe(following(), loop)
        try:
            piece = coming.result(timeout=_PATIENCE)
        except LateError as error:
            coming.cancel()
            raise FileError(f"Nothing has come for {_PATIENCE:.0f} s: send the rest anew.") from error
        except ClientException as error:
            raise FileError("The sender is gone: send the rest anew.") from error
        if piece is None:
            return
        if piece:
            yield piece


async def in_thread(function: Callable[[], _ResultT]) -> _ResultT:
    """The result of *function*, from a thread that holds up nobody else."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function)


_THREADS = ThreadPoolExecutor(_MOST, "bodies")
