"""Engines without Ansible: what an image becomes on a node, how it gets there, and the site's own commands."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kadeploy.broadcast import sink
from kadeploy.config.service import Service
from kadeploy.config.site import Ssh, Vlan
from kadeploy.environments.environment import Image
from kadeploy.microsteps import send_image, site_command
from kadeploy.microsteps.memory import Begun
from kadeploy.microsteps.microstep import Engine, MicroStep, perform
from kadeploy.remote.broker import Broker
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Credentials
from kadeploy.runner.request import LocalImage, Options, Request, RequestNode
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.unit import build

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

COMPRESSORS = {
    "tgz": "gzip",
    "tbz2": "bzip2",
    "txz": "xz",
    "tar.zst": "zstd",
    "ddgz": "gzip",
    "ddbz2": "bzip2",
    "ddxz": "xz",
    "dd.zst": "zstd",
}


def asked(folder: Path, port: int = 22, **changes: Any) -> Request:
    site = build.site(
        folder,
        ssh=Ssh(private_key="/none", host_key="", port=port),
        broadcast_port=25310 + os.getpid() % 1000,  # tests may run side by side
        vlan=Vlan(hostname_suffix="-VLAN_ID", set_command="/bin/echo 'a b' -i VLAN_ID USER NODES xNODES"),
    )
    attempt = Attempt(macro_step="BroadcastEnv", implementation="BroadcastEnvChain")
    return build.request(folder, attempt=attempt, site=site, **changes)


def outcomes(
    engine: Engine,
    request: Request,
    args: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
    credentials: Credentials | None = None,
) -> dict[str, Outcome]:
    async def main() -> dict[str, Outcome]:
        remote = Connections(credentials or Credentials(Path("/none")))
        begun = Begun("key", "step", request.attempt.implementation, request.attempt.macro_step)
        members = tuple(node.name for node in request.nodes)
        try:
            return await perform(MicroStep(request, begun, members, remote, env or {}, args), engine)
        finally:
            await remote.close()

    return asyncio.run(asyncio.wait_for(main(), 120))


# --- sinks ------------------------------------------------------------------------------------------------------


PARTITION = bytes(range(256)) * 4096 * 5 + b"tail"


def image(folder: Path, kind: str) -> bytes:
    """A compressed image: a tree with a name that a shell would expand, or the bytes of a partition."""
    if kind.startswith("dd"):
        content = PARTITION
    else:
        tree = folder / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc" / "* $(x)").write_text("content")
        (tree / "etc" / "shadow").write_text("secret")
        (tree / "etc" / "shadow").chmod(0o4600)
        content = subprocess.run(["tar", "-c", "-f", "-", "-C", tree, "."], capture_output=True, check=True).stdout
        content += bytes(3 << 20)  # padding behind the end mark, more than pipes hold
    return subprocess.run([COMPRESSORS[kind], "-c"], input=content, capture_output=True, check=True).stdout


def partition(folder: Path) -> str:
    """A file that stands for a partition."""
    (folder / "part").touch()
    return str(folder / "part")


def drain(folder: Path, kind: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    env = {
        **os.environ,
        "KADEPLOY_ENV_EXTRACTION_DIR": f"{folder}/it's here",
        "KADEPLOY_DEPLOY_PART": partition(folder),
    }
    (folder / "it's here").mkdir()
    command = ["/bin/bash", "-c", sink.of_kind(kind)]
    return subprocess.run(command, input=data, env=env, capture_output=True, check=False)


@pytest.mark.parametrize("kind", ["tgz", "tbz2", "txz", "tar.zst"])
def test_an_archive_becomes_its_tree(tmp_path: Path, kind: str) -> None:
    done = drain(tmp_path, kind, image(tmp_path, kind))
    assert done.returncode == 0, done.stderr
    unpacked = tmp_path / "it's here" / "etc"
    assert {path.name: path.read_text() for path in unpacked.iterdir()} == {"* $(x)": "content", "shadow": "secret"}
    assert (unpacked / "shadow").stat().st_mode & 0o7777 == 0o4600


@pytest.mark.parametrize("kind", ["ddgz", "ddbz2", "ddxz", "dd.zst"])
def test_a_partition_image_becomes_its_bytes(tmp_path: Path, kind: str) -> None:
    assert drain(tmp_path, kind, image(tmp_path, kind)).returncode == 0
    assert (tmp_path / "part").read_bytes() == PARTITION


def test_a_partition_that_is_not_there_is_no_file_in_memory(tmp_path: Path) -> None:
    env = {**os.environ, "KADEPLOY_DEPLOY_PART": f"{tmp_path}/part"}
    done = subprocess.run(
        ["/bin/bash", "-c", sink.of_kind("ddgz")],
        input=image(tmp_path, "ddgz"),
        env=env,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (1, f"no partition {tmp_path}/part on this node\n")
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("kind", list(COMPRESSORS))
def test_an_image_that_is_cut_short_is_a_failure(tmp_path: Path, kind: str) -> None:
    assert drain(tmp_path, kind, image(tmp_path, kind)[:-9]).returncode != 0


# --- broadcast --------------------------------------------------------------------------------------------------


def described(folder: Path) -> dict[str, Any]:
    """A partition's image: nodes of the test share a file system, where all may write the same bytes to one file."""
    data = image(folder, "ddgz")
    path = folder / "image.gz"
    path.write_bytes(data)
    return {
        "environment": build.environment(image=Image(file=str(path), kind="ddgz")),
        "image": LocalImage(path=str(path), size=len(data), sha256=hashlib.sha256(data).hexdigest()),
    }


@pytest.mark.parametrize("method", ["chain", "tree", "bittorrent"])
def test_an_image_goes_from_node_to_node_over_real_ssh(tmp_path: Path, nodes: Nodes, method: str) -> None:
    """One node refuses ssh."""
    request = asked(tmp_path, nodes.port, **described(tmp_path))
    refusing = RequestNode(name="node-4", address=nodes.refusing().address)
    request = msgspec.structs.replace(request, nodes=(*request.nodes, refusing))
    env = {"KADEPLOY_DEPLOY_PART": partition(tmp_path)}
    found = outcomes(send_image.run, request, {"method": method}, env, nodes.credentials)
    assert {name: outcome.verdict.value for name, outcome in found.items()} == {
        "node-1": "ok",
        "node-2": "ok",
        "node-3": "ok",
        "node-4": "ko",
    }, found
    assert "connection refused" in found["node-4"].message
    assert (tmp_path / "part").read_bytes() == PARTITION


def test_the_sites_own_broadcast_gets_image_and_nodes(tmp_path: Path) -> None:
    request = asked(tmp_path, **described(tmp_path))
    command = f'bash -c \'cp "$0" {tmp_path}/nodes; cp "$1" {tmp_path}/sent\' NODEFILE ENVFILE'
    cluster = msgspec.structs.replace(request.cluster, broadcast_command=command)
    found = outcomes(send_image.run, msgspec.structs.replace(request, cluster=cluster), {"method": "custom"})
    assert {outcome.verdict for outcome in found.values()} == {Verdict.OK}
    assert (tmp_path / "nodes").read_text() == "node-1\nnode-2\nnode-3\n"
    assert (tmp_path / "sent").read_bytes() == (tmp_path / "image.gz").read_bytes()


@contextmanager
def lent(folder: Path, image: LocalImage) -> Iterator[LocalImage]:
    """A user's image that a workflow's process has opened and lends; its name then stands for another file."""
    (folder / "secret").write_bytes(b"of the administrator")
    with Path(image.path).open("rb") as stream:
        keeper = Broker(folder, Credentials(Path("/none")), {image.path: stream.fileno()})
        keeper.start()
        Path(image.path).unlink()
        Path(image.path).symlink_to(folder / "secret")
        try:
            yield msgspec.structs.replace(image, lent=True)
        finally:
            keeper.stop()


@pytest.mark.parametrize("method", ["chain", "tree", "bittorrent", "custom"])
def test_an_image_whose_name_means_another_file_by_now_is_sent_as_it_was_opened(
    tmp_path: Path, nodes: Nodes, method: str
) -> None:
    request = asked(tmp_path, nodes.port, **described(tmp_path))
    cluster = msgspec.structs.replace(
        request.cluster, broadcast_command=f"bash -c 'zcat \"$0\" >{tmp_path}/part' ENVFILE"
    )
    env = {"KADEPLOY_DEPLOY_PART": partition(tmp_path)}
    assert request.image is not None
    with lent(tmp_path, request.image) as image:
        request = msgspec.structs.replace(request, cluster=cluster, image=image)
        found = outcomes(send_image.run, request, {"method": method}, env, nodes.credentials)
    assert {outcome.verdict for outcome in found.values()} == {Verdict.OK}, found
    assert (tmp_path / "part").read_bytes() == PARTITION


def test_the_sites_command_does_not_get_an_image_that_has_changed(tmp_path: Path, nodes: Nodes) -> None:
    request = asked(tmp_path, nodes.port, **described(tmp_path))
    cluster = msgspec.structs.replace(request.cluster, broadcast_command=f"touch {tmp_path}/begun ENVFILE")
    assert request.image is not None
    with lent(tmp_path, msgspec.structs.replace(request.image, sha256="0" * 64)) as image:
        request = msgspec.structs.replace(request, cluster=cluster, image=image)
        found = outcomes(send_image.run, request, {"method": "custom"}, {}, nodes.credentials)
    assert all("has changed since the deployment began" in outcome.message for outcome in found.values()), found
    assert not (tmp_path / "begun").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root opens files as somebody else")
@pytest.mark.parametrize("method", ["chain", "bittorrent", "custom"])
def test_by_hand_an_image_is_opened_with_the_rights_of_its_user(open_folder: Path, nodes: Nodes, method: str) -> None:
    """Nobody lends it then."""
    request = asked(open_folder, nodes.port, user="nobody", **described(open_folder))
    cluster = msgspec.structs.replace(request.cluster, broadcast_command="true ENVFILE")
    assert request.image is not None
    image = msgspec.structs.replace(request.image, lent=True)
    request = msgspec.structs.replace(request, image=image, cluster=cluster)
    env = {"KADEPLOY_DEPLOY_PART": partition(open_folder)}
    found = outcomes(send_image.run, request, {"method": method}, env, nodes.credentials)
    assert {outcome.verdict for outcome in found.values()} == {Verdict.OK}, found
    Path(image.path).chmod(0o600)
    found = outcomes(send_image.run, request, {"method": method}, env, nodes.credentials)
    assert {outcome.message for outcome in found.values()} == {
        f"{image.path}: Permission denied. Give a file that nobody can read."
    }


def test_by_hand_an_image_that_the_administrator_offers_is_opened_where_it_is_offered(
    tmp_path: Path, nodes: Nodes
) -> None:
    request = asked(tmp_path, nodes.port, user="nobody", **described(tmp_path))
    assert request.image is not None
    image = msgspec.structs.replace(request.image, path=f"server://{request.image.path}", lent=True)
    env = {"KADEPLOY_DEPLOY_PART": partition(tmp_path)}
    messages = []
    for folders in ((str(tmp_path),), ()):
        site = msgspec.structs.replace(request.site, service=Service(folders=folders))
        again = msgspec.structs.replace(request, image=image, site=site)
        found = outcomes(send_image.run, again, {"method": "chain"}, env, nodes.credentials)
        messages.append({outcome.message for outcome in found.values()})
    assert messages[0] == {""}
    assert (tmp_path / "part").read_bytes() == PARTITION
    assert "service.folders in site.yml names no folder" in messages[1].pop()


def test_a_missing_command_or_image_is_every_nodes_failure_and_says_what_to_set(tmp_path: Path) -> None:
    custom = outcomes(send_image.run, asked(tmp_path, **described(tmp_path)), {"method": "custom"})
    assert {outcome.message for outcome in custom.values()} == {
        "There is no broadcast_command in the file of cluster gdx."
    }
    missing = outcomes(send_image.run, asked(tmp_path), {"method": "chain"})
    assert {outcome.verdict for outcome in missing.values()} == {Verdict.KO}


# --- site commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("argument", "vlan"), [("", "4; touch x"), ("DEFAULT", "DEFAULT")])
def test_a_vlan_is_set_by_the_sites_command_without_a_shell(tmp_path: Path, argument: str, vlan: str) -> None:
    request = asked(tmp_path, options=Options(vlan="4; touch x"))
    found = outcomes(site_command.run, request, {"command": "set_vlan", "vlan": argument})
    assert {outcome.stdout for outcome in found.values()} == {
        f"a b -i {vlan} alice -m node-1 -m node-2 -m node-3 xNODES\n"
    }
    assert {outcome.verdict for outcome in found.values()} == {Verdict.OK}


def test_a_site_command_that_fails_is_told_with_its_last_words() -> None:
    outcome = asyncio.run(site_command.execute(["sh", "-c", "echo first >&2; echo 'no such vlan' >&2; exit 4"]))
    assert (outcome.verdict, outcome.rc, outcome.message) == (Verdict.KO, 4, "sh: no such vlan")
    absent = asyncio.run(site_command.execute(["/nonexistent/kavlan"]))
    assert (absent.verdict, absent.message) == (Verdict.KO, "/nonexistent/kavlan: No such file or directory")


def test_a_site_command_that_is_no_longer_wanted_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    async def main() -> None:
        task = asyncio.create_task(site_command.execute(["sh", "-c", f"sleep 1000 & echo $! >{pids}; wait"]))
        while not (pids.exists() and pids.read_text().strip()):
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        while _alive(int(pids.read_text())):
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(main(), 60))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
