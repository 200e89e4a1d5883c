"""Write the boot profile of every node."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError

try:
    from kadeploy.microsteps import write_profiles
    from kadeploy.microsteps.action import BatchAction, Work
    from kadeploy.microsteps.alone.profile import written
except ImportError as error:
    raise AnsibleError(
        "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
    ) from error


class ActionModule(BatchAction):
    """The task `write_profiles`."""

    engine = staticmethod(write_profiles.run)
    what = staticmethod(write_profiles.what)
    arguments = write_profiles.ARGUMENTS

    def differences(self, work: Work) -> list[dict[str, str]]:
        """Profiles before and after."""
        return write_profiles.differences(work.args, work.request, work.members)

    def alone(self, args: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Write this host's, on the machine to which the task is delegated."""
        return written(self, args, facts)
