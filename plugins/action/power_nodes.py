"""Switch all nodes by their BMCs or site commands, or ask how they are."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError

try:
    from kadeploy.microsteps import power_nodes
    from kadeploy.microsteps.action import BatchAction
    from kadeploy.microsteps.alone.power import switched
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `power_nodes`."""

    engine = staticmethod(power_nodes.run)
    what = staticmethod(power_nodes.what)
    arguments = power_nodes.ARGUMENTS

    def alone(self, args: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Switch this host by its BMC, which the arguments name, unless it is on or off as ordered."""
        return switched(self, args, facts, power_nodes.what(args))
