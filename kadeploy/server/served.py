"""The site as the service answers for it: the same as within a process, but that no path of a client's is opened."""

from __future__ import annotations

import os
from pathlib import Path

from kadeploy.caller import Account
from kadeploy.config.folder import Configuration
from kadeploy.operations.local import Local


class Served(Local):
    """The site for the user of one request."""

    def __init__(self, user: str, configuration: Configuration) -> None:
        super().__init__(Account(user, os.geteuid(), os.getegid(), Path("/nonexistent")), configuration.folder)
        self.__dict__["configuration"] = configuration

    @property
    def account(self) -> None:
        """Nobody's: what is needed of a user's files has been sent."""
        return
