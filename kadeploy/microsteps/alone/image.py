"""An image for the hosts of somebody's play: from host to host, as to the nodes of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleActionFail

from kadeploy import checksums
from kadeploy.broadcast import chain, sink
from kadeploy.errors import FileError
from kadeploy.microsteps.send_image import RELAY, TREE_FANOUT, outcomes
from kadeploy.remote.fanout import Credentials, Process, Target
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from ansible.plugins.action import ActionBase


def sent(action: ActionBase, args: Mapping[str, Any], facts: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, Any]:
    """Do the task `send_image` on all *hosts*: those that get it are *sent* in the result, the others *ko*, and why.

    Args:
        action: the plugin.
        args: see `send_image.ARGUMENTS`.
        facts: variables of the first host, and ``hostvars``.
        hosts: those of the play.

    Raises:
        AnsibleActionFail: the arguments leave something open, or ask for what only a request can do.
        FileError: the image cannot be read, or is another one than *args* say.
    """
    if args["method"] not in ("chain", "tree"):
        raise AnsibleActionFail(f"Without a request an image travels by chain or tree, not by {args['method']}.")
    if not action._task.run_once:
        raise AnsibleActionFail("The hosts pass the image on to one another: the task wants run_once.")
    goal = args["device"] if args["kind"].startswith("dd") else args["folder"]
    if not goal:
        raise AnsibleActionFail(
            "dd wants the device to write to."
            if args["kind"].startswith("dd")
            else "tar wants the folder to unpack to."
        )
    if action._task.check_mode:
        return {"ko": {}, "sent": list(hosts), "msg": f"would send {args['image']} to {goal} ({args['method']})"}
    targets = [_target(facts["hostvars"][host], host) for host in hosts]
    found = asyncio.run(_send(args, _broadcast(args), targets))
    ko = {name: outcome.message for name, outcome in found.items() if outcome.verdict is not Verdict.OK}
    return {"ko": ko, "sent": [name for name in found if name not in ko]}


def _target(variables: Mapping[str, Any], host: str) -> Target:
    return Target(host, str(variables.get("ansible_host", host)), int(variables.get("ansible_port", 22)), pinned=False)


def _broadcast(args: Mapping[str, Any]) -> chain.Broadcast:
    try:
        with Path(args["image"]).open("rb") as stream:
            found = checksums.of(stream)
    except OSError as error:
        raise FileError(f"{args['image']}: {error.strerror}.") from error
    if args["sha256"] not in ("", found.sha256):
        raise FileError(f"{args['image']}: its SHA-256 is {found.sha256}, not {args['sha256']}.")
    return chain.Broadcast(
        image=Path(args["image"]),
        size=found.size,
        sha256=found.sha256,
        beginnings=found.beginnings,
        sink=sink.of_kind(args["kind"]),
        environment={"KADEPLOY_DEPLOY_PART": args["device"], "KADEPLOY_ENV_EXTRACTION_DIR": args["folder"]},
        fanout=TREE_FANOUT if args["method"] == "tree" else 1,
    )


async def _send(args: Mapping[str, Any], broadcast: chain.Broadcast, targets: Sequence[Target]) -> dict[str, Outcome]:
    from kadeploy.remote.connections import Connections  # noqa: PLC0415 - a tenth of a second that batches need not pay

    known_hosts = Path(args["known_hosts"]).expanduser() if args["known_hosts"] else None
    credentials = Credentials(
        Path(args["private_key"]).expanduser(),
        user=args["user"],
        known_hosts=known_hosts,
        private_key_setting="send_environment_private_key",
        host_key_setting="send_environment_known_hosts",
    )
    remote, by_name = Connections(credentials), {target.name: target for target in targets}

    async def start_relay(member: chain.Member, program: bytes) -> Process:
        return await remote.start(by_name[member.name], RELAY, program)

    members = [chain.Member(target.name, target.address, args["port"]) for target in targets]
    try:
        return outcomes(await chain.send(broadcast, members, start_relay))
    finally:
        await remote.close()
