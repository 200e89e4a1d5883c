"""A worker: takes shards from the queue of its clusters, each in a process of its own, and says that it is there."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from kadeploy import __version__
from kadeploy.client.http import Http
from kadeploy.config import secret_files
from kadeploy.errors import ConfigError, KadeployError
from kadeploy.runner.player import end_processes
from kadeploy.server.notify import notify
from kadeploy.workers import connection, jobs, presence, settings
from kadeploy.workers.jobs import Job
from kadeploy.workers.presence import Presence
from kadeploy.workers.settings import Worker
from kadeploy.workers.shard import Order

_LOG = logging.getLogger("kadeploy.worker")
LEAVE = 30.0
"""Seconds that shards have to come to their end when the worker is told to end; then their nodes go on elsewhere."""


class Serving:
    """The worker of the settings in *path*."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.worker: Worker = settings.read(path)
        self.address = settings.address_of(self.worker, path)
        self.folder, self.secrets = Path(self.worker.folder), Path(self.worker.secrets)
        self._busy: dict[str, None] = {}
        self._leaves = threading.Event()
        self._unknown: set[str] = set()
        """Clusters for which the controller has no work, as it has said last."""

    def run(self) -> None:
        """Serve until SIGTERM.

        Raises:
            KadeployError: the settings are wrong, or nobody answers.
        """
        self._clean()
        url = secret_files.password(Path(self.worker.database_file), "database_file")
        if (version := self._present()) != __version__:
            raise ConfigError(_other(version))
        thread = threading.Thread(target=self._tell, name="presence", daemon=True)
        thread.start()
        notify("READY=1")
        _LOG.info("%s serves %s", self.worker.called, ", ".join(self.worker.clusters))
        try:
            asyncio.run(self._serve(url))
        finally:
            self._leaves.set()
            with suppress(KadeployError):
                self._present()

    async def _serve(self, url: str) -> None:
        loop = asyncio.get_running_loop()
        serving = asyncio.ensure_future(
            jobs.serve(url, self.worker.called, self.worker.clusters, self.worker.shards, self._take, LEAVE)
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave, serving)
        with suppress(asyncio.CancelledError):
            await serving

    def _leave(self, serving: asyncio.Future[None]) -> None:
        self._leaves.set()
        serving.cancel()

    async def _take(self, job: Job) -> None:
        """Carry out a shard; what becomes of it, its process tells the controller."""
        shown = f"{job.wid}/{job.folder}"
        self._busy[shown] = None
        _LOG.info("%s begins", shown)
        try:
            with self._places() as (folder, hidden):
                order = Order(str(self.path), job, str(folder), str(self.folder / _IMAGES), str(hidden))
                status = await _carried_out(order)
            _LOG.log(logging.WARNING if status else logging.INFO, "%s ends with status %s", shown, status)
        finally:
            self._busy.pop(shown, None)
            self._forget_images()

    @contextmanager
    def _places(self) -> Iterator[tuple[Path, Path]]:
        """A folder for a shard, and one for its secrets; gone afterwards, with what runs there."""
        name = secrets.token_hex(8)
        folder, hidden = self.folder / _SHARDS / name, self.secrets / name
        for path in (folder, hidden):
            path.mkdir(mode=0o700, parents=True)
        try:
            yield folder, hidden
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
            end_processes(folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _clean(self) -> None:
        """Forget what a worker has left that was killed, and make the folders.

        Raises:
            ConfigError: they cannot be made.
        """
        end_processes(self.folder)
        try:
            for path in (self.folder / _SHARDS, self.folder / _IMAGES, self.secrets):
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{error.filename}: {error.strerror}: check folder and secrets in {self.path}."
            ) from error

    def _forget_images(self) -> None:
        """Images that no shard uses any more: those have links to them."""
        for path in (self.folder / _IMAGES).iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_nlink == 1:
                    path.unlink()

    def _tell(self) -> None:
        """Say every few seconds that this worker is there."""
        while not self._leaves.wait(presence.EVERY):
            try:
                version = self._present()
            except KadeployError as error:
                _LOG.warning("%s", error)
                continue
            if version != __version__:
                _LOG.error("%s", _other(version))
                os.kill(os.getpid(), signal.SIGTERM)  # what is under way still comes to its end

    def _present(self) -> str:
        """Say that this worker is there: the controller's version."""
        said = Presence(
            name=self.worker.called,
            clusters=self.worker.clusters,
            shards=self.worker.shards,
            version=__version__,
            busy=tuple(self._busy),
            leaves=self._leaves.is_set(),
        )
        http = Http(self.address)
        try:
            welcome = connection.present(http, said)
        finally:
            http.close()
        for name in set(welcome.unknown) - self._unknown:
            _LOG.warning("the controller has no work for workers in cluster %s", name)
        self._unknown = set(welcome.unknown)
        return welcome.version


def _other(version: str) -> str:
    return f"The controller runs Kadeploy {version}, this worker {__version__}: install the same."


_SHARDS, _IMAGES = "shards", "images"


async def _carried_out(order: Order) -> int:
    """The exit status of a process that carries out *order*; it ends when this one does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "kadeploy.workers.shard", stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdin  # noqa: S101 - it is a pipe
    try:
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        await process.stdin.drain()
        return await process.wait()
    except BaseException:
        process.stdin.close()
        await process.wait()
        raise
