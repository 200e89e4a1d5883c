"""Users and passwords of single BMCs, which a cluster's inventory has: kept apart, for the site's account alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from kadeploy.config import secret_files
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError

FOLDER = "inventories"
"""In *state_dir*: what inventories have told."""


class Login(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to log in to one BMC; empty is as for the others of its cluster."""

    user: str = ""
    password: str = ""


def path(site: Site, cluster: str) -> Path:
    """The file of a cluster."""
    return site.state / FOLDER / f"{cluster}.secrets.json"


def encode(logins: Mapping[str, Login]) -> bytes:
    """The content of such a file, by host."""
    return msgspec.json.encode(logins)


def read(site: Site, cluster: str) -> dict[str, Login]:
    """Of each node what its BMC has of its own.

    Where the folder of secrets is named, the file is there (`kadeploy.config.secret_files`).

    Raises:
        ConfigError: it cannot be read.
    """
    file = secret_files.place(path(site, cluster))
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Login])
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror}: it has the BMCs' passwords. Run as who keeps the site."
        ) from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file} is damaged: remove it, and the inventory is read again.") from error
