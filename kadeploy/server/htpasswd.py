"""The htpasswd file: names of users and hashes of their passwords, bcrypt or argon2.

It is read again whenever it has changed. A line that cannot be used refuses its user and is told in the log; a file
that cannot be used refuses everybody.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import argon2
import bcrypt

from kadeploy.caller import is_user_name
from kadeploy.errors import AuthenticationError, FileError
from kadeploy.files import replacing
from kadeploy.printable import printable

_log = logging.getLogger(__name__)

REMEMBERED = 60.0
"""Seconds for which a password that was right is not hashed again."""
_MOST_REMEMBERED = 1000
_LARGEST = 8 * 1024 * 1024
"""Bytes of a file that is read."""
LONGEST = 1024
"""Bytes of a password."""
_BCRYPT_BYTES = 72
"""bcrypt looks at no more of a password than this."""
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53}")
_BCRYPT_MOST = 16
"""Cost beyond which a check takes more than some seconds."""
_ARGON2_MOST = {"memory_cost": 1024 * 1024, "time_cost": 64, "parallelism": 64}
"""The same: KiB, passes and threads."""
_ARGON2 = argon2.PasswordHasher()
_ADVICE = "make it anew with: kadeploy3d password USER"

_Mark = tuple[int, ...]


class Htpasswd:
    """The users of one file; threads may share it.

    Args:
        path: the file; it need not be there yet.
        clock: seconds that never go back.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._mark: _Mark = ()
        self._hashes: dict[str, str] = {}
        self._told = ""
        self._right: OrderedDict[bytes, float] = OrderedDict()
        """Until when a password counts as right, by its digest."""
        self._secret = secrets.token_bytes(32)
        """Without it, the digests in a copy of our memory could be compared with those of a dictionary."""

    def remembers(self, user: str, password: str) -> bool:
        """Whether this was right a short while ago; takes no time to speak of.

        Raises:
            AuthenticationError: the file cannot be used.
        """
        with self._lock:
            self._read_again()
            return self._right.get(self._digest(user, password), 0.0) > self._clock()

    def check(self, user: str, password: str) -> bool:
        """Whether *password* is that of *user*; takes a tenth of a second, whether or not there is such a user.

        Raises:
            AuthenticationError: the file cannot be used, or the password is longer than what its hash looks at.
        """
        with self._lock:
            self._read_again()
            mark, known = self._mark, self._hashes.get(user)
            line = self._somebody_elses(user) if known is None else known
        is_right = _is_of(password, line) and known is not None
        with self._lock:
            if is_right and mark == self._mark:
                self._right[self._digest(user, password)] = self._clock() + REMEMBERED
                if len(self._right) > _MOST_REMEMBERED:
                    self._right.popitem(last=False)
        return is_right

    def mark(self, user: str) -> str:
        """What is different once the password of *user* is another one; empty for nobody's.

        Raises:
            AuthenticationError: the file cannot be used.
        """
        with self._lock:
            self._read_again()
            line = self._hashes.get(user)
        return hashlib.sha256(line.encode()).hexdigest() if line else ""

    def _somebody_elses(self, user: str) -> str:
        """A hash on which an unknown user's password costs what a known one's does, always the same for a name."""
        hashes = list(self._hashes.values()) or [_nobodys()]
        return hashes[int.from_bytes(self._digest(user, "")[:8]) % len(hashes)]

    def _digest(self, user: str, password: str) -> bytes:
        return hmac.digest(self._secret, f"{user}\0{password}".encode(), "sha256")

    def _read_again(self) -> None:
        """Read the file if it has changed.

        Raises:
            AuthenticationError: it cannot be used.
        """
        try:
            with _opened(self._path) as file:
                mark = _mark(os.fstat(file))
                if mark == self._mark:
                    return
                self._forget()
                self._hashes = dict(_users(self._path, _content(file)))
                self._mark, self._told = mark, ""
        except (OSError, ValueError) as error:
            self._forget()
            self._tell(f"{self._path}: {_why(error)}; until this is mended, nobody comes in with a password.")
            raise AuthenticationError(
                "Passwords cannot be checked now: the service's log says why. Tell an administrator, or use a token."
            ) from error

    def _tell(self, text: str) -> None:
        """Write *text* to the log, once: whoever knocks must not fill the disk."""
        if text != self._told:
            _log.error("%s", text)
        self._told = text

    def _forget(self) -> None:
        self._mark, self._hashes = (), {}
        self._right.clear()


def _why(error: OSError | ValueError) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the file; one that would never end, or never begin, is refused later."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _mark(status: os.stat_result) -> _Mark:
    """What changes when the file is changed or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(descriptor: int) -> str:
    """All of the file; raises ValueError when it should not be believed, or is none."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_mode & stat.S_IWOTH:
        raise ValueError("everybody can write it (chmod o-w)")
    content = bytearray()
    while len(content) <= _LARGEST and (part := os.read(descriptor, _LARGEST)):
        content += part
    if len(content) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    return content.decode()  # UnicodeDecodeError is a ValueError


def _users(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Users and hashes of the lines that can be used; the others are told in the log."""
    seen: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, found = line.strip().partition(":")
        why = "a second line of this user" if user in seen else _fault(user, found)
        seen.add(user)
        if why:
            _log.warning("%s, line %d (%s): %s; refused.", path, number, printable(user[:60]), why)
        else:
            yield user, found


def _fault(user: str, found: str) -> str:
    """What is wrong with a line; empty when nothing is. The line itself may hold a password and is not told."""
    if not is_user_name(user):
        return "expected user:hash"
    if found.startswith("$argon2id$"):
        return _argon2_fault(found)
    if not (parts := _BCRYPT.fullmatch(found)):
        return f"neither a bcrypt nor an argon2id hash: {_ADVICE}"
    return "" if int(parts["cost"]) <= _BCRYPT_MOST else f"a bcrypt cost above {_BCRYPT_MOST}: {_ADVICE}"


def _argon2_fault(found: str) -> str:
    try:
        parameters = argon2.extract_parameters(found)
    except argon2.exceptions.InvalidHashError:
        return f"not a whole argon2id hash: {_ADVICE}"
    if parameters.hash_len < 16 or parameters.salt_len < 8:  # bytes
        return f"not a whole argon2id hash: {_ADVICE}"
    too_much = [name for name, most in _ARGON2_MOST.items() if getattr(parameters, name) > most]
    return f"{', '.join(too_much)} above what the service allows: {_ADVICE}" if too_much else ""


def _is_of(password: str, found: str) -> bool:
    """Whether *found* is a hash of *password*.

    Raises:
        AuthenticationError: the password is too long.
    """
    content = password.encode()
    if len(content) > LONGEST:
        raise AuthenticationError(f"The password has more than {LONGEST} bytes: nobody has one so long.")
    if not found.startswith("$argon2id$"):
        if len(content) > _BCRYPT_BYTES:
            raise AuthenticationError(
                f"The password has more than {_BCRYPT_BYTES} bytes, and bcrypt looks at no more: have an administrator "
                "hash it with argon2 (kadeploy3d password USER)."
            )
        return bcrypt.checkpw(content, found.encode())
    with suppress(argon2.exceptions.VerificationError):
        return _ARGON2.verify(found, content)
    return False


@cache
def _nobodys() -> str:
    """A hash for a file without users; nobody knows its password."""
    return _ARGON2.hash(secrets.token_hex())


# --- changing it ------------------------------------------------------------------------------------------------


def line_of(user: str, password: str) -> str:
    """``user:hash``, as it stands in the file."""
    return f"{user}:{_ARGON2.hash(password)}"


def set_password(path: Path, user: str, password: str, like: Path) -> None:
    """Give *user* this password in the file *path*, which is replaced as a whole; other lines stay as they are.

    A new file is readable for the owner of the folder *like* alone.

    Raises:
        FileError: the file cannot be read or written.
    """
    _rewrite(path, user, line_of(user, password), like)


def remove(path: Path, user: str, like: Path) -> bool:
    """Take *user* out of the file: whether they were there. Raises FileError as `set_password` does."""
    return _rewrite(path, user, "", like)


def _rewrite(path: Path, user: str, line: str, like: Path) -> bool:
    try:
        real = path.resolve()
        with _opened(real.parent) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)  # one at a time, or the change of one is lost
            before, status = _existing(real)
            others = [each for each in before if each.partition(":")[0].strip() != user]
            _replace(real, [*others, *filter(None, [line])], status or like.stat(), 0o600 if status is None else None)
            return len(others) < len(before)
    except (OSError, ValueError) as error:
        raise FileError(
            f"{path}: {_why(error)}. Name a file that you can write as `service.htpasswd` in site.yml."
        ) from error


def _existing(path: Path) -> tuple[list[str], os.stat_result | None]:
    try:
        with _opened(path) as file:
            return _content(file).removesuffix("\n").split("\n"), os.fstat(file)
    except FileNotFoundError:
        return [], None


def _replace(path: Path, lines: list[str], owner: os.stat_result, mode: int | None) -> None:
    with replacing(path, stat.S_IMODE(owner.st_mode) if mode is None else mode) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        if os.geteuid() == 0:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.fsync(file.fileno())
