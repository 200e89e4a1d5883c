"""Wait until all nodes have booted."""

from __future__ import annotations

from kadeploy.microsteps import wait_nodes
from kadeploy.microsteps.action import BatchAction


class ActionModule(BatchAction):
    """The task `wait_nodes`."""

    engine = staticmethod(wait_nodes.run)
    arguments = wait_nodes.ARGUMENTS
