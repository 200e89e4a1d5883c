"""The user's files on their way to the service of a site: each content once, and the rest of it after a cut."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from kadeploy import files
from kadeploy.caller import Account, as_user
from kadeploy.checksums import Fingerprint
from kadeploy.errors import FileBusyError, FileError
from kadeploy.files import MEGA, LocalFile

CACHE = Path(".cache") / "kadeploy"
"""Where checksums of files are remembered, below the home of their user."""
CHUNK = MEGA
"""Bytes that are read and sent at a time."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before each new try; when something has arrived in between, they start again."""
_CUTS = (OSError, http.client.HTTPException, FileBusyError)
"""What a new try may mend; after a cut, the service may take a while to notice that nothing more comes."""

Progress = Callable[[int, int], object]
"""Told how many bytes are there, of how many."""


@dataclass(frozen=True)
class Way:
    """How files get to the service; each call may fail as connections do, or raise what the service refuses."""

    ask: Callable[[str, int], int]
    """How many bytes are there of the file with this SHA-256 and size."""
    send: Callable[[str, int, Iterator[bytes]], object]
    """The rest of the file, from this byte on."""
    finished: Callable[[str], object] = lambda _: None
    """All of it is there."""
    pause: Callable[[float], object] = time.sleep
    """Wait so many seconds before a new try; may raise, when nobody wants one any more."""


def measure(names: Sequence[str], account: Account) -> dict[str, Fingerprint]:
    """What is in the user's files, by name, for environments that are recorded elsewhere.

    Raises:
        FileError: one cannot be read with the rights of *account*, or is changed meanwhile.
    """
    found = {}
    for name in names:
        stream, local = _open(name, account)
        stream.close()
        found[name] = Fingerprint(local.size, local.md5, local.sha256)
    return found


def send(
    names: Sequence[str],
    account: Account,
    way: Way,
    progress: Progress = lambda *_: None,
    pauses: Sequence[float] = PAUSES,
) -> dict[str, str]:
    """Send those of the user's files that are not there yet; the SHA-256 of each, by name.

    They are opened once, with the rights of *account*, and sent as they were then.

    Raises:
        FileError: one cannot be read or is changed meanwhile, the service refuses it, or the connection was cut again
            and again.
    """
    with ExitStack() as stack:
        opened: dict[str, tuple[BinaryIO, LocalFile]] = {}
        for name in dict.fromkeys(names):
            opened[name] = _open(name, account)
            stack.callback(opened[name][0].close)
        by_content = {
            local.sha256: _Sending(name, stream, local, files.identity(stream.fileno()), way)
            for name, (stream, local) in opened.items()
        }
        _send_all(list(by_content.values()), progress, pauses)
        return {name: local.sha256 for name, (_, local) in opened.items()}


def _open(name: str, account: Account) -> tuple[BinaryIO, LocalFile]:
    path = files.local_path(name, account)
    with as_user(account):
        stream = files.open_as_user(path, account)
        return stream, files.measure_open(stream, path, account.home / CACHE)


def _send_all(sendings: Sequence[_Sending], progress: Progress, pauses: Sequence[float]) -> None:
    total, done = sum(each.local.size for each in sendings), 0
    for each in sendings:
        each.go(partial(_told_of_all, progress, done, total), pauses)
        done += each.local.size


def _told_of_all(progress: Progress, before: int, total: int, there: int) -> None:
    progress(before + there, total)


@dataclass(frozen=True)
class _Sending:
    """A file on its way."""

    name: str
    stream: BinaryIO
    local: LocalFile
    identity: tuple[int, ...]
    """Of the file as it was measured."""
    way: Way

    def go(self, tell: Callable[[int], None], pauses: Sequence[float]) -> None:
        """Have all of it there; *tell* how many bytes are."""
        waits, furthest = iter(pauses), 0
        there: int | None = None
        while there != self.local.size:
            try:
                there = self._ask() if there is None else self._send_rest(there, tell)
                tell(there)
            except _CUTS as error:
                there = None
                self._wait(next(waits, None), error)
            if there is not None and there - furthest >= CHUNK:
                waits, furthest = iter(pauses), there
        self.way.finished(self.local.sha256)

    def _ask(self) -> int:
        there = self.way.ask(self.local.sha256, self.local.size)
        if not 0 <= there <= self.local.size:
            raise FileError(f"{self.name}: the server has {there} of {self.local.size} bytes. Ask who runs it.")
        return there

    def _send_rest(self, offset: int, tell: Callable[[int], None]) -> int:
        self.way.send(self.local.sha256, offset, self._chunks(offset, tell))
        there = self._ask()
        if there <= offset:
            raise ConnectionError("nothing of it has arrived")
        return there

    def _chunks(self, offset: int, tell: Callable[[int], None]) -> Iterator[bytes]:
        while offset < self.local.size:
            chunk = self._read(min(CHUNK, self.local.size - offset), offset)
            yield chunk
            offset += len(chunk)
            tell(offset)

    def _read(self, count: int, offset: int) -> bytes:
        try:
            chunk = os.pread(self.stream.fileno(), count, offset)
        except OSError as error:
            raise FileError(f"{self.name}: {error.strerror}.") from error
        if len(chunk) != count or files.identity(self.stream.fileno()) != self.identity:
            raise FileError(f"{self.name}: changed while it was sent. Try again once it is complete.")
        return chunk

    def _wait(self, pause: float | None, error: Exception) -> None:
        if pause is None:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise FileError(
                f"{self.name}: cannot be sent: {why.rstrip('.')}. Run the same command again: what has arrived stays."
            ) from error
        self.way.pause(pause)
