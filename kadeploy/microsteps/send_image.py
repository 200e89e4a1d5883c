"""Send the image to all nodes, straight into tar or dd there."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from kadeploy import commands
from kadeploy.broadcast import chain
from kadeploy.broadcast.progress import ProgressFile
from kadeploy.environments.image import KINDS
from kadeploy.errors import ConfigError
from kadeploy.microsteps import site_command
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.remote.fanout import Process
from kadeploy.runner.request import LocalImage
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
    return await _METHODS[str(step.args["method"])](step, request.image, sink(request.environment.image.kind))


async def _chain(step: MicroStep, image: LocalImage, into: str, fanout: int = 1) -> Mapping[str, Outcome]:
    targets = {target.name: target for target in step.targets()}

    async def start_relay(member: chain.Member, program: bytes) -> Process:
        return await step.remote.start(targets[member.name], RELAY, program)

    members = _members(step)
    progress = ProgressFile(Path(step.request.run_dir), image.size, len(members))
    broadcast = _broadcast(step, image, into, fanout)
    return _outcomes(await chain.send(broadcast, members, start_relay, progress))


async def _bittorrent(step: MicroStep, image: LocalImage, into: str) -> Mapping[str, Outcome]:
    try:
        from kadeploy.broadcast import bittorrent  # noqa: PLC0415 - libtorrent need not be installed
    except ModuleNotFoundError as error:
        raise ConfigError("BitTorrent needs libtorrent: pip install 'kadeploy[bittorrent]'.") from error
    targets = {target.name: target for target in step.targets()}

    async def run_on(member: chain.Member, program: bytes) -> Outcome:
        return await step.remote.run(targets[member.name], program)

    members, site = _members(step), step.request.site
    progress = ProgressFile(Path(step.request.run_dir), image.size, len(members))
    broadcast = _broadcast(step, image, into)
    return _outcomes(await bittorrent.send(broadcast, members, run_on, site.server_address, progress=progress))


def _members(step: MicroStep) -> list[chain.Member]:
    port = step.request.site.broadcast_port
    return [chain.Member(target.name, target.address, port) for target in step.targets()]


def _broadcast(step: MicroStep, image: LocalImage, into: str, fanout: int = 1) -> chain.Broadcast:
    patience = step.request.site.broadcast_patience
    return chain.Broadcast(
        image=Path(image.path),
        size=image.size,
        sha256=image.sha256,
        sink=into,
        environment=dict(step.env),
        arity=step.request.site.broadcast_arity,
        fanout=fanout,
        silence=0.6 * patience,
        patience=0.4 * patience,
        orphan_limit=6 * patience,
    )


def _outcomes(receptions: Mapping[str, chain.Reception]) -> dict[str, Outcome]:
    return {name: _outcome(reception) for name, reception in receptions.items()}


def _outcome(reception: chain.Reception) -> Outcome:
    rc = 0 if reception.verdict is Verdict.OK else 1
    return Outcome(reception.verdict, reception.message, rc, seconds=reception.seconds)


async def _custom(step: MicroStep, image: LocalImage, _: str) -> Mapping[str, Outcome]:
    """The site's command: ``ENVFILE`` is the image, ``NODEFILE`` a file of the nodes' names, one per line."""
    command = step.request.cluster.broadcast_command
    if not command:
        raise ConfigError(f"There is no broadcast_command in clusters/{step.request.cluster.name}.yml.")
    with tempfile.NamedTemporaryFile("w", prefix="nodes-", dir=step.request.run_dir) as file:
        file.write("".join(f"{name}\n" for name in step.members))
        file.flush()
        where = f"broadcast_command in clusters/{step.request.cluster.name}.yml"
        arguments = commands.argv(command, {"ENVFILE": [image.path], "NODEFILE": [file.name]}, where)
        return dict.fromkeys(step.members, await site_command.execute(arguments))


_METHODS: dict[str, Callable[[MicroStep, LocalImage, str], Awaitable[Mapping[str, Outcome]]]] = {
    "chain": _chain,
    "kastafior": _chain,
    "tree": functools.partial(_chain, fanout=TREE_FANOUT),
    "bittorrent": _bittorrent,
    "custom": _custom,
}
