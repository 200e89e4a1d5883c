"""Environments that an administrator builds for the users of a site, put where they are recorded from."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from kadeploy.errors import ConfigError, OptionError
from kadeploy.files import replace_file, replacing
from kadeploy.images import BuiltEnvironment

FOLDER = Path("/srv/kadeploy/images")
"""Where images are, and their descriptions beside them; everybody may read them."""
_NAME = re.compile(r"[a-zA-Z0-9][\w.+-]{0,99}", re.ASCII)


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """An environment that can be recorded."""

    name: str
    version: int
    image: str
    image_bytes: int
    description: str
    """File that ``kaenv3 -a`` reads."""


def require_name(name: str) -> str:
    """*name*, which is that of a file as well.

    Raises:
        OptionError: it cannot be.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{name[:60]!r} is no name of an environment: letters, digits and . _ + - are, from a letter or a digit on."
        )
    return name


def publish(built: BuiltEnvironment, version: int, folder: Path) -> Published:
    """Copy an environment of the cache to *folder*, image first; a former one of the same version is replaced.

    Raises:
        ConfigError: the folder cannot be written.
    """
    image = folder / f"{built.name}-{version}.{built.kind}"
    description = folder / f"{built.name}-{version}.dsc"
    text = built.description_file.read_text().replace(f"tarball : {built.image}|", f"tarball : {image}|")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        with built.image.open("rb") as source, replacing(image, 0o644) as target:
            shutil.copyfileobj(source, target)
        replace_file(description, text.encode(), 0o644)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}: name another folder with --output."
        ) from error
    return Published(
        name=built.name,
        version=version,
        image=str(image),
        image_bytes=image.stat().st_size,
        description=str(description),
    )


def hashed(password: str) -> str:
    """*password* as /etc/shadow has it (SHA-512, crypt(5)).

    Raises:
        OptionError: it is empty, or more than a line.
    """
    if not password or not password.isprintable():
        raise OptionError("The password has to be one line of printable characters.")
    command = ["openssl", "passwd", "-6", "-stdin"]
    done = subprocess.run(command, input=password, capture_output=True, text=True, check=True)
    return done.stdout.strip()
