"""Where this machine keeps the secrets that a request names by path: the site's key, the password of the BMCs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "KADEPLOY_SECRETS"
"""Environment variable: the folder that has them, where they are not at the controller's paths."""


def place(path: Path) -> Path:
    """The file that *path* means here: itself, or the one of its name in the folder of secrets."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) / path.name if folder else path
