"""An environment: a system image plus how to boot it, and its three written forms."""

from __future__ import annotations

from typing import Literal

import msgspec

from kadeploy.environments.image import KINDS, ArchiveKind, ImageKind

MAX_VERSION = 10**18 - 1
"""Eighteen digits: what a database keeps as a number of 64 bits."""


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read-only and strict about unknown keys."""


class Image(Struct, frozen=True, kw_only=True):
    """The system image; checksums are empty until it has been read once."""

    file: str
    """Absolute path, http(s) URL, or ``server:///PATH``."""
    kind: ImageKind
    md5: str = ""
    sha256: str = ""

    @property
    def is_fsa(self) -> bool:
        """An archive of fsarchiver, which holds one file system or several."""
        return KINDS[self.kind].form == "fsa"

    @property
    def is_dd(self) -> bool:
        """A disk or partition image rather than an archive."""
        return KINDS[self.kind].form == "dd"

    @property
    def is_tar(self) -> bool:
        """An archive of files, for a file system that is made for it; other images bring theirs."""
        return KINDS[self.kind].form == "tar"


class Archive(Struct, frozen=True, kw_only=True):
    """A pre- or post-install archive and what is run from it: a path and arguments, ``none`` or ``breakpoint``."""

    file: str
    kind: ArchiveKind
    script: str = "none"
    md5: str = ""
    sha256: str = ""


class FileSystem(Struct, frozen=True, kw_only=True):
    """One of several file systems of an environment, and where it goes."""

    id: int
    """Its number in the environment's image; of one with an image of its own, only a name."""
    device: str
    """The partition, ``/dev/sda3``."""
    image: Image | None = None
    """Its own image, which is none of fsarchiver; None: it is in the environment's."""
    filesystem: str = ""
    """What is made on the partition before its own archive (tar) is unpacked there."""


class Environment(Struct, frozen=True, kw_only=True):
    """One version of an environment: the wiki page's "Environment description", and what later versions added."""

    name: str
    alias: str = ""
    """A second name."""
    arch: str = ""
    """Architecture of the nodes it is for, such as x86_64; empty is any."""
    version: int = 1
    """At most `MAX_VERSION`; often a date, such as 2024090216."""
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
    kexec: bool = True
    """False: nodes are rebooted into it, as with ``--no-kexec``."""
    multipart: bool = False
    """It is several file systems, for the *partitions*; it boots from *boot_partition* of *block_device*."""
    partitions: tuple[FileSystem, ...] = ()
    """Without *multipart*, of no meaning."""
    block_device: str = ""
    boot_partition: int | None = None
    custom_variables: dict[str, str] = {}
    """Texts by name; pre- and post-installs find them as ``KADEPLOY_NAME``."""
    user: str = ""
    """Owner."""

    @property
    def images(self) -> tuple[Image, ...]:
        """Its image, then those that its partitions have of their own."""
        return (self.image, *(each.image for each in self.partitions if each.image))

    @property
    def files(self) -> tuple[Image | Archive, ...]:
        """All its files."""
        return (*self.images, *([self.preinstall] if self.preinstall else []), *self.postinstalls)

    @property
    def files_by_part(self) -> dict[str, tuple[Image | Archive, ...]]:
        """The same by the words with which their checksums are recorded anew."""
        preinstall = (self.preinstall,) if self.preinstall else ()
        return {"tarball": self.images, "preinstall": preinstall, "postinstalls": self.postinstalls}

    @property
    def devices(self) -> tuple[str, ...]:
        """The partitions that it says itself that it goes to; none unless it is *multipart*."""
        return tuple(each.device for each in self.partitions) if self.multipart else ()
