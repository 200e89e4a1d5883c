"""Run a script of the role on all nodes at once, or send them a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError

try:
    from kadeploy.microsteps import on_nodes
    from kadeploy.microsteps.action import BatchAction
    from kadeploy.microsteps.alone.scripts import on_host
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
        return args | {"text": self._text(args["script"])}

    def alone(self, args: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Do it on this host, which is as it shall be already where the script that looks finds it so."""
        return on_host(self, self.prepare(args) | {"look_text": self._text(args["look"])}, facts)

    def _text(self, name: str | None) -> bytes:
        return Path(self._find_needle("files", name)).read_bytes() if name else b""
