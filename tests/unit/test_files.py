"""Files that users name: limits, checksums, downloads from a real server on the loopback interface, public keys."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import itertools
import os
import re
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy import checksums, files
from kadeploy.caller import caller
from kadeploy.checksums import Fingerprint
from kadeploy.errors import FileError
from kadeploy.files import replace_file, replacing

WHO = caller()
SOURCES = Path(files.__file__).parent
CONTENT = bytes(range(256)) * 5000


def digests(content: bytes) -> tuple[str, str]:
    return hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()


# --- opening ------------------------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with files.open_as_user(path, WHO) as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_not_a_regular_file_is_refused_and_nothing_hangs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(FileError, match="not a regular file"):
        files.open_as_user(path, WHO)


@pytest.mark.parametrize("path", ["/nonexistent/file", "a\0b", ""])
def test_a_file_that_is_not_there_is_refused_by_name(path: str) -> None:
    with pytest.raises(FileError, match=r"Give a file|not a regular"):
        files.open_as_user(path, WHO)


def test_the_tilde_is_the_callers_home(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA me")
    who = WHO._replace(home=tmp_path)
    assert files.read_text("~/key.pub", who) == "ssh-ed25519 AAAA me"


def test_texts_are_bounded_and_utf8(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("é" * 10)
    assert files.read_text(str(path), WHO, max_bytes=20) == "é" * 10
    with pytest.raises(FileError, match="too big"):
        files.read_text(str(path), WHO, max_bytes=19)
    path.write_bytes(b"\xff")
    with pytest.raises(FileError, match="UTF-8"):
        files.read_text(str(path), WHO)


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "server://{}", "local://{}"])
def test_a_path_has_several_spellings(tmp_path: Path, spelling: str) -> None:
    assert files.local_path(spelling.format(tmp_path), WHO) == tmp_path


@pytest.mark.parametrize("source", ["ftp://host/a", "ssh://host/a", "file://host/a", "gopher://x"])
def test_other_schemes_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        files.fetch(source, tmp_path, WHO)


# --- checksums ----------------------------------------------------------------------------------------------------


def hold(path: Path, cache: Path | None = None) -> files.LocalFile:
    """A file that was opened, with its checksums; closed again."""
    stream, local = files.hold(str(path), path.parent, WHO, cache)
    stream.close()
    return local


def test_a_file_that_is_held_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    stream, local = files.hold(f"file://{path}", tmp_path / "into", WHO)
    assert (local.path, local.size, (local.md5, local.sha256)) == (path, len(CONTENT), digests(CONTENT))
    assert not (tmp_path / "into").exists()
    path.unlink()
    with stream:
        stream.seek(100)
        with files.from_start(stream.fileno()) as again:
            assert again.read() == CONTENT
        assert stream.tell() == 100


def test_a_file_that_is_fetched_is_a_copy_of_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "with blanks"
    path.write_bytes(CONTENT)
    local = files.fetch(f"file://{path}", tmp_path / "into", WHO)
    path.unlink()
    assert (local.size, (local.md5, local.sha256)) == (len(CONTENT), digests(CONTENT))
    assert (local.path.read_bytes(), local.path.name) == (CONTENT, "with blanks")
    assert (tmp_path / "into").stat().st_mode & 0o777 == 0o700


def test_a_file_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as sparse:
        sparse.truncate(1 << 36)
    with pytest.raises(FileError, match="the limit is 20 MB"):
        files.fetch(str(path), tmp_path, WHO, max_bytes=20 * files.MEGA)


def settle(path: Path) -> None:
    """Let the file's last change be long ago: the change time cannot be set, so the clock of the check has to move."""
    deadline = time.monotonic() + 30
    while time.time() - path.stat().st_ctime < 2.1 and time.monotonic() < deadline:
        time.sleep(0.1)


def test_checksums_are_remembered_until_the_file_changes_even_when_size_and_time_are_put_back(tmp_path: Path) -> None:
    path, cache = tmp_path / "image", tmp_path / "cache"
    path.write_bytes(b"one")
    settle(path)
    before = path.stat()
    assert hold(path, cache).md5 == digests(b"one")[0]
    (note,) = (cache / "checksums").iterdir()
    note.write_bytes(note.read_bytes().replace(digests(b"one")[0].encode(), b"0" * 32))
    assert hold(path, cache).md5 == "0" * 32  # it really is the cache that answers
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hold(path, cache).md5 == digests(b"two")[0]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"one")
    hold(path, tmp_path / "cache")
    assert not (tmp_path / "cache" / "checksums").exists()


def beginnings(path: Path, local: files.LocalFile, cache: Path | None) -> checksums.Beginnings:
    with path.open("rb") as stream:
        return files.beginnings(stream, local.size, local.sha256, cache)


def test_what_an_image_begins_with_is_remembered_with_its_checksums_for_as_long_as_it_is_asked_for(
    tmp_path: Path,
) -> None:
    """Even when the file has been changed meanwhile: it is looked for by what was in it."""
    path, cache = tmp_path / "image", tmp_path / "cache"
    path.write_bytes(bytes(checksums.SMALLEST + 1))
    local = hold(path, cache)
    right = checksums.of(io.BytesIO(path.read_bytes())).beginnings
    path.write_bytes(b"another one")
    assert beginnings(path, local, cache) == right
    assert beginnings(path, local, None) == checksums.of(io.BytesIO(b"another one")).beginnings


@pytest.mark.parametrize("damage", [b"", b"\x81", b"\xff\x00", b"\x82\xa5block\x01\xa6proofs\xc4\x00"])
def test_a_damaged_note_of_what_an_image_begins_with_is_no_harm(tmp_path: Path, damage: bytes) -> None:
    path, cache = tmp_path / "image", tmp_path / "cache"
    path.write_bytes(CONTENT)
    local = hold(path, cache)
    (note,) = (cache / "beginnings").iterdir()
    good = note.read_bytes()
    note.write_bytes(damage)
    assert beginnings(path, local, cache) == checksums.of(io.BytesIO(CONTENT)).beginnings
    assert note.read_bytes() == good


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"identity": 1}', b"\xff\x00"])
def test_a_damaged_cache_is_no_harm(tmp_path: Path, damage: bytes) -> None:
    path, cache = tmp_path / "image", tmp_path / "cache"
    path.write_bytes(b"one")
    note = cache / "checksums" / hashlib.sha256(bytes(path)).hexdigest()
    note.parent.mkdir(parents=True)
    note.write_bytes(damage)
    assert hold(path, cache).md5 == digests(b"one")[0]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as sparse:
        sparse.truncate(64 * files.MEGA)
    ended = threading.Event()

    def grow() -> None:
        with path.open("ab") as stream:
            while not ended.wait(0.001):
                stream.write(b"more")
                stream.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(FileError, match="changed while it was read"):
            files.fetch(str(path), tmp_path, WHO)
    finally:
        ended.set()
        writer.join()


# --- downloads ----------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the path asks for."""

    talked = 0

    def do_GET(self) -> None:
        word, _, rest = self.path.removeprefix("/").partition("/")
        getattr(self, f"answer_{word}", self.answer_missing)(rest)

    def answer(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def answer_file(self, _: str) -> None:
        self.answer(200, ("Content-Type", "application/x-gzip"), ("Content-Length", str(len(CONTENT))))
        self.wfile.write(CONTENT)

    def answer_endless(self, _: str) -> None:
        self.answer(200, ("Content-Type", "text/plain"))
        try:
            while True:
                self.wfile.write(b"x" * 65536)
        except OSError:
            self.close_connection = True

    def answer_truncated(self, _: str) -> None:
        self.answer(200, ("Content-Length", str(len(CONTENT))))
        self.wfile.write(CONTENT[:-1])

    def answer_broken(self, _: str) -> None:
        self.answer(200, ("Transfer-Encoding", "chunked"))
        self.wfile.write(b"5\r\nabcde\r\nnonsense\r\n")

    def answer_to(self, target: str) -> None:
        self.answer(302, ("Location", target if ":" in target else f"/{target}"))

    def answer_talkative(self, target: str) -> None:
        """A redirect with a gigabyte of text for those without patience."""
        self.answer(302, ("Location", f"/{target}"))
        with contextlib.suppress(OSError):
            for _ in range(1024):
                self.wfile.write(b"x" * files.MEGA)
                Handler.talked += files.MEGA
        self.close_connection = True

    def answer_loop(self, _: str) -> None:
        self.answer(302, ("Location", f"/loop/{time.monotonic_ns()}"))

    def answer_rude(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.0 404 \x1b]0;owned\x07 " + b"x" * 9999 + b"\r\n\r\n")

    def answer_nowhere(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: ftp://x/\x1b(0owned\x07\r\n\r\n")

    def answer_digits(self, count: str) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: " + b"9" * int(count) + b"\r\n\r\nx")

    def answer_continue(self, _: str) -> None:
        self.drip(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01)

    def answer_header(self, _: str) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000)

    def answer_chunks(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.drip(b"0" * 1000)

    def answer_drops(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        self.drip(b"x" * 1000)

    def drip(self, text: bytes, pause: float = 0.1) -> None:
        """A little at a time, without end."""
        with contextlib.suppress(OSError):
            for number in itertools.count():
                self.wfile.write(text if pause < 0.1 else text[number : number + 1])
                time.sleep(pause)
        self.close_connection = True

    def answer_missing(self, _: str) -> None:
        self.answer(404)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


class Server(http.server.ThreadingHTTPServer):
    """Does not mind clients that leave early."""

    def handle_error(self, *_: object) -> None:
        """Be quiet."""


@contextlib.contextmanager
def serving(server: Server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def https(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same server behind TLS, with a certificate that this process trusts."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    files_of_it = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key]
    subprocess.run([*command.split(), *files_of_it], check=True, capture_output=True)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield f"https://127.0.0.1:{server.server_port}"


def test_a_url_is_downloaded_with_its_checksums(url: str, tmp_path: Path) -> None:
    local = files.fetch(f"{url}/file/debian%2012.tgz?x=1", tmp_path / "into", WHO)
    assert local.path.parent.parent == tmp_path / "into"
    assert local.path.name == "debian_2012.tgz"
    assert local.path.read_bytes() == CONTENT
    assert (local.size, (local.md5, local.sha256)) == (len(CONTENT), digests(CONTENT))
    assert local.path.stat().st_mode & 0o077 == 0


def test_two_files_of_the_same_name_do_not_meet(url: str, tmp_path: Path) -> None:
    first, second = (files.fetch(f"{url}/file/{where}/i.tgz", tmp_path, WHO) for where in "ab")
    assert first.path != second.path


def test_a_url_is_measured_without_being_kept(url: str) -> None:
    assert files.measure_url(f"{url}/file/i.tgz") == Fingerprint(len(CONTENT), *digests(CONTENT))


def test_a_few_redirects_are_followed(url: str, tmp_path: Path) -> None:
    assert files.fetch(f"{url}/to/to/file/i.tgz", tmp_path, WHO).size == len(CONTENT)


def test_what_a_redirect_says_beside_the_address_is_not_read(url: str, tmp_path: Path) -> None:
    assert files.fetch(f"{url}/talkative/file/i.tgz", tmp_path, WHO).size == len(CONTENT)
    assert Handler.talked < 64 * files.MEGA


def test_a_redirect_from_https_to_http_is_refused_and_what_stays_protected_is_fetched(
    url: str, https: str, tmp_path: Path
) -> None:
    assert files.fetch(f"{https}/to/file/i.tgz", tmp_path, WHO).size == len(CONTENT)
    assert files.fetch(f"{url}/to/{https}/file/i.tgz", tmp_path, WHO).size == len(CONTENT)
    for path in (f"/to/{url}/file/i.tgz", f"/to/{https}/to/{url}/file/i.tgz"):
        with pytest.raises(FileError, match="not protected as https is"):
            files.fetch(f"{https}{path}", tmp_path, WHO)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "404"),
        ("/loop", "redirect"),
        ("/to/file:///etc/passwd", "not allowed"),
        ("/to/ftp://127.0.0.1/x", "not http"),
        ("/truncated/x", "truncated"),
        ("/broken/x", "broke off"),
        ("/endless/x", "the limit is 2 MB"),
        ("/a b", "not a URL"),
        ("/a\r\nHost: x", "not a URL"),
    ],
)
def test_a_download_that_goes_wrong_is_refused_and_leaves_nothing(
    url: str, tmp_path: Path, path: str, said: str
) -> None:
    with pytest.raises(FileError) as refusal:
        files.fetch(f"{url}{path}", tmp_path, WHO, max_bytes=2 * files.MEGA)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_what_is_announced_as_too_big_is_not_begun(url: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="too big"):
        files.fetch(f"{url}/file/x", tmp_path, WHO, max_bytes=1000)


def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be fetched: [A-Z][a-z ]*[.]$"):
        files.fetch("http://127.0.0.1:1/x", tmp_path, WHO)


@pytest.mark.parametrize("path", ["rude", "nowhere"])
def test_what_a_web_server_says_does_nothing_to_a_terminal(url: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(FileError) as refused:
        files.fetch(f"{url}/{path}", tmp_path, WHO)
    text = str(refused.value)
    assert not re.search("[\x00-\x1f\x7f-\x9f]", text)
    assert ("\N{REPLACEMENT CHARACTER}" in text) == (path != "nowhere")  # addresses are quoted already
    assert len(text) < 400


@pytest.mark.parametrize("path", ["continue", "header", "chunks", "drops"])
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_web_server_that_keeps_us_waiting_is_given_up(
    url: str, https: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, secure: bool
) -> None:
    """It is never silent for long, and never gets anywhere: heads without end, a byte at a time."""
    monkeypatch.setattr(files, "HEAD_LIMIT", 1)
    begun = time.monotonic()
    with pytest.raises(FileError, match="the server is too slow"):
        files.fetch(f"{https if secure else url}/{path}", tmp_path, WHO)
    assert time.monotonic() - begun < 3
    assert list(tmp_path.glob("fetched-*")) == []


@pytest.mark.parametrize("digits", [20, 5000])
def test_a_size_that_no_file_has_is_refused(url: str, tmp_path: Path, digits: int) -> None:
    with pytest.raises(FileError, match=f"announces a size of {digits} digits"):
        files.fetch(f"{url}/digits/{digits}", tmp_path, WHO)


@pytest.mark.parametrize("bad", ["http://", "http://[::1", "http://host:port/x", "https://john:secret@host/x"])
def test_a_malformed_url_or_one_with_a_password_is_refused_and_the_password_not_told(bad: str) -> None:
    with pytest.raises(FileError) as refusal:
        files.check_url(bad)
    assert "secret" not in str(refusal.value)


def test_a_text_without_end_is_refused(url: str) -> None:
    with pytest.raises(FileError, match="too big"):
        files.read_text(f"{url}/endless/x", WHO)


# --- public keys --------------------------------------------------------------------------------------------------

PRIVATE = [
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n",
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE\n",
    "PuTTY-User-Key-File-2: ssh-rsa\nEncryption: none\n",
    "ssh-ed25519 AAAA me\n-----BEGIN PRIVATE KEY-----\n",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_a_private_key_never_leaves_its_owner(tmp_path: Path, text: str) -> None:
    path = tmp_path / "id_rsa"
    path.write_text(text)
    with pytest.raises(FileError, match=r"private key.*id_rsa\.pub"):
        files.read_keys(str(path), WHO)


def test_public_keys_are_read_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# mine\n\nssh-ed25519 AAAA me@home\nssh-rsa BBBB you")
    assert files.read_keys(str(path), WHO) == "ssh-ed25519 AAAA me@home\nssh-rsa BBBB you\n"
    path.write_text("# nothing\n")
    with pytest.raises(FileError, match="no key"):
        files.read_keys(str(path), WHO)


def test_without_a_file_the_callers_own_authorized_keys_are_read(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "authorized_keys").write_text("ssh-ed25519 AAAA me\n")
    assert files.read_keys("", WHO._replace(home=tmp_path)) == "ssh-ed25519 AAAA me\n"


# --- writing ------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    replace_file(path, b"new", 0o640)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    replace_file(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_meanwhile_reads_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as target:
        target.write(b"new")
        target.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error):
        _half_written(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _half_written(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as target:
        target.write(b"half")
        raise error


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    meant, link = tmp_path / "meant", tmp_path / "link"
    meant.write_bytes(b"somebody's")
    link.symlink_to(meant)
    replace_file(link, b"new")
    assert not link.is_symlink()
    assert (meant.read_bytes(), link.read_bytes()) == (b"somebody's", b"new")


def test_nobody_else_writes_beside_a_file_and_replaces_it() -> None:
    by_hand = re.compile(r"mkstemp|Path\(temporary\)\.replace|delete=False")
    found = {path for path in SOURCES.rglob("*.py") if by_hand.search(path.read_text())}
    assert found == {
        SOURCES / "files.py",
        SOURCES / "boot/uploads.py",  # which places it later, under a lock
        SOURCES / "state/dump.py",  # a copy that never has a name
    }
