"""Recordings of consoles: what they showed and when, in files of asciicast v2 that any player of them understands.

``state_dir/consoles/NODE/TIME-USER-RANDOM.cast``: a line of JSON for the header, then one for each piece. What is typed
is not in them but for what the console echoes: passwords are not.
https://docs.asciinema.org/manual/asciicast/v2/
"""

from __future__ import annotations

import codecs
import glob
import json
import os
import secrets
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.errors import FileError, RightsError
from kadeploy.files import MEGA
from kadeploy.state import rights

LIMIT = 50 * MEGA
"""Bytes of one recording; then it ends, and the console goes on."""
ENDED = "recording ended: it may not be larger"
SUFFIX = ".cast"
_DAY = 86400.0
_LINE = 4 * MEGA
"""Bytes of the longest line that is read."""
_TAIL = 256 << 10
"""Bytes at a recording's end among which its last piece is looked for."""


class Header(msgspec.Struct, frozen=True):
    """The first line."""

    version: int
    width: int
    height: int
    timestamp: int = 0
    """When the console was opened (Unix)."""
    title: str = ""
    """The node."""
    user: str = ""
    """Who opened it."""


class Piece(NamedTuple):
    """One of the other lines."""

    time: float
    """Seconds from the beginning."""
    kind: str
    """``o``: the console showed *text*; ``r``: the terminal has another size; ``m``: a mark."""
    text: str


# --- writing --------------------------------------------------------------------------------------------------------


class Recording:
    """One that is being written. Once it cannot be, because the disk is full, it ends, and the console goes on."""

    def __init__(self, file: FileIO, header: Header, limit: int) -> None:
        self._file, self._room = file, limit
        self._began = time.monotonic()
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._put(msgspec.json.encode(header) + b"\n")

    @classmethod
    def begin(cls, site: Site, node: str, user: str, rows: int, columns: int, limit: int | None = None) -> Recording:
        """A recording of a console of *node* that *user* opens; older ones make room (see `purge`).

        Raises:
            FileError: there can be none.
        """
        now = time.time()
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        who = urllib.parse.quote(user, safe="")[:64]
        path = folder(site) / node / f"{when}-{who}-{secrets.token_hex(4)}{SUFFIX}"
        try:
            purge(site)
            _make_folder(site, path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _give(descriptor, site)
        except OSError as error:
            raise FileError(
                f"The console cannot be recorded, and the site wants that: {path.parent}: {error.strerror}."
            ) from error
        header = Header(2, columns, rows, int(now), node, user)
        return cls(FileIO(descriptor, "w"), header, LIMIT if limit is None else limit)

    def shown(self, data: bytes) -> None:
        """The console showed *data*."""
        if text := self._text.decode(data):
            self._add("o", text)

    def resized(self, rows: int, columns: int) -> None:
        """The terminal has another size."""
        self._add("r", f"{columns}x{rows}")

    def end(self) -> None:
        """Nothing more comes."""
        with suppress(OSError):
            self._file.close()

    def _add(self, kind: str, text: str) -> None:
        if self._file.closed:
            return
        line = _line(time.monotonic() - self._began, kind, text)
        if len(line) <= self._room:
            self._put(line)
        else:
            self._put(_line(time.monotonic() - self._began, "m", ENDED))
            self.end()

    def _put(self, line: bytes) -> None:
        self._room -= len(line)
        try:
            written = self._file.write(line)
        except OSError:
            written = 0
        if written != len(line):
            self.end()


def _line(moment: float, kind: str, text: str) -> bytes:
    return json.dumps([round(moment, 6), kind, text]).encode() + b"\n"


def folder(site: Site) -> Path:
    """Where the recordings of a site are, in a folder for each node."""
    return site.state / "consoles"


def _make_folder(site: Site, path: Path) -> None:
    for each in (path.parent, path):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
            _give(each, site)


def _give(made: Path | int, site: Site) -> None:
    """What root makes belongs to whom *state_dir* belongs to: the service reads it as well."""
    if os.geteuid() == 0:
        owner = site.state.stat()
        os.chown(made, owner.st_uid, owner.st_gid)


def purge(site: Site) -> None:
    """Remove what is `surplus`."""
    for path, _ in surplus(site):
        with suppress(OSError):
            path.unlink()


def surplus(site: Site) -> list[tuple[Path, int]]:
    """Recordings that are older than run folders may be, the oldest of those that are more than these, and sizes."""
    oldest, room = time.time() - site.runs.days * _DAY, site.runs.max_mb * MEGA
    found = []
    for last, size, path in sorted(_sizes(site), reverse=True):
        room -= size
        if room < 0 or last < oldest:
            found.append((path, size))
    return found


def _sizes(site: Site) -> Iterator[tuple[float, int, Path]]:
    for path in _paths(site):
        with suppress(OSError):  # another process may purge as well
            status = path.stat()
            yield status.st_mtime, status.st_size, path


def _paths(site: Site, node: str = "") -> Iterable[Path]:
    return folder(site).glob(f"{glob.escape(node) or '*'}/*{SUFFIX}")


# --- finding --------------------------------------------------------------------------------------------------------


class Recorded(msgspec.Struct, frozen=True):
    """A recording of the site."""

    name: str
    """Node and file, as `--replay` takes it."""
    node: str
    user: str
    date: int
    """When it began (Unix)."""
    seconds: float
    """Its length."""
    path: Path


def listed(configuration: Configuration, user: str, node: str = "") -> list[Recorded]:
    """What *user* may know of, oldest first: an administrator of all, others of their own and those of their nodes."""
    site = configuration.site
    found = [each for each in map(_recorded, _paths(site, node)) if each]
    if user not in site.almighty_users and site.rights != "dummy":
        held = rights.holders(site, list({each.node for each in found}), user)
        found = [each for each in found if each.user == user or held.get(each.node)]
    return sorted(found, key=lambda each: (each.date, each.name))


def find(configuration: Configuration, user: str, word: str) -> Recorded | None:
    """The recording that *word* names for *user*, or the last one of the node that it names; None when it names none.

    Raises:
        RightsError: somebody else opened that console, and the user is no administrator.
        FileError: nobody who would let the user see it has recorded the node's console.
    """
    (name,) = configuration.full_names([word])
    if name in configuration.cluster_of:
        mine = [each for each in listed(configuration, user, name) if _may_read(configuration.site, user, each)]
        if not mine:
            raise FileError(f"{name}: no recording of its console that {user} may see. kaconsole3 --list shows them.")
        return mine[-1]
    path = _inside(configuration.site, word)
    found = _recorded(path) if path else None
    if found and not _may_read(configuration.site, user, found):
        raise RightsError(f"{word}: only who opened a console may see its recording, and administrators.")
    return found


def _inside(site: Site, word: str) -> Path | None:
    """The path of a recording of the site, which *word* is or names as `listed` does."""
    top = folder(site).resolve()
    for path in (top / word, Path(word)):
        with suppress(OSError, ValueError):
            real = path.resolve(strict=True)
            if real.is_relative_to(top) and real.suffix == SUFFIX:
                return real
    return None


def _may_read(site: Site, user: str, recorded: Recorded) -> bool:
    return user == recorded.user or user in site.almighty_users


def _recorded(path: Path) -> Recorded | None:
    """What is known of a recording; None of one that is not ours."""
    try:
        with path.open("rb") as file:
            header = msgspec.json.decode(file.readline(_LINE), type=Header)
            length = _length(file)
    except (OSError, ValueError, RecursionError):
        return None
    name = f"{path.parent.name}/{path.name}"
    return Recorded(name, path.parent.name, header.user, header.timestamp, length, path)


def _length(file: BinaryIO) -> float:
    """When the last piece came."""
    file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - _TAIL))
    last = 0.0
    for line in file.read().splitlines():
        with suppress(ValueError, RecursionError):
            last = msgspec.json.decode(line, type=Piece).time
    return last


# --- reading --------------------------------------------------------------------------------------------------------


def open_recorded(recorded: Recorded) -> BinaryIO:
    """A recording of the site, which `find` has found.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return recorded.path.open("rb")
    except OSError as error:
        raise FileError(f"{recorded.name}: {error.strerror}.") from error


def read(file: BinaryIO, name: str) -> tuple[Header, Iterator[Piece]]:
    """The header of a recording and its pieces, which are read as they are asked for.

    Raises:
        FileError: it is none; while pieces are asked for as well.
    """
    try:
        header = msgspec.json.decode(file.readline(_LINE), type=Header)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: not a recording of a console (asciicast v2).") from error
    if header.version != 2:
        raise FileError(f"{name}: asciicast of version {header.version}; version 2 is understood.")
    return header, _pieces(file, name)


def _pieces(file: BinaryIO, name: str) -> Iterator[Piece]:
    number = 1
    while line := file.readline(_LINE):
        number += 1
        try:
            yield msgspec.json.decode(line, type=Piece)
        except (ValueError, RecursionError) as error:
            if not line.endswith(b"\n") and len(line) < _LINE:
                return  # its writer was killed, or writes it just now
            raise FileError(f"{name}: line {number} is no piece of a recording (asciicast v2).") from error


def texts(pieces: Iterable[Piece]) -> Iterator[str]:
    """What was shown, and marks as lines of their own."""
    shown: Mapping[str, str] = {"o": "{}", "m": "\r\n[{}]\r\n"}
    return (shown[each.kind].format(each.text) for each in pieces if each.kind in shown)
