"""The site as the service answers for it: the same as within a process, but that no path of a client's is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kadeploy.caller import Account
from kadeploy.config.folder import Configuration
from kadeploy.operations.local import Local
from kadeploy.server.auth import Caller


class Served(Local):
    """The site for the user of one request; *noted* is what the audit log is told."""

    def __init__(self, caller: Caller, configuration: Configuration, noted: dict[str, Any]) -> None:
        super().__init__(Account(caller.user, os.geteuid(), os.getegid(), Path("/nonexistent")), configuration.folder)
        self.__dict__["configuration"] = configuration
        self.caller = caller
        self._noted = noted

    @property
    def account(self) -> None:
        """Nobody's: what is needed of a user's files has been sent."""
        return

    def note(self, thing: str) -> None:
        """Say for the audit log what the request is about."""
        self._noted[THING] = thing


THING = "kadeploy_thing"
"""Key of what `Served.note` says in the state of a request's scope."""
