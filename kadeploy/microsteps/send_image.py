"""Send the image to all nodes, straight into tar or dd there."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kadeploy import commands, files
from kadeploy.broadcast import chain
from kadeploy.broadcast.progress import ProgressFile
from kadeploy.caller import account
from kadeploy.checksums import Beginnings
from kadeploy.environments.image import KINDS
from kadeploy.errors import ConfigError, FileError
from kadeploy.microsteps import site_command
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.remote import lending
from kadeploy.remote.fanout import Process
from kadeploy.runner.request import LocalImage, Request
from kadeploy.workflow import Outcome, Verdict

ARGUMENTS = {
    "method": {"type": "str", "default": "chain", "choices": ["chain", "kastafior", "tree", "bittorrent", "custom"]},
}
"""As an Ansible argument specification."""

RELAY = b"exec python3 -IS -"
"""What reads a relay's program; without `site`, which costs as much as Python itself: the relay needs no more."""
TREE_FANOUT = 2
"""Successors of each node in a tree."""

# What follows the archive's end mark is read too, else the decompressor would fail on a closed pipe. Where tar was cut
# off in the middle of a block it does not say that the disk is full.
_TAR = """
options="--numeric-owner -p"
known=$(tar --help 2>&1)
for option in --acls --selinux --xattrs --xattrs-include=*; do
  case $known in *"${option%=*}"*) options="$options $option" ;; esac
done
say_if_full() {
  set -- $? $(stat -f -c '%a %S' "$KADEPLOY_ENV_EXTRACTION_DIR")
  [ $(($2 * $3)) -ge 1048576 ] || echo "No space left on device: the image is bigger than the partition" >&2
  exit "$1"
}
{ tar -x -f - -C "$KADEPLOY_ENV_EXTRACTION_DIR" $options && cat >/dev/null || say_if_full; }"""
_DD = ' dd of="$KADEPLOY_DEPLOY_PART" ibs=64k obs=4M conv=fsync'
# Nobody may go on using what is written over. An image is often shorter than its partition: what an earlier system left
# behind its end would keep mount from knowing it.
_CLEAN = """
if [ -b "$KADEPLOY_DEPLOY_PART" ]; then
  device=$(readlink -f "$KADEPLOY_DEPLOY_PART")
  for used in "$device" "$device"[0-9]* "$device"p[0-9]*; do
    ! findmnt --source "$used" >/dev/null || umount --all-targets --recursive "$used" || exit
    ! grep -q "^$used " /proc/swaps || swapoff "$used" || exit
  done
  wipefs --quiet --all --force "$device" || exit
fi
"""


def sink(kind: str) -> str:
    """The bash command that takes an image of *kind* from its standard input on a node.

    It works on ``$KADEPLOY_ENV_EXTRACTION_DIR`` (archives) or ``$KADEPLOY_DEPLOY_PART`` (disk and partition images).
    """
    decompress = KINDS[kind].compression.unpack_on_node
    if KINDS[kind].form == "dd":
        return f"set -o pipefail{_CLEAN}{decompress} |{_DD}"
    setup, unpack = _TAR.rsplit("\n", 1)
    return f"set -o pipefail -o noglob{setup}\n{decompress} | {unpack}"


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Send it by ``method``; a file in the run folder tells how far it is.

    Raises:
        ConfigError: the request has no image, or the site no command for ``custom``.
    """
    request = step.request
    if request.image is None or request.environment is None:
        raise ConfigError("The request names no image: repeat the deployment with kadeploy3.")
    with _opened(request, request.image) as image:
        return await _METHODS[str(step.args["method"])](step, image, sink(request.environment.image.kind))


@dataclass(frozen=True)
class _Image:
    """The image, and where it is open; None: it is a file of ours, to be opened by its path."""

    file: LocalImage
    descriptor: int | None

    def stream(self) -> BinaryIO:
        """From its beginning.

        Raises:
            FileError: it cannot be read.
        """
        try:
            return Path(self.file.path).open("rb") if self.descriptor is None else files.from_start(self.descriptor)
        except OSError as error:
            raise FileError(f"{self.file.path}: {error.strerror}.") from error


@contextmanager
def _opened(request: Request, image: LocalImage) -> Iterator[_Image]:
    """A user's image is lent by the workflow's process; in a run by hand it is opened with the user's rights.

    Raises:
        FileError: the user cannot read it (any more).
        OptionError: the user has no account any more.
    """
    descriptor = lending.borrow(Path(request.workflow_dir), image.path) if image.lent else None
    with ExitStack() as stack:
        if descriptor is not None:
            stack.callback(os.close, descriptor)
        elif image.lent:
            descriptor = stack.enter_context(files.open_as_user(image.path, account(request.user))).fileno()
        yield _Image(image, descriptor)


async def _chain(step: MicroStep, image: _Image, into: str, fanout: int = 1) -> Mapping[str, Outcome]:
    targets = {target.name: target for target in step.targets()}

    async def start_relay(member: chain.Member, program: bytes) -> Process:
        return await step.remote.start(targets[member.name], RELAY, program)

    members = _members(step)
    progress = ProgressFile(Path(step.request.run_dir), image.file.size, len(members))
    broadcast = await asyncio.to_thread(_broadcast, step, image, into, fanout)
    return _outcomes(await chain.send(broadcast, members, start_relay, progress))


async def _bittorrent(step: MicroStep, image: _Image, into: str) -> Mapping[str, Outcome]:
    try:
        from kadeploy.broadcast import bittorrent  # noqa: PLC0415 - libtorrent need not be installed
    except ModuleNotFoundError as error:
        raise ConfigError("BitTorrent needs libtorrent: pip install 'kadeploy[bittorrent]'.") from error
    targets = {target.name: target for target in step.targets()}

    async def run_on(member: chain.Member, program: bytes) -> Outcome:
        return await step.remote.run(targets[member.name], program)

    members, site = _members(step), step.request.site
    progress = ProgressFile(Path(step.request.run_dir), image.file.size, len(members))
    broadcast = await asyncio.to_thread(_broadcast, step, image, into)
    return _outcomes(await bittorrent.send(broadcast, members, run_on, site.server_address, progress=progress))


def _members(step: MicroStep) -> list[chain.Member]:
    port = step.request.site.broadcast_port
    return [chain.Member(target.name, target.address, port) for target in step.targets()]


def _broadcast(step: MicroStep, image: _Image, into: str, fanout: int = 1) -> chain.Broadcast:
    patience = step.request.site.broadcast_patience
    return chain.Broadcast(
        image=Path(image.file.path),
        descriptor=image.descriptor,
        size=image.file.size,
        sha256=image.file.sha256,
        beginnings=_beginnings(step, image),
        sink=into,
        environment=dict(step.env),
        arity=step.request.site.broadcast_arity,
        fanout=fanout,
        silence=0.6 * patience,
        patience=0.4 * patience,
        orphan_limit=6 * patience,
    )


def _beginnings(step: MicroStep, image: _Image) -> Beginnings:
    """Of the image as it was recorded, found when it was; without that the image is read once more.

    Raises:
        FileError: the image cannot be read.
    """
    file, cache = image.file, step.request.site.state / "cache"
    with image.stream() as stream:
        return files.beginnings(stream, file.size, file.sha256, cache)


def _outcomes(receptions: Mapping[str, chain.Reception]) -> dict[str, Outcome]:
    return {name: _outcome(reception) for name, reception in receptions.items()}


def _outcome(reception: chain.Reception) -> Outcome:
    rc = 0 if reception.verdict is Verdict.OK else 1
    return Outcome(reception.verdict, reception.message, rc, stderr=reception.note, seconds=reception.seconds)


async def _custom(step: MicroStep, image: _Image, _: str) -> Mapping[str, Outcome]:
    """The site's command: ``ENVFILE`` is the image, ``NODEFILE`` a file of the nodes' names, one per line.

    The command gets a copy of a user's image: it opens it by its name, and as root.

    Raises:
        ConfigError: the cluster has no such command.
        FileError: the image has changed, or there is no room for the copy.
    """
    command = step.request.cluster.broadcast_command
    if not command:
        raise ConfigError(f"There is no broadcast_command in clusters/{step.request.cluster.name}.yml.")
    with tempfile.TemporaryDirectory(prefix="broadcast-", dir=step.request.run_dir) as name:
        folder = Path(name)
        nodes, path = folder / "nodes", image.file.path
        nodes.write_text("".join(f"{name}\n" for name in step.members), encoding="utf-8")
        if image.descriptor is not None:
            path = str(await asyncio.to_thread(_copy, image.file, image.descriptor, folder))
        where = f"broadcast_command in clusters/{step.request.cluster.name}.yml"
        arguments = commands.argv(command, {"ENVFILE": [path], "NODEFILE": [str(nodes)]}, where)
        return dict.fromkeys(step.members, await site_command.execute(arguments))


def _copy(image: LocalImage, descriptor: int, folder: Path) -> Path:
    with files.from_start(descriptor) as stream:
        copy = files.copy_stream(stream, folder, Path(image.path).name)
    if copy.sha256 != image.sha256:
        raise FileError(f"{image.path}: has changed since the deployment began. Start it again.")
    return copy.path


_METHODS: dict[str, Callable[[MicroStep, _Image, str], Awaitable[Mapping[str, Outcome]]]] = {
    "chain": _chain,
    "kastafior": _chain,
    "tree": functools.partial(_chain, fanout=TREE_FANOUT),
    "bittorrent": _bittorrent,
    "custom": _custom,
}
