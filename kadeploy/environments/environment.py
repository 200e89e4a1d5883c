"""An environment: a system image plus how to boot it, and its three written forms."""

from __future__ import annotations

from typing import Literal

import msgspec

from kadeploy.environments.image import KINDS, ArchiveKind, ImageKind


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read-only and strict about unknown keys."""


class Image(Struct, frozen=True, kw_only=True):
    """The system image; checksums are empty until it has been read once."""

    file: str
    """Absolute path or http(s) URL."""
    kind: ImageKind
    md5: str = ""
    sha256: str = ""

    @property
    def is_dd(self) -> bool:
        """A disk or partition image rather than an archive."""
        return KINDS[self.kind].form == "dd"


class Archive(Struct, frozen=True, kw_only=True):
    """A pre- or post-install archive and what is run from it: a path and arguments, ``none`` or ``breakpoint``."""

    file: str
    kind: ArchiveKind
    script: str = "none"
    md5: str = ""
    sha256: str = ""


class Environment(Struct, frozen=True, kw_only=True):
    """One version of an environment, as the wiki page's "Environment description" defines it."""

    name: str
    version: int = 1
    description: str = ""
    author: str = ""
    image: Image
    preinstall: Archive | None = None
    postinstalls: tuple[Archive, ...] = ()
    kernel: str = ""
    kernel_params: str = ""
    initrd: str = ""
    hypervisor: str = ""
    hypervisor_params: str = ""
    fdisktype: str = "83"
    filesystem: str = ""
    environment_kind: Literal["linux", "xen", "other"] = "linux"
    visibility: Literal["private", "shared", "public"] = "private"
    demolishing_env: int = 0
    part: str = ""
    """Default partition, ``/dev/sda3``; empty means the cluster's."""
    user: str = ""
    """Owner."""
