"""Deployments on simulated nodes through a service, of which anything is killed at any moment."""

from __future__ import annotations

import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kadeploy import events, process
from kadeploy.caller import Account
from kadeploy.client import servers
from kadeploy.client.remote import Remote
from kadeploy.client.sites import VARIABLE
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.environments import description
from kadeploy.errors import DatabaseError, KadeployError
from kadeploy.events import AttemptEnded, AttemptStarted, Began, Ended, Event, Note
from kadeploy.lab.lab import Lab, saved
from kadeploy.operations.requests import DeployRequest, Described
from kadeploy.operations.work import run_folder
from kadeploy.runner import player
from kadeploy.state import controllers, nodes, rights
from kadeploy.state.database import connect, disconnect, fetch
from kadeploy.state.tables import Claim, Log
from tests.light.conftest import TOOLS, lab_command
from tests.postgresql import Server, running

NAME = "kadeploy-resume"
NODES = 4
ROOT = Account("root", 0, 0, Path("/root"))
STEPS = {
    "SetDeploymentEnv": (Implementation(name="SetDeploymentEnvUntrusted", timeout=300),),
    "BroadcastEnv": (Implementation(name="BroadcastEnvChain", timeout=300),),
    "BootNewEnv": (Implementation(name="BootNewEnvClassical", timeout=300),),
}
"""Each is tried once: an attempt that was interrupted has to count as the same try."""
KILLS = int(os.environ.get("KADEPLOY_TEST_KILLS", "4"))
MOMENTS = 14.0
"""Seconds within which a deployment is killed: about as long as it takes."""
LATER = 2.0
"""Seconds after which, at most, what was killed is started again."""
PATIENCE = 300.0


@dataclass
class Stage:
    """A site in service, and whatever of it can be killed."""

    configuration: Configuration
    server: Server | None
    """Of its database; None: SQLite."""
    _listening: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))
    _daemon: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def listen(self) -> None:
        """Open the socket."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._listening.bind(str(self.path))
        self._listening.listen()

    @property
    def remote(self) -> Remote:
        """The site as its service tells it."""
        return Remote(servers.address_of(servers.Server(url=str(self.path)), ROOT), ROOT)

    @property
    def path(self) -> Path:
        """Where the service listens."""
        return Path(self.configuration.site.service.socket)

    def start(self) -> None:
        """Start the service on the socket that stays, as systemd does: whoever calls meanwhile waits."""
        given = self._listening.fileno()
        words = ["bash", "-c", f"LISTEN_FDS=1 LISTEN_PID=$$ exec {TOOLS}/kadeploy3d run 3<&{given}"]
        with (self.configuration.folder / "service.log").open("ab") as log:
            self._daemon = [subprocess.Popen(words, env=self.environment, stderr=log, pass_fds=[given])]

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the service."""
        self.signal(number)
        for each in self._daemon:
            each.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send the service a signal."""
        for each in self._daemon:
            each.send_signal(number)

    @property
    def environment(self) -> dict[str, str]:
        """Of the tools: they have nobody but the service."""
        return os.environ | {"KADEPLOY_CONFIG_DIR": str(self.configuration.folder), VARIABLE: str(self.path)}

    def tool(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What a tool says and how it ends."""
        command = [str(TOOLS / words[0]), *words[1:]]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)


def until(what: str, happens: Callable[[], object]) -> None:
    """Wait until it does; what the database says while it is down is no answer."""
    limit = time.monotonic() + PATIENCE
    while True:
        with suppress(DatabaseError):
            if happens():
                return
        assert time.monotonic() < limit, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab_command("down", "--name", NAME)
    lab_command("up", "--kind", "sim", "--nodes", str(NODES), "--name", NAME, "--boot-delay", "1")
    try:
        made = saved(NAME)
        assert made is not None
        yield made
    finally:
        disconnect()
        lab_command("down", "--name", NAME)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The lab's site in service, with a database of that kind."""
    folder = tmp_path_factory.mktemp("site") / request.param
    shutil.copytree(lab.config, folder)
    with ExitStack() as stack:
        server = stack.enter_context(running()) if request.param == "postgresql" else None
        if server:
            with (folder / "site.yml").open("a") as text:
                text.write(f"database: {server.url}\n")
        found = Stage(load_configuration(folder), server)
        rights.add(found.configuration.site, "root", ["*"], ["*"])
        found.listen()
        found.start()
        stack.callback(disconnect)
        stack.callback(found.stop, signal.SIGTERM)
        yield found


# --- what is killed ---------------------------------------------------------------------------------------------------


def kill_service(stage: Stage, _wid: str, moments: random.Random) -> None:
    stage.stop()
    time.sleep(moments.uniform(0, LATER))
    stage.start()


def kill_database(stage: Stage, _wid: str, moments: random.Random) -> None:
    assert stage.server
    stage.server.kill()
    time.sleep(moments.uniform(0, LATER))
    stage.server.start()


def kill_workflow(stage: Stage, wid: str, _moments: random.Random) -> None:
    """Its process alone: `ansible-playbook` is left behind."""
    if pid := controller(stage, wid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_group(stage: Stage, wid: str, _moments: random.Random) -> None:
    """All that belongs to it, as when the machine dies."""
    if pid := controller(stage, wid):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        player.end_processes(run_folder(stage.configuration.site, wid))


def kill_playbook(stage: Stage, wid: str, moments: random.Random) -> None:
    """One of the processes of an attempt."""
    if found := attempts(stage, wid):
        with suppress(ProcessLookupError):
            os.kill(moments.choice(found), signal.SIGKILL)


Victim = Callable[[Stage, str, random.Random], None]
VICTIMS: dict[str, tuple[Victim, ...]] = {
    "sqlite": (kill_service, kill_workflow, kill_group, kill_playbook),
    "postgresql": (kill_service, kill_workflow, kill_group, kill_playbook, kill_database, kill_database),
}


def controller(stage: Stage, wid: str) -> int:
    """The process of a workflow; 0: it has ended, or nobody knows."""
    with suppress(DatabaseError):
        found = controllers.of(stage.configuration.site, wid)
        return found[0].pid if found and not found[1] and process.find(found[0].pid) else 0
    return 0


def attempts(stage: Stage, wid: str) -> list[int]:
    """Processes of its attempts."""
    folder = run_folder(stage.configuration.site, wid)
    return list(process.marked(player.MARK, lambda value: value.startswith(f"{folder}/")))


# --- what has to be true ----------------------------------------------------------------------------------------------


def start(stage: Stage, lab: Lab, names: Collection[str] = ()) -> str:
    """Deploy these nodes, or all: the workflow."""
    [environment] = description.load(str(lab.environments_folder / "sim.dsc"), ROOT, lambda _warning: None)
    request = DeployRequest(
        nodes=tuple(names or lab.members), environment=Described(environment=environment), force_steps=STEPS
    )
    return stage.remote.start(request)


@pytest.mark.parametrize("seed", range(KILLS // 2))
def test_whatever_is_killed_a_deployment_comes_to_its_end_and_nothing_is_lost(
    lab: Lab, stage: Stage, seed: int
) -> None:
    """All nodes are deployed, but where a playbook died; each has one end, and everybody tells the same of it."""
    names, wid = set(lab.members), start(stage, lab)
    follower = Follower(stage.remote, wid)
    killed = kill(stage, wid, seed)
    come_to_rest(stage, wid)
    good = deployed(stage, wid, names)
    assert good == names or kill_playbook in killed, "its nodes are KO: there is one try"
    require_the_same_told(stage, wid, good, names)
    written = list(events.read(run_folder(stage.configuration.site, wid) / events.FILE_NAME))
    require_one_at_a_time(written, names)
    follower.require_heard(written)


class Follower:
    """A client that hears the events of a workflow, whatever becomes of the service; it has heard the first."""

    def __init__(self, remote: Remote, wid: str) -> None:
        self._heard: queue.SimpleQueue[Event | KadeployError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, args=(remote, wid), daemon=True)
        self._thread.start()
        self._told = [self._heard.get(timeout=PATIENCE)]

    def _follow(self, remote: Remote, wid: str) -> None:
        try:
            remote.attach(wid, self._heard.put, threading.Event())
        except KadeployError as error:
            self._heard.put(error)

    def require_heard(self, written: list[Event]) -> None:
        """It has heard all of them once, and where there is no end, that none will come."""
        self._thread.join(PATIENCE)
        while not self._heard.empty():
            self._told.append(self._heard.get())
        broken_off = [self._told.pop()] if isinstance(self._told[-1], KadeployError) else []
        assert self._told == written
        assert bool(broken_off) != isinstance(written[-1], Ended), broken_off


def kill(stage: Stage, wid: str, seed: int) -> list[Victim]:
    """Kill something once or twice, at moments that the seed tells: what was killed."""
    kind = "postgresql" if stage.server else "sqlite"
    moments, killed = random.Random(f"{kind} {seed}"), []
    for _ in range(moments.choice([1, 1, 2])):
        time.sleep(moments.uniform(0, MOMENTS))
        killed.append(moments.choice(VICTIMS[kind]))
        print(f"{time.strftime('%H:%M:%S')} {wid}: {killed[-1].__name__}")
        killed[-1](stage, wid, moments)
    return killed


def come_to_rest(stage: Stage, wid: str) -> None:
    """Wait until the workflow has ended, and nothing of it is left."""
    site = stage.configuration.site
    until(f"{wid} has ended", lambda: (found := controllers.of(site, wid)) and found[1])
    until(f"{wid} holds no node", lambda: connect(site) and not Claim.select().exists())
    until(f"nothing of {wid} runs", lambda: not attempts(stage, wid))


def deployed(stage: Stage, wid: str, names: set[str]) -> set[str]:
    """Nodes that are deployed by the log, and by their state; each has one end."""
    rows = fetch(Log.select(Log.hostname, Log.success).where(Log.wid == wid))
    assert sorted(name for name, _ in rows) == sorted(names)
    good = {name for name, success in rows if success}
    states = {row.hostname: row.state for row in nodes.states(stage.configuration.site) if row.hostname in names}
    assert {name for name, state in states.items() if state == "deployed"} == good
    assert set(states.values()) <= {"deployed", "deploy_failed", "aborted"}
    return good


def require_the_same_told(stage: Stage, wid: str, good: set[str], names: set[str]) -> None:
    """By the exit status, and by ``kanodes3 -y``."""
    waited = stage.tool("kadeploy3", "--wait", wid)
    assert (waited.returncode == 0) == (good == names), waited
    shown = json.loads(stage.tool("kanodes3", "-y", "-w", wid, "--format", "json").stdout)[wid]["nodes"]
    assert {name for name, stand in shown.items() if stand["state"] == "ok"} == good, shown


def require_one_at_a_time(told: Iterable[Event], names: set[str]) -> None:
    """All nodes took part, no two attempts had a number or a node at a time."""
    numbers, busy = [], set()
    for event in told:
        match event:
            case Began():
                assert {name for group in event.groups.values() for name in group} == names
            case AttemptStarted():
                assert not busy & set(event.nodes)
                busy.update(event.nodes)
                numbers.append(event.attempt.number)
            case AttemptEnded():
                busy -= event.outcomes.keys()
            case Note(resumed=True):
                busy.clear()
    assert len(numbers) == len(set(numbers))
