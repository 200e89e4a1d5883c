"""Wait until all nodes have booted."""

from __future__ import annotations

from kadeploy.batch import BatchAction
from kadeploy.engines import wait_nodes


class ActionModule(BatchAction):
    """The task `wait_nodes`."""

    engine = staticmethod(wait_nodes.run)
    arguments = wait_nodes.ARGUMENTS
