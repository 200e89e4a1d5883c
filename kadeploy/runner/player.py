"""One attempt = one run of ansible-playbook: ansible-runner's one home.

A `Player` writes the request as an inventory, runs the playbook that is named after the implementation, and reads the
nodes' outcomes from the events of its tasks. Each attempt has a folder that holds all there is to know about it, and
`command`, a script that repeats it by hand.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from kadeploy import process
from kadeploy.broadcast import progress
from kadeploy.broadcast.progress import Transfer
from kadeploy.config import content
from kadeploy.config.cluster import address
from kadeploy.config.folder import collection, places
from kadeploy.events import Listener, Progress
from kadeploy.remote import broker, reach
from kadeploy.remote.fanout import Credentials, Target, on_all
from kadeploy.runner import custom, hooks, inventory, known_hosts, playbooks, post_installs, request, roles, shards
from kadeploy.runner.hooks import Hook
from kadeploy.runner.request import Assignment, Request, RequestNode
from kadeploy.runner.results import Reading
from kadeploy.workflow import Again, Attempt, Outcome, Verdict

MARK = "KADEPLOY_ATTEMPT_DIR"
"""Environment variable that every process of an attempt inherits; those that carry it are ended with the attempt."""

_POLL = 0.5
"""Seconds between two looks at the clock and at the stop event while a playbook runs."""

MANY = 100
"""Nodes beyond which a run by hand tells one by one only those that are KO: a task for each costs 20 ms."""

SETTINGS = {
    "ANSIBLE_CONFIG": "ansible.cfg",  # the run folder's: it is the working directory
    "ANSIBLE_GATHERING": "explicit",
    "ANSIBLE_FORKS": "20",
    "ANSIBLE_PIPELINING": "True",
    "ANSIBLE_HOST_KEY_CHECKING": "True",
    "ANSIBLE_RETRY_FILES_ENABLED": "False",
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
    "ANSIBLE_LOCALHOST_WARNING": "False",
    "ANSIBLE_DEPRECATION_WARNINGS": "False",
    "ANSIBLE_NOCOWS": "True",
    "ANSIBLE_NOCOLOR": "True",
    "LC_ALL": "C.UTF-8",
}
"""What every run sets, whatever the configuration files of the machine say."""

_CONFIGURATION = """\
# Keeps Ansible from reading other configuration files; what else counts is set in `command`.
[defaults]
# Seconds between two looks whether a task has ended: at Ansible's own 0.001, waiting for nodes costs 3 % of a core.
internal_poll_interval = 0.02
# Where nothing says otherwise, the package is installed.
[inventory]
enable_plugins = kadeploy.core.kadeploy
"""


@dataclass(frozen=True)
class Player:
    """Performs the attempts of one cluster's nodes.

    *assignment* is what is common to all attempts, *nodes* what is known about each node; once *stop* is set, running
    playbooks are ended within a second, with every process that they started. So is one whose nodes are all *taken*
    (why, by node). A playbook that is not ours may act on nodes as it likes: it is given them within *hold*.
    """

    assignment: Assignment
    nodes: Mapping[str, RequestNode]
    tell: Listener
    stop: threading.Event
    taken: Mapping[str, str] = field(default_factory=dict)
    hold: Callable[[Iterable[str]], AbstractContextManager[None]] = lambda _names: nullcontext()
    elsewhere: Callable[[Part, Listener], dict[str, Outcome] | None] = lambda _part, _tell: None
    """Has a part of an attempt carried out by another machine, where there is one that does."""

    def perform(self, attempt: Attempt, nodes: tuple[str, ...]) -> dict[str, Outcome]:
        """Run *attempt* on *nodes*: an outcome for each node that got to an end.

        Messages read ``<Implementation>-<micro-step>: reason``.
        """
        config_dir = Path(self.assignment.config_dir)
        playbook = find(attempt.implementation, config_dir)
        if playbook is None or (playbooks.is_ours(playbook, config_dir) and not self._own(playbook)):
            return self._perform(attempt, nodes)
        with self.hold(nodes):
            return self._perform(attempt, tuple(node for node in nodes if node not in self.taken))

    def _perform(self, attempt: Attempt, nodes: tuple[str, ...]) -> dict[str, Outcome]:
        if not nodes:
            return {}
        folder = Path(self.assignment.workflow_dir) / folder_name(attempt)
        parts = shards.cut(nodes, self._most(attempt, len(nodes)))
        whole = self._prepare(attempt, nodes, folder)
        if whole is None:
            return _all_ko(nodes, f"{attempt.implementation}: there is no playbook {attempt.implementation}.yml.")
        if len(parts) == 1:
            return self._carry_out(whole, self.tell)
        transfers = shards.Transfers(len(parts))

        def play(number: int, part: tuple[str, ...]) -> dict[str, Outcome]:
            prepared = self._prepare(attempt, part, shards.folder(folder, number), of=len(nodes))
            return self._carry_out(prepared, transfers.heard(number, self.tell)) if prepared else {}

        return shards.at_once(parts, play)

    def perform_part(self, attempt: Attempt, nodes: tuple[str, ...], of: int) -> dict[str, Outcome]:
        """Run *attempt* on *nodes*, which are those of a whole or of a shard *of* so many, in this very process."""
        part = self._prepare(attempt, nodes, Path(self.assignment.workflow_dir) / folder_name(attempt), of)
        return self._play(part, self.tell) if part else {}

    def _carry_out(self, part: Part, tell: Listener) -> dict[str, Outcome]:
        """Carry out *part*, elsewhere if need be. What is the site's own is on this machine alone."""
        is_ours = part.played == part.playbook and playbooks.can_be_cut(part.playbook, part.config_dir)
        answer = self.elsewhere(part, tell) if is_ours else None
        return self._play(part, tell) if answer is None else answer

    def _most(self, attempt: Attempt, count: int) -> int:
        """How many of *count* nodes one run of ansible-playbook may have."""
        config_dir = Path(self.assignment.config_dir)
        playbook = find(attempt.implementation, config_dir)
        can_be_cut = playbook is not None and playbooks.can_be_cut(playbook, config_dir)
        return self.assignment.site.shard if can_be_cut else count

    def _prepare(self, attempt: Attempt, nodes: tuple[str, ...], folder: Path, of: int = 0) -> Part | None:
        """All that a run needs, in its *folder*; None when there is no playbook. The nodes are a shard *of* so many."""
        folder.mkdir(mode=0o700, parents=True)
        this = self._request(attempt, nodes, folder, of)
        config_dir = Path(this.config_dir)
        playbook = find(attempt.implementation, config_dir)
        left_out = playbooks.left_out(playbook, inventory.wants(this)) if playbook else frozenset()
        own = self._own(playbook) if playbook else ()
        if playbook:
            replaced = {each.micro_step for each in own if each.when == "instead"}
            this = _with_operations(this, playbooks.micro_steps(playbook, config_dir), left_out | replaced)
        source = request.write(request.with_files(this, _Files(folder / request.FILES).place))
        known_hosts.write(this)
        if playbook is None:
            return None
        settings = environment(this)
        estate = None if not own and playbooks.is_ours(playbook, config_dir) else content.settings(config_dir)
        if estate:
            settings |= estate.variables(settings)
        played = hooks.write(folder, playbook, own, left_out, estate.secrets) if own and estate else playbook
        done = _done(playbook, attempt, config_dir)
        skipped = done if own else ("always", *done)
        _furnish(folder, skipped)
        _write_command(folder, settings, source, played, skipped, this.site.network_namespace, many=len(nodes) > MANY)
        steps = {each.play: each.step for each in own}
        return Part(this, folder, nodes, playbook, played, source, settings, left_out | set(done), steps)

    def _play(self, run: Part, tell: Listener) -> dict[str, Outcome]:
        """Run ansible-playbook on what was prepared."""
        attempt, nodes = run.attempt, run.nodes
        reading = Reading(attempt, nodes, run.left_out, tell, self._silent, self.taken, run.steps)
        begun = attempt.goes_on.begun if attempt.goes_on else time.monotonic()
        spy = _Spy(run.folder, attempt, reading, tell)
        watch = _Watch(run.folder, attempt.timeout, lambda: self._useless(nodes), begun, spy)
        rc = _run(run.settings, run.source, run.played, reading, watch)
        end_processes(run.folder)
        outcomes = reading.outcomes(_why(watch, attempt, rc, run.folder))
        return outcomes if watch.stopped else self._with_ways_on(run.playbook, outcomes, begun)

    def _own(self, playbook: Path) -> tuple[Hook, ...]:
        """What the site does around the micro-steps of *playbook*."""
        return (*post_installs.of(playbook, self.assignment), *hooks.of(playbook, Path(self.assignment.config_dir)))

    def _useless(self, nodes: Iterable[str]) -> bool:
        return self.stop.is_set() or all(node in self.taken for node in nodes)

    def _with_ways_on(self, playbook: Path, outcomes: dict[str, Outcome], begun: float) -> dict[str, Outcome]:
        """*outcomes*, in which nodes that are KO say how they are tried again.

        A node that is down, or has been booted meanwhile, has lost what earlier macro-steps did; a playbook that does
        not boot it would fail again. A reboot operation is repeated for nodes that did not come back, and for them
        alone.
        """
        config_dir = Path(self.assignment.config_dir)
        ko = {n: o for n, o in outcomes.items() if o.verdict is Verdict.KO and n not in self.taken}
        again: dict[str, Again] = {}
        if self.assignment.operation == "reboot":
            again = {n: "" if roles.find(o.micro_step, config_dir).booted else "never" for n, o in ko.items()}
        elif ko and not playbooks.reboots(playbook, config_dir):
            again = dict.fromkeys(asyncio.run(self._gone(ko, begun)), "before")
        return outcomes | {node: replace(ko[node], again=way) for node, way in again.items()}

    async def _gone(self, names: Iterable[str], begun: float) -> set[str]:
        """Those nodes that do not run the deployment system any more in which the attempt found them."""
        site = self.assignment.site
        targets = [Target(name, address(site, self.nodes[name]), site.ssh.port) for name in names]
        remote = await broker.connect(Path(self.assignment.workflow_dir), Credentials.of(site))

        async def same(target: Target) -> Outcome:
            age = await reach.boot_age(remote, target)
            return Outcome(Verdict.OK if age >= time.monotonic() - begun else Verdict.KO)

        try:
            found = await on_all(targets, same, site.windows.ssh)
        finally:
            await remote.close()
        return {name for name, outcome in found.items() if outcome.verdict is Verdict.KO}

    def _silent(self, role: str) -> bool:
        return not role or roles.find(role, Path(self.assignment.config_dir)).silent

    def _request(self, attempt: Attempt, nodes: tuple[str, ...], folder: Path, of: int) -> Request:
        common = msgspec.structs.asdict(self.assignment)
        members = tuple(self.nodes[node] for node in nodes)
        return Request(**common | {"nodes": members}, run_dir=str(folder), attempt=attempt, of=of)


def _done(playbook: Path, attempt: Attempt, config_dir: Path) -> tuple[str, ...]:
    """Tags of what an attempt on late nodes leaves out: it has been done."""
    if not attempt.goes_on:
        return ()
    step = attempt.goes_on.micro_step
    return (*playbooks.before(playbook, step, config_dir), hooks.tag(step, "pre"))


def _with_operations(this: Request, micro_steps: Sequence[str], left_out: frozenset[str]) -> Request:
    """*this* with the custom operations of this attempt alone, and its breakpoint, where they happen in it."""
    options, name = this.options, this.attempt.implementation
    changed = msgspec.structs.replace(
        options,
        custom_operations=custom.moved(options.custom_operations, name, micro_steps, left_out),
        breakpoint=custom.breakpoint_(options.breakpoint, name, micro_steps, left_out),
    )
    return msgspec.structs.replace(this, options=changed)


def folder_name(attempt: Attempt) -> str:
    """Name of an attempt's folder.

    >>> folder_name(Attempt("BootNewEnv", "BootNewEnvKexec", 1, 60, 3))
    '03-BootNewEnvKexec-retry1'
    """
    retry = f"-retry{attempt.retry}" if attempt.retry else ""
    late = "-late" if attempt.goes_on else ""
    return f"{attempt.number:02d}-{attempt.implementation}{retry}{late}"


def find(implementation: str, config_dir: Path) -> Path | None:
    """The playbook of *implementation*: the site's own, else ours."""
    candidates = (folder / f"{implementation}.yml" for folder in places(config_dir, "playbooks"))
    return next((path for path in candidates if path.is_file()), None)


def environment(this: Request) -> dict[str, str]:
    """Environment variables of a run, the same from a checkout and from an installed package; no secret among them."""
    site = Path(this.config_dir)
    plugins = collection() / "plugins"
    return SETTINGS | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "ANSIBLE_HOME": str(Path(this.workflow_dir) / "ansible"),
        "ANSIBLE_ROLES_PATH": ":".join(map(str, places(site, "roles"))),
        "ANSIBLE_ACTION_PLUGINS": f"{site / 'action_plugins'}:{plugins / 'action'}",
        "ANSIBLE_CONNECTION_PLUGINS": f"{site / 'connection_plugins'}:{plugins / 'connection'}",
        "ANSIBLE_INVENTORY_PLUGINS": str(plugins / "inventory"),
        "ANSIBLE_INVENTORY_ENABLED": "kadeploy",
        "KADEPLOY_CONFIG_DIR": str(site),
    }


@dataclass(frozen=True)
class Part:
    """A run of ansible-playbook on all nodes of an attempt, or on a shard of them, with its folder as it will find it.

    *request* is what it has to do.
    """

    request: Request
    folder: Path
    nodes: tuple[str, ...]
    playbook: Path
    """The implementation's."""
    played: Path
    """The same, or one that has the site's hooks around its micro-steps."""
    source: Path
    """Its inventory."""
    settings: Mapping[str, str]
    left_out: frozenset[str]
    """Micro-steps that will not run."""
    steps: Mapping[str, str]
    """What the tasks of hooks are called, by the name of their play."""

    @property
    def attempt(self) -> Attempt:
        """The attempt that this is."""
        return self.request.attempt

    @property
    def config_dir(self) -> Path:
        """The site's folder."""
        return Path(self.request.config_dir)

    @property
    def boots(self) -> bool:
        """Whether nodes are booted in it."""
        return playbooks.reboots(self.playbook, self.config_dir)


@dataclass(frozen=True)
class _Files:
    """Files for nodes, brought into a run folder; as links they need no room."""

    folder: Path

    def place(self, name: str) -> str:
        """Where the file *name* is from now on; nodes may see its last name."""
        source = Path(name)
        into = self.folder / hashlib.sha256(name.encode()).hexdigest()[:8]
        into.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, into / source.name)
        except FileExistsError:
            pass  # it is needed twice
        except OSError:
            return name  # the task that wants it says why it cannot be read
        return str(into / source.name)


def _furnish(folder: Path, skipped: Sequence[str]) -> None:
    """Make *folder* one that ansible-runner can run, here or elsewhere (its private_data_dir).

    Without the tags *skipped*. Among them is ``always``, what validates the arguments of roles, unless tasks of the
    site run: some of theirs may have it.
    """
    (folder / "ansible.cfg").write_text(_CONFIGURATION, encoding="utf-8")
    (folder / "env").mkdir(mode=0o700)
    (folder / "env" / "cmdline").write_text(f"--skip-tags {','.join(('report', *skipped))}\n", encoding="utf-8")
    (folder / "env" / "envvars").write_bytes(msgspec.json.encode(SETTINGS))
    (folder / "inventory").mkdir()
    (folder / "inventory" / request.FILE_NAME).symlink_to(Path("..") / request.FILE_NAME)


def _write_command(
    folder: Path,
    settings: Mapping[str, str],
    source: Path,
    playbook: Path,
    skipped: Sequence[str],
    namespace: str,
    *,
    many: bool,
) -> None:
    """The attempt as a script: by hand, outcomes are shown folded, and nodes that are KO are failed hosts.

    Without the tag ``always``, which is *skipped*, there are no checks of roles' arguments, and none of Ansible's own
    looks at each host behind each role, which take a millisecond. Of *many* nodes Ansible tells those that are KO, by a
    playbook of their own.
    """
    argv = ["ansible-playbook", "-i", source.name, str(playbook)]
    if many:  # playbooks stand together: an option between them ends the list
        argv += [str(collection() / "playbooks" / "failed_nodes.yml"), "-e", "kadeploy_brief=true"]
        settings = {**settings, "ANSIBLE_HOST_PATTERN_MISMATCH": "ignore"}  # without KO nodes there is no group of them
    argv += ["--skip-tags", ",".join(skipped)] if skipped else []
    if namespace:
        argv = ["ip", "netns", "exec", namespace, *argv]
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())
    path = folder / "command"
    path.write_text(
        f"#!/bin/sh\n# Repeat this attempt by hand; options of ansible-playbook may follow.\n{exports}"
        f'cd "$(dirname "$0")" && exec {shlex.join(argv)} "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o700)


def _run(
    settings: Mapping[str, str],
    source: Path,
    playbook: Path,
    reading: Reading,
    watch: _Watch,
) -> int:
    """Run the playbook to its end, or until *watch* has enough; returns its exit status."""
    import ansible_runner  # noqa: PLC0415 - a fifth of a second that tools without a run need not pay

    runner = ansible_runner.run(
        private_data_dir=str(watch.folder),
        ident="ansible",
        playbook=str(playbook),
        inventory=str(source),
        envvars=dict(settings)
        | {"KADEPLOY_RUN": "1", "KADEPLOY_CONTROLLER": process.told(process.this()), MARK: str(watch.folder)},
        settings={"pexpect_timeout": _POLL},
        fact_cache_type="memory",
        quiet=True,
        event_handler=reading.event,
        cancel_callback=watch.enough,
        status_handler=_keep_no_environment,
    )
    return int(runner.rc)


def _keep_no_environment(status: Mapping[str, Any], runner_config: Any) -> None:
    """Delete the file in which ansible-runner keeps the whole environment, where a site may have its passwords."""
    if status["status"] == "running":
        (Path(runner_config.artifact_dir) / "command").unlink(missing_ok=True)


@dataclass
class _Watch:
    """Says when a run has to end, and why."""

    folder: Path
    timeout: int
    useless: Callable[[], bool]
    """Whether nobody needs the run any more."""
    begun: float
    look: Callable[[], None]
    """Called at each look at the clock."""
    timed_out: bool = False
    stopped: bool = False

    def enough(self) -> bool:
        self.look()
        self.stopped = self.useless()
        self.timed_out = bool(self.timeout) and time.monotonic() - self.begun > self.timeout
        if self.stopped or self.timed_out:
            end_processes(self.folder)  # workers of ansible have left the process group that the runner kills
        return self.stopped or self.timed_out


@dataclass
class _Spy:
    """Tells how far the attempt's broadcast is, whenever that has changed."""

    folder: Path
    attempt: Attempt
    reading: Reading
    tell: Listener
    last: Transfer | None = None

    def __call__(self) -> None:
        transfer = progress.read(self.folder)
        if transfer is not None and transfer != self.last:
            self.last = transfer
            self.tell(Progress(attempt=self.attempt, nodes=self.reading.going(), transfer=transfer))


def end_processes(folder: Path) -> None:
    """Kill every process of the attempt in *folder*, or of all attempts beneath it, whoever its parent is by now."""
    process.end_marked(MARK, lambda value: f"{value}/".startswith(f"{folder}/"))


def _why(watch: _Watch, attempt: Attempt, rc: int, folder: Path) -> str:
    """Why nodes may be without a verdict."""
    if watch.stopped:
        return f"{attempt.implementation}: aborted"
    if watch.timed_out:
        return f"time-out of {attempt.timeout} s"
    return f"{attempt.implementation}: ansible-playbook ended with status {rc}: {_last_words(folder)}"


def _last_words(folder: Path) -> str:
    path = folder / "artifacts" / "ansible" / "stdout"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    said = [line for line in lines if line and not line.startswith(("PLAY", "TASK", "[WARNING]"))]
    errors = [line for line in said if line.startswith(("[ERROR]", "ERROR!"))]
    return f"{' '.join(errors or said[-4:])[-400:] or 'it said nothing'} (whole output: {path})"


def _all_ko(nodes: Iterable[str], message: str) -> dict[str, Outcome]:
    return {node: Outcome(Verdict.KO, message) for node in nodes}
