"""``/v1/workers`` and ``/v1/shards``: what workers on other machines ask for, and tell.

A worker is an account that the configuration names (``service.workers.users``). It sees nothing but the shards whose
keys it has got from the queue, and says nothing that counts for any other node. Both sides are of one version of
Kadeploy: the schema for others (`kadeploy.server.openapi`) does without.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, get_args

from litestar import Controller, Request, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody
from litestar.response import Stream

from kadeploy import __version__
from kadeploy.boot import secret
from kadeploy.boot.profile import ProfileKind
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, FileError, KadeployError, OptionError, RightsError
from kadeploy.files import MEGA
from kadeploy.microsteps import write_profiles
from kadeploy.operations.work import run_folder
from kadeploy.remote import lending
from kadeploy.remote.window import window
from kadeploy.runner import request as requests
from kadeploy.runner.request import Request as Asked
from kadeploy.server.served import Served
from kadeploy.state import rights
from kadeploy.state.database import url_of
from kadeploy.workers import jobs, lease, parcel, presence
from kadeploy.workers.charge import KEY, Answer, Charge, Profiles, Welcome, Written
from kadeploy.workers.lease import Lease, Report
from kadeploy.workers.presence import Presence, Seen
from kadeploy.workflow import Outcome

_REPORT = 64 * MEGA
"""Bytes of one report: what scripts say on five hundred nodes may be much."""
RESULTS = "worker"
"""Folder in the shard's run folder of what the worker sends back."""
_BREATH = 2.0
"""Seconds between two signs that a slot is still waited for, or held."""
_WID = re.compile(r"[A-Za-z0-9_-]+")
_FOLDER = re.compile(r"[0-9]+-[A-Za-z0-9_.-]+")
_AGAIN = 60.0
"""Seconds after which it is looked again whether the queue is there: a database may be restored meanwhile."""

Here = NamedDependency[Served]
Key = Annotated[str, HeaderParameter(name=KEY)]
_PROFILES: Mapping[str, ProfileKind] = {kind: kind for kind in get_args(ProfileKind)}
_WINDOWS = ("reboot", "check", "ssh")


class _Shard:
    """A shard, as one sees it who has its key."""

    def __init__(self, served: Served, wid: str, folder: str, key: str, *, also_over: bool = False) -> None:
        """Raises OptionError unless the lease is the caller's; see `kadeploy.workers.lease.shown`."""
        _require_worker(served)
        if not _FOLDER.fullmatch(folder) or not _WID.fullmatch(wid):
            raise OptionError("This work is not yours any more.")
        self.site: Site = served.site
        self.workflow_dir = run_folder(served.site, wid)
        self.folder = self.workflow_dir / folder
        self.key = key
        self.lease: Lease = lease.shown(self.folder, key, also_over=also_over)

    @property
    def request(self) -> Asked:
        """What is to be done, as the controller has written it down."""
        return requests.read(self.folder / requests.FILE_NAME)

    def holds(self) -> bool:
        """Whether the key still counts."""
        try:
            lease.shown(self.folder, self.key)
        except OptionError:
            return False
        return not lease.is_abandoned(self.folder)


def _require_worker(served: Served) -> None:
    workers = served.site.service.workers
    if workers is None or served.user not in workers.users:
        raise RightsError(f"{served.user} is no worker of this site (service.workers.users in site.yml).")


class WorkerController(Controller):
    """Machines that carry out parts of operations."""

    path = "/v1/workers"
    include_in_schema = False

    @post("/", sync_to_thread=True, status_code=200)
    def present(self, served: Here, data: JSONBody[Presence]) -> Welcome:
        """Say that you are there, every few seconds. For workers."""
        _require_worker(served)
        presence.note(served.site, data, served.user)
        clusters = served.configuration.clusters
        unknown = (name for name in data.clusters if name not in clusters or clusters[name].workers == "never")
        _prepared(served.site)
        return Welcome(version=__version__, unknown=tuple(unknown))

    @get("/", sync_to_thread=True)
    def workers(self, served: Here) -> list[Seen]:
        """The workers of the last day: what they do, and when they were heard last. For administrators."""
        rights.require_almighty(served.site, served.user)
        return presence.seen(served.site)


_prepared_at: dict[tuple[str, str], float] = {}
"""When this process has last prepared the queue, by database and role."""


def _prepared(site: Site) -> None:
    role = site.service.workers.database_role if site.service.workers else ""
    key = (url_of(site), role)
    if time.monotonic() - _prepared_at.get(key, -math.inf) > _AGAIN:
        jobs.prepare(*key)
        _prepared_at[key] = time.monotonic()


class WorkController(Controller):
    """One shard of an attempt, for the worker that has it."""

    path = "/v1/shards/{wid:str}/{folder:str}"
    include_in_schema = False

    @post("/claim", sync_to_thread=True, status_code=200)
    def claim(self, served: Here, wid: FromPath[str], folder: FromPath[str], key: Key) -> Charge:
        """Take the shard: what it needs beside its files. For workers."""
        shard = _Shard(served, wid, folder, key)
        lease.claim(shard.folder, key, served.user)
        try:
            return _charge(shard)
        except KadeployError as error:  # the controller hears of it at once, and of what to do
            lease.keep(shard.folder, Report(number=1, worker=served.user, fault=str(error)))
            raise

    @get("/files", sync_to_thread=True, media_type="application/x-tar")
    def files(self, served: Here, wid: FromPath[str], folder: FromPath[str], key: Key) -> Stream:
        """The request and what nodes get, but for images, as a tar archive. For workers."""
        shard = _Shard(served, wid, folder, key)
        return Stream(parcel.packed(shard.folder, secret.file_of(shard.workflow_dir, shard.lease.attempt)))

    @get("/images/{sha256:str}", sync_to_thread=True, media_type="application/octet-stream")
    def image(self, served: Here, wid: FromPath[str], folder: FromPath[str], sha256: FromPath[str], key: Key) -> Stream:
        """An image. For workers."""
        shard = _Shard(served, wid, folder, key)
        if sha256 not in shard.lease.images:
            raise OptionError("This image does not belong to your work.")
        return Stream(_content(_image(shard, shard.lease.images[sha256])))

    @post("/report", sync_to_thread=True, status_code=200, request_max_body_size=_REPORT)
    def report(
        self, served: Here, wid: FromPath[str], folder: FromPath[str], key: Key, data: JSONBody[Report]
    ) -> Answer:
        """Tell what has happened, at least every other second; the answer says whether to go on. For workers."""
        shard = _Shard(served, wid, folder, key, also_over=True)
        lease.keep(shard.folder, data)
        return Answer(taken=shard.lease.taken, stop=shard.lease.is_over or lease.is_abandoned(shard.folder))

    @post("/profiles", status_code=200)
    async def profiles(
        self, served: Here, wid: FromPath[str], folder: FromPath[str], key: Key, data: JSONBody[Profiles]
    ) -> Written:
        """Have boot profiles of nodes written. For workers."""
        shard = await asyncio.to_thread(_Shard, served, wid, folder, key)
        return Written(await asyncio.to_thread(_written, shard, data))

    @get("/slots/{name:str}", media_type="text/plain")
    async def slot(
        self, served: Here, wid: FromPath[str], folder: FromPath[str], name: FromPath[str], key: Key
    ) -> Stream:
        """Wait for a slot of a window and hold it while you read: a line tells that you have it. For workers."""
        shard = await asyncio.to_thread(_Shard, served, wid, folder, key)
        if name not in _WINDOWS:
            raise OptionError(f"There is no window {name!r}.")
        return Stream(_held(shard, name))

    @put("/results", status_code=200, request_max_body_size=None)
    async def results(
        self, served: Here, request: Request[Any, Any, Any], wid: FromPath[str], folder: FromPath[str], key: Key
    ) -> None:
        """Send the run folder back as a tar archive, but for what came from here. For workers."""
        shard = await asyncio.to_thread(partial(_Shard, served, wid, folder, key, also_over=True))
        await _unpacked(request.stream(), shard.folder / RESULTS)


def _charge(shard: _Shard) -> Charge:
    return Charge(
        run_dir=str(shard.folder / RESULTS),
        now=time.monotonic(),
        nodes=shard.lease.nodes,
        images={sha256: _size(shard, name) for sha256, name in shard.lease.images.items()},
        secrets=_secrets(shard.lease.secrets),
    )


def _size(shard: _Shard, name: str) -> int:
    with _image(shard, name) as file:
        return os.fstat(file.fileno()).st_size


def _image(shard: _Shard, name: str) -> BinaryIO:
    """The image as the workflow lends it; nobody opens a user's file by its name."""
    descriptor = lending.borrow(shard.workflow_dir, name)
    if descriptor is None:
        raise FileError("The image is not there any more: its operation has ended.")
    return os.fdopen(descriptor, "rb")


def _content(file: BinaryIO) -> Iterator[bytes]:
    """All of a file whose position is shared with others."""
    with file:
        place = 0
        while piece := os.pread(file.fileno(), MEGA, place):
            place += len(piece)
            yield piece


def _secrets(names: Iterable[str]) -> dict[str, bytes]:
    """What is in the files, by the names by which a worker has them in one folder."""
    paths: dict[str, Path] = {}
    for path in map(Path, names):
        if paths.setdefault(path.name, path) != path:
            raise ConfigError(f"{paths[path.name]} and {path} need different names: workers have both in one folder.")
    return {name: _secret(path) for name, path in paths.items()}


def _secret(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{path} is no file.")
            return file.read(MEGA)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: the service's account has to read it for workers.") from error


def _written(shard: _Shard, wanted: Profiles) -> dict[str, Outcome]:
    if not shard.holds():
        raise OptionError("This work is not yours any more.")
    request = shard.request
    members = set(wanted.nodes) & set(shard.lease.nodes) - shard.lease.taken.keys()
    nodes = [node for node in request.nodes if node.name in members]
    kind = _PROFILES.get(wanted.boot)
    if kind is None:
        raise OptionError(f"There is no boot profile {wanted.boot!r}.")
    return write_profiles.write(request, kind, nodes)


async def _unpacked(stream: AsyncIterator[bytes], into: Path) -> None:
    """What comes, in the new folder *into*."""
    try:
        await asyncio.to_thread(into.mkdir, 0o700)
    except FileExistsError as error:
        raise OptionError("The results of this work have come already.") from error
    with tempfile.TemporaryFile(dir=into) as file:
        left = parcel.MOST
        async for piece in stream:
            left -= len(piece)
            if left < 0:
                raise FileError(f"The results of a shard have {parcel.MOST >> 20} MB at most.")
            await asyncio.to_thread(file.write, piece)
        file.seek(0)
        await asyncio.to_thread(parcel.unpack, file, into, parcel.MOST)


async def _held(shard: _Shard, name: str) -> AsyncIterator[bytes]:
    """Empty lines while a slot is waited for, one that says so, and empty lines while it is held."""
    said: asyncio.Queue[bytes] = asyncio.Queue()
    holding = asyncio.create_task(_hold(shard.site.state / "windows" / name, getattr(shard.site.windows, name), said))
    try:
        while await asyncio.to_thread(shard.holds) and not holding.done():
            word = b""
            with suppress(TimeoutError):
                word = await asyncio.wait_for(said.get(), _BREATH)
            yield word + b"\n"
    finally:
        holding.cancel()


async def _hold(folder: Path, size: int, said: asyncio.Queue[bytes]) -> None:
    """Say when there is a slot, and hold it until this is cancelled."""
    async with window(folder, size):
        said.put_nowait(b"held")
        await asyncio.get_running_loop().create_future()


CONTROLLERS = (WorkerController, WorkController)
