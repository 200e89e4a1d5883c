"""Switch all nodes by their BMCs or site commands, or ask how they are."""

from __future__ import annotations

from kadeploy.microsteps import power_nodes
from kadeploy.microsteps.action import BatchAction


class ActionModule(BatchAction):
    """The task `power_nodes`."""

    engine = staticmethod(power_nodes.run)
    arguments = power_nodes.ARGUMENTS
