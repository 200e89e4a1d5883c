"""Roles: what each says of itself as a micro-step, in its ``meta/microstep.yml``.

No role is known by its name, so that a site's own one is equal to ours. Ansible does not read this file.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from kadeploy.config.cluster import Cluster
from kadeploy.config.file import Struct, read_struct
from kadeploy.config.folder import collection
from kadeploy.errors import ConfigError
from kadeploy.hints import did_you_mean


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


def folders(config_dir: Path) -> list[Path]:
    """Where roles are looked for: the site's first, then ours."""
    return [config_dir / "roles", collection() / "roles"]


def find(name: str, config_dir: Path) -> Role:
    """What the role *name* says of itself.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    places = (folder / name for folder in folders(config_dir))
    place = next((place for place in places if place.is_dir()), None)
    path = place and place / "meta" / "microstep.yml"
    return _read(path, path.stat().st_mtime_ns) if path and path.is_file() else Role()


def require_known(cluster: Cluster, config_dir: Path) -> None:
    """Check that the roles for which *cluster* has time-outs or retries exist; those of other collections may.

    Raises:
        ConfigError: names the key, and the role that may be meant.
    """
    known = [path.name for folder in folders(config_dir) if folder.is_dir() for path in folder.iterdir()]
    for key, names in (("micro_timeouts", cluster.micro_timeouts), ("micro_retries", cluster.micro_retries)):
        for name in names:
            if name not in known and "." not in name:
                raise ConfigError(f"{cluster.file}: {key}: there is no micro-step {name!r}.{did_you_mean(name, known)}")


@lru_cache(maxsize=256)
def _read(path: Path, _changed: int) -> Role:
    """Read once, and again when it has changed: a run asks for each of its tasks."""
    return read_struct(path, Role)
