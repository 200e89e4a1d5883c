"""One command at a time changes a lab."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kadeploy.errors import KadeployError
from kadeploy.lab.lab import RUN_ROOT


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lab called *name*; raises KadeployError when another command holds it.

    The lock file is removed at the end, by its holder alone: whoever gets hold of a removed file tries again.
    """
    path = RUN_ROOT / f"{name}.lock"
    while (descriptor := _locked(path)) is None:
        pass
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # it holds other labs
            RUN_ROOT.rmdir()


def _locked(path: Path) -> int | None:
    """Descriptor of the lock file, locked; None when its last holder has just removed it."""
    RUN_ROOT.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except BlockingIOError as error:
        os.close(descriptor)
        raise KadeployError(f"Another kadeploy-lab is working on {path.stem}: wait until it has ended.") from error
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None
