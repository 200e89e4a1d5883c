"""Send the image to all nodes, from node to node."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError

try:
    from kadeploy.microsteps import send_image
    from kadeploy.microsteps.action import BatchAction
    from kadeploy.microsteps.alone.image import sent
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `send_image`."""

    engine = staticmethod(send_image.run)
    what = staticmethod(send_image.what)
    arguments = send_image.ARGUMENTS

    def alone(self, args: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Send it to all hosts of the play."""
        return sent(self, args, facts, self._hosts(facts))
