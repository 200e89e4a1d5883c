"""``pre_installs:`` and ``post_installs:`` of a cluster file: what the administrator does around the image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from kadeploy.config.file import Struct
from kadeploy.config.rules import FileOrUrl, Wrong, expects
from kadeploy.environments.image import ArchiveKind

RoleName = Annotated[
    str,
    expects(
        lambda text: re.fullmatch(r"[A-Za-z0-9_][\w-]*(\.[\w-]+)*", text, re.ASCII) is not None,
        "the name of a role, such as motd, or site.basics.motd for one of a collection",
        meant=lambda text: text.strip().rstrip("/").rsplit("/", 1)[-1],
    ),
]


def _in_a_folder(text: str) -> bool:
    parts = text.split("/")
    return len(parts) > 1 and "" not in parts and not {".", ".."} & {*parts} and parts[-1].endswith((".yml", ".yaml"))


PlaybookPath = Annotated[
    str,
    expects(
        _in_a_folder,
        "a playbook in a folder of its own below the configuration folder, such as postinstall/users.yml",
        meant=lambda text: text.strip().removeprefix("./"),
    ),
]


class AdminArchive(Struct, frozen=True, kw_only=True):
    """An archive of the administrator unpacked in *rambin_dir*, and the script in it that is run."""

    file: FileOrUrl
    kind: ArchiveKind = "tgz"
    script: str = "none"


_WAYS = ("file", "role", "playbook")
_OF_OTHERS = {
    "file": ("where", "vars", "facts"),
    "role": ("kind", "script"),
    "playbook": ("kind", "script", "facts"),
}
"""Keys that mean nothing, by what is given."""


class PostInstall(Struct, frozen=True, kw_only=True):
    """An archive, a role or a playbook that the new system is set up by."""

    file: FileOrUrl = ""
    kind: ArchiveKind = "tgz"
    script: str = "none"
    role: RoleName = ""
    """In its place: a role of the site, or of a collection."""
    playbook: PlaybookPath = ""
    """Or a playbook, relative to the configuration folder."""
    where: Literal["new_root", "booted"] = "new_root"
    """Before the system is booted, or after."""
    vars: dict[str, Any] = {}
    """Their variables."""
    facts: bool = True
    """Whether facts are gathered before a role; a playbook says so itself."""

    @property
    def name(self) -> str:
        """What it is called in messages; empty for an archive."""
        return self.role or self.playbook

    def contradictions(self) -> Iterable[Wrong]:
        """Of what it is, and of keys that belong to something else."""
        given = [key for key in _WAYS if getattr(self, key)]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "nothing is given"
            yield Wrong((given[-1],) if given else (), f"{said}; expected one of {', '.join(_WAYS)}.")
            return
        defaults = PostInstall()
        for key in _OF_OTHERS[given[0]]:
            if getattr(self, key) != getattr(defaults, key):
                yield Wrong((key,), f"this is no key for a {given[0]}; leave it out.")


def archives(installs: Iterable[PostInstall]) -> Iterator[AdminArchive]:
    """Those of *installs* that are archives."""
    return (AdminArchive(file=each.file, kind=each.kind, script=each.script) for each in installs if each.file)
