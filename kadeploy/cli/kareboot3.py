"""kareboot3: reboot nodes into what is installed, the deployment system or a recorded environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, cast

import typer

from kadeploy import files
from kadeploy.caller import Account, caller
from kadeploy.cli import completion, operation, shell
from kadeploy.cli.display import Display
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import DestructiveEnvironment, Interrupted, OptionError
from kadeploy.nodeset import fold
from kadeploy.operations import admission
from kadeploy.operations.admission import RebootKind, RebootRequest
from kadeploy.operations.launch import Report
from kadeploy.runner.request import Options
from kadeploy.state import environments, nodes

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
        DestructiveEnvironment.exit_code: "With -c: the environment deployed on some node is demolishing. No node was "
        "touched; the production system has to be deployed again.",
    },
    about="A node that does not come back is rebooted again, harder: soft over ssh, hard by its BMC, very_hard by "
    "switching it off and on. There are four kinds of reboot: simple_reboot boots what is installed, set_pxe follows "
    "the boot profile of -w, deploy_env boots the deployment system, and env_recorded boots the environment that is "
    "installed on the partition of -p.",
)


@app.command()
def kareboot3(
    *,
    block_device: operation.BlockDevice = None,
    check: Annotated[
        bool,
        typer.Option(
            "-c",
            "--check-prod-env",
            "--check-demolishing-tag",
            help="Check that the production system survived.",
        ),
    ] = False,
    debug: operation.Debug = False,
    env_name: Annotated[
        str | None,
        typer.Option(
            "-e",
            "--env-name",
            metavar="ENVNAME",
            help="Name of a recorded environment.",
            autocompletion=completion.environments,
        ),
    ] = None,
    node_files: shell.Files = None,
    key: operation.Key = None,
    level: Annotated[
        Literal["soft", "hard", "very_hard"],
        typer.Option("-l", "--reboot-level", metavar="VALUE", help="Reboot level: soft, hard, very_hard."),
    ] = "soft",
    machines: shell.Machines = None,
    _multi_server: shell.MultiServer = False,
    ko_file: shell.KoFile = None,
    ok_file: shell.OkFile = None,
    partition: operation.Partition = None,
    kind: Annotated[
        Literal["set_pxe", "simple_reboot", "deploy_env", "env_recorded", "simple", "recorded_env"] | None,
        typer.Option(
            "-r",
            "--reboot-kind",
            metavar="REBOOT_KIND",
            help="simple_reboot, set_pxe, deploy_env or env_recorded.",
        ),
    ] = None,
    user: operation.User = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
    vlan: operation.Vlan = None,
    profile: operation.Profile = None,
    pattern: operation.Pattern = None,
    upload: operation.Uploads = None,
    env_version: operation.EnvVersion = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end (default), or not.")] = True,
    _server: shell.Server = None,
    verbosity: operation.Verbosity = None,
    wid_file: operation.Wid = None,
    classical_timeout: operation.ClassicalTimeout = None,
    hook: operation.Hook = True,
    dry_run: operation.DryRun = False,
) -> int:
    """Reboot nodes."""
    who = caller()
    names = operation.nodes(machines, node_files)
    if kind is None:
        raise OptionError("No kind of reboot: choose one with -r: simple_reboot, set_pxe, deploy_env, env_recorded.")
    chosen = ALIASES.get(kind, cast("RebootKind", kind))
    outputs = operation.Outputs(ok_file, ko_file, wid_file)
    _require_use(chosen, {"-k": key, "-e": env_name, "-u": user, "--env-version": env_version, "-w": profile})
    if not wait and (check or ok_file or ko_file or key is not None):
        raise OptionError("--no-wait: -c, -o, -n and -k need the end of the reboot. Leave them out.")
    if check and chosen != "env_recorded":
        raise OptionError("-c goes with -r env_recorded, the reboot on the production environment.")
    if chosen == "env_recorded" and (env_name is None or partition is None):
        raise OptionError("-r env_recorded needs the environment and its partition: -e NAME -p NUMBER.")
    configuration = load_configuration()
    request = RebootRequest(
        caller=who,
        nodes=names,
        kind=chosen,
        level=level,
        wait=wait,
        environment=_environment(configuration.site, who, env_name, env_version, user),
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
        uploads=operation.uploads(upload, profile),
        hook=hook,
    )
    work = admission.reboot(request, configuration)
    before: dict[str, Environment] = {}
    if check:
        _require_production(configuration, names, partition)
        before = _last_environments(configuration.site, names)
        _require_harmless(configuration.site, before)
    if dry_run:
        return operation.show(work)
    outputs.create()
    display = Display(configuration.site.verbosity if verbosity is None else verbosity, debug)
    report = operation.carry_out(work, display, outputs)
    return _checked(configuration.site, report, before) if check else operation.status(report)


_USES: dict[str, RebootKind] = {
    "-k": "deploy_env",
    "-e": "env_recorded",
    "-u": "env_recorded",
    "--env-version": "env_recorded",
    "-w": "set_pxe",
}
"""The only kind of reboot that each of these options makes sense for."""


def _require_use(kind: RebootKind, given: dict[str, object]) -> None:
    for option, value in given.items():
        if value is not None and _USES[option] != kind:
            raise OptionError(f"{option} goes with -r {_USES[option]}, not with {kind}.")
    if kind == "set_pxe" and not given["-w"]:
        raise OptionError("-r set_pxe needs the PXE profile: -w FILE.")


def _environment(
    site: Site, who: Account, name: str | None, version: int | None, owner: str | None
) -> Environment | None:
    return environments.find(site, who.name, name, version, owner) if name else None


# --- -c ---------------------------------------------------------------------------------------------------------


def _require_production(configuration: Configuration, names: Iterable[str], partition: int | None) -> None:
    """Refuse ``-c`` for a partition that does not hold the production system."""
    for cluster in configuration.cluster_nodes(list(names)):
        number = configuration.clusters[cluster].disk.number("prod")
        if number != partition:
            where = f"partition {number}" if number else "no partition at all (disk.partitions)"
            raise OptionError(f"-c: the production environment of cluster {cluster} is on {where}, not on {partition}.")


def _last_environments(site: Site, names: Iterable[str]) -> dict[str, Environment]:
    """The recorded environment on each node that has one."""
    found = {}
    for row in nodes.states(site, list(names)):
        if row.env_name and row.env_version is not None:
            environment = environments.recorded(site, row.env_name, row.env_version, row.env_owner)
            if environment is not None:
                found[row.hostname] = environment
    return found


def _require_harmless(site: Site, before: dict[str, Environment]) -> None:
    bad = [name for name, environment in before.items() if environments.is_demolishing(site, environment)]
    if bad:
        which = ", ".join(sorted({before[name].name for name in bad}))
        raise DestructiveEnvironment(
            f"{fold(bad)}: the environment deployed there ({which}) is demolishing. Deploy the production system again."
        )


def _checked(site: Site, report: Report, before: dict[str, Environment]) -> int:
    """Exit status of ``-c``; failures are counted against the environments that were on the nodes."""
    if report.aborted:
        return Interrupted.exit_code
    if report.ko and site.demolishing.auto_tag:
        environments.add_failure(site, [before[name] for name in report.ko if name in before])
    return PRODUCTION_LOST if report.ko else 0


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
