"""Programs of UEFI, as far as their headers go."""

from __future__ import annotations

import struct

_HEADERS = 512


def program(content: bytes = b"", machine: int = 0x8664) -> bytes:
    """One that nobody has signed (PE32+)."""
    return _headers(machine, 0, 0) + content


def signed_program(content: bytes = b"", machine: int = 0x8664) -> bytes:
    """The same with a certificate, of nobody in particular, at its end."""
    certificate = struct.pack("<IHH", 24, 0x200, 2) + bytes(16)
    return _headers(machine, _HEADERS + len(content), len(certificate)) + content + certificate


def _headers(machine: int, offset: int, size: int) -> bytes:
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    optional = struct.pack("<H", 0x20B) + bytes(110) + bytes(8 * 4) + struct.pack("<II", offset, size) + bytes(8 * 11)
    coff = struct.pack("<HHIIIHH", machine, 0, 0, 0, 0, len(optional), 0x22)
    return (dos + b"PE\0\0" + coff + optional).ljust(_HEADERS, b"\0")
