"""Run one of the site's own commands for all nodes."""

from __future__ import annotations

from kadeploy.microsteps import site_command
from kadeploy.microsteps.action import BatchAction


class ActionModule(BatchAction):
    """The task `site_command`."""

    engine = staticmethod(site_command.run)
    arguments = site_command.ARGUMENTS
