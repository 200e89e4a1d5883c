"""The audit log: one line for each change that somebody asked the service for, and what became of it.

``state_dir/audit.jsonl``, a JSON object a line, readable for the service's account alone. It is only ever appended to.
When it is moved away, as logrotate does, the next line begins a new file.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kadeploy.config.site import Site
from kadeploy.server.auth import Caller

_log = logging.getLogger(__name__)

NAME = "audit.jsonl"
_LONGEST = 1000
"""Characters of one text: what users send must not fill the disk."""


@dataclass(frozen=True)
class Entry:
    """One line."""

    time: float
    """Unix seconds."""
    user: str
    """Empty where nobody has shown who they are."""
    how: str
    source: str
    what: str
    """``POST /v1/deployments``, or what else was done."""
    object: str
    """On what: nodes, a workflow, the name of an environment."""
    status: int
    """Of the answer, as in HTTP."""
    reason: str = ""
    """Why it was refused."""


class Audit:
    """The audit log of *site*, open for writing; threads may share it."""

    def __init__(self, site: Site) -> None:
        self._path = site.state / NAME
        self._lock = threading.Lock()
        self._file: int | None = None
        self._is_torn = False
        """Whether the file may end in the middle of a line, of ours or of a service that was killed."""

    def record(
        self, what: str, status: int, caller: Caller | None = None, source: str = "", thing: str = "", reason: str = ""
    ) -> None:
        """Append a line: *what* was asked for, on which *thing*, and the *status* and *reason* of the answer.

        Where nobody has shown who they are there is no *caller*, and *source* says where it came from. The service
        goes on when the line cannot be written, because the disk is full for instance: then its own log has it.
        """
        user, how, place = (caller.user, caller.how, caller.source) if caller else ("", "", source)
        line = _line(Entry(round(time.time(), 3), user, how, place, what, thing, status, reason))
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                _log.error("%s cannot be written: %s. Its line: %s", self._path, error.strerror or error, line)

    def _append(self, line: str) -> None:
        """One write(2), so that lines of several processes do not mix."""
        file = self._current()
        content = ("\n" * self._is_torn + line + "\n").encode()
        written = os.write(file, content)
        self._is_torn = written < len(content)
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _current(self) -> int:
        """A descriptor of the file that has the name now."""
        if self._file is not None and not _is_same(self._file, self._path):
            self.close()
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self._path, flags, 0o600)
            end = os.fstat(self._file).st_size
            self._is_torn = end > 0 and os.pread(self._file, 1, end - 1) != b"\n"
        return self._file

    def close(self) -> None:
        """Close the file; another line opens it again."""
        if self._file is not None:
            os.close(self._file)
        self._file = None


def _is_same(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _line(entry: Entry) -> str:
    """*entry* in ASCII: no text of a user ends a line, or does something to the terminal that shows it."""
    short = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in asdict(entry).items()}
    return json.dumps(short)


def read(site: Site, since: float = 0.0, user: str = "") -> Iterator[Entry]:
    """What was recorded from the Unix second *since* on, of *user* if given, oldest first.

    The file before the last rotation (``audit.jsonl.1``) is read too. A line that its writer did not finish is passed
    over.
    """
    for path in (site.state / f"{NAME}.1", site.state / NAME):
        with suppress(FileNotFoundError), path.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                entry = _entry(line)
                if entry and entry.time >= since and user in ("", entry.user):
                    yield entry


# --- its end ----------------------------------------------------------------------------------------------------------

MOST_READ = 8 << 20
"""Bytes of the log that one question reads at most, from its end or from where the last one has stopped."""
_BLOCK = 64 << 10
_LINE = 64 << 10
"""Bytes of the longest line that is understood; ours are shorter."""


class Part(NamedTuple):
    """Some entries, newest first, and where those before them end."""

    entries: list[Entry]
    before: str
    """What `newest` takes to go on; empty: there are no older ones."""


def newest(site: Site, most: int, fits: Callable[[Entry], bool], before: str = "") -> Part:
    """The *most* entries that came last and fit, or came last *before* the place that another part tells.

    The files are read backwards, `MOST_READ` bytes of them: there may be fewer entries, or none, and older ones all the
    same. A place that is not known any more, since the log has been rotated twice, is the end.
    """
    found: list[Entry] = []
    left = MOST_READ
    for path, end in _from(site, before):
        with suppress(FileNotFoundError), path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            for place, line in _backwards(file, end):
                entry = _entry(line.decode("ascii", "replace"))
                if entry and fits(entry):
                    found.append(entry)
                left -= len(line) + 1
                if len(found) == most or left <= 0:
                    return Part(found, f"{number}-{place}")
    return Part(found, "")


def _from(site: Site, before: str) -> list[tuple[Path, int | None]]:
    """The files from the place *before* on, newest first, and where to begin in them; None is the end."""
    paths = [site.state / NAME, site.state / f"{NAME}.1"]
    number, _, place = before.partition("-")
    for rank, path in enumerate(paths):
        with suppress(OSError):
            if place.isdecimal() and number == str(path.stat().st_ino):
                return [(path, int(place)), *((older, None) for older in paths[rank + 1 :])]
    return [(path, None) for path in paths]


def _backwards(file: BinaryIO, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Lines from the byte *end* back to the file's beginning, and where each begins; too long ones are cut."""
    size = file.seek(0, os.SEEK_END)
    place = size if end is None else min(end, size)
    rest = b""
    while place > 0:
        length = min(_BLOCK, place)
        file.seek(place - length)
        block = file.read(length) + rest
        place -= length
        first, *lines = block.split(b"\n")
        begins = itertools.accumulate((len(line) + 1 for line in lines), initial=place + len(first) + 1)
        yield from reversed(list(zip(begins, lines, strict=False)))
        rest = first[:_LINE]
    if rest:
        yield 0, rest


# --- lines ------------------------------------------------------------------------------------------------------------

_NAMES = {each.name for each in fields(Entry)}


def _entry(line: str) -> Entry | None:
    with suppress(ValueError, TypeError):  # no JSON, no object, or a key is missing
        found = json.loads(line)
        return Entry(**{name: found[name] for name in _NAMES & set(found)})
    return None
