"""Clients of a service by the hundred in one thread: they ask, and they follow events, over its unix socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

_LINE = 1 << 22
"""Bytes of the longest line that is taken."""


class RefusedError(Exception):
    """The answer is another one than 2xx."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(f"{status}: {content[:300].decode(errors='replace')}")
        self.status = status
        self.content = content


class Client:
    """One connection over the socket *path*, kept from one question to the next; as root, in the name of *user*."""

    def __init__(self, path: Path, user: str = "") -> None:
        self._path = path
        self._headers = "Host: localhost\r\n" + (f"X-Kadeploy-User: {user}\r\n" if user else "")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, target: str, body: Any = None) -> bytes:
        """What ``GET`` answers, or ``POST`` with a *body* that becomes JSON.

        Raises:
            RefusedError: the status is none of 2xx.
        """
        reader = await self._send(target, body)
        status, headers = await _head(reader)
        content = b"".join([piece async for piece in _pieces(reader, headers)])
        if not 200 <= status < 300:
            raise RefusedError(status, content)
        return content

    async def events(self, wid: str) -> AsyncIterator[bytes]:
        """The events of a workflow, a JSON object each, until its end."""
        reader = await self._send(f"/v1/workflows/{wid}/events")
        status, headers = await _head(reader)
        rest = b""
        async for piece in _pieces(reader, headers):
            if status != 200:
                raise RefusedError(status, piece)
            *messages, rest = (rest + piece).split(b"\n\n")
            for message in messages:
                _, found, data = message.partition(b"data: ")
                if found:
                    yield data

    def close(self) -> None:
        """End the connection."""
        if self._streams:
            self._streams[1].close()
            self._streams = None

    async def _send(self, target: str, body: Any = None) -> asyncio.StreamReader:
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_unix_connection(self._path, limit=_LINE)
        content = b"" if body is None else msgspec.json.encode(body)
        length = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        method = "POST" if content else "GET"
        self._streams[1].write(f"{method} {target} HTTP/1.1\r\n{self._headers}{length}\r\n".encode() + content)
        return self._streams[0]


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if "chunked" not in headers.get("transfer-encoding", ""):
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


# --- users ------------------------------------------------------------------------------------------------------------


@dataclass
class Latencies:
    """Seconds from when a question was due to its answer: one that has to wait for another of its user counts it."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def share(self, part: float) -> float:
        """Milliseconds within which this *part* of the answers were there."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


async def poll(path: Path, targets: Sequence[str], users: int, period: float, seconds: float) -> dict[str, Latencies]:
    """So many users who ask each for one of *targets* every *period* seconds, in turn: latencies by target."""
    told = {target: Latencies() for target in targets}
    begin = time.perf_counter() + 1.0

    async def user(rank: int) -> None:
        client, due = Client(path, f"user{rank}"), begin + period * rank / users
        turn = rank
        while due < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            target = targets[turn % len(targets)]
            try:
                await client.ask(target)
                told[target].seconds.append(time.perf_counter() - due)
            except (OSError, EOFError, RefusedError) as error:
                told[target].failures.append(f"{type(error).__name__} {error}")
                client.close()
            due, turn = due + period, turn + 1
        client.close()

    await asyncio.gather(*map(user, range(users)))
    return told


async def follow(path: Path, wid: str, followers: int) -> Latencies:
    """So many followers of one workflow until its end: seconds from when an event was told to when each had it."""
    told = Latencies()

    async def follower() -> None:
        client, since = Client(path), time.time()
        async for event in client.events(wid):
            at = json.loads(event)["at"]
            if at > since:  # what was told before is sent at once
                told.seconds.append(time.time() - at)
        client.close()

    results = await asyncio.gather(*(follower() for _ in range(followers)), return_exceptions=True)
    told.failures.extend(f"{type(each).__name__} {each}" for each in results if isinstance(each, BaseException))
    return told
