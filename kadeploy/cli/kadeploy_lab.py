"""``kadeploy-lab``: a virtual cluster on this machine, to try things out and to test."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from kadeploy.cli import completion, shell, steps, usage
from kadeploy.errors import KadeployError
from kadeploy.hints import did_you_mean
from kadeploy.images import build_deployment_system
from kadeploy.lab import bmc, control, lock, network
from kadeploy.lab import console as serial_console
from kadeploy.lab.down import down as take_down
from kadeploy.lab.environments import BUILDERS, chosen
from kadeploy.lab.environments import build as build_environments
from kadeploy.lab.kinds import KINDS
from kadeploy.lab.lab import CACHE, FAULTS, FIRMWARE, Lab, checked, existing, faults, saved
from kadeploy.lab.sim.faults import chosen as chosen_faults
from kadeploy.lab.up import deployment_key
from kadeploy.lab.up import up as bring_up
from kadeploy.nodeset import expand

NAME = "kadeploy-lab"

app = shell.Tool(
    "A virtual cluster on this machine: machines with BMC, PXE and disk, and the configuration to deploy on them.",
    examples={
        "kadeploy-lab up --nodes 4": "Start a cluster of four machines.",
        'eval "$(kadeploy-lab env)"': "Point the tools at it.",
        "kadeploy-lab ssh node-1": "Enter a node.",
        "kadeploy-lab down": "Stop it and remove its files.",
    },
    about="It needs root, for the network namespace that the cluster lives in.",
)

_DEFAULT = Lab()


def _labs(incomplete: str) -> list[str]:
    return completion.choices(*existing())(incomplete)


def _nodes(context: typer.Context, incomplete: str) -> list[str]:
    lab = _typed(context)
    return completion.choices(*(lab.members if lab else ()))(incomplete)


def _logs(context: typer.Context, incomplete: str) -> list[str]:
    lab = _typed(context)
    have = (path.stem for path in sorted(lab.logs.glob("*.log"))) if lab else ()
    return [*_nodes(context, incomplete), *completion.choices(*have)(incomplete)]


def _typed(context: typer.Context) -> Lab | None:
    """The lab that a command line being typed is about."""
    given = context.params
    return saved(given.get("name") or _DEFAULT.name, given.get("folder") or "")


Name = Annotated[
    str,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Name of the lab and of its network namespace.",
        rich_help_panel=usage.GENERAL,
        autocompletion=_labs,
    ),
]
Folder = Annotated[
    str,
    typer.Option(
        "--folder",
        metavar="FOLDER",
        help="Absolute path of its folder (default: /var/lib/kadeploy-lab/NAME).",
        rich_help_panel=usage.GENERAL,
    ),
]
Node = Annotated[
    str, typer.Argument(metavar="NODE", help="Node, such as node-1.", show_default=False, autocompletion=_nodes)
]


@app.callback()
def kadeploy_lab(_version: shell.Version = False, _completion: shell.Completion = None) -> None:
    """Options of the command itself."""


@app.command()
def up(
    *,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND", help=f"Kind of nodes: {', '.join(KINDS)}.", autocompletion=completion.choices(*KINDS)
        ),
    ] = _DEFAULT.kind,
    nodes: Annotated[int, typer.Option(metavar="NUMBER", help="Number of nodes.")] = _DEFAULT.nodes,
    memory: Annotated[
        int, typer.Option(metavar="MIB", help="Memory of a node, in MiB.", rich_help_panel=usage.MACHINES)
    ] = _DEFAULT.memory,
    disk: Annotated[
        int,
        typer.Option(
            metavar="GIB", help="Disk of a node, in GiB, allocated as it is written.", rich_help_panel=usage.MACHINES
        ),
    ] = _DEFAULT.disk,
    firmware: Annotated[
        str,
        typer.Option(
            metavar="FIRMWARE",
            help="bios, uefi or secure-boot.",
            rich_help_panel=usage.MACHINES,
            autocompletion=completion.choices(*FIRMWARE),
        ),
    ] = _DEFAULT.firmware,
    kvm: Annotated[
        bool,
        typer.Option("--kvm", help="Use /dev/kvm (default: emulate the processor).", rich_help_panel=usage.MACHINES),
    ] = False,
    dead: Annotated[
        str, typer.Option(metavar="NODES", help=f"Nodes with a fault: {FAULTS['dead']}.", rich_help_panel=usage.FAULTS)
    ] = "",
    mute: Annotated[
        str, typer.Option(metavar="NODES", help=f"Nodes with a fault: {FAULTS['mute']}.", rich_help_panel=usage.FAULTS)
    ] = "",
    small_disk: Annotated[
        str,
        typer.Option(
            metavar="NODES", help=f"Nodes with a fault: {FAULTS['small-disk']}.", rich_help_panel=usage.FAULTS
        ),
    ] = "",
    bad_disk: Annotated[
        str,
        typer.Option(metavar="NODES", help=f"Nodes with a fault: {FAULTS['bad-disk']}.", rich_help_panel=usage.FAULTS),
    ] = "",
    nvme: Annotated[
        str,
        typer.Option(
            metavar="NODES",
            help="Nodes whose disk is /dev/nvme0n1 in place of /dev/sda.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = "",
    big_sectors: Annotated[
        str,
        typer.Option(
            metavar="NODES", help="Nodes whose disk has sectors of 4096 bytes.", rich_help_panel=usage.MACHINES
        ),
    ] = "",
    faulty: Annotated[
        str,
        typer.Option(
            "--faults",
            metavar="FAULTS",
            help=f"Faults for a share of the nodes: hang=1%,slow=3. There are: {', '.join(FAULTS)}.",
            rich_help_panel=usage.FAULTS,
            autocompletion=completion.choices(*FAULTS, several=True),
        ),
    ] = "",
    seed: Annotated[
        int,
        typer.Option(
            metavar="NUMBER", help="Number that decides which nodes --faults chooses.", rich_help_panel=usage.FAULTS
        ),
    ] = 0,
    backend: Annotated[
        str,
        typer.Option(
            metavar="BACKEND",
            help="What answers on sim nodes: openssh or light.",
            rich_help_panel=usage.MACHINES,
            autocompletion=completion.choices("openssh", "light"),
        ),
    ] = _DEFAULT.backend,
    boot_delay: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Seconds that sim nodes take to boot.", rich_help_panel=usage.MACHINES),
    ] = _DEFAULT.boot_delay,
    environments: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"Environments to build: {', '.join(BUILDERS)}, separated by commas (default: by kind).",
            autocompletion=completion.choices(*BUILDERS, several=True),
        ),
    ] = None,
    service: Annotated[
        bool,
        typer.Option(
            "--service/--no-service", help="Have kadeploy3d serve all accounts of this machine, or root use the tools."
        ),
    ] = _DEFAULT.service,
    bare: Annotated[
        bool,
        typer.Option(
            "--bare", help="Have nothing but the network, machines and BMCs, to set up a site for them (--kind vm)."
        ),
    ] = False,
    name: Name = _DEFAULT.name,
    folder: Folder = "",
) -> None:
    """Bring the lab up: images, network, services, configuration. The machines stay off."""
    if kind not in KINDS:
        raise KadeployError(f"--kind {kind}: expected {' or '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    checked(Lab(name=name, kind=kind, nodes=nodes))
    _require_root()
    names = list(Lab(kind=kind, nodes=nodes).members)
    wrong = faults({"dead": dead, "mute": mute, "small-disk": small_disk, "bad-disk": bad_disk})
    wrong = chosen_faults(faulty, [each for each in names if each not in wrong], seed) | wrong
    for fault in set(wrong.values()) - set(KINDS[kind].faults):
        raise KadeployError(f"Nodes of kind {kind} have no fault {fault}: take --kind sim.")
    offered = KINDS[kind].environments if environments is None else chosen(environments)
    lab = checked(
        Lab(
            name=name,
            kind=kind,
            nodes=nodes,
            memory=memory,
            disk=disk,
            firmware=firmware,
            kvm=kvm,
            faults=wrong,
            nvme=tuple(expand(nvme)) if nvme else (),
            big_sectors=tuple(expand(big_sectors)) if big_sectors else (),
            backend=backend,
            boot_delay=boot_delay,
            environments=offered,
            folder=folder,
            service=service,
            bare=bare,
        )
    )
    say = steps.telling()
    with lock.locked(lab.name):
        new = bring_up(lab, say)
    if not new:
        print(f"{lab.name} is up already.")
    _show(lab)
    if bare:
        print(f"\nIts BMCs let in {bmc.USER}; the password is in {lab.bmc_password}")
        return
    print(f'\nPoint the tools at it:  eval "$({_command(lab, "env")})"')
    if lab.environments:
        print(f'Record an environment:  kaenv3 -a "$KADEPLOY_LAB_ENVIRONMENTS/{lab.environments[0]}.dsc"')


@app.command()
def down(
    keep_disks: Annotated[bool, typer.Option("--keep-disks", help="Keep the nodes' disks for the next up.")] = False,
    name: Name = _DEFAULT.name,
    folder: Folder = "",
) -> None:
    """Take the lab down and remove its files; built images stay in the cache."""
    checked(Lab(name=name, folder=folder))
    _require_root()
    with lock.locked(name):
        found = take_down(name, folder, steps.telling(), keep_disks=keep_disks)
    print(f"{name} is down." if found else f"There is no lab {name}: nothing to do.")


@app.command()
def status(name: Name = _DEFAULT.name, folder: Folder = "") -> None:
    """Show the lab's services and machines."""
    _show(_existing(name, folder))


@app.command()
def env(name: Name = _DEFAULT.name, folder: Folder = "") -> None:
    """Print shell exports that point the tools at the lab."""
    lab = _existing(name, folder)
    if lab.bare:
        raise KadeployError(f"{lab.name} is bare: it has no configuration to point the tools at.")
    print(f"export KADEPLOY_CONFIG_DIR={shlex.quote(str(lab.config))}")
    print(f"export KADEPLOY_LAB_KEY={shlex.quote(str(lab.private_key))}")
    print(f"export KADEPLOY_LAB_ENVIRONMENTS={shlex.quote(str(lab.environments_folder))}")


@app.command()
def console(node: Node, name: Name = _DEFAULT.name, folder: Folder = "") -> None:
    """Open a node's serial console; Ctrl-] leaves."""
    lab = _existing(name, folder)
    serial_console.attach(lab, lab.member(node))


@app.command()
def logs(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="Node, or a service: supervisor, dhcp, boot-server.", autocompletion=_logs),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing what is added.")] = False,
    name: Name = _DEFAULT.name,
    folder: Folder = "",
) -> None:
    """Show what a node wrote to its serial line, or the log of a service."""
    lab = _existing(name, folder)
    path = lab.serial_log(what) if what in lab.members else lab.logs / f"{Path(what).name}.log"
    if not path.exists():
        have = sorted(log.stem for log in lab.logs.glob("*.log"))
        raise KadeployError(f"No log of {what!r} yet. There is: {', '.join(have)}.{did_you_mean(what, have)}")
    with path.open("rb") as stream:
        while True:
            shutil.copyfileobj(stream, sys.stdout.buffer)
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(0.3)


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    node: Node,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Command to run there.", show_default=False)
    ] = None,
    name: Name = _DEFAULT.name,
    folder: Folder = "",
) -> None:
    """Enter a node as root with the lab's key: its deployment system, or a system deployed with that key (-k)."""
    lab = _existing(name, folder)
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=10"]
    argv = ["ssh", "-i", str(lab.private_key), *(word for option in options for word in ("-o", option))]
    argv = network.inside(lab.name, [*argv, f"root@{lab.member(node).address}", *(command or [])])
    os.execvp(argv[0], argv)  # noqa: S606 - ssh takes over this process and its terminal


@app.command()
def power(
    operation: Annotated[
        str,
        typer.Argument(
            metavar="OPERATION",
            help="on, off, reset, shutdown or status.",
            autocompletion=completion.choices("on", "off", "reset", "shutdown", "status"),
        ),
    ],
    node: Node,
    name: Name = _DEFAULT.name,
    folder: Folder = "",
) -> None:
    """Press a machine's buttons, bypassing its BMC."""
    lab = _existing(name, folder)
    answer = control.ask(lab, operation, lab.member(node).name)
    print(f"{node} {'on' if answer['on'] else 'off'}")


@app.command()
def build(
    environments: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Environments to build, separated by commas.",
            autocompletion=completion.choices(*BUILDERS, several=True),
        ),
    ] = ",".join(BUILDERS),
) -> None:
    """Build the deployment system and the environments into the cache, without a lab."""
    _require_root()
    say = steps.telling()
    public_key = deployment_key(CACHE).with_suffix(".pub").read_text()
    system = build_deployment_system(CACHE, public_key, say=say)
    built = build_environments(chosen(environments), CACHE, say)
    print(f"deployment system: {system.kernel}\n                   {system.initrd}")
    for name, environment in built.items():
        print(f"{name}: {environment.description_file}")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise KadeployError("kadeploy-lab makes namespaces and disks, which root alone may: run it with sudo.")


def _existing(name: str, folder: str) -> Lab:
    lab = saved(checked(Lab(name=name, folder=folder)).name, folder)
    if lab is None or not (lab.bare or lab.config.exists()):
        raise KadeployError(f"There is no lab {name}: `kadeploy-lab up` makes one.")
    return lab


def _command(lab: Lab, verb: str) -> str:
    option = "" if lab.name == _DEFAULT.name else f" --name {lab.name}"
    return f"kadeploy-lab {verb}{option}"


def _show(lab: Lab) -> None:
    answer = control.ask(lab, "status")
    bad = [f"{name} {state}" for name, state in answer["services"].items() if state != "ready"]
    print(f"{lab.name}: {KINDS[lab.kind].summary}, {lab.firmware}, {lab.memory} MiB, in {lab.root}")
    print(f"services: {', '.join(bad) if bad else 'all ready'}")
    for name, node in lab.members.items():
        fault = f"  {node.fault}: {FAULTS[node.fault]}" if node.fault else ""
        print(f"{name:10} {'on ' if answer['nodes'][name] else 'off'}  {node.address:13} BMC {node.bmc:13}{fault}")


def main() -> int:
    """Entry point; exit status 0 done, 1 refused, 130 interrupted."""
    return shell.run(app, NAME)


if __name__ == "__main__":
    sys.exit(main())
