"""From a request to work: everything is checked before anything is touched.

Each kind of request (`DeployRequest`, `RebootRequest`, `PowerRequest`) is admitted by the function of its name, which
answers with `Work`: who does what to which nodes. A refusal is an exception whose text says what to do.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from kadeploy.boot.profile import NODE_PATTERN
from kadeploy.caller import Account
from kadeploy.config.cluster import Cluster, Implementation
from kadeploy.config.folder import Configuration
from kadeploy.config.partition import split_partition
from kadeploy.config.site import Site
from kadeploy.config.timeouts import evaluate_timeout
from kadeploy.environments.environment import Environment
from kadeploy.errors import OptionError
from kadeploy.nodeset import fold
from kadeploy.operations import plan
from kadeploy.operations.plan import Steps
from kadeploy.runner import playbooks
from kadeploy.runner.request import Assignment, NextBoot, Options, RequestNode
from kadeploy.state import journal, rights
from kadeploy.state.nodes import NO_ENVIRONMENT, Named, State
from kadeploy.workflow import Plan

RebootKind = Literal["simple_reboot", "set_pxe", "deploy_env", "env_recorded"]
Level = Literal["soft", "hard", "very_hard"]
PowerOperation = Literal["on", "off", "status"]


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DeployRequest:
    """What ``kadeploy3`` asks for."""

    caller: Account
    nodes: tuple[str, ...]
    environment: Environment
    anonymous: bool = False
    """The environment is not a recorded one."""
    options: Options = field(default_factory=Options)
    uploads: tuple[str, ...] = ()
    """Paths and URLs of ``-x``."""
    force_steps: Steps | None = None
    ignore_nodes_deploying: bool = False
    hook: bool = True


@dataclass(frozen=True, kw_only=True)
class RebootRequest:
    """What ``kareboot3`` asks for."""

    caller: Account
    nodes: tuple[str, ...]
    kind: RebootKind
    level: Level = "soft"
    wait: bool = True
    environment: Environment | None = None
    """For env_recorded."""
    options: Options = field(default_factory=Options)
    uploads: tuple[str, ...] = ()
    hook: bool = True


@dataclass(frozen=True, kw_only=True)
class PowerRequest:
    """What ``kapower3`` asks for."""

    caller: Account
    nodes: tuple[str, ...]
    operation: PowerOperation
    level: Level = "soft"
    wait: bool = True
    debug: bool = False
    hook: bool = True


# --- work -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class States:
    """What is recorded of a node while an operation runs and after it; None: nothing, the node is as it was."""

    begun: State | None
    ok: State | None
    ko: State | None
    ok_environment: Named | None = None
    """Environment on the nodes that are OK; None leaves what is recorded."""
    environment: Named | None = None
    """Environment recorded at the beginning and for nodes that are KO."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request that was found good: who does what to which nodes. Nothing has been touched yet."""

    wid: str
    operation: journal.Operation
    caller: Account
    configuration: Configuration
    groups: Mapping[str, tuple[str, ...]]
    """Nodes by cluster."""
    plans: Mapping[str, Plan]
    """By cluster."""
    requests: Mapping[str, Assignment]
    """By cluster: what all its attempts have in common."""
    states: States
    environment: Environment | None = None
    anonymous: bool = False
    uploads: tuple[str, ...] = ()
    """Paths and URLs of files that the boot loader shall find (``-x``)."""
    force: bool = False
    """Take nodes from the workflows that hold them."""
    hook: str = ""
    notes: tuple[str, ...] = ()
    """What people should know: where a plan is not what the configuration says."""

    @property
    def site(self) -> Site:
        """The site, database URL included."""
        return self.configuration.site

    @property
    def folder(self) -> Path:
        """Where all there is to know about the workflow is kept."""
        return run_folder(self.site, self.wid)

    @property
    def names(self) -> list[str]:
        """All nodes."""
        return [name for names in self.groups.values() for name in names]

    @property
    def members(self) -> dict[str, RequestNode]:
        """All nodes, with what is known about each."""
        return {node.name: node for request in self.requests.values() for node in request.nodes}

    def only(self, names: list[str]) -> Work:
        """The same for fewer nodes."""
        wanted = set(names)
        groups = {cluster: tuple(n for n in group if n in wanted) for cluster, group in self.groups.items()}
        return replace(self, groups={cluster: group for cluster, group in groups.items() if group})


# --- deploy ---------------------------------------------------------------------------------------------------------


def deploy(request: DeployRequest, configuration: Configuration) -> Work:
    """Admit a deployment.

    Raises:
        NodeListError: a node that the site does not have.
        RightsError: names the nodes and the partition on which the caller has no right.
        OptionError: options that do not fit the nodes' clusters, the environment or each other.
    """
    environment = request.environment
    options = _on_default_partition(request.options, environment)
    parts = _Parts(configuration, request.caller, request.nodes, options)
    requests = parts.requests("deploy", environment=environment)
    notes: list[str] = []
    plans: dict[str, Plan] = {}
    for name, each in requests.items():
        _fits(each)
        chosen, changes = plan.deployment(each.cluster, environment, options.no_kexec, request.force_steps)
        for way in (way for ways in chosen.values() for way in ways):
            playbooks.require_implementation(way.name, configuration.folder)
        if options.breakpoint:
            plan.check_breakpoint(options.breakpoint, chosen, configuration.folder)
        plans[name] = tuple(chosen.items())
        notes += [f"{name}: {change}" for change in changes]
    _singular(options, request.nodes)
    kept = NO_ENVIRONMENT if request.anonymous else environment
    return parts.work(
        requests,
        plans,
        States("deploying", "deployed", "deploy_failed", ok_environment=kept, environment=kept),
        environment=environment,
        anonymous=request.anonymous,
        uploads=request.uploads,
        force=request.ignore_nodes_deploying,
        hook=configuration.site.hooks.end_of_deployment if request.hook else "",
        notes=tuple(dict.fromkeys(notes)),
    )


def _on_default_partition(options: Options, environment: Environment) -> Options:
    """*options* with the environment's own partition where the user named none."""
    if not environment.part or options.block_device or options.partition is not None:
        return options
    device, number = split_partition(environment.part)
    return msgspec.structs.replace(options, block_device=device, partition=number, whole_device=number is None)


def _fits(request: Assignment) -> None:
    """Refuse options that make no sense on this cluster."""
    options, cluster, environment = request.options, request.cluster, request.environment
    for expression in filter(None, (options.reboot_timeout, options.kexec_timeout)):
        evaluate_timeout(expression, len(request.nodes))
    if options.reformat_tmp and options.reformat_tmp not in cluster.supported_filesystems:
        raise OptionError(
            f"-r {options.reformat_tmp}: cluster {cluster.name} formats {', '.join(cluster.supported_filesystems)}."
        )
    if request.partition is None and environment is not None and not environment.image.is_dd:
        raise OptionError("Without a partition the whole disk is written, which takes a dd image: add -p NUMBER.")
    numbers = [part.number for part in cluster.disk.partitions]
    if request.partition and request.partition not in numbers and not options.disable_disk_partitioning:
        raise OptionError(
            f"-p {request.partition}: the disks of cluster {cluster.name} are cut into {', '.join(map(str, numbers))}. "
            "Choose one of these, or keep the disk as it is with --disable-disk-partitioning."
        )


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
    "simple_reboot": ("RebootSimple", NextBoot(kind="none", target="user")),
    "set_pxe": ("RebootSetPxe", NextBoot(kind="custom", target="user")),
    "deploy_env": ("RebootDeployEnv", NextBoot(kind="deploy", target="deploy")),
    "env_recorded": ("RebootRecordedEnv", NextBoot(kind="deployed", target="user")),
}
"""Playbook and boot of each kind of reboot."""

POWERS: Mapping[PowerOperation, str] = {"on": "PowerOn", "off": "PowerOff", "status": "PowerStatus"}
"""Playbook of each power operation."""


def reboot(request: RebootRequest, configuration: Configuration) -> Work:
    """Admit a reboot; raises as `deploy` does."""
    _singular(request.options, request.nodes)
    name, boot = REBOOTS[request.kind]
    boot = msgspec.structs.replace(boot, level=request.level, wait=request.wait)
    parts = _Parts(configuration, request.caller, request.nodes, request.options)
    requests = parts.requests("reboot", environment=request.environment, boot=boot)
    return parts.work(
        requests,
        dict.fromkeys(requests, _single("Reboot", name)),
        _reboot_states(request, requests),
        environment=request.environment,
        uploads=request.uploads,
        hook=configuration.site.hooks.end_of_reboot if request.hook else "",
    )


def _reboot_states(request: RebootRequest, requests: Mapping[str, Assignment]) -> States:
    if request.kind == "deploy_env":
        return States("rebooting", "deploy_env", "reboot_failed", ok_environment=NO_ENVIRONMENT)
    if request.kind == "env_recorded":
        production = all(each.partition == each.cluster.disk.number("prod") for each in requests.values())
        state: State = "prod_env" if production else "recorded_env"
        return States("rebooting", state, "reboot_failed", ok_environment=request.environment)
    return States("rebooting", "rebooted", "reboot_failed")


def power(request: PowerRequest, configuration: Configuration) -> Work:
    """Admit a power operation; raises as `deploy` does."""
    options = Options(debug=request.debug or request.operation == "status")
    parts = _Parts(configuration, request.caller, request.nodes, options)
    boot = NextBoot(level=request.level, wait=request.wait)
    requests = parts.requests("power", boot=boot, power=request.operation)
    states = (
        States(None, None, None) if request.operation == "status" else States("powering", "powered", "power_failed")
    )
    return parts.work(
        requests,
        dict.fromkeys(requests, _single("Power", POWERS[request.operation])),
        states,
        hook=configuration.site.hooks.end_of_power if request.hook else "",
    )


def _single(macro_step: str, implementation: str) -> Plan:
    """One macro-step, tried once, without a limit of its own."""
    return ((macro_step, (Implementation(name=implementation),)),)


# --- what all requests have in common -------------------------------------------------------------------------------


class _Parts:
    """Nodes by cluster, and what requests and work are made of; refuses unknown nodes."""

    def __init__(self, configuration: Configuration, caller: Account, nodes: Sequence[str], options: Options) -> None:
        self.configuration = configuration
        self.caller = caller
        self.options = options
        self.groups = configuration.cluster_nodes(list(dict.fromkeys(nodes)))

    def requests(
        self,
        operation: journal.Operation,
        environment: Environment | None = None,
        boot: NextBoot = NextBoot(),  # noqa: B008 - frozen
        power: str = "",
    ) -> dict[str, Assignment]:
        """A request per cluster, once the caller's rights on its partition have been checked."""
        site = self.configuration.site
        wid = journal.new_workflow_id(operation)
        made = {
            name: Assignment(
                wid=wid,
                operation=operation,
                user=self.caller.name,
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
        for name, request in made.items():
            rights.require(site, self.caller.name, self.groups[name], request.deploy_part)
        return made

    def work(
        self, requests: Mapping[str, Assignment], plans: Mapping[str, Plan], states: States, **more: object
    ) -> Work:
        """All of it together."""
        first = next(iter(requests.values()))
        return Work(
            wid=first.wid,
            operation=first.operation,
            caller=self.caller,
            configuration=self.configuration,
            groups={name: tuple(names) for name, names in self.groups.items()},
            plans=plans,
            requests=requests,
            states=states,
            **more,  # type: ignore[arg-type]
        )

    def _node(self, cluster: Cluster, name: str) -> RequestNode:
        node = cluster.members[name]
        return RequestNode(**msgspec.structs.asdict(node), vlan_address=self._vlan_address(name))

    def _vlan_address(self, name: str) -> str:
        """Address of a node in the VLAN that was asked for; empty when none was."""
        vlan = self.configuration.site.vlan
        if not self.options.vlan:
            return ""
        if vlan is None:
            raise OptionError("--vlan: this site has no VLANs (site.yml, vlan).")
        short, dot, domain = name.partition(".")
        full = f"{short}{vlan.hostname_suffix.replace('VLAN_ID', self.options.vlan)}{dot}{domain}"
        try:
            return str(socket.getaddrinfo(full, None, socket.AF_INET)[0][4][0])
        except OSError as error:
            raise OptionError(
                f"--vlan {self.options.vlan}: {full} cannot be resolved. Is the VLAN number right?"
            ) from error


def run_folder(site: Site, wid: str) -> Path:
    """Where all there is to know about a workflow is kept."""
    return site.state / "runs" / wid
