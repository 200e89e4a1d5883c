"""Run one of the site's own commands for all nodes."""

from __future__ import annotations

from kadeploy.batch import BatchAction
from kadeploy.engines import site_command


class ActionModule(BatchAction):
    """The task `site_command`."""

    engine = staticmethod(site_command.run)
    arguments = site_command.ARGUMENTS
