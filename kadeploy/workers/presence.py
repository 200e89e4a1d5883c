"""Which workers there are: each tells the service every few seconds, which keeps it in a file of the state folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from kadeploy import __version__
from kadeploy.config.site import Site

FOLDER = "workers"
"""In *state_dir*."""
EVERY = 3.0
"""Seconds between two words of a worker."""
ALIVE = 10.0
"""Seconds since the last one for which a worker counts as alive."""
FORGOTTEN = 86_400
"""Seconds after which a worker that says nothing is not shown any more."""

_Word = Annotated[str, msgspec.Meta(max_length=255)]


class Presence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker says of itself."""

    name: _Word
    clusters: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=1000)]
    """Those whose nodes it reaches."""
    shards: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    """How many it carries out at a time."""
    version: _Word
    busy: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=1000)] = ()
    """What it does now: run folders, WID/NN-Implementation."""
    leaves: bool = False
    """It takes nothing more."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, and when it was heard last."""

    presence: Presence
    user: str
    """Whose token it shows."""
    at: float
    """Unix seconds."""

    @property
    def is_alive(self) -> bool:
        """Whether it has said something lately."""
        return time.time() - self.at < ALIVE


def note(site: Site, presence: Presence, user: str) -> None:
    """A worker has said something."""
    folder = _folder(site)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(folder, user, presence.name)
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(Seen(presence=presence, user=user, at=time.time())))
    part.replace(path)


def seen(site: Site) -> list[Seen]:
    """The workers of the last day, by name."""
    return sorted(_read(_folder(site)), key=lambda each: (each.presence.name, each.user))


def serves(site: Site, cluster: str) -> bool:
    """Whether a worker that is alive, and of this version, takes shards of *cluster*."""
    there = (each.presence for each in seen(site) if each.is_alive and not each.presence.leaves)
    return any(cluster in each.clusters and each.version == __version__ for each in there)


def _read(folder: Path) -> Iterator[Seen]:
    for path in folder.glob("*.json"):
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Seen)
        except (OSError, msgspec.DecodeError):
            continue
        if time.time() - found.at < FORGOTTEN:
            yield found
        else:
            path.unlink(missing_ok=True)


def _folder(site: Site) -> Path:
    return site.state / FOLDER


def _path(folder: Path, user: str, name: str) -> Path:
    """Names are the workers' own words."""
    return folder / f"{hashlib.sha256(msgspec.json.encode([user, name])).hexdigest()[:32]}.json"
