"""What a run of a playbook says: events of ansible-runner in, an outcome per node out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kadeploy.commands import last_line
from kadeploy.events import Listener, StepResult, StepStarted
from kadeploy.runner import answers
from kadeploy.workflow import Attempt, Outcome, Verdict

_NO_REASON = "non-zero return code"
"""What Ansible says of a command that failed, in other words around it since 2.21; why is in what the command said."""


@dataclass
class Reading:
    """Reads the events of one run; the first KO or BRK of a node counts."""

    attempt: Attempt
    nodes: tuple[str, ...]
    left_out: frozenset[str]
    """Micro-steps that will not run."""
    tell: Listener
    silent: Callable[[str], bool]
    """Whether a role is no micro-step of its own; the role of a task without one is empty."""
    taken: Mapping[str, str] = field(default_factory=dict)
    """Nodes that were taken from the workflow meanwhile: nothing is told of them any more."""
    plays: Mapping[str, str] = field(default_factory=dict)
    """What the tasks of a play of hooks are called in place of their roles, by its name; a failure names its task."""
    step: str = ""
    announced: str = ""
    ended: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, Outcome] = field(default_factory=dict)
    """Failures of tasks; they count if Ansible says at the end that the host has failed."""
    starts: dict[str, set[str]] = field(default_factory=dict)
    """Hosts on which each task was started, by the task's id."""
    failed_tasks: dict[str, str] = field(default_factory=dict)
    """Id of the task that failed, by host."""
    stats: Mapping[str, Any] | None = None
    nobody_left: bool = False
    """Ansible broke off, or the play was for other hosts."""

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.nodes)

    def event(self, event: dict[str, Any]) -> bool:
        """Take one event of ansible-runner; False: no file is to be written for it."""
        data = event.get("event_data") or {}
        match event.get("event"):
            case "playbook_on_task_start":
                self._task(data)
            case "runner_on_start":
                self.starts.setdefault(str(data.get("task_uuid")), set()).add(str(data.get("host")))
            case "runner_on_ok" | "runner_item_on_ok":  # a task in a loop answers item by item
                self._batch(data)
            case "runner_on_failed" | "runner_on_unreachable" if not data.get("ignore_errors"):
                self._failure(data)
            case "playbook_on_no_hosts_remaining" | "playbook_on_no_hosts_matched":
                self.nobody_left = True
            case "playbook_on_stats":
                self.stats = data
        return False

    def going(self) -> tuple[str, ...]:
        """Nodes that are neither KO nor at a breakpoint so far, nor taken."""
        gone = self.ended.keys() | self.failed.keys() | self.taken.keys()
        return tuple(node for node in self.nodes if node not in gone)

    def outcomes(self, otherwise: str) -> dict[str, Outcome]:
        """Every node's outcome; *otherwise* tells why there is none when the play did not end normally."""
        answer = dict(self.ended)
        if self.stats is None:
            lost = Outcome(Verdict.KO, self._placed(otherwise))
            return {node: answer.get(node) or self.failed.get(node, lost) for node in self.nodes}
        gone = set(self.stats.get("failures", {})) | set(self.stats.get("dark", {}))
        everybodys = self._everybodys(gone)
        lost = Outcome(Verdict.KO, self._placed("Ansible lost this host"))
        for node in self.nodes:
            if node not in answer:
                answer[node] = self.failed.get(node, lost) if node in gone else everybodys
        return answer

    def _everybodys(self, gone: set[str]) -> Outcome:
        """What holds for nodes that no event speaks of: a ``run_once`` task that fails on one fails for all."""
        for node, task in self.failed_tasks.items():
            if node in gone and len(self.starts.get(task, ())) == 1:
                return self.failed[node]
        return Outcome(Verdict.KO, self._placed("no node was left")) if self.nobody_left else Outcome(Verdict.OK)

    def _placed(self, reason: str) -> str:
        """*reason* behind the implementation and the micro-step that was going on."""
        if reason.startswith(self.attempt.implementation):
            return reason
        step = f"-{self.announced}" if self.announced else ""
        return f"{self.attempt.implementation}{step}: {reason}"

    def _task(self, data: Mapping[str, Any]) -> None:
        self.step = self.plays.get(str(data.get("play")), str(data.get("role") or ""))
        if self.step not in self.left_out:
            self._announce(self.step)

    def _announce(self, step: str) -> None:
        if step != self.announced and not self.silent(step):
            self.announced = step
            going = self.going()
            if going:
                self.tell(StepStarted(attempt=self.attempt, micro_step=step, nodes=going))

    def _batch(self, data: Mapping[str, Any]) -> None:
        """A task for all nodes has ended: its result holds an outcome per node."""
        step, answer = answers.read(data.get("res") or {})
        step = step or self.step
        if not answer:
            return
        self._announce(step)
        results = {node: self._outcome(step, outcome) for node, outcome in answer.items() if node in self._known}
        for node, outcome in results.items():
            if outcome.verdict is not Verdict.OK:
                self.ended.setdefault(node, outcome)
        results = {node: outcome for node, outcome in results.items() if node not in self.taken}
        silent = self.silent(step) and not any(map(_worth_telling, results.values()))
        if results and not silent:
            self.tell(StepResult(attempt=self.attempt, micro_step=step, outcomes=results))

    def _outcome(self, step: str, told: Outcome) -> Outcome:
        if told.verdict is Verdict.LATE:
            return replace(told, micro_step=step)
        if told.verdict is not Verdict.KO:
            return told
        said = told.message or _last_line({"stderr": told.stderr, "stdout": told.stdout})
        reason = self._reason(step, said or f"exit status {told.rc or 'unknown'}")
        return replace(told, message=reason, micro_step=step)

    def _failure(self, data: Mapping[str, Any]) -> None:
        """A task has failed on a host."""
        result = data.get("res") or {}
        said = str(result.get("msg") or "")
        if not said or _NO_REASON in said:
            said = _last_line(result) or _status(result) or said or "the task failed"
        if str(data.get("play")) in self.plays and not _unnamed(data):
            said = f"{data['task']}: {said}"
        outcome = Outcome(
            Verdict.KO,
            self._reason(self.step or str(data.get("task") or ""), said),
            int(result.get("rc") or 0) if isinstance(result.get("rc"), int) else 1,
            str(result.get("stdout") or ""),
            str(result.get("stderr") or ""),
        )
        node = str(data.get("host"))
        if node in self._known and node not in self.failed and node not in self.ended:
            self.failed[node] = outcome
            self.failed_tasks[node] = str(data.get("task_uuid"))
            if node not in self.taken:
                self.tell(StepResult(attempt=self.attempt, micro_step=self.step, outcomes={node: outcome}))

    def _reason(self, step: str, reason: str) -> str:
        where, text = f"{self.attempt.implementation}-{step}: ", " ".join(reason.split())
        return text if text.startswith(where) else where + text


def _unnamed(task: Mapping[str, Any]) -> bool:
    """Whether a task is called like the action that it is, as Ansible calls one without a name."""
    return str(task.get("task")).rsplit(".", 1)[-1] == str(task.get("task_action")).rsplit(".", 1)[-1]


def _worth_telling(outcome: Outcome) -> bool:
    return bool(outcome.verdict is not Verdict.OK or outcome.stdout or outcome.stderr)


def _status(result: Mapping[str, Any]) -> str:
    return f"exit status {result['rc']}" if result.get("rc") else ""


def _last_line(result: Mapping[str, Any]) -> str:
    """The last line that a command said."""
    for stream in ("stderr", "stdout"):
        if line := last_line(str(result.get(stream) or "")):
            return line
    return ""
