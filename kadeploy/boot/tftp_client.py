"""A file by TFTP, as a node's loader fetches it, to see whether it would come."""

from __future__ import annotations

import logging
import time
from typing import Any

from tftpy.TftpClient import TftpClient
from tftpy.TftpPacketTypes import TftpPacketDAT
from tftpy.TftpShared import TftpException, TftpFileNotFoundError, TftpTimeout

from kadeploy.errors import FileError

BLOCK_SIZE = 1428
"""Bytes: what fits into a packet, whatever tunnel it passes."""
_TRIES = 3

logging.getLogger("tftpy").setLevel(logging.CRITICAL)  # what went wrong is in the error


class _Content:
    """What has come; the end, when it is too much or takes too long."""

    def __init__(self, most: int, enough: int | None, deadline: float) -> None:
        self.bytes = bytearray()
        self._most = most
        self._enough = enough
        self._deadline = deadline

    @property
    def will_do(self) -> bool:
        """Whether what was wanted has come, and there may be more."""
        return self._enough is not None and len(self.bytes) >= self._enough

    def write(self, piece: bytes) -> None:
        """Take the next block."""
        self.bytes += piece

    def look_at(self, packet: Any) -> None:
        """Refuse to go on for ever, or longer than is of use."""
        if self.will_do:
            raise TftpException("it has sent enough")
        if isinstance(packet, TftpPacketDAT) and len(self.bytes) > self._most:
            raise TftpException(f"it has more than {self._most} bytes, and loaders are smaller")
        if time.monotonic() > self._deadline:
            raise TftpTimeout


def fetch(
    server: str, name: str, timeout: float = 5.0, port: int = 69, most: int = 64 << 20, enough: int | None = None
) -> bytes:
    """The file *name* of a TFTP server, of at most *most* bytes; or its beginning, when *enough* has come.

    Args:
        server: address or name of it.
        name: as it stands in an answer of DHCP.
        timeout: seconds without an answer after which the server is given up; a file may take ten times as long.
        port: UDP port of the server.
        most: bytes after which the transfer is given up.
        enough: bytes of the beginning that will do; None: the whole file.

    Raises:
        FileError: it has no such file, does not answer, or is slow.
    """
    what = f"tftp://{server}/{name.lstrip('/')}"
    content = _Content(most, enough, time.monotonic() + 10 * timeout)
    try:
        client = TftpClient(server, port, {"blksize": BLOCK_SIZE, "tsize": 0})
        client.download(name, content, content.look_at, timeout=max(0.05, timeout / _TRIES), retries=_TRIES)
    except TftpFileNotFoundError as error:
        raise FileError(f"{what}: the TFTP server has no such file. Is it below the folder that it serves?") from error
    except TftpTimeout as error:
        how = f"stopped after {len(content.bytes)} bytes" if content.bytes else f"nothing came within {timeout:g} s"
        raise FileError(f"{what}: {how}. Does a TFTP server run there, and may UDP pass?") from error
    except (TftpException, OSError, AssertionError) as error:
        if content.will_do:
            return bytes(content.bytes[:enough])
        raise FileError(f"{what}: {_why(error)}.") from error
    return bytes(content.bytes)


def _why(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error).rstrip(".") or "the server speaks no TFTP"
