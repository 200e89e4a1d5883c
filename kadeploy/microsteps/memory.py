"""The memory of one run of ansible-playbook: which micro-steps have begun, and which nodes are out.

Each task of a playbook runs in a process of its own; a file in the run folder, named after the ansible-playbook process
(so that repeating a run by hand starts afresh), tells the next one what happened before: one JSON object per line. A
second one, in the workflow's folder, tells later attempts how hard nodes were rebooted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kadeploy import process
from kadeploy.power.switch import Level
from kadeploy.workflow import Outcome, Verdict


class Begun(msgspec.Struct, frozen=True):
    """A micro-step that has begun."""

    key: str
    """Which of the playbook's roles; a name may occur more than once."""
    step: str
    implementation: str
    macro_step: str


class _Beginning(msgspec.Struct, frozen=True, tag="begun"):
    step: Begun
    nodes: tuple[str, ...]


class Out(msgspec.Struct, frozen=True, tag="out"):
    """A node that takes no further part, KO or stopped at a breakpoint."""

    node: str
    verdict: Verdict
    step: str
    implementation: str
    message: str = ""


class Rebooted(msgspec.Struct, frozen=True, tag="rebooted"):
    """A node that was rebooted, and how hard; kept for the whole workflow."""

    node: str
    macro_step: str
    attempt: int
    level: Level
    boot_log: int = 0
    """Bytes that the boot server's log had before."""


_Line = _Beginning | Out | Rebooted
_DECODER = msgspec.json.Decoder(_Line)
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True)
class Memory:
    """The file, read and appended to; every call reads what other processes have written meanwhile."""

    path: Path

    def begin(self, begun: Begun, nodes: tuple[str, ...]) -> None:
        """Note that a micro-step begins on *nodes*."""
        self._append([_Beginning(begun, nodes)])

    def begun(self, nodes: tuple[str, ...]) -> list[Begun]:
        """Micro-steps that any of *nodes* has begun, in order; nodes of one task have begun the same ones."""
        beginnings = [line for line in self._lines() if isinstance(line, _Beginning)]
        return [line.step for line in beginnings if not set(line.nodes).isdisjoint(nodes)]

    def note(self, step: Begun, outcomes: Mapping[str, Outcome]) -> None:
        """Keep the nodes of *outcomes* that are KO or at a breakpoint."""
        out = [
            Out(node, outcome.verdict, step.step, step.implementation, outcome.message)
            for node, outcome in outcomes.items()
            if outcome.verdict is not Verdict.OK
        ]
        if out:
            self._append(out)

    def out(self) -> dict[str, Out]:
        """Nodes that take no further part; a node's first word counts."""
        known: dict[str, Out] = {}
        for line in self._lines():
            if isinstance(line, Out):
                known.setdefault(line.node, line)
        return known

    def rebooted(self, lines: list[Rebooted]) -> None:
        """Note how hard nodes were rebooted."""
        self._append(lines)

    def levels(self, macro_step: str, attempt: int) -> dict[str, Level]:
        """How hard nodes were rebooted last, in the attempts of *macro_step* before this one."""
        return {
            line.node: line.level
            for line in self._lines()
            if isinstance(line, Rebooted) and line.macro_step == macro_step and line.attempt < attempt
        }

    def boot_log_lengths(self, macro_step: str) -> dict[str, int]:
        """How long the boot server's log was when nodes were rebooted last in *macro_step*."""
        return {
            line.node: line.boot_log
            for line in self._lines()
            if isinstance(line, Rebooted) and line.macro_step == macro_step
        }

    def _append(self, lines: Sequence[_Line]) -> None:
        text = b"".join(_ENCODER.encode(line) + b"\n" for line in lines)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a writer died within its line
                text = b"\n" + text
            os.write(descriptor, text)
        finally:
            os.close(descriptor)

    def _lines(self) -> list[_Line]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        lines: list[_Line] = []
        for line in text.splitlines():
            try:
                lines.append(_DECODER.decode(line))
            except msgspec.DecodeError:  # torn: its writer died
                continue
        return lines


def memory_of(run_dir: Path, pid: int) -> Memory:
    """The memory of the ansible-playbook process *pid*; pids are used again, so its start time is part of the name."""
    return Memory(run_dir / f"verdicts-{pid}-{process.read_stat(pid).started}.jsonl")


def memory_of_reboots(workflow_dir: Path) -> Memory:
    """What all attempts of a workflow know of its reboots."""
    return Memory(workflow_dir / "reboots.jsonl")


def latest(run_dir: Path) -> Memory | None:
    """The memory of the last run in *run_dir*, None before the first."""
    files = sorted(run_dir.glob("verdicts-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    return Memory(files[-1]) if files else None
