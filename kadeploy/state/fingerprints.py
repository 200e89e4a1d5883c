"""What is in the files of an environment when it is recorded, and whether nodes will be able to unpack them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.checksums import Fingerprint
from kadeploy.config import server_files
from kadeploy.config.site import Site
from kadeploy.environments import soundness
from kadeploy.environments.environment import Archive, Image
from kadeploy.errors import FileError
from kadeploy.files import LocalFile
from kadeploy.state import sent


class RemoteUser(NamedTuple):
    """A user whose own files are elsewhere, with the fingerprints that were taken there, by the names of the files."""

    name: str
    files: Mapping[str, Fingerprint] = {}


def of(site: Site, file: Image | Archive, who: Account | RemoteUser, max_bytes: int, whole: bool) -> Fingerprint:
    """That of *file* as it is now; with *whole* it is looked through as well. 0 bytes are no limit.

    The user's own file is opened with the rights of *who*; of a remote user, the word is taken.

    Raises:
        FileError: the file cannot be read, is too big, or is not what its kind says.
    """
    if isinstance(who, RemoteUser) and not files.is_url(file.file) and not files.is_server(file.file):
        return _told(site, file, who, max_bytes)
    if files.is_url(file.file) and not whole:
        return files.measure_url(file.file, max_bytes)
    writable = os.access(site.state, os.W_OK)
    with TemporaryDirectory(prefix="kaenv3-", dir=site.state if writable else None) as folder:
        stream, found = _held(site, file.file, who, Path(folder), max_bytes)
        with stream:
            if whole:
                _require_whole(site, file, stream, found)
    return _without_path(found)


def _held(site: Site, name: str, who: Account | RemoteUser, into: Path, max_bytes: int) -> tuple[BinaryIO, LocalFile]:
    """A file that this process can open itself."""
    cache = site.state / "cache"
    if files.is_server(name):
        stream, path = server_files.open_file(site, name)
        return stream, files.measure_open(stream, path, cache, max_bytes)
    if isinstance(who, RemoteUser):
        local = files.fetch_url(name, into, max_bytes, cache)
        return local.path.open("rb"), local
    return files.hold(name, into, who, cache, max_bytes)


def _told(site: Site, file: Image | Archive, who: RemoteUser, max_bytes: int) -> Fingerprint:
    """What a remote user says of a file; once it has been sent, it is looked through here."""
    told = who.files.get(file.file)
    if told is None:
        raise FileError(f"{file.file}: the client did not say what is in this file. Name it where the file is.")
    files.check_size(file.file, told.size, max_bytes)
    here = sent.hold(site, who.name, told.sha256)
    if here is None:
        return told
    stream, found = here
    with stream:
        files.check_size(file.file, found.size, max_bytes)
        _require_whole(site, file, stream, found)
    return _without_path(found)


def _require_whole(site: Site, file: Image | Archive, stream: BinaryIO, found: LocalFile) -> None:
    soundness.require_whole(found, stream, file.kind, file.file, site.state / "cache")


def _without_path(found: LocalFile) -> Fingerprint:
    return Fingerprint(found.size, found.md5, found.sha256)
