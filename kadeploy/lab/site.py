"""The lab's configuration folder: a documented example that is also what the tools really use."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from string import Template

from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.lab import bmc
from kadeploy.lab.lab import Lab
from kadeploy.lab.virtual import Payload

_TEMPLATES = Path(__file__).parent / "config"

_LAYOUTS = {
    "bios": ("msdos", [(1, "256MiB", "swap"), (2, "1GiB", "prod"), (3, "3GiB", "deploy"), (5, "", "tmp")]),
    "uefi": (
        "gpt",
        [(1, "256MiB", "swap"), (2, "1GiB", "prod"), (3, "3GiB", "deploy"), (4, "128MiB", "efi"), (5, "", "tmp")],
    ),
}
"""Firmware → partition table and partitions (number, size, role); `disk.DEPLOY_START` follows from the first two."""

_LOADERS = {
    "bios": ("pxelinux", ["SERIAL 0 115200"]),
    "uefi": ("grub", ["serial --unit=0 --speed=115200", "terminal_output serial"]),
}
"""Firmware → language of the profiles and their first lines."""


def write(lab: Lab, payload: Payload) -> Configuration:
    """Write the configuration folder and read it back; raises ConfigError if the tools would refuse it."""
    clusters = lab.config / "clusters"
    clusters.mkdir(parents=True, exist_ok=True)
    (lab.config / "site.yml").write_text(site(lab, payload))
    (clusters / "lab.yml").write_text(cluster(lab, payload))
    return load_configuration(lab.config)


def site(lab: Lab, payload: Payload) -> str:
    """Text of ``site.yml``."""
    return _filled(
        "site.yml",
        name=lab.name,
        state=lab.state,
        controller=lab.controller,
        private_key=lab.private_key,
        host_key=payload.host_key,
        tftp=lab.tftp,
        http=lab.http,
        boot_log=lab.log("boot server"),
        reboot_window=200 if lab.kind == "sim" else 50,
        patience=10 if lab.kind == "sim" else 30,
    )


def cluster(lab: Lab, payload: Payload) -> str:
    """Text of ``clusters/lab.yml``."""
    table, partitions = _LAYOUTS[lab.firmware]
    profiles, header = _LOADERS[lab.firmware]
    return _filled(
        "cluster.yml",
        names=lab.column("node-"),
        addresses=lab.addresses(1),
        bmcs=lab.addresses(2),
        table=table,
        partitions="".join(_partition(*part) for part in partitions),
        firmware=lab.firmware,
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
