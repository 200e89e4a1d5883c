"""Who calls the service: one `Caller` for each request, or a refusal.

A connection over the unix socket is the account that the kernel says; nothing that is sent over it can change this,
but root may act for another user. Over HTTPS these are tried in turn, and the first one that is there decides: a front
end that names the user, the ``Authorization`` header (a token, or a name and a password), a client certificate. What
is there and does not hold is refused; it is not passed over for the next.
"""

from __future__ import annotations

import base64
import logging
import os
import pwd
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kadeploy.caller import is_user_name
from kadeploy.config.service import Service
from kadeploy.config.site import Site
from kadeploy.errors import AuthenticationError, TooManyAttemptsError
from kadeploy.server.attempts import Attempts
from kadeploy.server.front_ends import AS_USER, FrontEnds, Headers, only_name, plain
from kadeploy.server.htpasswd import Htpasswd
from kadeploy.state import tokens

_log = logging.getLogger(__name__)

Method = Literal["socket", "token", "password", "certificate", "front end"]

_LONGEST = 4096
"""Characters of an ``Authorization`` header that is looked at."""
_CREDENTIALS = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) +([A-Za-z0-9._~+/-]+=*) *")
"""A scheme and its one word (RFC 9110, section 11.4)."""
_WAITING = 8
"""Passwords that wait while others are looked at; each of them holds a thread."""
_PAUSE = 5
"""Seconds that such a password waits, and after which one that may not wait is to come again."""


@dataclass(frozen=True)
class Caller:
    """Who calls."""

    user: str
    how: Method
    source: str
    """Address, or ``uid:N pid:M`` on this machine."""


@dataclass(frozen=True)
class Connection:
    """What is known of the connection that a request comes by."""

    uid: int | None = None
    """Of the process at the other end of the unix socket, as the kernel says; None over TCP."""
    pid: int | None = None
    address: str = ""
    """Of the other end over TCP, as the kernel says: never what a header such as X-Forwarded-For claims."""
    certificate: Mapping[str, Any] | None = None
    """What `ssl.SSLSocket.getpeercert` tells, once TLS has verified it."""
    headers: Headers = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return plain(self.address) if self.uid is None else f"uid:{self.uid} pid:{self.pid}"


def grouped(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """Headers as ASGI has them, by name in lower case with all their values: none hides another of its name.

    >>> grouped([(b"Accept", b"text/plain"), (b"accept", b"*/*")])
    {'accept': ['text/plain', '*/*']}
    """
    found: dict[str, list[str]] = {}
    for name, value in raw:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode(errors="surrogateescape").strip())
    return found


class Authenticator:
    """Finds out who calls. It reads files and the database and hashes passwords: use threads, which may share one.

    Args:
        config: what the site says about its service.
        site: whose tokens count.
        clock: seconds that never go back.

    Raises:
        ConfigError: the sources of a front end are wrong.
    """

    def __init__(self, config: Service, site: Site, clock: Callable[[], float] = time.monotonic) -> None:
        self._site = site
        self._front_ends = FrontEnds(config.front_ends)
        self._has_front_ends = bool(config.front_ends)
        self._passwords = Htpasswd(Path(config.htpasswd), clock) if config.htpasswd else None
        self._has_certificates = bool(config.https and config.https.client_ca)
        self._attempts = Attempts(clock)
        processors = os.cpu_count() or 1
        self._hashing = threading.BoundedSemaphore(processors)
        """Each check takes a processor, and 64 MiB: more at a time would only let strangers fill the memory."""
        self._room = threading.BoundedSemaphore(processors + _WAITING)
        if self._front_ends.on_this_machine:
            _log.warning(
                "service.front_ends believes this machine's own address: every account of the machine can be any user."
            )

    @property
    def challenge(self) -> str:
        """What an answer 401 says in its ``WWW-Authenticate`` header."""
        return 'Bearer, Basic realm="kadeploy", charset="UTF-8"' if self._passwords else "Bearer"

    def authenticate(self, connection: Connection) -> Caller:
        """Who calls over *connection*.

        Raises:
            AuthenticationError: nobody is named, or what is shown does not hold.
            TooManyAttemptsError: it was wrong too often; its `seconds` tell when to come again.
            DatabaseError: tokens cannot be looked up.
        """
        if connection.uid is not None:
            return self._local(connection, connection.uid)
        named = self._named_by_itself(connection)
        headers = {name: values for name, values in connection.headers.items() if not (named and name == AS_USER)}
        if user := self._front_ends.asserted(connection.address, headers):
            return Caller(user, "front end", connection.source)
        found = self._shown(connection)
        if named and only_name(AS_USER, named) != found.user:
            raise AuthenticationError(f"The header {AS_USER} names another user than you are: leave it out.")
        return found

    def sign_in(self, connection: Connection) -> tuple[Caller, str]:
        """Who calls by the token or password of *connection*, and its proof, which `still_holds` takes later.

        Raises:
            AuthenticationError, TooManyAttemptsError, DatabaseError: see `authenticate`.
        """
        found = self._shown(connection)
        _, word = _credentials(connection.headers["authorization"])
        return found, tokens.id_of(word) if found.how == "token" else self._mark(found.user)

    def still_holds(self, how: Method, user: str, proof: str) -> bool:
        """Whether what *user* has shown once still counts: no token that has ended, no password that has changed.

        Raises:
            AuthenticationError: passwords cannot be looked at.
            DatabaseError: tokens cannot.
        """
        return tokens.is_valid(self._site, proof, user) if how == "token" else proof == self._mark(user) != ""

    def proof(self, caller: Caller) -> str:
        """What tells `require_still` later whether the password that *caller* has shown is still theirs; else empty."""
        return self._mark(caller.user) if caller.how == "password" else ""

    def require_still(self, connection: Connection, caller: Caller, proof: str) -> None:
        """Refuse what *caller* has open if they would not be let in over *connection* again; *proof* is of then.

        Raises:
            AuthenticationError: says why: the token was revoked, the password has changed, the certificate has expired.
            TooManyAttemptsError, DatabaseError: see `authenticate`.
        """
        if caller.how == "password":
            if not proof == self._mark(caller.user) != "":
                raise AuthenticationError(f"The password of {caller.user} has changed or gone: show the one of now.")
        elif self.authenticate(connection).user != caller.user:
            raise AuthenticationError(f"You are not {caller.user} any more: say anew who you are.")

    def _mark(self, user: str) -> str:
        return self._passwords.mark(user) if self._passwords else ""

    def _named_by_itself(self, connection: Connection) -> Sequence[str]:
        """What a client says in `AS_USER` that shows as well who it is, as those of the original do."""
        shows = "authorization" in connection.headers or (connection.certificate and self._has_certificates)
        return connection.headers.get(AS_USER, ()) if shows and not self._front_ends.uses(AS_USER) else ()

    def _shown(self, connection: Connection) -> Caller:
        if credentials := connection.headers.get("authorization"):
            scheme, word = _credentials(credentials)
            if scheme == "bearer":
                return Caller(self._of_token(connection.source, word), "token", connection.source)
            if scheme == "basic" and self._passwords:
                return Caller(
                    self._of_password(self._passwords, connection.source, word), "password", connection.source
                )
            raise AuthenticationError(f"This site does not take Authorization: {scheme}. {self._ways}")
        if connection.certificate and self._has_certificates:
            return Caller(_common_name(connection.certificate), "certificate", connection.source)
        raise AuthenticationError(f"Say who you are. {self._ways}")

    @property
    def _ways(self) -> str:
        """A sentence with all methods of this site."""
        ways = ["a token (Authorization: Bearer)"]
        ways += ["a name and a password (Authorization: Basic)"] if self._passwords else []
        ways += ["a client certificate"] if self._has_certificates else []
        ways += ["the site's front end"] if self._has_front_ends else []
        return f"Over HTTPS this site takes {' or '.join(filter(None, [', '.join(ways[:-1]), ways[-1]]))}."

    def _local(self, connection: Connection, uid: int) -> Caller:
        self._front_ends.refuse_any(connection.headers, but=AS_USER)
        if "authorization" in connection.headers:
            raise AuthenticationError("On the socket the kernel says who you are: leave the Authorization header out.")
        named = connection.headers.get(AS_USER)
        if named is None:
            return Caller(_account(uid), "socket", connection.source)
        if uid != 0:
            raise AuthenticationError(f"Root alone may act for another user: leave the header {AS_USER} out.")
        return Caller(only_name(AS_USER, named), "socket", connection.source)

    def _of_token(self, source: str, text: str) -> str:
        """Nobody guesses a token: a good one is let in at any time, and the others are slowed down."""
        if user := tokens.find(self._site, text):
            return user
        self._attempts.require_patience(source)
        self._attempts.failed(source)
        raise AuthenticationError("This is no token of this site: ask an administrator for one.")

    def _of_password(self, passwords: Htpasswd, source: str, word: str) -> str:
        user, password = _name_and_password(word)
        self._attempts.require_patience(source, user)
        if not passwords.remembers(user, password):
            with self._turn():
                self._attempts.require_patience(source, user)  # others of the same caller may have failed meanwhile
                is_right = passwords.check(user, password)
                if not is_right:
                    self._attempts.failed(source, user)
            if not is_right:
                _log.warning("%s does not come in as %s: wrong password, or no such user.", source, user)
                raise AuthenticationError("The user name or the password is wrong.")
        self._attempts.succeeded(source, user)
        return user

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with _held(self._room, 0), _held(self._hashing, _PAUSE):
            yield


@contextmanager
def _held(semaphore: threading.Semaphore, patience: float) -> Iterator[None]:
    if not semaphore.acquire(timeout=patience):
        raise TooManyAttemptsError(f"Many passwords are being looked at: try again in {_PAUSE} s.", _PAUSE)
    try:
        yield
    finally:
        semaphore.release()


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError) as error:
        raise AuthenticationError(f"The user number {uid} has no account on this machine.") from error


def _credentials(values: Iterable[str]) -> tuple[str, str]:
    """Scheme, in lower case, and word of an ``Authorization`` header."""
    value, *more = values
    if more:
        raise AuthenticationError("The header Authorization comes several times: send it once.")
    found = _CREDENTIALS.fullmatch(value) if len(value) <= _LONGEST else None
    if found is None:
        raise AuthenticationError("The header Authorization is not as expected: Bearer TOKEN, or Basic and base64.")
    return found[1].lower(), found[2]


def _name_and_password(word: str) -> tuple[str, str]:
    """What base64 of ``name:password`` holds, in UTF-8 (RFC 7617)."""
    try:
        user, colon, password = base64.b64decode(word, validate=True).decode().partition(":")
    except ValueError as error:
        raise AuthenticationError("Authorization: Basic is not base64 of name:password in UTF-8.") from error
    if not colon or not is_user_name(user) or "\0" in password:
        raise AuthenticationError("Authorization: Basic names no user: expected base64 of name:password.")
    return user, password


def _common_name(certificate: Mapping[str, Any]) -> str:
    """The user whose certificate this is.

    Raises:
        AuthenticationError: it has expired since the connection was made, or its subject is not one user.
    """
    end = certificate.get("notAfter")
    if end and ssl.cert_time_to_seconds(end) < time.time():
        raise AuthenticationError("The client certificate has expired: connect with a new one.")
    subject = certificate.get("subject", ())
    names = [value for parts in subject for kind, value in parts if kind == "commonName"]
    if len(names) != 1 or not is_user_name(names[0]):
        raise AuthenticationError("The client certificate does not name one user as common name (CN) of its subject.")
    return str(names[0])
