"""The collection as Galaxy's artifact: installed apart from this package, it may be of another version."""

from __future__ import annotations

import json
from pathlib import Path

from kadeploy import __version__


def other_version(plugin: Path) -> str:
    """A warning, where *plugin* (a file in a folder of ``plugins/``) belongs to an artifact of another version.

    A wheel and a checkout hold plugins and package together: of them nothing is told.
    """
    collection = plugin.parents[2]
    try:
        version = str(json.loads((collection / "MANIFEST.json").read_bytes())["collection_info"]["version"])
    except FileNotFoundError:
        return ""
    if version == __version__:
        return ""
    return (
        f"The collection kadeploy.core in {collection} is of version {version}, the Python package kadeploy of "
        f"{__version__}. Bring them together: pip install kadeploy=={version}, or "
        f"ansible-galaxy collection install --force kadeploy.core:{__version__}"
    )
