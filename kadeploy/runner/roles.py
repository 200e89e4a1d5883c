"""Roles: what each says of itself as a micro-step, in its ``meta/microstep.yml``.

No role is known by its name, so that a site's own one is equal to ours. Ansible does not read this file.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from kadeploy.config.file import Struct, read_struct
from kadeploy.config.folder import places


class Role(Struct, frozen=True, kw_only=True):
    """What ``meta/microstep.yml`` may say; a role without the file has the defaults."""

    silent: bool = False
    """It is no micro-step of its own: it is not shown, and nobody can name it."""
    reboots: bool = False
    """From its beginning on its nodes count as rebooting."""
    booted: bool = False
    """Nodes that are OK after it have booted."""
    timeout: int = 0
    """Seconds within which it ends on every sound node, 0 for no limit; the cluster file may say otherwise."""
    boot_profile: str = ""
    """Variable of the role that names the boot profile it writes, for ``--dry-run``."""
    post_installs: Literal["", "new_root", "booted"] = ""
    """Post-installs by Ansible of this ``where`` run behind it; ``booted`` in BootNewEnv alone."""


def find(name: str, config_dir: Path) -> Role:
    """What the role *name* says of itself.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    found = (folder / name for folder in places(config_dir, "roles"))
    place = next((place for place in found if place.is_dir()), None)
    path = place and place / "meta" / "microstep.yml"
    return _read(path, path.stat().st_mtime_ns) if path and path.is_file() else Role()


@lru_cache(maxsize=256)
def _read(path: Path, _changed: int) -> Role:
    """Read once, and again when it has changed: a run asks for each of its tasks."""
    return read_struct(path, Role)
