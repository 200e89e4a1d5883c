"""The lab's configuration folder: a documented example that is also what the tools really use."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.lab import bmc
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.virtual import Payload
from kadeploy.nodeset import fold

_TEMPLATES = Path(__file__).parent / "config"

_CLUSTERS = {"lab": False, "nvme": True}
"""Cluster → whether its nodes have NVMe disks: nodes of one cluster call their disk alike."""

_LAYOUTS = {
    False: ("msdos", [(1, "256MiB", "swap"), (2, "1GiB", "prod"), (3, "3GiB", "deploy"), (5, "", "tmp")]),
    True: (
        "gpt",
        [(1, "256MiB", "swap"), (2, "1GiB", "prod"), (3, "3GiB", "deploy"), (4, "128MiB", "efi"), (5, "", "tmp")],
    ),
}
"""Whether UEFI → partition table and partitions (number, size, role); `disk.DEPLOY_START` follows from two of them."""

_LOADERS = {
    False: ("pxelinux", ["SERIAL 0 115200"]),
    True: ("grub", ["serial --unit=0 --speed=115200", "terminal_output serial"]),
}
"""Whether UEFI → language of the profiles and their first lines."""


def write(lab: Lab, payload: Payload) -> Configuration:
    """Write the configuration folder and read it back; raises ConfigError if the tools would refuse it."""
    clusters = lab.config / "clusters"
    clusters.mkdir(parents=True, exist_ok=True)
    (lab.config / "site.yml").write_text(site(lab, payload))
    for name, nvme in _CLUSTERS.items():
        members = [node for node in lab.members.values() if node.nvme == nvme]
        path = clusters / f"{name}.yml"
        path.unlink(missing_ok=True)  # of an earlier lab
        if members:
            path.write_text(cluster(lab, payload, members))
    return load_configuration(lab.config)


def site(lab: Lab, payload: Payload) -> str:
    """Text of ``site.yml``."""
    return _filled(
        "site.yml",
        name=lab.name,
        state=lab.state,
        socket=lab.socket,
        controller=lab.controller,
        private_key=lab.private_key,
        host_key=payload.host_key,
        tftp=lab.tftp,
        http=lab.http,
        boot_log=lab.log("boot server"),
        reboot_window=200 if lab.kind == "sim" else 50,
        patience=10 if lab.kind == "sim" else 30,
    )


def cluster(lab: Lab, payload: Payload, members: Sequence[LabNode]) -> str:
    """Text of the cluster file of *members*, whose disks have one name."""
    table, partitions = _LAYOUTS[lab.uefi]
    profiles, header = _LOADERS[lab.uefi]
    return _filled(
        "cluster.yml",
        names=fold(node.name for node in members),
        addresses=fold(node.address for node in members),
        bmcs=fold(node.bmc for node in members),
        device="/dev/nvme0n1" if members[0].nvme else "/dev/sda",
        table=table,
        partitions="".join(_partition(*part) for part in partitions),
        firmware="uefi" if lab.uefi else "bios",
        secure_boot="true" if lab.secure_boot else "false",
        profiles=profiles,
        header="\n".join(f"    {line}" for line in header),
        kernel=payload.kernel,
        initrd=payload.initrd,
        params=payload.params,
        power=_power(lab, payload),
        console=console_command(lab),
        console_log=lab.serial_log("HOSTNAME_SHORT"),
        **_timing(lab),
    )


def _timing(lab: Lab) -> dict[str, object]:
    """Emulated machines are slow, and worth a second try; simulated ones boot as fast as they are told to."""
    if lab.kind != "sim":
        return {"reboot_timeout": "240+30*n", "kexec_timeout": "120+20*n", "retries": 1}
    return {f"{name}_timeout": f"{20 + lab.boot_delay:g}+0.05*n" for name in ("reboot", "kexec")} | {"retries": 0}


def _power(lab: Lab, payload: Payload) -> str:
    """The section of the payload's driver."""
    return _filled(
        f"power-{payload.power}.yml",
        bmc_user=bmc.USER,
        bmc_password=lab.bmc_password,
        bmc_port=bmc.PORT,
        lab=_program(),
        option=f"--name {lab.name}",
        bmc_client=shlex.quote(str(Path(__file__).parent / "sim" / "files" / "bmc")),
    )


def console_command(lab: Lab) -> str:
    """What opens a node's console, with the placeholder that the tools replace."""
    verb = "console" if lab.kind == "vm" else "logs --follow"  # a light node's serial line cannot be written to
    return f"{_program()} {verb} --name {lab.name} HOSTNAME_SHORT"


def _program() -> str:
    return shlex.quote(str(Path(sys.executable).with_name("kadeploy-lab")))


def _partition(number: int, size: str, role: str) -> str:
    length = f"size: {size}, " if size else ""
    return f"    - {{number: {number}, {length}role: {role}}}\n"


def _filled(template: str, **values: object) -> str:
    return Template((_TEMPLATES / template).read_text()).substitute({key: str(value) for key, value in values.items()})
