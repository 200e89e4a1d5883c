"""The boot profile of a host of somebody's play: a file of the machine that serves boot files."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kadeploy.boot import profile
from kadeploy.config.cluster import Cluster, Disk, Loader, Node
from kadeploy.config.partition import split_partition
from kadeploy.config.site import BootFolders, Site, Ssh
from kadeploy.errors import OptionError
from kadeploy.microsteps.alone.host import copied, require_one_by_one

if TYPE_CHECKING:
    from ansible.plugins.action import ActionBase


_NO_SITE = Path("/nonexistent")
"""Whose templates would go before ours."""


def written(action: ActionBase, args: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Do the task `write_profiles` for the host of *action*, whose connection is the boot server's.

    Raises:
        KadeployError: the profile cannot be made of *args*, see `write_profiles.ARGUMENTS`.
    """
    require_one_by_one(action)
    node = Node(name=str(facts["inventory_hostname"]), address=args["address"])
    result: dict[str, Any] = {"changed": False, "diff": [], "paths": []}
    for name, text in profile.profiles(_sources(args, node), args["boot"], node).items():
        path = posixpath.join(args["folder"], name)
        done = copied(action, {"content": text, "dest": path, "mode": "0644"}, facts)
        if done.get("failed"):
            return done
        result["changed"] |= bool(done.get("changed"))
        result["paths"].append(path)
        diff = done.get("diff", [])
        result["diff"] += diff if isinstance(diff, list) else [diff]
    return result


def _sources(args: Mapping[str, Any], node: Node) -> profile.Sources:
    """Of a site and a cluster of one machine.

    Raises:
        OptionError: the loader cannot boot that.
    """
    if args["loader"] == "ipxe" and args["boot"] == "deployed":
        raise OptionError(
            "iPXE boots no disk by itself: have the machine load PXELINUX, or GRUB, and write its profile."
        )
    device, partition = split_partition(args["device"])
    linux = {name: args[name] for name in ("kernel", "initrd", "params")}
    loader = Loader(
        firmware="uefi" if args["loader"] == "grub" else "bios",
        profiles=args["loader"],
        **linux,
        **{f"nfsroot_{name}": value for name, value in linux.items()},
    )
    folder = args["folder"]
    boot = BootFolders(tftp_root=folder, http_root=folder, http_url="")
    ssh = Ssh(private_key="", host_key="")
    return profile.Sources(
        site=Site(name="estate", state_dir=folder, server_address="", ssh=ssh, boot=boot),
        cluster=Cluster(disk=Disk(device=device), loader=loader),
        config_dir=_NO_SITE,
        user="root",
        device=device,
        partition=partition or 0,
        text=args["profile"],
        singularities={node.name: node.name},
    )
