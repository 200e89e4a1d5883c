"""BMCs that do not answer in time: how reasons of nodes tell it, and by which words it is known again.

What a run leaves of a failure is its reason, in the log and on the wire; these are made and recognized here alone.
"""

from __future__ import annotations

from enum import Enum


class Silence(Enum):
    """In which way a BMC is silent; the value is what every such reason has in it."""

    UNREACHED = "nobody answers at"
    AT_LOGIN = "stays silent when"
    LATE = "did not do it within"


PHRASES = tuple(each.value for each in Silence)


def of(reason: str) -> Silence | None:
    """In which way the BMC was silent of a node that failed for this *reason*; None when it was not.

    >>> of(late("10.0.2.1", 60))
    <Silence.LATE: 'did not do it within'>
    """
    return next((each for each in Silence if each.value in reason), None)


def unreached(where: str) -> str:
    """The reason of a node at whose BMC's address *where* there is nobody."""
    return f"{Silence.UNREACHED.value} {where}: check that the BMC has power and network, and its address"


def at_login(where: str, user: str, advice: str) -> str:
    """The reason of a node whose BMC says nothing to the login of *user*."""
    return f"the BMC at {where} answers, but {Silence.AT_LOGIN.value} {user or 'nobody'} logs in: {advice}"


def late(where: str, limit: float) -> str:
    """The reason of a node whose BMC has not carried out an order in *limit* seconds."""
    return f"the BMC at {where} {Silence.LATE.value} {limit:g} s"
