"""``server:///PATH``: files of this machine that the administrator offers to all users of the site.

They are below the folders that ``service.folders`` names in ``site.yml``, and nothing else of this machine can be named
so, by whatever path. They are opened with the rights of this process, not of the user.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from kadeploy import files
from kadeploy.config.site import Site
from kadeploy.errors import FileError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_file(site: Site, source: str) -> tuple[BinaryIO, Path]:
    """The file ``server:///PATH``, open for reading, and its path.

    Links are followed as long as they stay below the folder. Between the look and the opening nobody can put another
    file there: from the folder on, each name is opened as what it was found to be, and not as a link (open(2)).

    Raises:
        FileError: it is below none of the folders, a link leads out of them, or it is no regular file.
    """
    path = files.local_path(source)
    folder = _folder_above(site, source, path)
    try:
        real = Path(os.path.realpath(path))
        top = Path(os.path.realpath(folder))
        if not real.is_relative_to(top) or real == top:
            raise FileError(f"{source}: a link leads out of {folder}. Name a file that lies there.")
        return _open_below(top, real.relative_to(top).parts, source), path
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise FileError(f"{source}: {why}. Name a file below {folder}.") from error


def _folder_above(site: Site, source: str, path: Path) -> str:
    """The folder that the administrator has named; what the path of a stranger is like is told nobody."""
    for folder in site.service.folders:
        if ".." not in path.parts and path.is_relative_to(folder) and path != Path(folder):
            return folder
    offered = ", ".join(site.service.folders)
    instead = f"below {offered}" if offered else "nowhere on this site: service.folders in site.yml names no folder"
    raise FileError(f"{source}: files of the server are {instead}. Give a file of your own, or its URL.")


def _open_below(top: Path, parts: tuple[str, ...], source: str) -> BinaryIO:
    folder = os.open(top, _FOLDER)
    try:
        for name in parts[:-1]:
            above, folder = folder, os.open(name, _FOLDER, dir_fd=folder)
            os.close(above)
        _require_regular(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False), source)
        stream = os.fdopen(os.open(parts[-1], _FILE, dir_fd=folder), "rb")
    finally:
        os.close(folder)
    try:
        _require_regular(os.fstat(stream.fileno()), source)
    except FileError:
        stream.close()
        raise
    return stream


def _require_regular(status: os.stat_result, source: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{source}: not a regular file. Give the name of a plain file.")
