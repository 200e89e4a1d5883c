"""Wait until all nodes have booted."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError

try:
    from kadeploy.microsteps import wait_nodes
    from kadeploy.microsteps.action import BatchAction
    from kadeploy.microsteps.alone.boot import waited
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `wait_nodes`."""

    engine = staticmethod(wait_nodes.run)
    what = staticmethod(wait_nodes.what)
    changes = False
    arguments = wait_nodes.ARGUMENTS

    def alone(self, args: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Wait for this host."""
        return waited(self, args, facts, wait_nodes.what(args))
