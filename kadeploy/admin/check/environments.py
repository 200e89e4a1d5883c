"""Recorded environments: their files are where they were, and what their kind says."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from kadeploy import files
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.caller import Account, account, as_user
from kadeploy.config import server_files
from kadeploy.environments import soundness
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.errors import DatabaseError, KadeployError
from kadeploy.state import database, environments

FILES = Look("environments", "files")
KINDS = Look("environments", "kinds")
CHECKSUMS = Look("environments", "checksums")
RECORDED = Look("environments", "recorded")

_BLOCK = 1 << 20


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with files of environments."""
    try:
        found = known(subject)
    except (KadeployError, OSError) as error:
        yield RECORDED.warn(f"environments cannot be looked at: {error}", "see what the topic database says")
        return
    good = 0
    for environment in found:
        bad = [finding for file in _files(environment) for finding in _file(subject, environment, file)]
        good += not bad
        yield from bad
    if not found:
        yield RECORDED.ok("none is recorded yet")
    elif good:
        how = "with the checksums that were recorded" if subject.thorough else "of the kinds that were recorded"
        yield RECORDED.ok(f"{good} of {len(found)} environments: their files are there, {how}")


def known(subject: Subject) -> list[Environment]:
    """All recorded environments, of whoever; none where there are no tables yet.

    Raises:
        KadeployError: the database cannot be read, or is of another version.
        OSError: this user may not.
    """
    site = subject.site
    mine = as_user(subject.owner) if subject.owner and database.file_of(site) else nullcontext()
    with mine, database.as_it_is(site) as version:
        if version not in (None, database.SCHEMA_VERSION):
            raise DatabaseError(f"the database has schema version {version}, not {database.SCHEMA_VERSION}")
        return environments.every(site) if version else []


def local_file(environment: Environment) -> Path | None:
    """The image, where it is a file of this machine."""
    return _path(environment.image.file)


def _path(name: str) -> Path | None:
    return None if files.is_url(name) else files.local_path(name)


def _files(environment: Environment) -> list[Image | Archive]:
    return [*environment.images, *filter(None, [environment.preinstall]), *environment.postinstalls]


def _file(subject: Subject, environment: Environment, file: Image | Archive) -> Iterator[Finding]:
    name = f"{environment.name} version {environment.version} of {environment.user}: {file.file}"
    path = _path(file.file)
    if path is None:
        return  # to fetch it is what a deployment does
    advice = f"put the file back, or take the environment away (kaenv3 -d {environment.name})"
    try:
        stream = _opened(subject, environment, file.file, path)
    except KadeployError as error:
        yield FILES.fail(str(error), advice)
        return
    except OSError as error:
        yield FILES.fail(f"{name}: {error.strerror}", advice)
        return
    with stream:
        yield from _content(subject, stream, file, name)


def _opened(subject: Subject, environment: Environment, source: str, path: Path) -> BinaryIO:
    """The file as its owner would open it, where that is an account of this machine."""
    if source.startswith("server://"):
        return server_files.open_file(subject.site, source)[0]
    with _as(environment.user):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise IsADirectoryError(21, "not a regular file")
    return stream


def _as(user: str) -> AbstractContextManager[None]:
    who = _account(user)
    return as_user(who) if who and os.geteuid() == 0 else nullcontext()


def _account(user: str) -> Account | None:
    try:
        return account(user)
    except KadeployError:
        return None


def _content(subject: Subject, stream: BinaryIO, file: Image | Archive, name: str) -> Iterator[Finding]:
    try:
        soundness.require_kind(stream, file.kind, name)
    except KadeployError as error:
        yield KINDS.fail(str(error), "put the right file there, or record the environment anew (kaenv3 -a)")
        return
    if subject.thorough and file.sha256 and _sha256(stream) != file.sha256:
        yield CHECKSUMS.fail(
            f"{name} has changed since the environment was recorded: it is refused at the next deployment",
            "if it was meant: kaenv3 --update-tarball-md5 NAME records what is there now",
        )


def _sha256(stream: BinaryIO) -> str:
    found = hashlib.sha256()
    while block := stream.read(_BLOCK):
        found.update(block)
    return found.hexdigest()
