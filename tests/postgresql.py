"""A PostgreSQL server of the tests' own, on a unix socket, which may die and come again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from kadeploy import process


class Server:
    """A server whose files are in *folder*, which is the server's account's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        options = ["--auth=trust", "--username=kadeploy", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run([*_account(), _program("initdb"), *options, "-D", self._data], check=True, capture_output=True)

    @property
    def url(self) -> str:
        """Of its database."""
        return f"postgresql:///postgres?host={quote(str(self._folder), safe='')}&user=kadeploy"

    def start(self) -> None:
        """Have it answer; what a killed one has left behind holds it up for a moment."""
        settings = f"-k {self._folder} -c listen_addresses='' -c fsync=off -c max_connections=100"
        limit = time.monotonic() + 60
        while self._control("-l", self._folder / "log", "-o", settings, "start"):
            assert time.monotonic() < limit, (self._folder / "log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its processes have noticed when this returns, and have ended."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        os.kill(postmaster, signal.SIGKILL)
        while any(process.find(pid) for pid in (postmaster, *map(int, children))):
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once."""
        self._control("-m", "immediate", "stop")

    def _control(self, *words: str | Path) -> int:
        command = [*_account(), _program("pg_ctl"), "-D", self._data, "-w", "-s", *words]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode


@contextmanager
def running() -> Iterator[Server]:
    """A server that runs."""
    with tempfile.TemporaryDirectory(prefix="kadeploy-pg-", ignore_cleanup_errors=True) as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres")
        server = Server(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _program(name: str) -> str:
    """Path of a PostgreSQL server program; Debian keeps them out of ``$PATH``."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name) or pytest.fail(f"no {name}: install Debian's postgresql")


def _account() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
