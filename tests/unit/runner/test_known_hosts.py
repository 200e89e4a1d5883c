"""The known-hosts file of a run folder, as ssh(1) takes it from Ansible's variables."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.config.cluster import NodeRange
from kadeploy.config.site import Ssh
from kadeploy.runner import inventory, known_hosts
from kadeploy.runner.request import Request
from tests.unit import build
from tests.unit.sshd import Nodes, serve

NODE = "node-1"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Nodes]:
    """What answers at the node's address: a user's system."""
    (tmp_path / "server").mkdir()
    with serve(tmp_path / "server") as nodes:
        yield nodes


def asked(folder: Path, nodes: Nodes, host_key: str = build.HOST_KEY) -> Request:
    """A request for the node, in whose deployment system *host_key* is known; blanks in its folder are no obstacle."""
    ssh = Ssh(private_key=str(nodes.credentials.private_key), host_key=host_key, port=nodes.port)
    cluster = build.cluster(nodes=(NodeRange(name=NODE, address=nodes.addresses[0]),))
    run_dir = folder / "a run"
    run_dir.mkdir()
    request = build.request(folder, run_dir=str(run_dir), site=build.site(folder, ssh=ssh), cluster=cluster)
    known_hosts.write(request)
    return request


def login(request: Request) -> str:
    """Why ssh cannot log in, with the options that Ansible gives it; empty when it can."""
    found = inventory.host_variables(request, request.nodes[0])
    options = ["-F", "none", "-i", found["ansible_ssh_private_key_file"], "-p", str(found["ansible_port"])]
    words = ["ssh", *shlex.split(found["ansible_ssh_common_args"]), *options, "-o", "BatchMode=yes"]
    done = subprocess.run(
        [*words, f"root@{found['ansible_host']}", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stderr if done.returncode else ""


def test_the_deployment_system_is_entered_by_its_known_key_and_no_other(tmp_path: Path, server: Nodes) -> None:
    assert login(asked(tmp_path, server, server.known_key)) == ""


def test_while_the_deployment_system_is_expected_no_other_is_let_in(tmp_path: Path, server: Nodes) -> None:
    assert "Host key verification failed" in login(asked(tmp_path, server))


def test_nor_is_one_whose_key_is_of_another_type(tmp_path: Path, server: Nodes) -> None:
    """ssh takes a key of a type that it does not know of a host for new, and `accept-new` accepts it."""
    rsa = tmp_path / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", rsa], check=True)
    (tmp_path / "other").mkdir()
    settings = f"HostKey {rsa}\nHostKeyAlgorithms rsa-sha2-512\n"
    with serve(tmp_path / "other", settings) as other:
        assert "no matching host key type found" in login(asked(tmp_path, other))


def test_a_system_that_was_booted_shows_its_key_once_and_keeps_it(tmp_path: Path, server: Nodes) -> None:
    request = asked(tmp_path, server)
    known_hosts.booted(request, {NODE}, in_deployment_system=False)
    assert login(request) == ""
    assert server.known_key in (tmp_path / "a run" / known_hosts.FILE_NAME).read_text()
    changed = (tmp_path / "a run" / known_hosts.FILE_NAME).read_text().replace(server.known_key, build.HOST_KEY)
    (tmp_path / "a run" / known_hosts.FILE_NAME).write_text(changed)
    assert "Host key verification failed" in login(request)


def test_a_node_that_has_booted_the_deployment_system_again_is_pinned_again(tmp_path: Path, server: Nodes) -> None:
    request = asked(tmp_path, server)
    known_hosts.booted(request, {NODE}, in_deployment_system=False)
    assert login(request) == ""
    known_hosts.booted(request, {NODE}, in_deployment_system=True)
    assert "Host key verification failed" in login(request)


def test_what_one_node_boots_changes_nothing_for_the_others(tmp_path: Path) -> None:
    request = build.request(tmp_path)
    known_hosts.write(request)
    before = (tmp_path / known_hosts.FILE_NAME).read_text().splitlines()
    known_hosts.booted(request, {"node-2"}, in_deployment_system=False)
    after = (tmp_path / known_hosts.FILE_NAME).read_text().splitlines()
    assert after == [line for line in before if not line.startswith("127.9.0.2 ")]
    assert len(after) == 2
