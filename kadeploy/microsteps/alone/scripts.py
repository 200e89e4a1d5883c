"""Scripts of a role on one host: one that looks, and one that does what is left to do.

What looks says how the host is, and behind a line with the mark how it will be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kadeploy.microsteps.alone.boot import going_down
from kadeploy.microsteps.alone.host import copied, execute, failed, require_one_by_one
from kadeploy.remote.fanout import LOST
from kadeploy.runner.variables import SCRIPTS

if TYPE_CHECKING:
    from ansible.plugins.action import ActionBase

MARK = "\x1e\n"
"""Between what is and what will be."""


def on_host(action: ActionBase, args: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Do the task `on_nodes` on the host of *action*; the result as Ansible's own actions have it.

    Args:
        action: the plugin, which knows connection, user and check mode.
        args: see `on_nodes.ARGUMENTS`; ``text`` is the script, ``look_text`` the one that looks.
        facts: the host's variables.

    Raises:
        AnsibleActionFail: the task asks for what only a request can tell.
    """
    require_one_by_one(action)
    if send := args["send"]:
        return copied(action, {name: send[name] for name in ("src", "dest", "mode")}, facts)
    run = partial(execute, action, variables=_variables(args, facts), timeout=args["timeout"])
    found: dict[str, Any] = {}
    if args["look_text"]:
        seen = run(args["look_text"])
        if seen["rc"] != 0:
            return failed(seen)
        before, _, after = seen["stdout"].partition(MARK)
        if before == after:
            return {"changed": False}
        found = {"diff": {"before": before, "after": after}} if action._task.diff else {}
    if action._task.check_mode:
        return {"changed": True, "msg": f"would run {args['script']}", **found}
    begun = time.monotonic()
    done = run(args["text"], stdin_file=args["stdin_file"], disconnect_ok=args["disconnect_ok"])
    if args["disconnect_ok"] and done["rc"] in (0, LOST):
        return {"changed": True, **found, **going_down(action, begun)}
    return {"changed": True, **done, **found} if done["rc"] == 0 else failed(done) | found


def _variables(args: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """Of scripts; those that nobody sets are empty."""
    known = facts.get("kadeploy_env") or {}
    given = {str(name): str(value) for each in (known, args["env"]) for name, value in each.items()}
    return dict.fromkeys(SCRIPTS, "") | given
