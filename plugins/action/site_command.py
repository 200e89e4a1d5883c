"""Run one of the site's own commands for all nodes."""

from __future__ import annotations

from ansible.errors import AnsibleError

try:
    from kadeploy.microsteps import site_command
    from kadeploy.microsteps.action import BatchAction
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `site_command`."""

    engine = staticmethod(site_command.run)
    what = staticmethod(site_command.what)
    arguments = site_command.ARGUMENTS
