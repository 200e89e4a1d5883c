"""The record of a workflow: a file of its run folder from which another process can go on with it.

It says what does not change while the workflow runs: what was admitted, for whom, with which files. How far each node
has come is told by the events in the file beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.config.cluster import StepTable
from kadeploy.config.folder import Configuration
from kadeploy.environments.environment import Environment
from kadeploy.errors import KadeployError
from kadeploy.operations.work import Resumption, States, Work
from kadeploy.runner.request import Assignment
from kadeploy.state.controllers import RECORD
from kadeploy.workflow import Operation

_STOPPED = "stopped"
"""File of a run folder that says that its user has stopped the workflow, whatever becomes of its process."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was admitted, and which of its nodes take part."""

    format: Literal[1] = 1
    wid: str
    operation: Operation
    user: str
    account: Account | None
    """Whose files they are; None: the user's client has sent them."""
    config_dir: str
    groups: Mapping[str, tuple[str, ...]]
    """All nodes of the request, by cluster."""
    taken: tuple[str, ...]
    """Those that take part."""
    left_out: Mapping[str, str]
    """Why the others do not."""
    plans: Mapping[str, StepTable]
    """By cluster."""
    passing: Mapping[str, tuple[str, ...]] = {}
    """Nodes that leave out an implementation of their plan, by its name."""
    assignments: Mapping[str, Assignment]
    """By cluster, with files that are on this machine."""
    states: States
    environment: Environment | None
    anonymous: bool
    hook: str
    host_keys: bool
    production: Mapping[str, Environment] | None
    begun: float
    """When the workflow began (Unix)."""

    def work(self, configuration: Configuration, resumption: Resumption) -> Work:
        """The work as it was."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name in Work.__dataclass_fields__}
        return Work(configuration=configuration, resumption=resumption, **fields)


def write(work: Work, account: Account | None, taken: Sequence[str], left_out: Mapping[str, str]) -> None:
    """Keep what another process would need; readable for its owner alone, and there as a whole or not at all.

    On a full disk nothing is kept: the operation matters more.
    """
    shared = {name: getattr(work, name) for name in Record.__struct_fields__ if name in Work.__dataclass_fields__}
    record = Record(
        account=account,
        config_dir=str(work.configuration.folder.resolve()),
        taken=tuple(taken),
        left_out=left_out,
        begun=time.time(),
        **shared,
    )
    with suppress(OSError):
        files.replace_file(work.folder / RECORD, encode(record))


def read(folder: Path) -> Record:
    """The record in a run folder.

    Raises:
        KadeployError: there is none, or another Kadeploy wrote it. It is put aside, so that nobody waits for the
            workflow to go on.
    """
    try:
        return cast("Record", decode((folder / RECORD).read_bytes(), Record))
    except (OSError, msgspec.MsgspecError) as error:
        with suppress(OSError):
            (folder / RECORD).replace(folder / f"{RECORD}.unreadable")
        raise KadeployError(
            f"Workflow {folder.name} cannot go on: its record cannot be read ({error}). "
            "Its nodes are freed by the next operation."
        ) from error


# --- the user's will ------------------------------------------------------------------------------------------------


def stop(folder: Path) -> None:
    """Remember that the workflow was stopped on purpose: nobody goes on with it."""
    with suppress(OSError):
        (folder / _STOPPED).touch(mode=0o600)


def is_stopped(folder: Path) -> bool:
    """Whether somebody has stopped the workflow."""
    return (folder / _STOPPED).exists()


# --- as JSON --------------------------------------------------------------------------------------------------------


def encode(value: msgspec.Struct) -> bytes:
    """JSON of a struct that may hold paths."""
    return msgspec.json.encode(value, enc_hook=str)


def decode(text: bytes, kind: Any) -> Any:
    """A struct of that kind again; raises `msgspec.MsgspecError`."""
    return msgspec.json.decode(text, type=kind, dec_hook=_path)


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value)
