"""End a macro-step: operations asked for after its last micro-step, and tell which nodes are KO."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError

try:
    from kadeploy.microsteps import finish_step
    from kadeploy.microsteps.action import BatchAction
    from kadeploy.microsteps.memory import Memory
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `finish_step`."""

    engine = staticmethod(finish_step.run)
    what = staticmethod(finish_step.what)
    changes = False

    def found(self, memory: Memory) -> dict[str, Any]:
        """Which nodes are KO."""
        return {"ko": finish_step.ko(memory)}
