"""Switch all nodes by their BMCs or site commands, or ask how they are."""

from __future__ import annotations

from ansible.errors import AnsibleError

try:
    from kadeploy.microsteps import power_nodes
    from kadeploy.microsteps.action import BatchAction
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `power_nodes`."""

    engine = staticmethod(power_nodes.run)
    what = staticmethod(power_nodes.what)
    arguments = power_nodes.ARGUMENTS
