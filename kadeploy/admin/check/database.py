"""The database: there, whole, writable and of this version."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from urllib.parse import parse_qs, urlsplit

from kadeploy.admin.check.files import can, user_name
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.caller import as_user
from kadeploy.errors import KadeployError
from kadeploy.state import database, examination
from kadeploy.state.database import SCHEMA_VERSION

ANSWERS = Look("database", "answers")
SCHEMA = Look("database", "schema")
OWNER = Look("database", "owner")
WHOLE = Look("database", "whole")
CLOCK = Look("database", "clock")

_LIMIT = 5.0
"""Seconds for a server to accept a connection."""
_SKEW = 5.0
"""Seconds by which two clocks may differ."""
_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306}


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with the database."""
    site = subject.site
    path = database.file_of(site)
    if path is not None and not path.exists():
        marker = database.marker_of(path)
        if marker.exists():
            yield ANSWERS.fail(
                f"{path} is gone, and with it who holds which node",
                f"put it back from a backup; or begin anew: rm {shlex.quote(str(marker))}",
            )
        else:
            yield ANSWERS.ok(f"{path} is not there yet: it is made at first use")
        return
    if path is not None:
        owner = subject.owner
        if owner and not can(owner, path, os.O_RDWR):
            yield OWNER.fail(
                f"{path} of {user_name(path.stat().st_uid)} cannot be written by {owner.name}, whose the state is",
                f"chown {owner.name}: {shlex.quote(str(path))}*",
            )
            return
    elif reason := _unreachable(database.url_of(site)):
        yield ANSWERS.fail(reason, "start the server, or correct `database` in site.yml")
        return
    yield from _seen(subject)


def _unreachable(url: str) -> str:
    """Why nobody listens where the URL says; empty: somebody does, or it is no address."""
    parts = urlsplit(url)
    if not parts.hostname or "host" in parse_qs(parts.query):
        return ""
    where = (parts.hostname, parts.port or _PORTS.get(parts.scheme, 0))
    try:
        socket.create_connection(where, _LIMIT).close()
    except OSError as error:
        return f"nobody answers at {where[0]} port {where[1]}: {error.strerror or error}"
    return ""


def _seen(subject: Subject) -> Iterator[Finding]:
    try:
        with as_user(subject.owner) if subject.owner and database.file_of(subject.site) else nullcontext():
            seen = examination.look(subject.site)
    except (KadeployError, PermissionError) as error:
        yield ANSWERS.fail(str(error), "correct `database` in site.yml, or what the text says; then try again")
        return
    yield ANSWERS.ok(f"{seen.server} answers, and can be written")
    if seen.damage:
        yield WHOLE.fail(f"the database is damaged: {seen.damage}", "put it back from a backup (kadeploy-site restore)")
    if seen.version is None:
        yield SCHEMA.ok("there are no tables yet: they are made at first use")
    elif seen.version < SCHEMA_VERSION:
        yield SCHEMA.warn(
            f"schema version {seen.version}, and this Kadeploy has {SCHEMA_VERSION}: the next tool migrates it",
            "make a backup before (kadeploy-site backup)",
        )
    elif seen.version > SCHEMA_VERSION:
        yield SCHEMA.fail(
            f"schema version {seen.version} is a later Kadeploy's, this one has {SCHEMA_VERSION}",
            "upgrade Kadeploy here",
        )
    else:
        yield SCHEMA.ok(f"schema version {seen.version}")
    if abs(seen.ahead) > _SKEW:
        side = "ahead of" if seen.ahead > 0 else "behind"
        yield CLOCK.warn(
            f"the clock of its machine is {abs(seen.ahead):.0f} s {side} this one's",
            "synchronise both (NTP): claims of dead controllers and ends of rights go by the time",
        )
