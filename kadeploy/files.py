"""Files that users name: opened as that user, fetched within bounds, and checksummed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
import os
import re
import shutil
import socket
import ssl
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec

from kadeploy import checksums
from kadeploy.caller import Account, as_user
from kadeploy.checksums import Beginnings, Checksums, Fingerprint
from kadeploy.errors import FileError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MEGA = 1024 * 1024
HTTP_TIMEOUT = 30
"""Seconds that a web server may stay silent."""
HEAD_LIMIT = 60
"""Seconds that it may take for the head of its answer, and before its speed counts."""
MAX_REDIRECTS = 5
SLOWEST = 10_000
"""Bytes per second below which a download is given up."""
_EXCERPT = 200
"""Characters shown of what a web server says."""
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


def read_text(source: str, caller: Account, max_bytes: int = MEGA) -> str:
    """Text of a path or http(s) URL, at most *max_bytes* long; ``-`` is standard input.

    What the caller's shell has opened is read as it is (see `is_stream`).

    Raises:
        FileError: cannot be read, too big, a web page (whatever type the server tells), or not UTF-8.
    """
    content = _content(source, caller, max_bytes)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{source}: not a text file (UTF-8).") from error
    if is_url(source) and _WEB_PAGE.match(text):
        raise FileError(f"{source}: is a web page (HTML), not the file itself: give the address that downloads it.")
    return text


_WEB_PAGE = re.compile(r"\ufeff?\s*(<\?xml|<!doctype\s+html|<!--|<html)", re.IGNORECASE)
"""How pages begin: a listing, a login or an error, whatever type the server tells."""


def _content(source: str, caller: Account, max_bytes: int) -> bytes:
    if is_url(source):
        blocks: list[bytes] = []
        with _download(source) as response:
            _copy(source, response, blocks.append, max_bytes, _length(source, response))
        return b"".join(blocks)
    with _opened(source, caller) as stream:
        try:
            content = stream.read(max_bytes + 1)
        except OSError as error:
            raise FileError(f"{source}: {_why(error)}.") from error
    check_size(source, len(content), max_bytes)
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
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:_EXCERPT]


class _FromStart(io.RawIOBase):
    """A file behind a descriptor, from its beginning; the position that others share is left alone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As in `io.RawIOBase`."""
        count = os.preadv(self._descriptor, [buffer], self._offset)
        self._offset += count
        return count


def from_start(descriptor: int) -> BinaryIO:
    """All of the file behind *descriptor*, which stays open and as it is."""
    return cast("BinaryIO", io.BufferedReader(_FromStart(descriptor), MEGA))


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


class _Known(msgspec.Struct, frozen=True):
    """Checksums of a file as it was: the identity says whether it still is."""

    identity: tuple[int, ...]
    md5: str
    sha256: str


def identity(descriptor: int) -> tuple[int, ...]:
    """What an open file was and when it was changed; another one once it is written to."""
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _local_checksums(stream: BinaryIO, path: Path, cache: Path | None) -> tuple[str, str, int]:
    """MD5, SHA-256 and size, read once for as long as the file is the same: device, inode, size and both times.

    The change time cannot be set by a user, so that a file rewritten in place is never taken for the old one.

    Raises:
        FileError: the file is changed while it is read.
    """
    before, begun = identity(stream.fileno()), time.time()
    note = cache / "checksums" / hashlib.sha256(os.fsencode(path)).hexdigest() if cache else None
    if note and (known := _known(note)) and known.identity == before:
        return known.md5, known.sha256, before[2]
    found = checksums.of(stream)
    _require_same(stream, path, before)
    keep_beginnings(found, cache)
    if note and begun - before[-1] / 1e9 > _SETTLED:
        _note(note, msgspec.json.encode(_Known(before, found.md5, found.sha256)))
    return found.md5, found.sha256, found.size


def _note(note: Path, content: bytes) -> None:
    with contextlib.suppress(OSError):  # a cache is a convenience, and only root may write it
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(note, content)


def _beginnings_note(cache: Path, sha256: str) -> Path:
    return cache / "beginnings" / sha256


def keep_beginnings(found: Checksums, cache: Path | None) -> None:
    """Note in *cache* what `beginnings` is asked for later."""
    if cache:
        _note(_beginnings_note(cache, found.sha256), msgspec.msgpack.encode(found.beginnings))


def beginnings(stream: BinaryIO, size: int, sha256: str, cache: Path | None = None) -> Beginnings:
    """Those of the file of this size in bytes and SHA-256, as they were found in *cache* with its checksums.

    Otherwise those of *stream*, which is read for it; they are those of another file if it has been changed.
    """
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        if cache:
            known = msgspec.msgpack.decode(_beginnings_note(cache, sha256).read_bytes(), type=Beginnings)
            if known.fit(size, sha256):
                return known
    found = checksums.of(stream)
    keep_beginnings(found, cache)
    return found.beginnings


def _require_same(stream: BinaryIO, path: Path, before: tuple[int, ...]) -> None:
    if identity(stream.fileno()) != before:
        raise FileError(f"{path}: changed while it was read. Try again once it is complete.")


def _known(note: Path) -> _Known | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(note.read_bytes(), type=_Known)
    return None


# --- fetching -----------------------------------------------------------------------------------------------------


def is_url(source: str) -> bool:
    """Whether *source* is an http(s) URL."""
    return source.lower().startswith(("http://", "https://"))


def is_server(source: str) -> bool:
    """Whether *source* is ``server:///PATH``, a file that the administrator offers (`kadeploy.config.server_files`)."""
    return source.lower().startswith("server://")


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


def fetch(source: str, into: Path, caller: Account, max_bytes: int = 0) -> LocalFile:
    """A copy of *source* (path or URL) in a new folder of *into*, with its checksums; it keeps its name.

    A path is opened once, with the rights of *caller*. From then on the copy is used: by its name, the original could
    be another file at any time. The size limit *max_bytes* (0: none) is checked before and while reading.

    Raises:
        FileError: cannot be read or fetched, too big, changed meanwhile, or the disk is full.
    """
    if is_url(source):
        return fetch_url(source, into, max_bytes)
    path = local_path(source)
    with open_as_user(path, caller) as stream:
        return copy_open(stream, path, into, max_bytes)


def copy_open(stream: BinaryIO, path: Path, into: Path, max_bytes: int = 0) -> LocalFile:
    """A copy of the file *path*, which is open as *stream*; see `fetch`."""
    before = identity(stream.fileno())
    check_size(str(path), os.fstat(stream.fileno()).st_size, max_bytes)
    copy = copy_stream(stream, into, path.name, max_bytes)
    _require_same(stream, path, before)
    return copy


def copy_stream(stream: BinaryIO, into: Path, name: str, max_bytes: int = 0) -> LocalFile:
    """All of *stream* as a file of that name in a new folder of *into*.

    Raises:
        FileError: cannot be read, too big, or the disk is full.
    """
    with _new_file(into, name, name) as target:
        found = _copy(name, stream, target.write, max_bytes)
    return _copied(Path(target.name), found)


def hold(
    source: str, into: Path, caller: Account, cache: Path | None = None, max_bytes: int = 0
) -> tuple[BinaryIO, LocalFile]:
    """*source* (path or URL) open for reading, with its checksums, for a file that is too big to be copied.

    A path is opened once, with the rights of *caller*; the stream means that file whatever becomes of its name. A URL
    is downloaded into the folder *into*. *cache* is a folder where checksums of local files are remembered, and the
    `beginnings` of all; *max_bytes* (0: none) is a limit of size.

    Raises:
        FileError: cannot be read or fetched, too big, changed meanwhile, or the disk is full.
    """
    if is_url(source):
        local = fetch_url(source, into, max_bytes, cache)
        return local.path.open("rb"), local
    path = local_path(source)
    stream = open_as_user(path, caller)
    return stream, measure_open(stream, path, cache, max_bytes)


def measure_open(stream: BinaryIO, path: Path, cache: Path | None = None, max_bytes: int = 0) -> LocalFile:
    """The file *path*, which is open as *stream*, with its checksums; see `hold`. Where it is refused it is closed."""
    try:
        check_size(str(path), os.fstat(stream.fileno()).st_size, max_bytes)
        md5, sha256, size = _local_checksums(stream, path, cache)
        return LocalFile(path, size, md5, sha256)
    except OSError as error:
        stream.close()
        raise FileError(f"{path}: {_why(error)}.") from error
    except BaseException:
        stream.close()
        raise


def measure_url(source: str, max_bytes: int = 0) -> Fingerprint:
    """What is at a URL, as `fetch_url` finds it, without keeping it.

    Raises:
        FileError: as `fetch`.
    """
    with _download(source) as response:
        found = _copy(source, response, lambda _block: None, max_bytes, _length(source, response))
    return Fingerprint(found.size, found.md5, found.sha256)


def check_size(source: str, size: int, max_bytes: int) -> None:
    """Refuse a file, called *source*, of more than *max_bytes*, unless these are 0 (FileError)."""
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
            raise FileError(f"{req.full_url}: redirects to {newurl[:_EXCERPT]}, which is not http(s).")
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise FileError(f"{req.full_url}: redirects to {newurl[:_EXCERPT]}, which is not protected as https is.")
        cast("http.client.HTTPResponse", fp).close()  # or all that it says beside the address would be read
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _Timed(io.RawIOBase):
    """What a web server sends, as long as it is quick enough.

    A time-out of the socket alone would let it send a byte now and then for ever.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._incoming = connection.makefile("rb", buffering=0)
        self._begun = time.monotonic()
        self._received = 0
        self.in_head = True

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes.

        Raises:
            TimeoutError: silence, or too few bytes.
        """
        more = HEAD_LIMIT + (0 if self.in_head else self._received / SLOWEST)
        left = self._begun + more - time.monotonic()
        self._connection.settimeout(max(0.001, min(left, HTTP_TIMEOUT)))
        try:
            count = self._incoming.readinto(buffer) if left > 0 else None
        except TimeoutError:
            count = None
        if count is None:
            slow = f"the server is too slow, {self._received} bytes in {time.monotonic() - self._begun:.0f} s"
            raise TimeoutError(slow if left < HTTP_TIMEOUT else f"the server is silent for {HTTP_TIMEOUT} s")
        self._received += count
        return count

    def close(self) -> None:
        """Close this reader; the connection is its owner's."""
        self._incoming.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer with a limit to the time of its head, and to its slowness."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self._timed = _Timed(sock)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        """Read the head, and any number of heads that only say to go on."""
        super().begin()
        self._timed.in_head = False


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Web(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https URLs over these connections; certificates are verified."""

    def __init__(self) -> None:
        urllib.request.HTTPSHandler.__init__(self, context=ssl.create_default_context())

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Over TCP."""
        return self.do_open(_Connection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Over TLS."""
        return self.do_open(_SecureConnection, req, context=self._context)  # type: ignore[attr-defined]


def _download(source: str) -> BinaryIO:
    """Open a URL; certificates are verified, proxies are those of the environment."""
    check_url(source)
    opener = urllib.request.build_opener(_Web, _Redirects)
    opener.addheaders = [("User-Agent", "Kadeploy")]
    try:
        return cast("BinaryIO", opener.open(source, timeout=HTTP_TIMEOUT))
    except urllib.error.HTTPError as error:
        error.close()
        raise FileError(
            f"{source}: the server answers {error.code} {' '.join(error.reason.split())[:_EXCERPT]}."
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FileError(f"{source}: cannot be fetched: {_why(getattr(error, 'reason', None) or error)}.") from error


def fetch_url(source: str, into: Path, max_bytes: int = 0, cache: Path | None = None) -> LocalFile:
    """What is at a URL, in a new folder of *into*, with its checksums; see `fetch` and `hold`."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urllib.parse.urlsplit(source).path).name)[-100:] or "file"
    with _download(source) as response, _new_file(into, name, source) as target:
        found = _copy(source, response, target.write, max_bytes, _length(source, response))
    keep_beginnings(found, cache)
    return _copied(Path(target.name), found)


def _copied(path: Path, found: Checksums) -> LocalFile:
    return LocalFile(path, found.size, found.md5, found.sha256)


@contextlib.contextmanager
def _new_file(into: Path, name: str, source: str) -> Iterator[BinaryIO]:
    """A file in a folder of its own that stays only when it is complete; trouble with the disk is a refusal."""
    try:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="file-", dir=into))
        try:
            with (folder / name).open("xb") as target:
                os.fchmod(target.fileno(), 0o600)
                yield target
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except (OSError, ValueError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        advice = f"the disk that holds {into} is full: make room there" if full else _why(error)
        raise FileError(f"{source}: cannot be stored: {advice}.") from error


def _copy(
    source: str, stream: BinaryIO, write: Callable[[bytes], object], max_bytes: int, expected: int | None = None
) -> Checksums:
    """Pass all of *stream* on to *write*; its checksums. *expected* is the size that was announced."""
    check_size(source, expected or 0, max_bytes)
    found = Checksums()
    while block := _receive(source, stream):
        found.update(block)
        check_size(source, found.size, max_bytes)
        write(block)
    if expected is not None and found.size != expected:
        raise FileError(f"{source}: truncated, {found.size} of {expected} bytes arrived. Try again.")
    return found


def _receive(source: str, stream: BinaryIO) -> bytes:
    """What has arrived, at most a megabyte."""
    try:
        return cast("io.BufferedReader", stream).read1(MEGA)
    except (OSError, http.client.HTTPException) as error:
        raise FileError(f"{source}: the transfer broke off: {_why(error)}. Try again.") from error


def _length(source: str, response: BinaryIO) -> int | None:
    length = response.headers.get("Content-Length", "")  # type: ignore[attr-defined]
    if not re.fullmatch(r"[0-9]+", length):
        return None
    if len(length) > len(str(sys.maxsize)):
        raise FileError(f"{source}: the server announces a size of {len(length)} digits. Ask who runs it.")
    return int(length)


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
    return public_keys(read_text(where, caller), where)


def public_keys(text: str, where: str) -> str:
    """The keys in *text*, which is called *where*, a line each.

    Raises:
        FileError: there is none, or it is a private one.
    """
    if looks_like_private_key(text):
        raise FileError(f"{where} is a private key: give the public one, {where}.pub.")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise FileError(f"{where}: no key in this file.")
    return "\n".join(lines) + "\n"
