"""Run one of the site's own commands on the controller: the commands that the configuration names, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping, Sequence

from kadeploy.errors import ConfigError
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.remote.fanout import Capture
from kadeploy.workflow import Outcome, Verdict

ARGUMENTS = {
    "command": {"type": "str", "required": True, "choices": ["set_vlan"]},
    "vlan": {"type": "str", "default": ""},
}
"""As an Ansible argument specification."""


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Move all members into a VLAN, the request's unless ``vlan`` names another; a command that fails fails for all.

    Raises:
        ConfigError: the site has no such command.
    """
    vlan = step.request.site.vlan
    if vlan is None or not vlan.set_command:
        raise ConfigError("There is no command to move nodes into a VLAN: set vlan.set_command in site.yml.")
    values = {
        "NODES": [word for name in step.members for word in ("-m", name)],
        "VLAN_ID": [str(step.args["vlan"] or step.request.options.vlan)],
        "USER": [step.request.user],
    }
    return dict.fromkeys(step.members, await execute(words(vlan.set_command, values)))


def words(command: str, values: Mapping[str, Sequence[str]]) -> list[str]:
    """The arguments of *command*, cut like a shell does; arguments that are a name in *values* are replaced.

    >>> words("kavlan -s -i VLAN_ID NODES", {"VLAN_ID": ["4"], "NODES": ["-m", "n-1", "-m", "n-2"]})
    ['kavlan', '-s', '-i', '4', '-m', 'n-1', '-m', 'n-2']

    Raises:
        ConfigError: an unbalanced quote.
    """
    try:
        cut = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"The site's command {command!r} is malformed: {error}.") from error
    return [replaced for word in cut for replaced in values.get(word, [word])]


async def execute(arguments: Sequence[str]) -> Outcome:
    """Run a program of the controller to its end, without a shell; it is ended with its children when cancelled."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        return Outcome(Verdict.KO, f"{arguments[0]}: {error.strerror}", 127)
    try:
        stdout, stderr, rc = await asyncio.gather(_keep(process.stdout), _keep(process.stderr), process.wait())
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if rc == 0:
        return Outcome(Verdict.OK, stdout=stdout, stderr=stderr)
    said = (stderr.strip() or stdout.strip()).splitlines()
    message = f"{arguments[0]}: {said[-1][:300] if said else f'exit status {rc}'}"
    return Outcome(Verdict.KO, message, rc, stdout, stderr)


async def _keep(stream: asyncio.StreamReader | None) -> str:
    kept = Capture()
    while stream and (data := await stream.read(65536)):
        kept.add(data)
    return kept.text()
