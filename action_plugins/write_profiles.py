"""Write the boot profile of every node."""

from __future__ import annotations

from kadeploy.batch import BatchAction
from kadeploy.engines import write_profiles


class ActionModule(BatchAction):
    """The task `write_profiles`."""

    engine = staticmethod(write_profiles.run)
    arguments = write_profiles.ARGUMENTS
