"""What happens in an operation, as data: one struct per event, and who wants to know is a plain callable.

The same events feed the journal, the display and the file of a run, ``events.jsonl``: one JSON object a line, in the
order in which things happened. Times are Unix seconds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from kadeploy.broadcast.progress import Transfer
from kadeploy.config.cluster import StepTable
from kadeploy.workflow import Attempt, Final, Operation, Outcome

FILE_NAME = "events.jsonl"


def _tag(name: str) -> str:
    """``StepStarted`` → ``step_started``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_tag):
    at: float = msgspec.field(default_factory=time.time)
    """When it happened."""


class Report(msgspec.Struct, frozen=True):
    """How an operation ended: every node of the request is in *ok* or in *ko*."""

    wid: str
    ok: tuple[str, ...] = ()
    ko: Mapping[str, str] = {}
    """Reason by node; nodes that were left out or aborted are among them."""
    at_breakpoint: tuple[str, ...] = ()
    """Those of *ok* that wait in the deployment system."""
    aborted: tuple[str, ...] = ()
    """Those of *ko* that were on their way when the operation was stopped."""
    taken: tuple[str, ...] = ()
    """Those of *ko* that were taken from the operation: by another one, or because the user's right had ended."""
    answers: Mapping[str, str] = {}
    """What a step asked for: for ``kapower3 --status`` what each node's BMC, or the site's command, said."""
    host_keys: tuple[str, ...] = ()
    """Lines for a known-hosts file, where they were asked for."""


class Began(_Event, frozen=True, kw_only=True):
    """The operation is recorded and begins."""

    wid: str
    operation: Operation
    user: str
    groups: Mapping[str, tuple[str, ...]]
    """The nodes that take part, by cluster."""
    plans: Mapping[str, StepTable]
    """By cluster."""
    notes: tuple[str, ...] = ()
    """What people should know: where a plan is not what the configuration says."""
    usual: Mapping[str, Mapping[str, float]] = {}
    """Seconds that implementations usually take, by cluster; empty where that is not known."""
    passing: Mapping[str, tuple[str, ...]] = {}
    """Nodes that leave out an implementation of their plan, by its name."""


class LeftOut(_Event, frozen=True, kw_only=True):
    """Nodes that take no part, and why."""

    reasons: Mapping[str, str]


class AttemptStarted(_Event, frozen=True, kw_only=True):
    """A macro-step begins for these nodes."""

    attempt: Attempt
    nodes: tuple[str, ...]


class AttemptEnded(_Event, frozen=True, kw_only=True):
    """A macro-step is over for these nodes."""

    attempt: Attempt
    outcomes: Mapping[str, Outcome]
    seconds: float


class StepStarted(_Event, frozen=True, kw_only=True):
    """A micro-step begins for these nodes: those of the attempt without KO or BRK so far."""

    attempt: Attempt
    micro_step: str
    nodes: tuple[str, ...]


class StepResult(_Event, frozen=True, kw_only=True):
    """A task of a micro-step has ended; a micro-step may have several."""

    attempt: Attempt
    micro_step: str
    outcomes: Mapping[str, Outcome]


class Progress(_Event, frozen=True, kw_only=True):
    """How far an attempt's broadcast is."""

    attempt: Attempt
    nodes: tuple[str, ...]
    transfer: Transfer


class Finished(_Event, frozen=True, kw_only=True):
    """Nodes have come to their end."""

    finals: Mapping[str, Final]


class Taken(_Event, frozen=True, kw_only=True):
    """Nodes are taken from the operation: it does nothing more to them, and no result of theirs counts."""

    reasons: Mapping[str, str]


class LetGo(_Event, frozen=True, kw_only=True):
    """Of nodes that were taken, these are out of the operation's hands: what was under way has ended."""

    nodes: tuple[str, ...]


class Note(_Event, frozen=True, kw_only=True):
    """Something that people should know."""

    text: str
    resumed: bool = False
    """The workflow goes on from here after its controller died: attempts that had not ended begin anew."""


class Ended(_Event, frozen=True, kw_only=True):
    """The operation is over."""

    operation: Operation
    groups: Mapping[str, tuple[str, ...]]
    """All nodes of the request, by cluster."""
    report: Report


Told = (
    Began
    | LeftOut
    | AttemptStarted
    | AttemptEnded
    | StepStarted
    | StepResult
    | Progress
    | Taken
    | LetGo
    | Finished
    | Note
    | Ended
)
"""What an operation tells."""


class Heard(_Event, frozen=True, kw_only=True):
    """What an operation tells that is one of several, each at a server of its own; in no file."""

    server: str
    told: Event


Event = Told | Heard
Listener = Callable[[Event], None]
"""Who wants to know; called by the thread that launched the operation, one call at a time."""

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)


class EventFile:
    """A listener that appends each event to a file of the run, readable for its owner alone.

    What cannot be written (a full disk) is left out: the operation matters more than its file. A line that was not
    finished, also by a dead writer before this one, is ended first.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def __call__(self, event: Event) -> None:
        """Append one line."""
        line = b"\n" * self._torn + _ENCODER.encode(event) + b"\n"
        with suppress(OSError):
            self._torn = os.write(self._descriptor, line) < len(line)

    def close(self) -> None:
        """Nothing more will come."""
        os.close(self._descriptor)


def read(path: Path) -> Iterator[Told]:
    """The events of a run's file, in order; a line that its writer did not finish is passed over."""
    with path.open("rb") as lines:
        for line in lines:
            if event := decode(line):
                yield event


def decode(line: bytes) -> Told | None:
    """The event of a line; None: its writer did not finish it."""
    try:
        return _DECODER.decode(line)
    except msgspec.DecodeError:
        return None
