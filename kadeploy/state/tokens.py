"""Tokens: what programs show to call the service as a user, each with an end.

A token is ``kd3_ID_SECRET``. The id finds its row; of the secret the database has a digest, so that whoever reads the
database, or a backup of it, cannot call as anybody. The secret has 256 bits: there is nothing to guess, and a plain
SHA-256 will do where a password needs a slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from base64 import b32encode
from contextlib import suppress
from typing import NamedTuple

from kadeploy.config.site import Site
from kadeploy.errors import AuthenticationError, DatabaseError
from kadeploy.state.database import connect, fetch
from kadeploy.state.tables import Token

_ID_BYTES = 10
_SECRET_BYTES = 32
_TEXT = re.compile(r"kd3_([a-z2-7]{16})_([a-z2-7]{52})")
_STALE = 60
"""Seconds after which the time of the last use is written again."""
_KEPT = 90 * 86_400
"""Seconds for which a token that has ended is still listed."""


class Listed(NamedTuple):
    """A token as it is shown; times in Unix seconds, those that have not come None."""

    id: str
    user: str
    note: str
    created: int
    until: int
    used: int | None
    revoked: int | None


def create(site: Site, user: str, until: int, note: str = "") -> str:
    """A new token for *user*, valid until the Unix second *until*. This text is not kept: nobody can show it again."""
    connect(site)
    now = int(time.time())
    Token.delete().where((Token.until < now - _KEPT) | (Token.revoked < now - _KEPT)).execute()
    name, secret = _random(_ID_BYTES), _random(_SECRET_BYTES)
    Token.insert(id=name, user=user, digest=_digest(secret), note=note, created=now, until=until).execute()
    return f"kd3_{name}_{secret}"


def find(site: Site, text: str) -> str | None:
    """The user whose token *text* is; None when it is no token of this site.

    Raises:
        AuthenticationError: it was one, and has ended or was revoked.
    """
    parts = _TEXT.fullmatch(text)
    if parts is None:
        return None
    connect(site)
    name, secret = parts.groups()
    rows = fetch(Token.select(Token.user, Token.digest, Token.until, Token.used, Token.revoked).where(Token.id == name))
    user, digest, until, used, revoked = rows[0] if rows else ("", _digest(""), 0, None, None)
    if not hmac.compare_digest(digest, _digest(secret)):
        return None
    now = int(time.time())
    if revoked is not None or until <= now:
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
        how = "was revoked" if revoked is not None else f"ended on {end}"
        raise AuthenticationError(f"This token of {user} {how}: ask an administrator for a new one.")
    if used is None or used <= now - _STALE:
        _note_use(name, now)
    return str(user)


def is_valid(site: Site, name: str, user: str) -> bool:
    """Whether the token with the id *name* is one of *user*, and has not ended; it was shown before."""
    connect(site)
    lives = (Token.until > int(time.time())) & Token.revoked.is_null()
    return bool(fetch(Token.select(Token.id).where(Token.id == name, Token.user == user, lives)))


def _note_use(name: str, now: int) -> None:
    with suppress(DatabaseError):  # whoever shows a good token is let in, though the disk may be full
        Token.update(used=now).where(Token.id == name).execute()


def listed(site: Site, user: str | None = None) -> list[Listed]:
    """The tokens of *user*, or of all users, by user and age; those that ended long ago are forgotten."""
    connect(site)
    rows = Token.select(*(getattr(Token, name) for name in Listed._fields))
    mine = rows if user is None else rows.where(Token.user == user)
    return sorted(map(Listed._make, fetch(mine)), key=lambda token: (token.user, token.created, token.id))


def revoke(site: Site, name: str, user: str | None = None) -> bool:
    """End the token with the id *name* now: whether there is one, of *user* if given, that had not been revoked."""
    connect(site)
    mine = Token.update(revoked=int(time.time())).where(Token.id == name, Token.revoked.is_null())
    return bool((mine if user is None else mine.where(Token.user == user)).execute())


def forget(site: Site, before: int, dry_run: bool = False) -> int:
    """Forget tokens that ended or were revoked before the Unix second *before*, or count them alone: their number."""
    connect(site)
    old = (Token.until < before) | (Token.revoked < before)
    if dry_run:
        return int(Token.select().where(old).count())
    return int(Token.delete().where(old).execute())


def id_of(text: str) -> str:
    """The id in *text*, which is an id or a whole token that somebody found."""
    parts = _TEXT.fullmatch(text)
    return parts[1] if parts else text


def _random(size: int) -> str:
    return b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
