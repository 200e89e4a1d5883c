"""The Debian package of this checkout, which the first test that wants it builds."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def shared_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder of all processes that test at a time, in the hands of one of them at a time.

    ``KADEPLOY_TEST_SHARED`` names where such folders are of several runs of pytest.
    """
    base = factory.getbasetemp()
    own = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("KADEPLOY_TEST_SHARED", own)) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def debian_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file; it takes one to three minutes to build."""
    with shared_folder(tmp_path_factory, "debian-package") as folder:
        if not list(folder.glob("*.deb")):
            command = [ROOT / "scripts" / "build-deb", "--output", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("kadeploy_*.deb")
    return found
