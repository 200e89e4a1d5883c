"""The lease of a shard: the word of its controller that a worker may carry it out, in the shard's run folder.

Three processes meet there. The controller writes the lease, and touches it for as long as it lives. The service, on the
same machine, looks at it whenever a worker calls, and keeps what the worker reports in a file beside it. The controller
follows that file. A worker is known by the lease's key, which nobody else has; with another key, or none that counts
any more, it is sent away. One worker claims it, once: the file of reports is there from then on.

Both sides watch the other: a controller that hears nothing for `LOST` seconds takes the worker for lost, and a worker
that hears nothing for `FENCED` seconds, which are fewer, ends what it does. So nodes are never in the hands of two.
"""

from __future__ import annotations

import hmac
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from kadeploy.errors import OptionError
from kadeploy.events import Progress, StepResult, StepStarted
from kadeploy.workflow import Attempt, Outcome

FILE = "lease.json"
REPORTS = "reports.jsonl"
REPORT_EVERY = 1.0
"""Seconds between two reports of a worker that has nothing to tell."""
FENCED = 6.0
"""Seconds without an answer after which a worker ends what it does."""
LOST = 9.0
"""Seconds without a report after which a controller takes a worker for lost."""
TOUCH = 1.0
"""Seconds between two signs of life of a controller."""
ABANDONED = 10.0
"""Seconds without one after which the service tells the worker to end."""
_NOT_YOURS = "This work is not yours any more."

Told = StepStarted | StepResult | Progress
"""What a worker tells of an attempt."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker may do."""

    key: str
    """Whoever shows it is the worker."""
    cluster: str
    nodes: tuple[str, ...]
    attempt: Attempt
    images: Mapping[str, str] = {}
    """Names by which the user's images are lent on the controller, by their SHA-256."""
    secrets: tuple[str, ...] = ()
    """Files that the worker needs and has to forget."""
    taken: Mapping[str, str] = {}
    """Nodes that were taken from the workflow, and why."""
    is_over: bool = False
    """It was withdrawn: nothing more may be done."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells from time to time; one that comes twice counts once."""

    number: int
    """From 1 on, one after the other; 0 says that the shard was claimed."""
    worker: str
    """Its name."""
    events: tuple[Told, ...] = ()
    let_go: tuple[str, ...] = ()
    """Of the nodes that were taken, those to which nothing is done any more."""
    outcomes: Mapping[str, Outcome] | None = None
    """Of all nodes; with them the shard is over."""
    fault: str = ""
    """Why the worker cannot carry it out; with it the shard is over as well."""


def write(folder: Path, lease: Lease) -> None:
    """Put *lease* in the place of the one before, if any."""
    path, part = folder / FILE, folder / f".{FILE}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(lease))
    part.replace(path)


def read(folder: Path) -> Lease | None:
    """The lease of the shard in *folder*; None where it was never given to a worker."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Lease)
    except (OSError, msgspec.DecodeError):
        return None


def touch(folder: Path) -> None:
    """The controller is alive."""
    with suppress(OSError):
        os.utime(folder / FILE)


def is_abandoned(folder: Path) -> bool:
    """Whether the controller has given no sign of life for long."""
    return _age(folder) > ABANDONED


def shown(folder: Path, key: str, *, also_over: bool = False) -> Lease:
    """The lease of *folder* for one who shows *key*.

    With *also_over*, one that was withdrawn will do for `FENCED` seconds: so long its worker may tell how it ended.

    Raises:
        OptionError: it is another's, or over.
    """
    found = read(folder)
    if found is None or not hmac.compare_digest(found.key.encode(), key.encode()):
        raise OptionError(_NOT_YOURS)
    if found.is_over and not (also_over and _age(folder) < FENCED):
        raise OptionError(_NOT_YOURS)
    return found


def withdraw_all(workflow_dir: Path) -> bool:
    """Withdraw all leases of a workflow whose controller has died: whether a worker may still act on its nodes."""
    any_open = False
    for path in workflow_dir.glob(f"*/{FILE}"):
        folder = path.parent
        found = read(folder)
        if found is None or (found.is_over and _age(folder) > LOST):
            continue
        any_open |= not any(report.outcomes is not None or report.fault for report in reports(folder))
        if not found.is_over:
            write(folder, msgspec.structs.replace(found, is_over=True))
    return any_open


def _age(folder: Path) -> float:
    """Seconds since the controller has written or touched the lease."""
    try:
        return time.time() - (folder / FILE).stat().st_mtime
    except OSError:
        return math.inf


# --- reports ----------------------------------------------------------------------------------------------------------


def claim(folder: Path, key: str, worker: str) -> Lease:
    """Take the shard in *folder* for the *worker* that shows *key*: nobody else does.

    Raises:
        OptionError: it is another's, or over.
    """
    if is_abandoned(folder):
        raise OptionError(_NOT_YOURS)
    shown(folder, key)
    try:
        os.close(os.open(folder / REPORTS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        raise OptionError(_NOT_YOURS) from error
    keep(folder, Report(number=0, worker=worker))
    return shown(folder, key)  # a controller that has withdrawn it meanwhile may not have seen that it is claimed


def is_claimed(folder: Path) -> bool:
    """Whether a worker has taken the shard."""
    return (folder / REPORTS).exists()


def keep(folder: Path, report: Report) -> None:
    """Append *report* for the controller.

    Raises:
        OptionError: nobody has claimed the shard.
        OSError: there is no room for it; what was written of it harms no other.
    """
    try:
        descriptor = os.open(folder / REPORTS, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise OptionError(_NOT_YOURS) from error
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        line = memoryview(b"\n" + msgspec.json.encode(report) + b"\n")
        while line:
            line = line[file.write(line) :]


def reports(folder: Path) -> Iterator[Report]:
    """All that there are."""
    yield from Reports(folder).new()


class Reports:
    """Follows what a worker reports of the shard in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REPORTS
        self._place = 0
        self._rest = b""
        self._last = -1

    def new(self) -> Iterator[Report]:
        """What has come since the last look; what comes twice is passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                content = file.read()
        except FileNotFoundError:
            return
        self._place += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            with suppress(msgspec.DecodeError):
                report = msgspec.json.decode(line, type=Report)
                if report.number > self._last:
                    self._last = report.number
                    yield report
