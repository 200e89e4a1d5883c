"""Send the environment's images to all nodes, straight into tar or dd there."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from kadeploy import commands, files
from kadeploy.broadcast import chain, sink
from kadeploy.broadcast.progress import ProgressFile
from kadeploy.caller import account
from kadeploy.checksums import Beginnings
from kadeploy.config import server_files
from kadeploy.environments.environment import Environment
from kadeploy.environments.image import KINDS
from kadeploy.errors import ConfigError, FileError
from kadeploy.microsteps import site_command
from kadeploy.microsteps.microstep import MicroStep, in_turn, on_held
from kadeploy.remote import lending
from kadeploy.remote.fanout import Process
from kadeploy.runner.request import LocalImage, Request
from kadeploy.workflow import Outcome, Verdict

ARGUMENTS = {
    "method": {"type": "str", "default": "chain", "choices": ["chain", "kastafior", "tree", "bittorrent", "custom"]},
    "image": {"type": "str", "default": ""},
    "kind": {"type": "str", "default": "tgz", "choices": [name for name, kind in KINDS.items() if kind.form != "fsa"]},
    "sha256": {"type": "str", "default": ""},
    "device": {"type": "str", "default": ""},
    "folder": {"type": "str", "default": ""},
    "user": {"type": "str", "default": "root"},
    "private_key": {"type": "str", "default": ""},
    "known_hosts": {"type": "str", "default": ""},
    "port": {"type": "int", "default": chain.PORT},
}
"""As an Ansible argument specification; from `image` on, what only hosts without a request need."""

RELAY = b"exec python3 -IS -"
"""What reads a relay's program; without `site`, which costs as much as Python itself: the relay needs no more."""
TREE_FANOUT = 2
"""Successors of each node in a tree."""


def what(args: Mapping[str, Any], request: Request) -> str:
    """``send tiny.tgz to /dev/sda3 (chain)``."""
    images = filter(None, (request.image, *request.partition_images))
    names = ", ".join(Path(image.path).name for image in images)
    return f"send {names} to {', '.join(request.deploy_parts)} ({args['method']})"


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Send them by ``method``, one after the other; a file in the run folder tells how far it is.

    Raises:
        ConfigError: the request has no image, or the site no command for ``custom``.
    """
    request = step.request
    if request.image is None or request.environment is None:
        raise ConfigError("The request names no image: repeat the deployment with kadeploy3.")
    images = (request.image, *request.partition_images)
    total = sum(image.size for image in images)
    progress = ProgressFile(Path(request.run_dir), total, len(step.members))
    method = _METHODS[str(step.args["method"])]
    stages, before = [], 0
    for image, (into, place) in zip(images, _sinks(request, request.environment), strict=True):
        stages.append(functools.partial(_send, method, _Sending(image, into, place, progress.after(before))))
        before += image.size
    return await in_turn(step, stages)


def _sinks(request: Request, environment: Environment) -> Iterator[tuple[str, str]]:
    """What takes each of `Environment.images` on a node, and the partition that it alone is for (empty: none)."""
    yield sink.of_environment(environment, request.image.size if request.image else 0), ""
    for each in environment.partitions:
        if each.image:
            options = request.site.mkfs_options.get(each.filesystem, "")
            yield sink.of_partition(each, each.image, options), each.device


@dataclass(frozen=True)
class _Sending:
    """One of the images, on its way."""

    image: LocalImage
    sink: str
    place: str
    """The partition, of an image for one alone."""
    progress: Callable[[int, int], None]
    descriptor: int | None = None
    """Where the image is open; None: it is a file of ours, to be opened by its path."""

    def stream(self) -> BinaryIO:
        """From its beginning.

        Raises:
            FileError: it cannot be read.
        """
        try:
            return Path(self.image.path).open("rb") if self.descriptor is None else files.from_start(self.descriptor)
        except OSError as error:
            raise FileError(f"{self.image.path}: {error.strerror}.") from error


Method = Callable[[MicroStep, _Sending], Awaitable[Mapping[str, Outcome]]]


async def _send(method: Method, sending: _Sending, step: MicroStep) -> Mapping[str, Outcome]:
    with _opened(step.request, sending.image) as descriptor:
        outcomes = await method(step, replace(sending, descriptor=descriptor))
    if not sending.place:
        return outcomes
    return {
        node: replace(outcome, message=f"image of {sending.place}: {outcome.message}") if outcome.message else outcome
        for node, outcome in outcomes.items()
    }


@contextmanager
def _opened(request: Request, image: LocalImage) -> Iterator[int | None]:
    """An image whose path may be another file by now: lent by the workflow's process, or opened anew in a run by hand.

    Raises:
        FileError: it cannot be read with the user's rights (any more), or the administrator does not offer it.
        OptionError: the user has no account any more.
    """
    descriptor = lending.borrow(Path(request.workflow_dir), image.path) if image.lent else None
    with ExitStack() as stack:
        if descriptor is not None:
            stack.callback(os.close, descriptor)
        elif files.is_server(image.path):
            stream, _ = server_files.open_file(request.site, image.path)
            descriptor = stack.enter_context(stream).fileno()
        elif image.lent:
            descriptor = stack.enter_context(files.open_as_user(image.path, account(request.user))).fileno()
        yield descriptor


async def _chain(step: MicroStep, sending: _Sending, fanout: int = 1) -> Mapping[str, Outcome]:
    targets = {target.name: target for target in step.targets()}

    async def start_relay(member: chain.Member, program: bytes) -> Process:
        return await step.remote.start(targets[member.name], RELAY, program)

    broadcast = await asyncio.to_thread(_broadcast, step, sending, fanout)
    return outcomes(await chain.send(broadcast, _members(step), start_relay, sending.progress))


async def _bittorrent(step: MicroStep, sending: _Sending) -> Mapping[str, Outcome]:
    try:
        from kadeploy.broadcast import bittorrent  # noqa: PLC0415 - libtorrent need not be installed
    except ModuleNotFoundError as error:
        raise ConfigError("BitTorrent needs libtorrent: pip install 'kadeploy[bittorrent]'.") from error
    targets = {target.name: target for target in step.targets()}

    async def run_on(member: chain.Member, program: bytes) -> Outcome:
        return await step.remote.run(targets[member.name], program)

    address, broadcast = step.request.site.server_address, await asyncio.to_thread(_broadcast, step, sending)
    return outcomes(await bittorrent.send(broadcast, _members(step), run_on, address, progress=sending.progress))


def _members(step: MicroStep) -> list[chain.Member]:
    port = step.request.site.broadcast_port
    return [chain.Member(target.name, target.address, port) for target in step.targets()]


def _broadcast(step: MicroStep, sending: _Sending, fanout: int = 1) -> chain.Broadcast:
    patience = step.request.site.broadcast_patience
    return chain.Broadcast(
        image=Path(sending.image.path),
        descriptor=sending.descriptor,
        size=sending.image.size,
        sha256=sending.image.sha256,
        beginnings=_beginnings(step, sending),
        sink=sending.sink,
        environment=dict(step.env),
        arity=step.request.site.broadcast_arity,
        fanout=fanout,
        silence=0.6 * patience,
        patience=0.4 * patience,
        orphan_limit=6 * patience,
    )


def _beginnings(step: MicroStep, sending: _Sending) -> Beginnings:
    """Of the image as it was recorded, found when it was; without that the image is read once more.

    Raises:
        FileError: the image cannot be read.
    """
    file, cache = sending.image, step.request.site.state / "cache"
    with sending.stream() as stream:
        return files.beginnings(stream, file.size, file.sha256, cache)


def outcomes(receptions: Mapping[str, chain.Reception]) -> dict[str, Outcome]:
    """How the nodes have ended for which a broadcast ended so."""
    return {name: _outcome(reception) for name, reception in receptions.items()}


def _outcome(reception: chain.Reception) -> Outcome:
    rc = 0 if reception.verdict is Verdict.OK else 1
    return Outcome(reception.verdict, reception.message, rc, stderr=reception.note, seconds=reception.seconds)


async def _custom(step: MicroStep, sending: _Sending) -> Mapping[str, Outcome]:
    return await on_held(step, functools.partial(_command, sending))


async def _command(sending: _Sending, step: MicroStep) -> Mapping[str, Outcome]:
    """The site's command: ``ENVFILE`` is the image, ``NODEFILE`` a file of the nodes' names, one per line.

    The command gets a copy of a user's image: it opens it by its name, and as root.

    Raises:
        ConfigError: the cluster has no such command, or the image is for one partition alone: no command knows which.
        FileError: the image has changed, or there is no room for the copy.
    """
    if sending.place:
        raise ConfigError(f"A broadcast_command knows of one image: send that of {sending.place} by another method.")
    command = step.request.cluster.broadcast_command
    if not command:
        raise ConfigError(f"There is no broadcast_command in the file of cluster {step.request.cluster.name}.")
    with tempfile.TemporaryDirectory(prefix="broadcast-", dir=step.request.run_dir) as name:
        folder = Path(name)
        nodes, path = folder / "nodes", sending.image.path
        nodes.write_text("".join(f"{name}\n" for name in step.members), encoding="utf-8")
        if sending.descriptor is not None:
            path = str(await asyncio.to_thread(_copy, sending.image, sending.descriptor, folder))
        where = f"broadcast_command of cluster {step.request.cluster.name}"
        arguments = commands.argv(command, {"ENVFILE": [path], "NODEFILE": [str(nodes)]}, where)
        return dict.fromkeys(step.members, await site_command.execute(arguments))


def _copy(image: LocalImage, descriptor: int, folder: Path) -> Path:
    with files.from_start(descriptor) as stream:
        copy = files.copy_stream(stream, folder, Path(image.path).name)
    if copy.sha256 != image.sha256:
        raise FileError(f"{image.path}: has changed since the deployment began. Start it again.")
    return copy.path


_METHODS: dict[str, Method] = {
    "chain": _chain,
    "kastafior": _chain,
    "tree": functools.partial(_chain, fanout=TREE_FANOUT),
    "bittorrent": _bittorrent,
    "custom": _custom,
}
