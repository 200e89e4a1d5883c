"""Write the boot profile of every node."""

from __future__ import annotations

from kadeploy.microsteps import write_profiles
from kadeploy.microsteps.action import BatchAction


class ActionModule(BatchAction):
    """The task `write_profiles`."""

    engine = staticmethod(write_profiles.run)
    arguments = write_profiles.ARGUMENTS
