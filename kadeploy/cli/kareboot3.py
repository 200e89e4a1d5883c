"""kareboot3: reboot nodes into what is installed, the deployment system or a recorded environment."""

from __future__ import annotations

from typing import Annotated, Literal, cast, get_args

import typer

from kadeploy import files
from kadeploy.caller import caller
from kadeploy.cli import completion, operation, shell, together, usage
from kadeploy.errors import DestructiveEnvironmentError, OptionError
from kadeploy.hints import did_you_mean
from kadeploy.operations.requests import RebootKind, RebootRequest, Recorded
from kadeploy.runner.request import Options

NAME = "kareboot3"
PRODUCTION_LOST = 1
"""Exit status of ``-c`` when nodes did not come back on the production system (wiki page, Kareboot)."""

ALIASES: dict[str, RebootKind] = {"simple": "simple_reboot", "recorded_env": "env_recorded"}
"""Later names of kinds of reboot."""

app = shell.Tool(
    "Reboot nodes.",
    examples={
        "kareboot3 -m 'gdx-[5-8].site' -r simple_reboot": "Reboot on what is installed.",
        "kareboot3 -f nodes -r deploy_env -k": "Reboot into the deployment system and let your ssh keys in.",
        "kareboot3 -f nodes -r set_pxe -w profile -x kernel,initrd -l hard": "Boot your own kernel, by a boot profile.",
        "kareboot3 -f nodes -r env_recorded -e production -u root -p 2 -c": "Reboot on the production system, and tell "
        "by the exit status whether it has to be deployed again.",
    },
    statuses={
        **shell.NODE_STATUSES,
        PRODUCTION_LOST: "The request is refused, and no node was touched; or, with -c, some node did not come back on "
        "the production system, which has to be deployed again.",
        DestructiveEnvironmentError.exit_code: "With -c: the environment deployed on some node is demolishing. No "
        "node was touched; the production system has to be deployed again.",
    },
    aliases={
        **operation.ALIASES,
        "--check-destructive-tag": "--check-prod-env",
        "--op-level": "--reboot-level",
    },
    gone=operation.OF_DEPLOYMENTS,
    about="A node that does not come back, or still runs the system from before, is rebooted again, harder: soft "
    "over ssh, hard by its BMC, very_hard by switching it off and on. There are four kinds of reboot: "
    "simple_reboot boots what the node boots by itself, be it the deployment system, set_pxe follows the boot "
    "profile of -w, deploy_env boots the deployment system, and env_recorded boots the environment that is "
    "installed on the partition of -p. simple_reboot is what happens without -r.",
)


@app.command()
def kareboot3(
    first: Annotated[
        str | None,
        typer.Argument(hidden=True, metavar="REBOOT_KIND", autocompletion=completion.choices(*get_args(RebootKind))),
    ] = None,
    *,
    machines: shell.Machines = None,
    node_files: shell.Files = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--reboot-kind",
            metavar="REBOOT_KIND",
            help="simple_reboot (default), set_pxe, deploy_env, env_recorded.",
            autocompletion=completion.choices(*get_args(RebootKind)),
        ),
    ] = None,
    level: Annotated[
        Literal["soft", "hard", "very_hard"],
        typer.Option("-l", "--reboot-level", metavar="VALUE", help="Reboot level: soft, hard, very_hard."),
    ] = "soft",
    key: operation.Key = None,
    partition: operation.Partition = None,
    block_device: operation.BlockDevice = None,
    check: Annotated[
        bool,
        typer.Option(
            "-c",
            "--check-prod-env",
            "--check-demolishing-tag",
            help="Check that the production system survived.",
            rich_help_panel=usage.OUTPUT,
        ),
    ] = False,
    debug: operation.Debug = False,
    env_name: Annotated[
        str | None,
        typer.Option(
            "-e",
            "--env-name",
            metavar="ENVNAME",
            help="Recorded environment, name@user:version%arch.",
            autocompletion=completion.environments,
            rich_help_panel=usage.ENVIRONMENT,
        ),
    ] = None,
    multi_server: shell.MultiServer = False,
    all_or_nothing: shell.AllOrNothing = False,
    ok_file: shell.OkFile = None,
    ko_file: shell.KoFile = None,
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
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end (default), or not.", rich_help_panel=usage.RUN)
    ] = True,
    server: shell.Server = None,
    verbosity: operation.Verbosity = None,
    wid_file: operation.Wid = None,
    force: operation.Force = False,
    classical_timeout: operation.ClassicalTimeout = None,
    cancel: operation.Cancel = None,
    attach: operation.Attach = None,
    speed: operation.Speed = 0.0,
    wait_for: operation.WaitFor = None,
    hook: operation.Hook = True,
    dry_run: operation.DryRun = False,
    form: operation.Format = "text",
) -> int:
    """Reboot nodes."""
    who = caller()
    outputs = operation.Outputs(ok_file, ko_file, wid_file)
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
    chosen = _kind(operation.one_of("a kind of reboot", {"-r": kind, "the first word": first}))
    recorded = Recorded(name=env_name or "", version=env_version, owner=user, arch=env_arch)
    if not recorded.name and recorded != Recorded(name=""):
        raise OptionError("-u, --env-version and --env-arch go with -e, the name of a recorded environment.")
    request = RebootRequest(
        user=who.name,
        nodes=names,
        kind=chosen,
        level=level,
        wait=wait,
        environment=recorded if recorded.name else None,
        check_production=check,
        options=Options(
            authorized_keys=files.read_keys(key, who) if key is not None else "",
            block_device=block_device or "",
            partition=partition,
            vlan=vlan or "",
            pxe_profile=operation.boot_profile(profile, who) if profile else "",
            singularities=operation.singularities(pattern, who),
            reboot_timeout=classical_timeout or "",
            debug=debug,
        ),
        uploads=operation.uploads(upload),
        ignore_nodes_deploying=force,
        hook=hook,
    )
    if dry_run:
        return operation.show(service, request)
    output = operation.apart(form)
    display = operation.display_of(NAME, service, verbosity, debug)
    report = operation.carry_out(service, request, display, outputs)
    if script:
        operation.run_script(script, who)
    operation.answer(output, report)
    if check and report.ko.keys() - set(report.taken) and not report.aborted:
        return PRODUCTION_LOST
    return operation.status(report, service.site)


def _kind(given: str | None) -> RebootKind:
    """The kind of reboot that was asked for, by whichever of its names."""
    name = ALIASES.get(given or "simple", given)
    if name not in get_args(RebootKind):
        kinds = get_args(RebootKind)
        hint = did_you_mean(given or "", (*kinds, *ALIASES))
        raise OptionError(f"-r {given}: no such kind of reboot. There are {', '.join(kinds)}.{hint}")
    return cast("RebootKind", name)


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
