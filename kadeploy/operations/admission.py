"""From a request to work: everything is checked before anything is touched.

Each kind of request (`DeployRequest`, `RebootRequest`, `PowerRequest`) is admitted by the function of its name, which
answers with `Work`: who does what to which nodes. A refusal is an exception whose text says what to do.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from kadeploy.boot import kernels, loaders, profile
from kadeploy.boot.profile import NODE_PATTERN
from kadeploy.config import content
from kadeploy.config.cluster import Cluster, Implementation, StepTable
from kadeploy.config.folder import Configuration
from kadeploy.config.timeouts import evaluate_timeout
from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import MissingOptionError, NodeListError, OptionError, VlanError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import fold, require_few
from kadeploy.operations import choice, custom, permission, placement, plan, production, quarantine
from kadeploy.operations.requests import (
    DeployRequest,
    Described,
    PowerOperation,
    PowerRequest,
    RebootKind,
    RebootRequest,
    Recorded,
    Wish,
)
from kadeploy.operations.work import States, Work, run_folder
from kadeploy.power.switch import LEVELS
from kadeploy.runner import hooks, inventory, playbooks, post_installs
from kadeploy.runner.request import Assignment, NextBoot, Options, RequestNode, profile_sources
from kadeploy.state import environments, journal
from kadeploy.state.nodes import NO_ENVIRONMENT, State
from kadeploy.state.nodes import Recorded as OnNode
from kadeploy.workflow import Operation


def admit(request: Wish, configuration: Configuration) -> Work:
    """Admit a request of any kind; raises as the function for its kind does."""
    match request:
        case DeployRequest():
            return deploy(request, configuration)
        case RebootRequest():
            return reboot(request, configuration)
        case PowerRequest():
            return power(request, configuration)


# --- deploy ---------------------------------------------------------------------------------------------------------


def deploy(request: DeployRequest, configuration: Configuration) -> Work:
    """Admit a deployment.

    Raises:
        NodeListError: a node that the site does not have.
        RightsError: names the nodes and the partition on which the caller has no right.
        OptionError: options that do not fit the nodes' clusters, the environment or each other.
        ProfileRefusedError: the boot loader cannot hand on the environment's kernel parameters.
        ConfigError: the cluster's loader cannot boot such a system.
        EnvironmentRefusedError: there is no such environment, or it cannot be deployed.
        QuarantineError: all nodes are in quarantine, and the user is no administrator.
    """
    request = _with_full_names(request, configuration)
    environment = _environment(configuration, request.user, request.environment, request.nodes)
    anonymous = isinstance(request.environment, Described)
    _readable(request.uploads, request.options)
    placement.require_disk(request.options)
    options = placement.placed(request.options, environment)
    options = msgspec.structs.replace(options, breakpoint=playbooks.named_today(options.breakpoint))
    parts = _Parts(configuration, request.user, request.nodes, options)
    assignments = parts.assignments("deploy", environment=environment)
    notes: list[str] = []
    plans: dict[str, StepTable] = {}
    passing: dict[str, tuple[str, ...]] = {}
    for name, each in assignments.items():
        _fits(each)
        _boots(each)
        wanted, changes = plan.deployment(each.cluster, environment, options.no_kexec, request.force_steps)
        is_forced = request.force_steps is not None
        chosen, left_out, told = choice.Chosen(wanted) if is_forced else choice.made(configuration.site, each, wanted)
        for way in (way for ways in chosen.values() for way in ways):
            playbooks.require_implementation(way.name, configuration.folder)
        if options.breakpoint:
            used = [way.name for ways in chosen.values() for way in ways]
            plan.check_breakpoint(custom.as_used(options.breakpoint, used), chosen, configuration.folder)
        plans[name] = tuple(chosen.items())
        passing |= {way: (*passing.get(way, ()), *names) for way, names in left_out.items()}
        notes += [f"{name}: {change}" for change in (*changes, *told)]
    _singular(options, request.nodes)
    assignments = _as_planned(assignments, plans)
    kept = NO_ENVIRONMENT if anonymous else OnNode.of(environment)
    return parts.work(
        assignments,
        plans,
        States("deploying", "deployed", "deploy_failed", ok_environment=kept, environment=kept),
        passing=passing,
        environment=environment,
        anonymous=anonymous,
        uploads=request.uploads,
        files=request.files,
        force=request.ignore_nodes_deploying,
        hook=configuration.site.hooks.end_of_deployment if request.hook else "",
        host_keys=request.host_keys,
        notes=tuple(dict.fromkeys(notes)),
    )


def _as_planned(assignments: Mapping[str, Assignment], plans: Mapping[str, StepTable]) -> dict[str, Assignment]:
    """*assignments* whose breakpoint and custom operations belong to implementations that some cluster goes through."""
    used = list(dict.fromkeys(way.name for steps in plans.values() for _, ways in steps for way in ways))
    fitted = {}
    for name, each in assignments.items():
        mine = [way.name for _, ways in plans[name] for way in ways]
        operations = custom.fitted(each.options.custom_operations, [*mine, *(way for way in used if way not in mine)])
        stop = custom.as_used(each.options.breakpoint, mine)
        options = msgspec.structs.replace(each.options, custom_operations=operations, breakpoint=stop)
        fitted[name] = msgspec.structs.replace(each, options=options)
    return fitted


def _environment(
    configuration: Configuration, user: str, wanted: Recorded | Described, nodes: Sequence[str]
) -> Environment:
    """What is asked for; of a recorded one, the version for the architecture of the nodes."""
    if isinstance(wanted, Described):
        return wanted.environment
    archs = {configuration.clusters[name].arch for name in configuration.cluster_nodes(list(nodes))} - {""}
    reference = Reference(wanted.name, wanted.version, wanted.owner, wanted.arch)
    return environments.find(configuration.site, user, reference, archs)


def _readable(uploads: Sequence[str], options: Options) -> None:
    """Refuse uploaded files that no boot profile of the user's could name."""
    if uploads and not options.pxe_profile:
        raise OptionError("-x goes with -w: without a PXE profile of yours nobody reads these files.")


def _fits(assignment: Assignment) -> None:
    """Refuse options that make no sense on this cluster."""
    options, cluster, environment = assignment.options, assignment.cluster, assignment.environment
    if environment is not None and cluster.arch and environment.arch not in ("", cluster.arch):
        raise OptionError(
            f"{environment.name} is for {environment.arch}, and cluster {cluster.name} is {cluster.arch}: choose "
            f"another environment, or correct `arch` in {cluster.file}."
        )
    for expression in filter(None, (options.reboot_timeout, options.kexec_timeout)):
        evaluate_timeout(expression, len(assignment.nodes))
    if options.reformat_tmp and options.reformat_tmp not in cluster.supported_filesystems:
        raise OptionError(
            f"-r {options.reformat_tmp}: cluster {cluster.name} formats {', '.join(cluster.supported_filesystems)}."
            f"{did_you_mean(options.reformat_tmp, cluster.supported_filesystems)}"
        )
    if assignment.partition is None and environment is not None and not environment.image.is_dd:
        raise OptionError("Without a partition the whole disk is written, which takes a dd image: add -p NUMBER.")
    placement.require_made(assignment)


def _boots(assignment: Assignment) -> None:
    """Refuse an environment that the cluster's loader could not boot in the end."""
    environment, loader, options = assignment.environment, assignment.cluster.loader, assignment.options
    if environment is None:
        return
    if environment.image.is_fsa and _nothing_boots(assignment):
        raise OptionError(
            f"{environment.name}: an archive of fsarchiver brings no boot loader. Say `filesystem` and `boot.kernel` "
            "in the description, so that one is installed, or bring your own with --disable-bootloader-install."
        )
    if inventory.grub_menu(assignment) and (reason := loaders.why_not(loader, environment)):
        raise OptionError(f"Cluster {assignment.cluster.name}: {reason}")
    if not options.pxe_profile:
        files = {what: f"{profile.FILES_FOLDER}/{what}" for what in kernels.wanted(environment, loader.method)}
        sources = profile_sources(msgspec.structs.replace(assignment, boot_files=files))
        profile.render(sources, "deployed", assignment.nodes[0])


def _nothing_boots(assignment: Assignment) -> bool:
    """Whether nodes would look for a boot loader on the disk that nobody has installed."""
    environment, loader = assignment.environment, assignment.cluster.loader
    is_linux = environment is not None and environment.environment_kind == "linux"
    has_kernel = environment is not None and environment.kernel != "" and inventory.grub_menu(assignment) != ""
    own = assignment.options.disable_bootloader_install
    return is_linux and loaders.boots(loader, environment) == "disk" and not has_kernel and not own


def _singular(options: Options, names: Sequence[str]) -> None:
    """Refuse a profile whose per-node word is not known for every node, and values for strangers."""
    strangers = [name for name in options.singularities if name not in names]
    if strangers:
        raise OptionError(f"--set-pxe-pattern: not among the nodes of this request: {fold(strangers)}.")
    missing = [name for name in names if name not in options.singularities]
    if NODE_PATTERN in options.pxe_profile and missing:
        raise OptionError(
            f"The boot profile has {NODE_PATTERN}, and --set-pxe-pattern has no line for {fold(missing)}."
        )


# --- reboot and power -----------------------------------------------------------------------------------------------

REBOOTS: Mapping[RebootKind, tuple[str, NextBoot]] = {
    "simple_reboot": ("RebootSimple", NextBoot(kind="none", target="any")),
    "set_pxe": ("RebootSetPxe", NextBoot(kind="custom", target="any")),
    "deploy_env": ("RebootDeployEnv", NextBoot(kind="deploy", target="deploy")),
    "env_recorded": ("RebootRecordedEnv", NextBoot(kind="deployed", target="user")),
}
"""Playbook and boot of each kind of reboot."""

POWERS: Mapping[PowerOperation, str] = {"on": "PowerOn", "off": "PowerOff", "status": "PowerStatus"}
"""Playbook of each power operation."""


def reboot(request: RebootRequest, configuration: Configuration) -> Work:
    """Admit a reboot; raises as `deploy` does.

    Raises:
        DestructiveEnvironmentError: with *check_production*, a node runs an environment that may have destroyed it.
    """
    _suits(request)
    placement.require_disk(request.options)
    request = _with_full_names(request, configuration)
    _readable(request.uploads, request.options)
    _singular(request.options, request.nodes)
    site = configuration.site
    environment = None
    if request.environment:
        environment = _environment(configuration, request.user, request.environment, request.nodes)
        if environment.multipart:
            request = msgspec.structs.replace(request, options=placement.placed(request.options, environment))
    if request.kind == "env_recorded" and request.options.partition is None:
        raise MissingOptionError("-r env_recorded needs the partition of the environment: -p NUMBER.")
    name, boot = REBOOTS[request.kind]
    boot = msgspec.structs.replace(boot, level=request.level, wait=request.wait)
    parts = _Parts(configuration, request.user, request.nodes, request.options)
    assignments = parts.assignments("reboot", environment=environment, boot=boot)
    return parts.work(
        assignments,
        dict.fromkeys(assignments, _single("Reboot", name, _harder_levels(request))),
        _reboot_states(request.kind, environment, assignments),
        environment=environment,
        uploads=request.uploads,
        files=request.files,
        force=request.ignore_nodes_deploying,
        notes=tuple(filter(None, map(_unusual, assignments.values()))),
        hook=site.hooks.end_of_reboot if request.hook else "",
        production=production.check(configuration, request.nodes, request.options.partition)
        if request.check_production
        else None,
    )


def _unusual(assignment: Assignment) -> str:
    """What people should know before nodes boot a partition that the site did not cut; empty when it did."""
    cut = [part.number for part in assignment.cluster.disk.partitions]
    if assignment.boot.kind != "deployed" or assignment.partition is None or assignment.partition in cut:
        return ""
    return f"{assignment.cluster.name}: its disks are cut into {', '.join(map(str, cut))}, and -p is another one"


_USES: Mapping[str, tuple[RebootKind, Callable[[RebootRequest], object]]] = {
    "-k": ("deploy_env", lambda request: request.options.authorized_keys),
    "-e": ("env_recorded", lambda request: request.environment),
    "-w": ("set_pxe", lambda request: request.options.pxe_profile),
    "-c": ("env_recorded", lambda request: request.check_production),
}
"""The only kind of reboot that each of these options makes sense for, and how a request has it."""


def _suits(request: RebootRequest) -> None:
    """Refuse options that make no sense for this kind of reboot, or without the end of it."""
    for option, (kind, given) in _USES.items():
        if given(request) and kind != request.kind:
            raise OptionError(f"{option} goes with -r {kind}, not with {request.kind}.")
    if request.kind == "set_pxe" and not request.options.pxe_profile:
        raise MissingOptionError("-r set_pxe needs the PXE profile: -w FILE.")
    if request.kind == "env_recorded" and request.environment is None:
        raise MissingOptionError("-r env_recorded needs the environment and its partition: -e NAME -p NUMBER.")
    if not request.wait and (request.check_production or request.options.authorized_keys):
        raise OptionError("--no-wait: -c and -k need the end of the reboot. Leave them out.")


def _reboot_states(kind: RebootKind, environment: Environment | None, assignments: Mapping[str, Assignment]) -> States:
    if kind == "deploy_env":
        return States("rebooting", "deploy_env", "reboot_failed", ok_environment=NO_ENVIRONMENT)
    if kind == "env_recorded":
        on_production = all(each.partition == each.cluster.disk.number("prod") for each in assignments.values())
        state: State = "prod_env" if on_production else "recorded_env"
        kept = OnNode.of(environment) if environment else None
        return States("rebooting", state, "reboot_failed", ok_environment=kept)
    return States("rebooting", "rebooted", "reboot_failed")


def power(request: PowerRequest, configuration: Configuration) -> Work:
    """Admit a power operation; raises as `deploy` does."""
    request = _with_full_names(request, configuration)
    options = Options(debug=request.debug)
    parts = _Parts(configuration, request.user, request.nodes, options)
    boot = NextBoot(level=request.level, wait=request.wait)
    assignments = parts.assignments("power", boot=boot, power=request.operation)
    states = (
        States(None, None, None) if request.operation == "status" else States("powering", "powered", "power_failed")
    )
    return parts.work(
        assignments,
        dict.fromkeys(assignments, _single("Power", POWERS[request.operation])),
        states,
        force=request.ignore_nodes_deploying,
        hook=configuration.site.hooks.end_of_power if request.hook else "",
    )


def _harder_levels(request: RebootRequest) -> int:
    """How often nodes that do not come back are rebooted again, each time harder; nobody knows without waiting."""
    return len(LEVELS) - 1 - LEVELS.index(request.level) if request.wait else 0


def _single(macro_step: str, implementation: str, retries: int = 0) -> StepTable:
    """One macro-step, without a limit of its own."""
    return ((macro_step, (Implementation(name=implementation, retries=retries),)),)


# --- what all requests have in common -------------------------------------------------------------------------------


_Asked = TypeVar("_Asked", DeployRequest, RebootRequest, PowerRequest)


def _with_full_names(request: _Asked, configuration: Configuration) -> _Asked:
    """*request* with the whole name of each node of which the beginning was given; refuses more than the site takes."""
    if not request.nodes:
        raise NodeListError("No node is named: say which nodes are meant.")
    require_few(len(request.nodes), configuration.site.limits.nodes, "This request")
    request = msgspec.structs.replace(request, nodes=tuple(configuration.full_names(request.nodes)))
    if isinstance(request, PowerRequest):
        return request
    words = request.options.singularities
    whole = {full: word for name, word in words.items() for full in configuration.full_names([name])}
    return msgspec.structs.replace(request, options=msgspec.structs.replace(request.options, singularities=whole))


VLAN_NAME = re.compile(r"[A-Za-z0-9]{1,63}")
"""What becomes part of host names that are looked up, and a word of the site's command."""


class _Parts:
    """Nodes by cluster, and what requests and work are made of; refuses unknown nodes."""

    def __init__(self, configuration: Configuration, user: str, nodes: Sequence[str], options: Options) -> None:
        self.configuration = configuration
        self.user = user
        self.options = options
        self.groups = configuration.cluster_nodes(list(dict.fromkeys(nodes)))
        configuration.require_sound(self.groups)

    def assignments(
        self,
        operation: Operation,
        environment: Environment | None = None,
        boot: NextBoot = NextBoot(),  # noqa: B008 - frozen
        power: str = "",
    ) -> dict[str, Assignment]:
        """An assignment per cluster, once the user's rights on its partition have been checked."""
        site = self.configuration.site
        wid = journal.new_workflow_id(operation)
        made = {
            name: Assignment(
                wid=wid,
                operation=operation,
                user=self.user,
                config_dir=str(self.configuration.folder.resolve()),
                workflow_dir=str(run_folder(site, wid)),
                site=msgspec.structs.replace(site, database=""),
                cluster=self.configuration.clusters[name],
                environment=environment,
                boot=boot,
                power=power,
                options=self.options,
                nodes=tuple(self._node(self.configuration.clusters[name], node) for node in names),
            )
            for name, names in self.groups.items()
        }
        for assignment in made.values():
            placement.require_in_layout(assignment)
            permission.require(site, assignment)
        return made

    def work(
        self, assignments: Mapping[str, Assignment], plans: Mapping[str, StepTable], states: States, **more: object
    ) -> Work:
        """All of it together.

        Raises:
            ConfigError: a hook or a post-install of what it goes through, or what they need, is malformed.
            QuarantineError: all nodes are in quarantine, and the user is no administrator.
        """
        known = playbooks.by_name(self.configuration.folder)
        used = {way.name for steps in plans.values() for _, ways in steps for way in ways}
        folder = self.configuration.folder
        for path in (known[name] for name in used & known.keys()):
            own = [*hooks.of(path, folder), *(each for a in assignments.values() for each in post_installs.of(path, a))]
            if own or not playbooks.is_ours(path, folder):
                content.settings(folder)
        first = next(iter(assignments.values()))
        work = Work(
            wid=first.wid,
            operation=first.operation,
            user=self.user,
            configuration=self.configuration,
            groups={name: tuple(names) for name, names in self.groups.items()},
            plans=plans,
            assignments=assignments,
            states=states,
            **more,  # type: ignore[arg-type]
        )
        return quarantine.spared(work)

    def _node(self, cluster: Cluster, name: str) -> RequestNode:
        node = cluster.members[name]
        return RequestNode(**msgspec.structs.asdict(node), vlan_address=self._vlan_address(name))

    def _vlan_address(self, name: str) -> str:
        """Address of a node in the VLAN that was asked for; empty when none was."""
        vlan = self.configuration.site.vlan
        if not self.options.vlan:
            return ""
        if vlan is None:
            raise VlanError("--vlan: this site has no VLANs (site.yml, vlan).")
        if not VLAN_NAME.fullmatch(self.options.vlan):
            raise VlanError(f"--vlan {self.options.vlan!r}: a VLAN is named with letters and digits alone.")
        short, dot, domain = name.partition(".")
        full = f"{short}{vlan.hostname_suffix.replace('VLAN_ID', self.options.vlan)}{dot}{domain}"
        try:
            return str(socket.getaddrinfo(full, None, socket.AF_INET)[0][4][0])
        except OSError as error:
            raise VlanError(
                f"--vlan {self.options.vlan}: {full} cannot be resolved. Is the VLAN number right?"
            ) from error
