"""Checksums of a file, read once: MD5 and SHA-256 of all of it, and SHA-256 of its beginnings, block by block."""

from __future__ import annotations

import hashlib
from typing import Annotated, BinaryIO

import msgspec

PROOF_SIZE = 16
"""Bytes of a SHA-256 that are kept of each beginning."""
SMALLEST = 512 << 10
"""Bytes of a block; nodes pass an image on block by block, so that each adds the time of one to a chain."""
LARGEST = 8 << 20
"""Bytes of a block: nodes hold several in memory."""
MOST = 8192
"""Blocks of a file, as long as they are not the largest: every node is sent a proof for each."""
_READ = 4 << 20


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a file that is elsewhere: whoever has it there has read it."""

    size: int
    """Bytes."""
    md5: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Beginnings(msgspec.Struct, frozen=True):
    """What lets somebody who reads a file from its beginning know after each block that it is still the same file."""

    block: int
    """Bytes."""
    proofs: bytes
    """`PROOF_SIZE` bytes for each block, the last of which may be shorter: of the SHA-256 of all up to its end."""

    def fit(self, size: int, sha256: str) -> bool:
        """Whether they can be those of a file of this size in bytes and with this SHA-256."""
        if self.block < SMALLEST or len(self.proofs) != -(-size // self.block) * PROOF_SIZE:
            return False
        return not size or self.proofs[-PROOF_SIZE:] == bytes.fromhex(sha256)[:PROOF_SIZE]


class Checksums:
    """Grow with what is read of a file."""

    def __init__(self) -> None:
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._block = SMALLEST
        self._proofs: list[bytes] = []

    def update(self, data: bytes | bytearray) -> None:
        """Take the next bytes of the file."""
        self._md5.update(data)
        left = memoryview(data)
        while left:
            piece = left[: self._block - self.size % self._block]
            self._sha256.update(piece)
            self.size += len(piece)
            left = left[len(piece) :]
            if self.size % self._block == 0:
                self._end_block()

    def _end_block(self) -> None:
        self._proofs.append(self._proof())
        if len(self._proofs) > MOST and self._block < LARGEST:
            self._block *= 2
            self._proofs = self._proofs[1::2]

    def _proof(self) -> bytes:
        return self._sha256.digest()[:PROOF_SIZE]

    @property
    def md5(self) -> str:
        """Of all so far."""
        return self._md5.hexdigest()

    @property
    def sha256(self) -> str:
        """Of all so far."""
        return self._sha256.hexdigest()

    @property
    def beginnings(self) -> Beginnings:
        """Of all so far, which ends the last block."""
        last = [self._proof()] if self.size % self._block else []
        return Beginnings(self._block, b"".join(self._proofs + last))


def of(stream: BinaryIO) -> Checksums:
    """What is left of *stream*, in one pass."""
    found = Checksums()
    while data := stream.read(_READ):
        found.update(data)
    return found
