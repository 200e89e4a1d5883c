"""Run a script of the role on all nodes at once, or send them a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError

try:
    from kadeploy.microsteps import on_nodes
    from kadeploy.microsteps.action import BatchAction
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `on_nodes`."""

    engine = staticmethod(on_nodes.run)
    what = staticmethod(on_nodes.what)
    arguments = on_nodes.ARGUMENTS

    def prepare(self, args: dict[str, Any]) -> dict[str, Any]:
        """Read the script from the role's files, or the playbook's."""
        if bool(args["script"]) == bool(args["send"]):
            raise AnsibleActionFail("on_nodes wants one of `script` and `send`.")
        text = Path(self._find_needle("files", args["script"])).read_bytes() if args["script"] else b""
        return args | {"text": text}
