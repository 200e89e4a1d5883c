"""The secret of a try: what a node that has booted by our profile, and none from before, can show.

It is a kernel parameter of the deployment system, in the node's boot profile or on the command line of a kexec; the
controller asks for it in ``/proc/cmdline``. A system that went on through the reboot does not have it.

It shows that the machine booted by this profile, not that nobody else has read it: TFTP gives a profile to all who ask.
A hostile system could fetch the profile of its node and pretend. Against that, switch its power: `Site.first_reboot`.
"""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kadeploy.workflow import Attempt

PARAMETER = "kadeploy.attempt"
"""Name of the kernel parameter; the kernel itself passes over names with a dot that it does not know."""


@dataclass(frozen=True)
class Secret:
    """The key of a try, from which each node's own secret is derived."""

    key: bytes

    def of(self, node: str) -> str:
        """What *node* shows."""
        return hmac.digest(self.key, node.encode(), "sha256").hex()[:32]

    def parameter(self, node: str) -> str:
        """The same as a kernel parameter."""
        return f"{PARAMETER}={self.of(node)}"


def make(folder: Path, attempt: Attempt) -> Secret:
    """The secret of this try, made when somebody asks for the first time.

    It lies in *folder*, the workflow's, for its owner alone. Nodes that are late go on in an attempt of their own,
    which is the same try: they show the same secret.

    Raises:
        OSError: it cannot be kept there.
    """
    path = _path(folder, attempt)
    if not path.exists():
        part = folder / f".{path.name}-{secrets.token_hex(8)}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):  # the nodes of another cluster were quicker
            os.link(part, path)
        part.unlink()
    return Secret(path.read_bytes())


def find(folder: Path, attempt: Attempt) -> Secret | None:
    """The secret of this try; None when nothing was booted with it."""
    try:
        return Secret(_path(folder, attempt).read_bytes())
    except FileNotFoundError:
        return None


def keep(folder: Path, attempt: Attempt, key: bytes) -> None:
    """Have in *folder* the secret that was made for this try on another machine."""
    descriptor = os.open(_path(folder, attempt), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)


def file_of(folder: Path, attempt: Attempt) -> Path | None:
    """The file of a try's secret, for another machine; None when nothing was booted with it."""
    path = _path(folder, attempt)
    return path if path.exists() else None


def _path(folder: Path, attempt: Attempt) -> Path:
    return folder / f"secret-{attempt.implementation}-{attempt.retry}"
