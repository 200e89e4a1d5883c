"""How far a broadcast is: a file of which readers see one state or the next."""

from __future__ import annotations

from pathlib import Path

from kadeploy.broadcast.progress import ProgressFile, read


def test_progress_is_a_file_that_others_can_read_at_any_time(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    progress = ProgressFile(tmp_path, 1000, 4)
    progress(100, 0)
    progress(500, 400)  # too soon after the first: not written
    first = read(tmp_path)
    progress(1000, 1000)
    last = read(tmp_path)
    assert first is not None
    assert last is not None
    assert (first.share, last.share) == (0.0, 1.0)
    assert len(list(tmp_path.iterdir())) == 1
