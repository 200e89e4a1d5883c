"""Commands of the site that switch a node."""

from __future__ import annotations

from kadeploy import commands
from kadeploy.remote.fanout import TIMED_OUT
from kadeploy.workflow import Outcome, Verdict

WHERE = "power.commands in the cluster file"
NOT_STARTED = 127
"""Exit status of a command that cannot be started, as sh(1) has it."""


async def run(command: str, node: str, limit: float) -> Outcome:
    """Run *command* for *node*; after *limit* seconds it is killed with all that it started.

    Raises:
        ConfigError: it is malformed.
    """
    argv = commands.argv(command, commands.node_values(node), WHERE)
    try:
        ended = await commands.run(argv, limit)
    except OSError as error:
        return Outcome(Verdict.KO, f"{argv[0]}: {error.strerror}: check {WHERE}.", NOT_STARTED)
    output = (ended.stdout, ended.stderr, ended.seconds)
    if ended.rc is None:
        late = f"{argv[0]} did not end within {limit:g} s and was killed"
        return Outcome(Verdict.KO, late, TIMED_OUT, *output)
    return Outcome(Verdict.KO, ended.reason, ended.rc, *output) if ended.rc else Outcome(Verdict.OK, "", 0, *output)
