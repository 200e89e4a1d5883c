"""The topics in their order, and how they are gone through."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from kadeploy.admin import restore
from kadeploy.admin.check import (
    accounts,
    bmc,
    boot,
    clock,
    configuration,
    database,
    dhcp,
    environments,
    files,
    keys,
    names,
    ports,
    programs,
    quarantine,
    room,
    service,
    sudo,
)
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.errors import KadeployError

Check = Callable[[Subject], Iterator[Finding]]

TOPICS: Mapping[str, Check] = {
    "configuration": configuration.check,
    "files": files.check,
    "programs": programs.check,
    "keys": keys.check,
    "database": database.check,
    "environments": environments.check,
    "quarantine": quarantine.check,
    "room": room.check,
    "time": clock.check,
    "accounts": accounts.check,
    "sudo": sudo.check,
    "service": service.check,
    "ports": ports.check,
    "boot": boot.check,
    "names": names.check,
    "dhcp": dhcp.check,
    "bmc": bmc.check,
}
"""What this machine knows itself comes first, then what has to be asked over the network."""


def run(subject: Subject, topics: Collection[str], checks: Mapping[str, Check] = TOPICS) -> Iterator[Finding]:
    """What is found, topic by topic; one that breaks is a finding itself, and the others go on."""
    for topic, check in checks.items():
        if topic in topics:
            yield from _kept_going(topic, check, subject)


def _kept_going(topic: str, check: Check, subject: Subject) -> Iterator[Finding]:
    broken = Look(topic, "check")
    try:
        yield from check(subject)
    except KadeployError as error:
        yield broken.fail(str(error), "do what the text says, then check again")
    except PermissionError as error:
        yield broken.warn(f"{error.filename}: {error.strerror}", "run this as root")
    except Exception as error:  # whatever it is, other topics are not its fault
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name} line {last.lineno}"
        yield broken.fail(
            f"this check broke off: {type(error).__name__}: {error} ({where})",
            "this is an error of Kadeploy: report it with this line",
        )


def refused(error: KadeployError, folder: Path) -> Iterator[Finding]:
    """The findings where the configuration in *folder* cannot be read, one for each line; no topic can be looked at."""
    if half_way := restore.half_way(folder):
        yield from half_way
        return
    yield from configuration.mistakes(str(error))
