"""A host of somebody's play, as the action plugin of a task reaches it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from kadeploy.commands import last_line
from kadeploy.remote.fanout import LOST, Target
from kadeploy.remote.script import program
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from ansible.plugins.action import ActionBase


def require_one_by_one(action: ActionBase) -> None:
    """Refuse a task that would treat one host for all.

    Raises:
        AnsibleActionFail: says what to leave out.
    """
    if action._task.run_once:
        raise AnsibleActionFail(
            "Without a request there is no batch: leave run_once out, and the hosts are treated one by one."
        )


_TAKE = 'export LC_ALL=C; IFS= read -r -N {} program || exit 254; eval "$program"'
"""Runs what comes as input, of which it reads that many bytes."""


def execute(
    action: ActionBase,
    text: bytes,
    variables: Mapping[str, str] | None = None,
    *,
    timeout: float = 0,
    stdin_file: str | None = None,
    disconnect_ok: bool = False,
) -> dict[str, Any]:
    """Exit status (*rc*), *stdout* and *stderr* of a bash script, which travels as input: no terminal mixes the two.

    Args:
        action: the plugin, which knows connection and user.
        text: the script.
        variables: exported to it.
        timeout: seconds after which it is ended, 0 for no limit.
        stdin_file: a file of the controller that is its standard input.
        disconnect_ok: a connection that is lost is status `LOST`.

    Raises:
        AnsibleConnectionFailure: the connection is lost.
    """
    if stdin_file:
        given = action._connection._shell.join_path(action._make_tmp_path(), "input")
        action._transfer_file(stdin_file, given)
        action._fixup_perms2([given], execute=False)
        text = f"exec <{shlex.quote(given)}\n".encode() + text
    script = program(text, variables)
    limit = f"timeout -k 5 {timeout:g} " if timeout else ""
    command = f"{limit}bash -c {shlex.quote(_TAKE.format(len(script)))}"
    try:
        done = action._low_level_execute_command(command, in_data=script)
    except AnsibleConnectionFailure:
        if not disconnect_ok:
            raise
        return {"rc": LOST, "stdout": "", "stderr": ""}
    return {name: done[name] for name in ("rc", "stdout", "stderr")}


def failed(done: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a task whose script ended so."""
    words = last_line(done["stderr"]) or last_line(done["stdout"]) or f"exit status {done['rc']}"
    return {"failed": True, "changed": False, "msg": words, **done}


_MAKE_FOLDER = b'mkdir -p -- "$(dirname -- "$KADEPLOY_SEND_TO")"'


def copied(action: ActionBase, arguments: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Put a file there, with what Ansible's `copy` takes as *arguments*: it knows what is there already.

    The folder is made where there is none.
    """
    check = b'test -d "$(dirname -- "$KADEPLOY_SEND_TO")"'
    made = execute(action, check if action._task.check_mode else _MAKE_FOLDER, {"KADEPLOY_SEND_TO": arguments["dest"]})
    if made["rc"] != 0:
        return {"changed": True, "msg": f"would make {arguments['dest']}"} if action._task.check_mode else failed(made)
    task = action._task.copy()
    task.args = dict(arguments)
    copy = action._shared_loader_obj.action_loader.get(
        "ansible.builtin.copy",
        task=task,
        connection=action._connection,
        play_context=action._play_context,
        loader=action._loader,
        templar=action._templar,
        shared_loader_obj=action._shared_loader_obj,
    )
    done: dict[str, Any] = copy.run(task_vars=dict(facts))
    return done


class System:
    """The host of an action, by the connection that Ansible has to it: `Systems`."""

    taken: Mapping[str, str] = {}

    def __init__(self, action: ActionBase) -> None:
        self._action = action

    async def run(self, target: Target, script: bytes, *, timeout: float = 0, disconnect_ok: bool = False) -> Outcome:
        """See `Systems.run`."""
        try:
            done = execute(self._action, script, timeout=timeout, disconnect_ok=disconnect_ok)
        except AnsibleConnectionFailure as error:
            return Outcome(Verdict.KO, f"ssh to {target}: {error}", LOST)
        if done["rc"] == 0 or (done["rc"] == LOST and disconnect_ok):
            return Outcome(Verdict.OK, stdout=done["stdout"])
        return Outcome(Verdict.KO, failed(done)["msg"], done["rc"])

    async def forget(self, targets: Iterable[Target]) -> None:  # noqa: ARG002
        """End the connection that is kept to a system which goes down: it would be silent for a long time."""
        with contextlib.suppress(AttributeError, AnsibleConnectionFailure):
            self._action._connection.reset()

    @asynccontextmanager
    async def hold(self, names: Iterable[str]) -> AsyncIterator[Mapping[str, str]]:  # noqa: ARG002
        """See `Systems.hold`."""
        yield {}
