"""Where this machine keeps the secrets that a request names by path: the site's key, the password of the BMCs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kadeploy.errors import ConfigError

VARIABLE = "KADEPLOY_SECRETS"
"""Environment variable: the folder that has them, where they are not at the controller's paths."""


def place(path: Path) -> Path:
    """The file that *path* means here: itself, or the one of its name in the folder of secrets."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) / path.name if folder else path


def password(path: Path, key: str) -> str:
    """The first line of the file *path*, which *key* of a configuration file names.

    Raises:
        ConfigError: it cannot be read, or others can read it too.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ConfigError(f"{key}: others may read {path}: chmod 600 {path}")
            return file.readline().rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror}. Run as a user who can read it.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not a text file.") from error
