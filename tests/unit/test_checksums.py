"""One pass over a file: both checksums, its size, and proofs of its beginnings."""

import hashlib
import io
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy import checksums
from kadeploy.checksums import PROOF_SIZE, SMALLEST, Checksums


def proofs(content: bytes, block: int) -> bytes:
    """As the definition has them."""
    ends = [min(end, len(content)) for end in range(block, len(content) + block, block)]
    return b"".join(hashlib.sha256(content[:end]).digest()[:PROOF_SIZE] for end in ends)


@given(st.lists(st.binary(max_size=5000), max_size=8), st.integers(0, 2))
def test_they_are_of_all_that_was_read_however_it_came_in(pieces: list[bytes], blocks: int) -> None:
    pieces = [bytes(blocks * SMALLEST - 3 * (blocks > 0)), *pieces]
    found = Checksums()
    for piece in pieces:
        found.update(piece)
    content = b"".join(pieces)
    assert (found.size, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert found.md5 == hashlib.md5(content).hexdigest()
    assert found.beginnings == checksums.Beginnings(SMALLEST, proofs(content, SMALLEST))
    assert found.beginnings.fit(found.size, found.sha256)
    assert not found.beginnings.fit(found.size + SMALLEST, found.sha256)
    assert not content or not found.beginnings.fit(found.size, "0" * 64)


def test_large_files_have_large_blocks_so_that_their_proofs_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the largest block: after that there are more of them."""
    monkeypatch.setattr(checksums, "MOST", 3)
    monkeypatch.setattr(checksums, "LARGEST", 2 * SMALLEST)
    content = bytes(range(256)) * (SMALLEST // 256) * 9 + b"rest"
    for blocks, block in [(3, SMALLEST), (4, 2 * SMALLEST), (7, 2 * SMALLEST), (9, 2 * SMALLEST)]:
        for rest in (0, 4):
            part = content[: blocks * SMALLEST + rest]
            source: IO[bytes] = io.BytesIO(part)
            assert checksums.of(source).beginnings == checksums.Beginnings(block, proofs(part, block))
