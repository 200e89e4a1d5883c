"""Where the content of a file comes from that a request names.

What comes over http(s) is fetched by this process, and ``server:///PATH`` is a file that the administrator offers:
that is the same for everybody. Other names are the user's own files. `OfAccount` opens them, with the rights of the
user's account here; `OfSent` never opens a path that a user names, but what the user's client has sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.config import server_files
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import FileError
from kadeploy.files import LocalFile
from kadeploy.operations.work import Work
from kadeploy.state import sent


class Opened(NamedTuple):
    """A file that is not on the web, open for reading."""

    stream: BinaryIO
    path: Path
    """What it is called; its copies have the same name."""
    known: LocalFile | None = None
    """With its checksums, where they are known without reading it."""


class Sources(ABC):
    """Opens what a request names; whatever cannot be had is a `FileError`, whose text names it."""

    site: Site
    account: Account | None
    """With whose rights the user's own files are opened, where they have an account on this machine."""

    def hold(self, source: str, into: Path) -> tuple[BinaryIO, LocalFile]:
        """*source* open for reading, with its checksums; what comes over http is in a new folder of *into*."""
        cache = self.site.state / "cache"
        if files.is_url(source):
            local = files.fetch_url(source, into, cache=cache)
            return local.path.open("rb"), local
        stream, path, known = self._open(source)
        return stream, known or files.measure_open(stream, path, cache)

    def copy(self, source: str, into: Path, max_bytes: int = 0) -> LocalFile:
        """A copy of *source* in a new folder of *into*, with its checksums and its name; 0 bytes are no limit."""
        if files.is_url(source):
            return files.fetch_url(source, into, max_bytes)
        stream, path, _ = self._open(source)
        with stream:
            return files.copy_open(stream, path, into, max_bytes)

    @contextmanager
    def opened(self, source: str, into: Path, max_bytes: int = 0) -> Iterator[BinaryIO]:
        """*source* open for reading; what comes over http, at most *max_bytes*, is kept in *into* meanwhile."""
        if files.is_url(source):
            local = files.fetch_url(source, into, max_bytes)
            stream: BinaryIO = local.path.open("rb")
            local.path.unlink()
        else:
            stream = self._open(source).stream
        with stream:
            yield stream

    def lends(self, source: str) -> bool:
        """Whether its path may stand for another file by and by, so that it is lent open to whoever needs it."""
        return files.is_server(source) or (self.account is not None and not files.is_url(source))

    def _open(self, source: str) -> Opened:
        if files.is_server(source):
            return Opened(*server_files.open_file(self.site, source))
        return self._open_own(source)

    @abstractmethod
    def _open_own(self, name: str) -> Opened:
        """A file of the user's own."""


@dataclass(frozen=True)
class OfAccount(Sources):
    """The user has an account on this machine, and this process is root's or the user's."""

    site: Site
    account: Account

    def _open_own(self, name: str) -> Opened:
        path = files.local_path(name)
        return Opened(files.open_as_user(path, self.account), path)


@dataclass(frozen=True)
class OfSent(Sources):
    """The user's client has sent the files, wherever it runs (`kadeploy.state.sent`).

    A file of a recorded environment that the user may see is also there when its owner has sent exactly what was
    recorded: who shares an environment shares its files. Nothing else of another user is ever found.
    """

    site: Site
    user: str
    sent: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by the name that the request has for a file."""
    recorded: Environment | None = None
    """As it was found in the database; never one that a request describes, which may name anybody as its owner."""

    account: None = None

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of *names*, files of the user's own, whose content is not here: the client has to send them."""
        return [name for name in names if not any(sent.find(self.site, *place) for place in self._places(name))]

    def _places(self, name: str) -> Iterator[tuple[str, str]]:
        """Where the file may be: users with a SHA-256."""
        if name in self.sent:
            yield self.user, self.sent[name]
        if self.recorded and self.recorded.user:
            for file in self.recorded.files:
                if file.file == name and file.sha256:
                    yield self.recorded.user, file.sha256

    def _open_own(self, name: str) -> Opened:
        for user, sha256 in self._places(name):
            if found := sent.hold(self.site, user, sha256):
                return Opened(found[0], files.local_path(name), found[1])
        if name in self.sent:
            raise FileError(f"{name}: what the client has sent of it is no longer here. Send it again.")
        raise FileError(
            f"{name}: the client did not send this file. Send it first, or name it as server:// or http://."
        )


def of(work: Work, account: Account | None) -> Sources:
    """Where the files of *work* come from; None: what the user's client has sent, as there is no account here."""
    if account:
        return OfAccount(work.site, account)
    return OfSent(work.site, work.user, work.files, None if work.anonymous else work.environment)
