"""What a controller's service and a worker say to each other about one shard: bodies and answers of ``/v1/shards``."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kadeploy.workflow import Outcome

KEY = "Kadeploy-Lease"
"""Header with the key of the lease."""


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker gets that has taken a shard."""

    run_dir: str
    """Where the controller will have what is sent back of the run folder."""
    now: float
    """What the controller's `time.monotonic` says, by which the request counts."""
    nodes: tuple[str, ...]
    images: Mapping[str, int]
    """Sizes of the images to be fetched, by their SHA-256."""
    secrets: Mapping[str, bytes]
    """Files to be forgotten afterwards, by their names."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told whenever it reports."""

    taken: Mapping[str, str] = {}
    """Nodes that are not the workflow's any more, and why."""
    stop: bool = False
    """Nothing more is to be done."""


class Profiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Boot profiles that the controller is to write, from its own request."""

    boot: str
    nodes: tuple[str, ...]


class Written(msgspec.Struct, frozen=True):
    """What became of them, by node."""

    outcomes: Mapping[str, Outcome]


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told that says it is there."""

    version: str
    """Of the controller; a worker of another one takes nothing."""
    unknown: tuple[str, ...] = ()
    """Clusters of its that do not exist here, or do without workers."""
