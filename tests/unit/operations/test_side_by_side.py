"""Operations in a process that is not a terminal, for users who are not its own, several at once."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from kadeploy import events
from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.environments.environment import Environment, Image
from kadeploy.errors import FileError
from kadeploy.events import Event, Report
from kadeploy.operations.launch import carry_out
from kadeploy.operations.requests import DeployRequest, Described
from kadeploy.state import database, nodes, rights
from tests.unit import build
from tests.unit.conftest import CLUSTERS, SITE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for others")

ALICE = Account("alice", 4001, 4001, Path("/nonexistent"))
BOB = Account("bob", 4002, 4002, Path("/nonexistent"))
NAMESPACE = "kadeploy-beside"
NODES = ("gdx-1.site", "gdx-2.site", "nvm-1.site")
FORCED = {step: (Implementation(name=f"{step}Dummy"),) for step in ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")}


@pytest.fixture
def namespace() -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    yield NAMESPACE
    subprocess.run(["ip", "netns", "del", NAMESPACE], check=True)


def site(folder: Path, namespace: str = "") -> Configuration:
    """A site with a database of its own, where alice and bob may use every node."""
    (folder / "clusters").mkdir(parents=True)
    text = SITE.format(folder=folder, database=f"sqlite://{folder}/state/kadeploy.db", almighty="[root]")
    (folder / "site.yml").write_text(f"{text}network_namespace: {namespace!r}\n", encoding="utf-8")
    (folder / "state").mkdir()
    for name, cluster in CLUSTERS.items():
        (folder / "clusters" / f"{name}.yml").write_text(cluster, encoding="utf-8")
    configuration = load_configuration(folder)
    for who in (ALICE, BOB):
        rights.add(configuration.site, who.name, ["*"], ["*"])
    return configuration


def image_of(who: Account, folder: Path) -> Environment:
    """An environment whose image nobody else may read."""
    folder.chmod(0o711)
    path = folder / f"{who.name}.tgz"
    path.write_bytes(build.packed(who.name))
    path.chmod(0o400)
    os.chown(path, who.uid, who.gid)
    return Environment(
        name=f"{who.name}s", image=Image(file=str(path), kind="tgz"), kernel="/vmlinuz", filesystem="ext4"
    )


def deploy(configuration: Configuration, environment: Environment, who: Account, heard: list[Event]) -> Report:
    """A deployment that came as text, as it would to a service."""
    request = DeployRequest(
        user=who.name, nodes=NODES, environment=Described(environment=environment), force_steps=FORCED
    )
    received = msgspec.json.decode(msgspec.json.encode(request), type=DeployRequest)
    assert received == request
    try:
        return carry_out(received, configuration, who, heard.append, threading.Event())
    finally:
        database.disconnect()


def test_deployments_on_two_sites_for_two_users_do_not_meet(open_folder: Path, namespace: str) -> None:
    here, there = site(open_folder / "here"), site(open_folder / "there", namespace)
    heard: dict[str, list[Event]] = {"here": [], "there": []}
    outside = Path("/proc/thread-self/ns/net").readlink()
    for who in (ALICE, BOB):
        (open_folder / who.name).mkdir()
    images = {who.name: image_of(who, open_folder / who.name) for who in (ALICE, BOB)}
    with ThreadPoolExecutor(3) as pool:
        alices = pool.submit(deploy, here, images["alice"], ALICE, heard["here"])
        bobs = pool.submit(deploy, there, images["bob"], BOB, heard["there"])
        stolen = pool.submit(deploy, there, images["alice"], BOB, [])
    assert sorted(alices.result().ok) == sorted(bobs.result().ok) == sorted(NODES)
    with pytest.raises(FileError, match=r"alice\.tgz: Permission denied"):
        stolen.result()
    for configuration, who, name in ((here, ALICE, "here"), (there, BOB, "there")):
        states = {(row.state, row.user) for row in nodes.states(configuration.site)}
        assert states == {("deployed", who.name)}
        [folder] = (configuration.site.state / "runs").iterdir()
        assert list(events.read(folder / events.FILE_NAME)) == heard[name]
    assert Path("/proc/thread-self/ns/net").readlink() == outside
    assert (os.geteuid(), (open_folder / "alice" / "alice.tgz").read_bytes()) == (0, build.packed("alice"))


def test_who_listens_hears_only_his_own_operation(open_folder: Path) -> None:
    """Three nodes of one site, an operation each."""
    configuration = site(open_folder / "one")
    (open_folder / "alice").mkdir()
    environment = image_of(ALICE, open_folder / "alice")

    def one(name: str) -> tuple[Report, set[str]]:
        seen: list[Event] = []
        request = DeployRequest(
            user="alice", nodes=(name,), environment=Described(environment=environment), force_steps=FORCED
        )
        try:
            report = carry_out(request, configuration, ALICE, seen.append, threading.Event())
        finally:
            database.disconnect()
        finished = {node for event in seen if isinstance(event, events.Finished) for node in event.finals}
        return report, finished

    with ThreadPoolExecutor(3) as pool:
        for name, (report, finished) in zip(NODES, pool.map(one, NODES), strict=True):
            assert (report.ok, finished) == ((name,), {name})
