"""Whether a program of UEFI, or a kernel, is signed for Secure Boot (PE/COFF specification, "Certificate Table").

By whom is the firmware's to judge, and shim's: the keys that they know are theirs.
"""

from __future__ import annotations

import struct
from pathlib import Path

_CERTIFICATES = 4
"""Rank of the certificate table among the data directories, each of which has an offset and a size."""
_DIRECTORIES = {0x10B: 96, 0x20B: 112}
"""Where these begin in the optional header, by its magic number: PE32, PE32+."""
_SHORTEST = 8
"""Bytes of the header of a certificate."""


def is_signed(path: Path) -> bool:
    """Whether the file carries a signature; not that anybody trusts it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(1 << 12)
        length = stream.seek(0, 2)
    try:
        (at,) = struct.unpack_from("<I", head, 60)
        if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0":
            return False
        optional = at + 24
        (magic,) = struct.unpack_from("<H", head, optional)
        offset, size = struct.unpack_from("<II", head, optional + _DIRECTORIES[magic] + 8 * _CERTIFICATES)
    except (struct.error, KeyError):
        return False
    return bool(size > _SHORTEST and offset + size <= length)
