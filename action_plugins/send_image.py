"""Send the image to all nodes, from node to node."""

from __future__ import annotations

from kadeploy.batch import BatchAction
from kadeploy.engines import send_image


class ActionModule(BatchAction):
    """The task `send_image`."""

    engine = staticmethod(send_image.run)
    arguments = send_image.ARGUMENTS
