"""Send the image to all nodes, from node to node."""

from __future__ import annotations

from kadeploy.microsteps import send_image
from kadeploy.microsteps.action import BatchAction


class ActionModule(BatchAction):
    """The task `send_image`."""

    engine = staticmethod(send_image.run)
    arguments = send_image.ARGUMENTS
