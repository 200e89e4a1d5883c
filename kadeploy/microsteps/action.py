"""The shell around every batch action: Ansible's one home.

A batch action works on exactly the hosts for which Ansible runs the task: on one host, as any action does, or with
``run_once`` on all hosts of the play's batch. It asks the request what to do, lets an engine do it (`microstep.play`),
and answers with an outcome per node (`answers`). The task itself succeeds; a node that is KO takes no part in what
follows, and the role `finish` fails it. In check mode the answer says what would be done, and nothing is.

By hand a step asks first whose the nodes are (`by_hand`), and its outcomes are shown folded on standard error: standard
output belongs to whatever callback the user has chosen.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.playbook.handler import Handler
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.action import ActionBase

from kadeploy import process
from kadeploy.errors import KadeployError
from kadeploy.microsteps import by_hand
from kadeploy.microsteps.memory import Begun, Memory, memory_of
from kadeploy.microsteps.microstep import Engine, MicroStep, play, would
from kadeploy.nodeset import fold
from kadeploy.remote import broker
from kadeploy.remote.fanout import Credentials
from kadeploy.runner import answers, playbooks, request
from kadeploy.runner.request import Request
from kadeploy.workflow import Outcome, Verdict

GRACE = 3.0
"""Seconds to end what runs on nodes, once the controller or ansible-playbook is gone."""


_IN_STEP = ("linear", "debug")
"""Strategies in which a task with ``run_once`` is run once, when all hosts have come to it."""
_SAME_FOR_ALL = re.compile(r"kadeploy_wants(\.\w+|\[['\"]\w+['\"]\])")
"""Conditions that hold for all nodes of a request or for none; of any other, ``run_once`` asks the first host alone."""


@dataclass(frozen=True)
class Work:
    """What a task has to do."""

    request: Request
    begun: Begun
    members: tuple[str, ...]
    args: dict[str, Any]
    """Its arguments, checked and completed."""


def _is_by_hand() -> bool:
    return os.environ.get("KADEPLOY_RUN") != "1"


class BatchAction(ActionBase):  # type: ignore[misc]
    """An action plugin that does one micro-step on many nodes at once; subclasses name an engine and its arguments."""

    _requires_connection = False
    engine: ClassVar[Engine]
    what: ClassVar[Callable[[Mapping[str, Any], Request], str]]
    """What the task does to nodes, for check mode: ``run sync.sh``; empty for nothing."""
    changes: ClassVar[bool] = True
    """Whether it leaves nodes, or what they boot, in another state than before."""
    arguments: ClassVar[Mapping[str, Any]] = {}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do it; called by Ansible in a process of its own."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        facts = task_vars or {}
        try:
            if "kadeploy_request_file" not in facts:
                return result | self.alone(self._checked(), facts)
            return result | self._batch(facts, self._hosts(facts))
        except KadeployError as error:
            raise AnsibleActionFail(str(error)) from error

    def prepare(self, args: dict[str, Any]) -> dict[str, Any]:
        """Complete checked arguments with what only Ansible can find (files of the role)."""
        return args

    def alone(self, args: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Do it on this host, in a play that has no request; the result is that of an ordinary action.

        Raises:
            AnsibleActionFail: it cannot be done without one.
        """
        raise AnsibleActionFail("kadeploy_request_file is not set: give an inventory that is named *.kadeploy.yml.")

    def _checked(self) -> dict[str, Any]:
        _, args = self.validate_argument_spec(argument_spec=dict(self.arguments))
        checked: dict[str, Any] = _plain(args)
        return checked

    def differences(self, work: Work) -> list[dict[str, str]]:  # noqa: ARG002
        """How files on this machine are changed, for ``--diff``."""
        return []

    def found(self, memory: Memory) -> dict[str, Any]:  # noqa: ARG002
        """What the result tells beside the outcomes."""
        return {}

    def _hosts(self, facts: dict[str, Any]) -> tuple[str, ...]:
        """The hosts for which Ansible runs this task."""
        if not self._task.run_once:
            return (str(facts["inventory_hostname"]),)
        if obstacle := _obstacle(self._task):
            raise AnsibleActionFail(
                f"{self._task.action} with run_once treats every host of the batch, but {obstacle}. Nothing was done:"
                " leave run_once out, and it treats the hosts one by one."
            )
        return tuple(map(str, facts["ansible_play_batch"]))

    def _batch(self, facts: dict[str, Any], hosts: tuple[str, ...]) -> dict[str, Any]:
        asked = request.read(Path(_text(facts, "kadeploy_request_file")))
        memory = memory_of(Path(asked.run_dir), os.getppid())
        known, out = {node.name for node in asked.nodes}, memory.out()
        if strangers := [host for host in hosts if host not in known]:
            raise AnsibleActionFail(f"Not in the request {asked.run_dir}: {fold(strangers)}. Nothing was done.")
        members = tuple(host for host in hosts if host not in out)
        work = Work(asked, self._begun(asked, facts), members, self.prepare(self._checked()))
        differences = self.differences(work) if self._task.diff else []
        outcomes = {} if self._task.check_mode or not members else self._outcomes(work, facts, memory)
        lines = self._would(work) if self._task.check_mode else folded(outcomes, asked.options.debug)
        answer = answers.write(work.begun.step, outcomes, asked.options.debug) | self._shown(lines) | self.found(memory)
        answer["changed"] = bool(lines) and self.changes and not self._only_looks(work)
        return answer | ({"diff": differences} if differences else {})

    def _outcomes(self, work: Work, facts: dict[str, Any], memory: Memory) -> dict[str, Outcome]:
        env = {str(name): str(value) for name, value in facts.get("kadeploy_env", {}).items()}
        together = work.request.of or len(facts["ansible_play_batch"])
        step = partial(MicroStep, work.request, work.begun, env=env, args=work.args, together=together)

        def act(members: tuple[str, ...]) -> dict[str, Outcome]:
            return _drive(self._play(work.request, partial(step, members), memory))

        if not _is_by_hand() or self._only_looks(work):
            return act(work.members)
        after = by_hand.left(self._name, work.args, work.request)
        force = boolean(facts.get(by_hand.FORCE, False))
        outcomes = by_hand.do(work.request, work.members, after, act, self._display.warning, force=force)
        memory.note(work.begun, {node: outcomes[node] for node in outcomes.keys() - memory.out().keys()})
        return {node: outcomes[node] for node in work.members}

    def _would(self, work: Work) -> list[str]:
        """For check mode."""
        done = would(work.request, work.begun, type(self).what(work.args, work.request)) if work.members else []
        return [f"{fold(work.members)}: would {each}" for each in done]

    def _only_looks(self, work: Work) -> bool:
        return by_hand.only_looks(self._name, work.args, work.request)

    @property
    def _name(self) -> str:
        return str(self._task.action).rsplit(".", 1)[-1]

    def _shown(self, lines: list[str]) -> dict[str, Any]:
        """By hand: show *lines*; the result has them as well, for callbacks that show nothing else."""
        if not _is_by_hand() or not lines:
            return {}
        for line in lines:
            self._display.display(line, stderr=True)
        return {"msg": "\n".join(lines)}

    async def _play(self, asked: Request, step: Callable[..., MicroStep], memory: Memory) -> dict[str, Outcome]:
        remote = await broker.connect(Path(asked.workflow_dir), Credentials.of(asked.site))
        try:
            return await play(step(remote=remote), type(self).engine, memory)
        finally:
            await remote.close()

    def _begun(self, asked: Request, facts: dict[str, Any]) -> Begun:
        """This micro-step's name and place: its role, and the implementation, which is the play's name."""
        role = self._task._role
        name = role.get_name(include_role_fqcn=False) if role else self._task.get_name()
        name = str(name).rsplit(".", 1)[-1]
        macro, implementation = asked.attempt.macro_step, asked.attempt.implementation
        played = str(facts.get("ansible_play_name", ""))
        if known := playbooks.generic(played):
            macro, implementation = known, played
        return Begun(f"{name}#{id(role)}", name, implementation, macro)


def _obstacle(task: Any) -> str:
    """Why the hosts that come to *task* may be fewer than those of the batch, or come more than once; else empty."""
    play, levels = task.get_play(), list(_levels(task))
    odd = [str(condition) for condition in task.when if not _SAME_FOR_ALL.fullmatch(str(condition).strip())]
    if str(play.strategy).rsplit(".", 1)[-1] not in _IN_STEP:
        return f"the play's strategy is {play.strategy}, where each host comes here by itself"
    if odd:
        return f"its condition may differ from host to host (when: {odd[0]})"
    if isinstance(task, Handler):
        return "it is a handler, which only some hosts may have notified"
    if any(isinstance(level, TaskInclude) and not level.statically_loaded for level in levels):
        return "it is in tasks or a role that were included, perhaps for some hosts only (import_* are for all)"
    if any(getattr(level, "rescue", None) for level in levels):
        return "it is in a block with a rescue section, where hosts part"
    return ""


def _levels(task: Any) -> Iterator[Any]:
    """Blocks and includes around *task*, from the inside."""
    while task := task._parent:
        yield task


def folded(outcomes: Mapping[str, Outcome], debug: bool = False) -> list[str]:
    """Lines for people: nodes that say the same are named together, ``node-[1-3]: ok``."""
    groups: dict[tuple[str, str], list[str]] = {}
    for node, outcome in outcomes.items():
        said = outcome.answer or "ok" if outcome.verdict is Verdict.OK else outcome.message or outcome.verdict.value
        output = "\n".join(filter(None, (outcome.stdout.rstrip(), outcome.stderr.rstrip()))) if debug else ""
        groups.setdefault((said, output), []).append(node)
    lines = []
    for (said, output), nodes in groups.items():
        lines.append(f"{fold(nodes)}: {said}")
        lines += [f"    {line}" for line in output.splitlines()]
    return lines


def _plain(value: Any) -> Any:
    """*value* without Ansible's tagged kinds of strings, numbers and the rest, which nothing else can write down."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    plain = next((kind for kind in (str, bool, int, float) if isinstance(value, kind)), None)
    return plain(value) if plain else value


def _text(facts: dict[str, Any], name: str) -> str:
    if name not in facts:
        raise AnsibleActionFail(f"{name} is not set: give an inventory that is named *.kadeploy.yml.")
    return str(facts[name])


# --- a process that ends with those it works for ----------------------------------------------------------------------


def _drive(work: Any) -> dict[str, Outcome]:
    """Run *work* in an event loop; it is cancelled, and this process ends, when nobody waits for it any more."""

    async def main() -> dict[str, Outcome]:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with _watchdog(lambda: loop.call_soon_threadsafe(task.cancel)):
            outcomes: dict[str, Outcome] = await task
            return outcomes

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        _end()


def _end() -> NoReturn:
    """End this worker and the processes it started; it leads its process group."""
    process.end_group(os.getpgid(0))
    os._exit(1)


@contextmanager
def _watchdog(cancel: Any) -> Iterator[None]:
    """Cancel the work, then end this process, when ansible-playbook (the parent) or the controller dies."""
    over, stop = os.pipe()
    controller = process.running_here(told) if (told := os.environ.get("KADEPLOY_CONTROLLER")) else None
    watched = [each for each in (process.find(os.getppid()), controller) if each]
    thread = threading.Thread(target=_watch, args=(watched, over, cancel), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(stop)
        thread.join(GRACE + 5)
        os.close(over)


def _watch(watched: list[process.Process], over: int, cancel: Any) -> None:
    poll = select.poll()
    poll.register(over, select.POLLHUP)
    gone = False
    for each in watched:
        try:
            poll.register(os.pidfd_open(each.pid), select.POLLIN)
        except ProcessLookupError:
            gone = True
        gone = gone or not each.alive()  # its number may be another's by now
    if not gone and any(descriptor == over for descriptor, _ in poll.poll()):
        return
    cancel()
    ended = select.poll()
    ended.register(over, select.POLLHUP)
    ended.poll(int(GRACE * 1000))
    playbook = process.find(os.getppid())
    if playbook and playbook in watched:  # the controller is gone, ansible-playbook is not
        playbook.end(patience=1)
    _end()
