"""The shell around every batch action: Ansible's one home.

A batch action works on exactly the hosts for which Ansible runs the task: on one host, as any action does, or with
``run_once`` on all hosts of the play's batch. It asks the request what to do, lets an engine do it (`microstep.play`),
and answers with an outcome per node (`answers`). The task itself succeeds; a node that is KO takes no part in what
follows. In check mode nothing is done.
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
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from ansible.errors import AnsibleActionFail
from ansible.playbook.handler import Handler
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.action import ActionBase

from kadeploy import process
from kadeploy.errors import KadeployError
from kadeploy.microsteps.memory import Begun, Memory, memory_of
from kadeploy.microsteps.microstep import Engine, MicroStep, play
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


class BatchAction(ActionBase):  # type: ignore[misc]
    """An action plugin that does one micro-step on many nodes at once; subclasses name an engine and its arguments."""

    _requires_connection = False
    engine: ClassVar[Engine]
    arguments: ClassVar[Mapping[str, Any]] = {}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do it; called by Ansible in a process of its own."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        facts = task_vars or {}
        try:
            return result | self._batch(facts, self._hosts(facts))
        except KadeployError as error:
            raise AnsibleActionFail(str(error)) from error

    def prepare(self, args: dict[str, Any]) -> dict[str, Any]:
        """Complete checked arguments with what only Ansible can find (files of the role)."""
        return args

    def facts(self, memory: Memory) -> dict[str, Any]:  # noqa: ARG002
        """Facts for the tasks that follow."""
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
        _, args = self.validate_argument_spec(argument_spec=dict(self.arguments))
        begun = self._begun(asked, facts)
        outcomes: dict[str, Outcome] = {}
        if members and not self._task.check_mode:
            env = {str(name): str(value) for name, value in facts.get("kadeploy_env", {}).items()}
            together = len(facts["ansible_play_batch"])
            step = partial(
                MicroStep, asked, begun, members, env=env, args=self.prepare(_plain(args)), together=together
            )
            outcomes = _drive(self._play(asked, step, memory))
        if os.environ.get("KADEPLOY_RUN") != "1":
            for line in folded(outcomes, asked.options.debug):
                self._display.display(line)
        answer = {"changed": bool(outcomes), **answers.write(begun.step, outcomes, asked.options.debug)}
        if found := self.facts(memory):
            answer["ansible_facts"] = found
        return answer

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
    """*value* without Ansible's tagged kinds of strings, dicts and lists, which nothing else can write down."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, str) else value


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
