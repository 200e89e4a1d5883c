"""The clock of this machine: rights, tokens and claims go by it, and so do certificates."""

from __future__ import annotations

from collections.abc import Iterator

from kadeploy.admin.check.asked import ask
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look

SYNCHRONISED = Look("time", "synchronised")

_WAYS = (
    (("timedatectl", "show", "-p", "NTPSynchronized", "--value"), "yes", "no"),
    (("chronyc", "-n", "tracking"), "Leap status     : Normal", "Not synchronised"),
    (("ntpq", "-c", "rv 0 leap"), "leap=00", "leap=11"),
)
"""Programs that know, what they say of a clock that is synchronised, and of one that is not."""


def check(subject: Subject) -> Iterator[Finding]:  # noqa: ARG001 - as all topics
    """Whether the clock is synchronised."""
    for argv, good, bad in _WAYS:
        ended = ask(*argv)
        if ended is None or ended.rc != 0:
            continue
        if good in ended.stdout:
            yield SYNCHRONISED.ok(f"the clock is synchronised ({argv[0]})")
            return
        if bad in ended.stdout:
            yield SYNCHRONISED.warn(
                f"the clock is not synchronised ({argv[0]})", "timedatectl set-ntp true, or see chrony's or ntpd's log"
            )
            return
    yield SYNCHRONISED.warn(
        "nobody on this machine knows whether the clock is synchronised", "apt install chrony (or systemd-timesyncd)"
    )
