"""kadeploy3: deploy an environment on nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from kadeploy import files
from kadeploy.caller import Account, caller
from kadeploy.cli import completion, operation, shell, together, usage
from kadeploy.environments import description
from kadeploy.errors import OptionError
from kadeploy.operations import custom, plan
from kadeploy.operations.requests import DeployRequest, Described, Recorded
from kadeploy.operations.service import Service
from kadeploy.runner.request import CustomOperation, Options

NAME = "kadeploy3"

app = shell.Tool(
    "Deploy an environment on nodes.",
    examples={
        "kadeploy3 -m 'gdx-[5-12].site' -e debian12 -k -o nodes_ok -n nodes_ko": "Deploy a recorded environment on a "
        "range of nodes, let your ssh keys in, and write which nodes are OK and which are not.",
        "kadeploy3 -f $OAR_NODE_FILE -a my.dsc -p 4 -s ./launcher.sh": "Deploy an environment that is not recorded, on "
        "the fourth partition, then run a script.",
        "kadeploy3 -m gdx-5.site -e debian12 --dry-run": "Check the request and show the workflow.",
        "kadeploy3 --attach D-3hq7a2": "Follow a deployment of --no-wait, or of a terminal that is gone.",
        "kadeploy3 --attach D-3hq7a2 --speed 10": "Show a deployment that has ended as it was, ten times as fast.",
    },
    statuses=shell.NODE_STATUSES,
    about="The nodes reboot into the deployment system, their disk is prepared, the image travels from node to node, a "
    "boot loader is installed, and they reboot into the environment. Nodes that fail are tried again, then reported "
    "with the micro-step that failed and why. Enter shows where each node is; Ctrl-C ends the deployment and frees the "
    "nodes.",
    aliases={**operation.ALIASES, "--chainload-partition": "--boot-partition"},
)


def _no_l(given: str | None) -> None:
    if given is not None:
        raise OptionError(f"There is no option -l; the owner of the environment is named with -u: -u {given}")


@app.command()
def kadeploy3(
    env: Annotated[
        str | None, typer.Argument(hidden=True, metavar="ENVNAME", autocompletion=completion.environments)
    ] = None,
    *,
    machines: shell.Machines = None,
    node_files: shell.Files = None,
    env_name: Annotated[
        str | None,
        typer.Option(
            "-e",
            "--env-name",
            metavar="ENVNAME",
            help="Recorded environment, name@user:version%arch.",
            autocompletion=completion.environments,
        ),
    ] = None,
    env_file: Annotated[
        str | None,
        typer.Option("-a", "--env-file", metavar="ENVFILE", help="Description of an environment: file or URL."),
    ] = None,
    key: operation.Key = None,
    partition: operation.Partition = None,
    block_device: operation.BlockDevice = None,
    boot_partition: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--boot-partition",
            metavar="NUMBER",
            help="Boot this partition; 0 is the MBR.",
            min=0,
            rich_help_panel=usage.DISK,
            autocompletion=completion.partitions,
        ),
    ] = None,
    debug: operation.Debug = False,
    multi_server: shell.MultiServer = False,
    all_or_nothing: shell.AllOrNothing = False,
    ok_file: shell.OkFile = None,
    ko_file: shell.KoFile = None,
    reformat_tmp: Annotated[
        str,
        typer.Option(
            "-r",
            "--reformat-tmp",
            metavar="FSTYPE",
            help="Format the /tmp partition with this type.",
            rich_help_panel=usage.DISK,
            autocompletion=completion.file_systems,
        ),
    ] = "",
    script: operation.Script = None,
    user: operation.User = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
    vlan: operation.Vlan = None,
    profile: operation.Profile = None,
    pattern: operation.Pattern = None,
    upload: operation.Uploads = None,
    env_version: operation.EnvVersion = None,
    env_arch: operation.EnvArch = None,
    server: shell.Server = None,
    verbosity: operation.Verbosity = None,
    wid_file: operation.Wid = None,
    force: operation.Force = False,
    disable_bootloader: Annotated[
        bool,
        typer.Option("--disable-bootloader-install", help="Install no boot loader.", rich_help_panel=usage.DISK),
    ] = False,
    disable_partitioning: Annotated[
        bool,
        typer.Option(
            "--disable-disk-partitioning", help="Keep the partitions as they are.", rich_help_panel=usage.DISK
        ),
    ] = False,
    breakpoint_: Annotated[
        str,
        typer.Option(
            "--breakpoint",
            metavar="MICROSTEP",
            help="Stop just before macrostep:microstep.",
            rich_help_panel=usage.STEPS,
            autocompletion=completion.steps,
        ),
    ] = "",
    custom_operations: Annotated[
        str | None,
        typer.Option(
            "--set-custom-operations",
            metavar="FILE",
            help="Add the custom operations of a file.",
            rich_help_panel=usage.STEPS,
        ),
    ] = None,
    classical_timeout: operation.ClassicalTimeout = None,
    kexec_timeout: Annotated[
        str | None,
        typer.Option("--reboot-kexec-timeout", metavar="V", help="The same for kexec.", rich_help_panel=usage.BOOT),
    ] = None,
    force_steps: Annotated[
        str | None,
        typer.Option(
            "--force-steps",
            metavar="STRING",
            help="Use these steps, not the configured ones.",
            rich_help_panel=usage.STEPS,
        ),
    ] = None,
    no_kexec: Annotated[
        bool, typer.Option("--no-kexec", help="Reboot instead of using kexec.", rich_help_panel=usage.BOOT)
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end (default), or not.", rich_help_panel=usage.RUN)
    ] = True,
    cancel: operation.Cancel = None,
    attach: operation.Attach = None,
    speed: operation.Speed = 0.0,
    wait_for: operation.WaitFor = None,
    hook: operation.Hook = True,
    known_hosts: Annotated[
        str | None,
        typer.Option(
            "--known-hosts", metavar="FILE", help="Write the nodes' new host keys there.", rich_help_panel=usage.OUTPUT
        ),
    ] = None,
    dry_run: operation.DryRun = False,
    form: operation.Format = "text",
    _owner_hint: Annotated[str | None, typer.Option("-l", hidden=True, callback=_no_l)] = None,
) -> int:
    """Deploy an environment on nodes."""
    who = caller()
    outputs = operation.Outputs(ok_file, ko_file, wid_file, known_hosts)
    if not dry_run:
        outputs.create()
    service = together.asked(server, multi_server, all_or_nothing)
    operation.require_end(form, dry_run, wait)
    if script:
        operation.check_script(script, who)
    other = operation.Other(cancel, attach, wait_for, speed)
    if wid := other.wid(machines or node_files):
        return operation.of_another(other, wid, service, NAME, outputs, script, form, verbosity, debug)
    names = operation.nodes(machines, node_files, service.site)
    env_name = operation.one_of("an environment", {"-e": env_name, "the first word": env})
    request = DeployRequest(
        user=who.name,
        nodes=names,
        environment=_environment(
            who, env_file, Recorded(name=env_name or "", version=env_version, owner=user, arch=env_arch)
        ),
        options=Options(
            authorized_keys=files.read_keys(key, who) if key is not None else "",
            reformat_tmp=reformat_tmp,
            block_device=block_device or "",
            partition=partition,
            boot_partition=boot_partition,
            vlan=vlan or "",
            pxe_profile=operation.boot_profile(profile, who) if profile else "",
            singularities=operation.singularities(pattern, who),
            disable_bootloader_install=disable_bootloader,
            disable_disk_partitioning=disable_partitioning,
            breakpoint=breakpoint_,
            custom_operations=_custom_operations(custom_operations, who, service),
            reboot_timeout=classical_timeout or "",
            kexec_timeout=kexec_timeout or "",
            no_kexec=no_kexec,
            debug=debug,
        ),
        uploads=operation.uploads(upload),
        force_steps=plan.parse_force_steps(force_steps, service.register) if force_steps else None,
        ignore_nodes_deploying=force,
        hook=hook,
        host_keys=known_hosts is not None,
    )
    if dry_run:
        return operation.show(service, request)
    if not wait:
        return operation.in_background(service, request, NAME, outputs, script, together.words(server, multi_server))
    output = operation.apart(form)
    display = operation.display_of(NAME, service, verbosity, debug)
    report = operation.carry_out(service, request, display, outputs)
    if script:
        operation.run_script(script, who)
    operation.answer(output, report)
    return operation.status(report, service.site)


def _environment(who: Account, file: str | None, recorded: Recorded) -> Recorded | Described:
    """The environment of ``-a`` or ``-e``."""
    if file is not None and recorded.name:
        raise OptionError("-a and -e name two environments: choose one.")
    if file is not None:
        if recorded != Recorded(name=""):
            raise OptionError("-u, --env-version and --env-arch go with -e, the name of a recorded environment.")
        found = description.load(file, who, shell.warn)
        if len(found) != 1:
            raise OptionError(f"-a {file}: it describes {len(found)} environments; keep one in the file.")
        return Described(environment=found[0])
    if not recorded.name:
        raise OptionError("No environment: name a recorded one with -e NAME, or give a description with -a FILE.")
    return recorded


def _custom_operations(path: str | None, who: Account, service: Service) -> tuple[CustomOperation, ...]:
    return custom.load(path, who, service.register) if path else ()


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
