"""`scripts/versions`: what it refuses, before anything is installed or tested."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "versions"


def versions(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("words", [("--al",), ("-x", "3.13"), ("3.13", "--every")])
def test_an_option_that_there_is_not_is_refused_with_the_usage(words: tuple[str, ...], tmp_path: Path) -> None:
    done = versions(*words, folder=tmp_path)
    (wrong,) = (word for word in words if word.startswith("-"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no option {wrong}.\n\nusage: scripts/versions [--all] [VERSION...]" in done.stderr


def test_a_version_that_is_not_known_is_refused_before_others_are_tried(tmp_path: Path) -> None:
    done = versions("--all", "3.13", "3.14", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Python 3.14; it is for 3.11, 3.12 and 3.13" in done.stderr


def test_help_tells_what_all_means(tmp_path: Path) -> None:
    done = versions("--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--all    all tests of the units" in done.stdout
