"""Files that users name: opened as that user, fetched within bounds, and checksummed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from kadeploy.caller import Account, as_user
from kadeploy.errors import FileError

MEGA = 1024 * 1024
HTTP_TIMEOUT = 30
"""Seconds that a web server may stay silent."""
MAX_REDIRECTS = 5
SLOWEST = 10_000
"""Bytes per second below which a download is given up, once it has lasted a minute."""
_BLOCK = 4 * MEGA
_SETTLED = 2.0
"""Seconds after its last change until a file's times tell it from one that is changed again."""


class LocalFile(msgspec.Struct, frozen=True):
    """A file on this machine and what is in it."""

    path: Path
    size: int
    md5: str
    sha256: str


# --- opening ------------------------------------------------------------------------------------------------------


def open_as_user(path: str | Path, caller: Account) -> BinaryIO:
    """Open a regular file for reading, with the rights of *caller*; ``~/`` is the caller's home.

    Raises:
        FileError: missing, not readable by the caller, or not a regular file (a FIFO would hang, a device never end).
    """
    try:
        with as_user(caller):
            descriptor = os.open(_at_home(path, caller), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: {_why(error)}. Give a file that {caller.name} can read.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path}: not a regular file. Give the name of a plain file.")
    return os.fdopen(descriptor, "rb")


def _at_home(path: str | Path, caller: Account) -> Path:
    """*path* with the caller's home in place of ``~``: under sudo, ``$HOME`` may be root's."""
    parts = Path(path).parts
    return caller.home.joinpath(*parts[1:]) if parts[:1] == ("~",) else Path(path)


def read_text(source: str, caller: Account, max_bytes: int = MEGA, content_types: tuple[str, ...] = ()) -> str:
    """Text of a path or http(s) URL, at most *max_bytes* long; ``-`` is standard input.

    What the caller's shell has opened is read as it is (see `is_stream`).

    Raises:
        FileError: cannot be read, too big, of another type than *content_types* (see `fetch`), or not UTF-8.
    """
    content = _content(source, caller, max_bytes, content_types)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{source}: not a text file (UTF-8).") from error


def _content(source: str, caller: Account, max_bytes: int, content_types: tuple[str, ...]) -> bytes:
    if is_url(source):
        blocks: list[bytes] = []
        with _download(source, content_types) as response:
            _copy(source, response, blocks.append, max_bytes)
        return b"".join(blocks)
    with _opened(source, caller) as stream:
        try:
            content = stream.read(max_bytes + 1)
        except OSError as error:
            raise FileError(f"{source}: {_why(error)}.") from error
    _check_size(source, len(content), max_bytes)
    return content


def _opened(source: str, caller: Account) -> contextlib.AbstractContextManager[BinaryIO]:
    if not is_stream(source):
        return open_as_user(local_path(source), caller)
    number = 0 if source in ("-", "/dev/stdin") else int(source.rpartition("/")[2])
    if number == 0:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            return os.fdopen(os.dup(number), "rb")
    except OSError as error:
        raise FileError(
            f"{source}: nothing is open there; sudo closes what <(…) opens. Write it to a file and name that."
        ) from error
    return open_as_user(source, caller)


_STREAM = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/[0-9]{1,6}")


def is_stream(source: str) -> bool:
    """Whether *source* is no name but what the caller's shell has opened: ``-``, or ``/dev/fd/63`` of ``<(…)``."""
    return source == "-" or _STREAM.fullmatch(source) is not None


def _why(error: object) -> str:
    """What went wrong, without the names of exceptions where there are words for it."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# --- writing ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of *path* at its end, whole or not at all.

    Who reads *path* meanwhile reads the old content. A link of that name is replaced, not followed.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target
            os.fchmod(target.fileno(), mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write *content* to *path*, as `replacing` does."""
    with replacing(path, mode) as target:
        target.write(content)


# --- checksums ----------------------------------------------------------------------------------------------------


def checksums(stream: BinaryIO) -> tuple[str, str, int]:
    """MD5, SHA-256 and size in bytes of what is left of *stream*, in one pass."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        md5.update(block)
        sha256.update(block)
        size += len(block)
    return md5.hexdigest(), sha256.hexdigest(), size


class _Known(msgspec.Struct, frozen=True):
    """Checksums of a file as it was: the identity says whether it still is."""

    identity: tuple[int, ...]
    md5: str
    sha256: str


def _identity(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _local_checksums(stream: BinaryIO, path: Path, cache: Path | None) -> tuple[str, str, int]:
    """As `checksums`, read once for as long as the file is the same: device, inode, size and both times.

    The change time cannot be set by a user, so that a file rewritten in place is never taken for the old one.

    Raises:
        FileError: the file is changed while it is read.
    """
    identity, begun = _identity(stream.fileno()), time.time()
    note = cache / "checksums" / hashlib.sha256(os.fsencode(path)).hexdigest() if cache else None
    if note and (known := _known(note)) and known.identity == identity:
        return known.md5, known.sha256, identity[2]
    md5, sha256, size = checksums(stream)
    if _identity(stream.fileno()) != identity:
        raise FileError(f"{path}: changed while it was read. Try again once it is complete.")
    if note and begun - identity[-1] / 1e9 > _SETTLED:
        with contextlib.suppress(OSError):  # a cache is a convenience, and only root may write it
            note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(note, msgspec.json.encode(_Known(identity, md5, sha256)))
    return md5, sha256, size


def _known(note: Path) -> _Known | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(note.read_bytes(), type=_Known)
    return None


# --- fetching -----------------------------------------------------------------------------------------------------


def is_url(source: str) -> bool:
    """Whether *source* is an http(s) URL."""
    return source.lower().startswith(("http://", "https://"))


def check_url(url: str) -> None:
    """Refuse a URL that names no host, or a password, which would end up in a database and in messages.

    Raises:
        FileError: says what is wrong, without the password.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise FileError(f"This URL is malformed: {error}.") from error
    if parts.username is not None or parts.password is not None:
        raise FileError(f"The URL of {host} holds a user name or a password: name a file that needs none.")
    if not host or not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        raise FileError(f"{url!r} is not a URL: expected http(s)://HOST/PATH, special characters written as %XX.")


def local_path(source: str, caller: Account | None = None) -> Path:
    """The path that ``PATH``, ``file:///PATH``, ``server:///PATH`` or ``local:///PATH`` stands for.

    With a *caller* it is absolute, and ``~/`` is the caller's home.

    Raises:
        FileError: another scheme, or a file of another machine.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if not match:
        return _at_home(source, caller).absolute() if caller else Path(source)
    if match[1].lower() not in ("file", "server", "local"):
        raise FileError(f"{source}: only paths, file:// and http(s):// are accepted.")
    path = urllib.parse.unquote(source[match.end() :])
    if not path.startswith("/"):
        raise FileError(f"{source}: expected three slashes, {match[1]}:///PATH.")
    return Path(path)


def fetch(
    source: str,
    into: Path,
    caller: Account,
    max_bytes: int = 0,
    content_types: tuple[str, ...] = (),
    cache: Path | None = None,
) -> LocalFile:
    """Have *source* as a file of this machine, with its checksums.

    A path stays where it is, read with the rights of *caller*; a URL is downloaded into the folder *into*. The size
    limit *max_bytes* (0: none) is checked before and while reading. *content_types* are what a web server may say
    (``text/`` stands for all that begin so). *cache* is a folder where checksums of local files are remembered.

    Between this check and the use of a local file its owner can put another one in its place. So whoever uses it opens
    it again with `open_as_user`, never as root, and compares the SHA-256 of what was read (the broadcast does, on
    every node): another file is then found out, and none can be read that the user could not read anyway.

    Raises:
        FileError: cannot be read or fetched, too big, of another type, changed meanwhile, or the disk is full.
    """
    if is_url(source):
        return _fetch_url(source, into, max_bytes, content_types)
    path = local_path(source, caller)
    return LocalFile(path, *_measure_path(path, caller, max_bytes, cache))


def measure(source: str, caller: Account, max_bytes: int = 0, cache: Path | None = None) -> tuple[int, str, str]:
    """Size in bytes, MD5 and SHA-256 of *source*, as `fetch` finds them, without keeping what comes over http.

    Raises:
        FileError: as `fetch`.
    """
    if not is_url(source):
        return _measure_path(local_path(source, caller), caller, max_bytes, cache)
    with _download(source) as response:
        return _copy(source, response, lambda _block: None, max_bytes)


def _measure_path(path: Path, caller: Account, max_bytes: int, cache: Path | None) -> tuple[int, str, str]:
    with open_as_user(path, caller) as stream:
        _check_size(str(path), os.fstat(stream.fileno()).st_size, max_bytes)
        try:
            md5, sha256, size = _local_checksums(stream, path, cache)
        except OSError as error:
            raise FileError(f"{path}: {_why(error)}.") from error
    return size, md5, sha256


def _check_size(source: str, size: int, max_bytes: int) -> None:
    if max_bytes and size > max_bytes:
        raise FileError(f"{source}: {size / MEGA:.1f} MB, too big: the limit is {max_bytes / MEGA:g} MB.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, only to the web, and never from https back to http."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: object, code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        """Refuse to be sent to another kind of place."""
        if not is_url(newurl):
            raise FileError(f"{req.full_url}: redirects to {newurl}, which is not http(s).")
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise FileError(f"{req.full_url}: redirects to {newurl}, which is not protected as https is.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _download(source: str, content_types: tuple[str, ...] = ()) -> BinaryIO:
    """Open a URL; certificates are verified, proxies are those of the environment."""
    check_url(source)
    opener = urllib.request.build_opener(_Redirects)
    opener.addheaders = [("User-Agent", "Kadeploy")]
    try:
        response = opener.open(source, timeout=HTTP_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise FileError(f"{source}: the server answers {error.code} {' '.join(error.reason.split())}.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FileError(f"{source}: cannot be fetched: {_why(getattr(error, 'reason', None) or error)}.") from error
    kind = response.headers.get_content_type()
    if content_types and not any(_is(kind, each) for each in content_types):
        response.close()
        raise FileError(f"{source}: is {kind}, expected {' or '.join(content_types)}.")
    return cast("BinaryIO", response)


def _is(kind: str, wanted: str) -> bool:
    return kind.startswith(wanted) if wanted.endswith("/") else kind == wanted


def _fetch_url(source: str, into: Path, max_bytes: int, content_types: tuple[str, ...]) -> LocalFile:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urllib.parse.urlsplit(source).path).name)[-100:] or "file"
    with _download(source, content_types) as response, _new_file(into, f"-{name}", source) as target:
        measures = _copy(source, response, target.write, max_bytes)
    return LocalFile(Path(target.name), *measures)


@contextlib.contextmanager
def _new_file(folder: Path, suffix: str, source: str) -> Iterator[tempfile._TemporaryFileWrapper[bytes]]:
    """A file that stays only when it is complete; trouble with the disk is a refusal."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix="fetched-", suffix=suffix, dir=folder, delete=False) as target:
            try:
                yield target
                target.flush()
            except BaseException:
                Path(target.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = f"the disk that holds {folder} is full: make room there" if full else _why(error)
        raise FileError(f"{source}: cannot be stored: {advice}.") from error


def _copy(source: str, response: BinaryIO, write: Callable[[bytes], object], max_bytes: int) -> tuple[int, str, str]:
    """Pass all of *response* on to *write*; its size, MD5 and SHA-256."""
    expected, begun = _length(response), time.monotonic()
    _check_size(source, expected or 0, max_bytes)
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    while block := _receive(source, response):
        size += len(block)
        _check_size(source, size, max_bytes)
        if size < SLOWEST * (time.monotonic() - begun - 60):
            raise FileError(f"{source}: the server is too slow, {size} bytes so far. Copy the file to a nearer place.")
        md5.update(block)
        sha256.update(block)
        write(block)
    if expected is not None and size != expected:
        raise FileError(f"{source}: truncated, {size} of {expected} bytes arrived. Try again.")
    return size, md5.hexdigest(), sha256.hexdigest()


def _receive(source: str, response: BinaryIO) -> bytes:
    """What has arrived, at most a megabyte."""
    try:
        return cast("http.client.HTTPResponse", response).read1(MEGA)
    except (OSError, http.client.HTTPException) as error:
        raise FileError(f"{source}: the transfer broke off: {_why(error)}. Try again.") from error


def _length(response: BinaryIO) -> int | None:
    length = response.headers.get("Content-Length", "")  # type: ignore[attr-defined]
    return int(length) if length.isdecimal() else None


# --- public keys --------------------------------------------------------------------------------------------------

_PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|^PuTTY-User-Key-File", re.MULTILINE)


def looks_like_private_key(text: str) -> bool:
    """Whether *text* holds a private key, which must never leave its owner."""
    return bool(_PRIVATE.search(text))


def read_keys(source: str, caller: Account) -> str:
    """Public keys of ``-k``: a path or URL; empty means the caller's ``~/.ssh/authorized_keys``.

    Raises:
        FileError: unreadable, empty, or a private key.
    """
    where = source or str(caller.home / ".ssh" / "authorized_keys")
    text = read_text(where, caller)
    if looks_like_private_key(text):
        raise FileError(f"{where} is a private key: give the public one, {where}.pub.")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise FileError(f"{where}: no key in this file.")
    return "\n".join(lines) + "\n"
