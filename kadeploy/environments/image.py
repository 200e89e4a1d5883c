"""Kinds of images, in one table: how they are called, made and unpacked.

An image is an archive (tar) or a copy of a disk or partition (dd), compressed in one of several ways. A new way to
compress is one more row of `COMPRESSIONS`; the deployment system must have its program. Or it is an archive of
fsarchiver (fsa), which compresses by itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

Form = Literal["tar", "dd", "fsa"]


@dataclass(frozen=True, kw_only=True)
class Compression:
    """One way to compress images."""

    name: str
    """In the YAML form of a description."""
    tar: str
    """The kind of its archives, in the wiki's form."""
    dd: str
    """The kind of its copies of disks."""
    suffix: str
    """How names of files end: ``tar.SUFFIX``, ``dd.SUFFIX``."""
    unpack: tuple[str, ...]
    """Program and arguments that unpack standard input."""
    bounds: tuple[str, ...] = ()
    """Further arguments that bound its memory on this machine, where images are any user's."""
    magic: tuple[bytes, ...] = ()
    """How its files may begin; empty: unknown."""
    pack: str
    """Command that compresses standard input, when we build images."""
    archives: bool = True
    """Whether pre- and post-install archives have it as well, which the wiki page says; Kadeploy 2 had just these."""

    @property
    def unpack_here(self) -> tuple[str, ...]:
        """Program and arguments that unpack standard input on this machine."""
        return self.unpack + self.bounds

    @property
    def unpack_on_node(self) -> str:
        """Words of a shell that unpack standard input on a node."""
        return shlex.join(self.unpack)


COMPRESSIONS = (
    Compression(
        name="gzip", tar="tgz", dd="ddgz", suffix="gz", unpack=("gzip", "-dc"), magic=(b"\x1f\x8b",), pack="gzip -6"
    ),
    Compression(
        name="bzip2", tar="tbz2", dd="ddbz2", suffix="bz2", unpack=("bzip2", "-dc"), magic=(b"BZh",), pack="bzip2"
    ),
    Compression(
        name="xz",
        tar="txz",
        dd="ddxz",
        suffix="xz",
        unpack=("xz", "-dc"),
        bounds=("--memlimit=1GiB",),
        magic=(b"\xfd7zXZ\x00", b"\x5d\x00\x00"),
        pack="xz -T0 -3",
    ),
    Compression(
        name="zstd",
        tar="tar.zst",
        dd="dd.zst",
        suffix="zst",
        unpack=("zstd", "-dcq"),
        bounds=("--memory=1024MiB",),
        magic=(b"\x28\xb5\x2f\xfd", *(bytes([0x50 + low]) + b"\x2a\x4d\x18" for low in range(16))),
        pack="zstd -q -T0 -9",
        archives=False,
    ),
)

_FSARCHIVER = tuple(
    Compression(
        name=str(level), tar="", dd="", suffix="fsa", unpack=("cat",), magic=(b"FsA0",), pack="cat", archives=False
    )
    for level in range(10)
)
"""By fsarchiver's level, which is the description's word for its compression; the file travels as it is."""


@dataclass(frozen=True)
class Kind:
    """What an image is."""

    name: str
    form: Form
    compression: Compression


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        *(Kind(each.tar, "tar", each) for each in COMPRESSIONS),
        *(Kind(each.dd, "dd", each) for each in COMPRESSIONS),
        *(Kind(f"fsa{each.name}", "fsa", each) for each in _FSARCHIVER),
    )
}
"""By the name in the wiki's form of a description."""

IMAGE_KINDS = tuple(KINDS)
ARCHIVE_KINDS = tuple(each.tar for each in COMPRESSIONS if each.archives)

if TYPE_CHECKING:
    ImageKind = str
    ArchiveKind = str
else:  # as msgspec checks them
    ImageKind = Literal[IMAGE_KINDS]
    ArchiveKind = Literal[ARCHIVE_KINDS]


def suffixes() -> dict[str, str]:
    """How names of images that Kadeploy 2 knew end, and their kinds.

    >>> list(suffixes().items())[:3]
    [('.tar.gz', 'tgz'), ('.tgz', 'tgz'), ('.tar.bz2', 'tbz2')]
    """
    known = [each for each in COMPRESSIONS if each.archives]
    archives = {ending: each.tar for each in known for ending in (f".tar.{each.suffix}", f".{each.tar}")}
    return archives | {f".dd.{each.suffix}": each.dd for each in known}
