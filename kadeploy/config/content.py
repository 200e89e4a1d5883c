"""Where Ansible finds roles that a configuration names: the site's own, ours, and those of collections."""

from __future__ import annotations

import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from kadeploy.config.folder import places

_OF_A_COLLECTION = 2
"""Dots in the name of a collection's role; plain roles may have dots as well."""


def role(name: str, config_dir: Path) -> Path | None:
    """The folder of the role *name*, which may be one of a collection."""
    return next((place for place in _places(name, config_dir) if place.is_dir()), None)


def roles(config_dir: Path) -> list[str]:
    """Names of roles that are in no collection."""
    return sorted({each.name for place in places(config_dir, "roles") for each in place.glob("*/")})


def _places(name: str, config_dir: Path) -> Iterator[Path]:
    yield from (place / name for place in places(config_dir, "roles"))
    parts = name.split(".", _OF_A_COLLECTION)
    if len(parts) > _OF_A_COLLECTION:
        namespace, collection, last = parts
        for place in collections():
            yield place / "ansible_collections" / namespace / collection / "roles" / last


def collections() -> list[Path]:
    """Where collections are looked for, but for the run folder's own."""
    packages = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    return [Path("/usr/share/ansible/collections"), *map(Path, dict.fromkeys(packages))]
