"""The file of a backup: a tar archive behind zstd, whose first member says what all the others are.

Every member is a regular file. ``tar --zstd -xf`` unpacks it, and so people can help themselves; what we read ourselves
has to be exactly what the manifest announces.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, cast

import msgspec

from kadeploy import __version__
from kadeploy.caller import powerless
from kadeploy.commands import last_line
from kadeploy.errors import FileError
from kadeploy.files import MEGA
from kadeploy.state.dump import Kind as DatabaseKind

MAGIC = b"\x28\xb5\x2f\xfd"
"""How a file behind zstd begins (RFC 8878, section 3.1.1)."""
FORMAT = 1
MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 256 * MEGA
_LONGEST_NAME = 100
"""Bytes that a header has for it."""
_BLOCK = tarfile.BLOCKSIZE

Kind = Literal["configuration", "file", "database", "audit", "run", "events"]
KINDS: dict[Kind, str] = {
    "configuration": "configuration",
    "file": "keys, password files and other files that it names",
    "database": "database",
    "audit": "audit log",
    "run": "run folders",
    "events": "events of runs whose folders are gone",
}
"""What members may be, in words."""
_Size = Annotated[int, msgspec.Meta(ge=0)]
_Mode = Annotated[int, msgspec.Meta(ge=0, le=0o777)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Member(_Strict, frozen=True, kw_only=True):
    """A file of the site."""

    name: str
    """In the archive."""
    kind: Kind
    path: str
    """Where it was."""
    size: _Size
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    mode: _Mode
    owner: str
    group: str


class Folder(_Strict, frozen=True, kw_only=True):
    """A folder in which some of them were."""

    path: str
    mode: _Mode
    owner: str
    group: str


class Manifest(_Strict, frozen=True, kw_only=True):
    """What a backup holds."""

    format: int = FORMAT
    kadeploy: str = __version__
    schema: int
    """Version of the database's."""
    site: str
    time: int
    """When it was made (Unix)."""
    host: str
    configuration: str
    """Folder."""
    state: str
    """Folder."""
    database: DatabaseKind
    database_schema: str = ""
    """In which PostgreSQL had the tables."""
    folders: tuple[Folder, ...]
    members: tuple[Member, ...]
    left_out: tuple[str, ...] = ()
    """Files that are not in it, and why."""

    def of_kind(self, *kinds: Kind) -> list[Member]:
        """Those members."""
        return [each for each in self.members if each.kind in kinds]


class Source(NamedTuple):
    """Where the content of a member is, until it is written."""

    file: BinaryIO
    offset: int


# --- writing ----------------------------------------------------------------------------------------------------


def member_name(kind: str, path: str, number: int) -> str:
    """What a member is called in the archive: as its file where the header has room for that.

    >>> member_name("configuration", "clusters/gdx.yml", 7), member_name("runs", "D-1/" + "x" * 90, 7)
    ('configuration/clusters/gdx.yml', 'runs/long-name-7')
    """
    name = f"{kind}/{path}"
    return name if len(name.encode()) <= _LONGEST_NAME else f"{kind}/long-name-{number}"


def write(target: BinaryIO, manifest: Manifest, sources: Sequence[Source]) -> None:
    """Write a backup of *sources*, one for each member, to *target*.

    Raises:
        FileError: zstd is missing or failed, because the disk is full for instance.
    """
    with tempfile.TemporaryFile() as words:
        argv = [_zstd(), "-q", "-c", "-3"]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=target, stderr=words, process_group=0)
        stream = cast("BinaryIO", process.stdin)
        try:
            with suppress(BrokenPipeError):  # the program says why
                _write_all(stream, manifest, sources)
                stream.close()
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                stream.close()
            process.wait()
        if process.returncode:
            raise FileError(f"The backup cannot be written: {_said(words)}.")


def _write_all(stream: BinaryIO, manifest: Manifest, sources: Sequence[Source]) -> None:
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    stream.write(_header(MANIFEST, len(text), 0o600, "root", "root", manifest.time))
    stream.write(text + _padding(len(text)))
    for member, source in zip(manifest.members, sources, strict=True):
        stream.write(_header(member.name, member.size, member.mode, member.owner, member.group, manifest.time))
        source.file.seek(source.offset)
        _copy(source.file, stream, member.size)
        stream.write(_padding(member.size))
    stream.write(bytes(2 * _BLOCK))


def _header(name: str, size: int, mode: int, owner: str, group: str, time: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname, info.mtime = size, mode, owner[:31], group[:31], time
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _copy(source: BinaryIO, target: BinaryIO | None, size: int) -> str:
    """Copy *size* bytes; their SHA-256.

    Raises:
        FileError: there are fewer.
    """
    digest = hashlib.sha256()
    while size:
        piece = source.read(min(MEGA, size))
        if not piece:
            raise FileError("It ends in the middle of a file.")
        digest.update(piece)
        size -= len(piece)
        if target is not None:
            target.write(piece)
    return digest.hexdigest()


def sha256(file: BinaryIO) -> str:
    """Of all that follows in *file*."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _zstd() -> str:
    found = shutil.which("zstd")
    if found is None:
        raise FileError("zstd is needed for backups, and is not there: apt-get install zstd.")
    return found


def _said(words: BinaryIO | Any) -> str:
    words.seek(0)
    said = last_line(words.read().decode(errors="replace")).removeprefix("zstd: ")
    return said.rstrip(". ") or "zstd was ended"


# --- reading ----------------------------------------------------------------------------------------------------

Take = Callable[[Manifest, Member], BinaryIO | None]
"""Where the content of a member goes; None: nowhere, it is merely verified."""


def read(file: BinaryIO, name: str, take: Take = lambda _, __: None) -> Manifest:
    """Read the backup *file*, called *name*, from its beginning to its end, and verify all of it.

    What was taken counts once this has returned; each file is closed when it is complete.

    Raises:
        FileError: it is none, is damaged, or holds anything else than its manifest says.
    """
    with _told_of(name), _unpacked(file) as stream:
        manifest = _manifest(stream)
        for member in manifest.members:
            _read_member(stream, manifest, member, take)
        _require_end(stream)
    return manifest


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    try:
        yield
    except FileError as error:
        why = str(error).rstrip(".")
        raise FileError(f"{name} is no sound backup of a site, so nothing was changed: {why}.") from error


def _require_end(stream: BinaryIO) -> None:
    if stream.read(2 * _BLOCK + 1) != bytes(2 * _BLOCK):
        raise FileError("It does not end after its last file")


def read_manifest(file: BinaryIO, name: str) -> Manifest:
    """What the backup *file* says of itself; the rest of it is not read.

    Raises:
        FileError: it is none.
    """
    with _told_of(name), _unpacked(file, whole=False) as stream:
        return _manifest(stream)


def _manifest(stream: BinaryIO) -> Manifest:
    info = _next(stream)
    if info.name != MANIFEST or info.size > _LARGEST_MANIFEST:
        raise FileError(f"Its first file is not {MANIFEST}.")
    text = stream.read(info.size)
    stream.read(-info.size % _BLOCK)
    try:
        which = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("format")
        if which is not None and bytes(which) != b"%d" % FORMAT:
            raise FileError(f"It has the format {bytes(which).decode()[:20]}, this Kadeploy knows {FORMAT}")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise FileError(f"{MANIFEST} is malformed: {error}") from error
    if not manifest.members:
        raise FileError("It holds no files")
    return manifest


def _read_member(stream: BinaryIO, manifest: Manifest, member: Member, take: Take) -> None:
    info = _next(stream)
    if (info.name, info.size) != (member.name, member.size):
        raise FileError(f"{MANIFEST} announces {member.name} with {member.size} bytes, and {info.name} comes")
    target = take(manifest, member)
    try:
        found = _copy(stream, target, member.size)
    finally:
        if target is not None:
            target.close()
    stream.read(-member.size % _BLOCK)
    if found != member.sha256:
        raise FileError(f"{member.name} is damaged: its SHA-256 is another one")


def _next(stream: BinaryIO) -> tarfile.TarInfo:
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK or not any(block):
        raise FileError("It ends too early")
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, UnicodeError) as error:
        raise FileError("It is no tar archive") from error
    if info.type != tarfile.REGTYPE:
        raise FileError(f"{info.name} is no regular file")
    return info


@contextmanager
def _unpacked(file: BinaryIO, whole: bool = True) -> Iterator[BinaryIO]:
    """What is in *file*; unless the *whole* of it is read, its end may be damaged."""
    file.seek(0)
    if os.pread(file.fileno(), len(MAGIC), 0) != MAGIC:
        raise FileError("It is no archive behind zstd.")
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [_zstd(), "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=words, process_group=0, **powerless()
        )
        stream = cast("BinaryIO", process.stdout)
        try:
            yield stream
            if not whole:
                process.kill()
        except BaseException as error:
            if isinstance(error, FileError) and not stream.read(1) and process.wait() > 0:
                raise FileError(f"zstd cannot unpack it: {_said(words)}") from error
            process.kill()
            raise
        finally:
            process.wait()
            stream.close()
        if whole and process.returncode:
            raise FileError(f"zstd cannot unpack it: {_said(words)}")
