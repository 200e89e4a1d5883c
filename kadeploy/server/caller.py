"""Who asks: found out once per request, before anything else."""

from __future__ import annotations

import pwd
from typing import NamedTuple

from kadeploy.errors import AuthenticationError
from kadeploy.server.peers import Peer


class Asking(NamedTuple):
    """A user, and how the service knows."""

    user: str
    how: str
    source: str


def asking(peer: Peer) -> Asking:
    """Who is at the other end.

    Raises:
        AuthenticationError: nobody that we know.
    """
    if peer.uid is None:
        raise AuthenticationError("This site knows local accounts alone.")
    try:
        return Asking(pwd.getpwuid(peer.uid).pw_name, "socket", str(peer))
    except KeyError as error:
        raise AuthenticationError(f"The user number {peer.uid} has no account on this machine.") from error
