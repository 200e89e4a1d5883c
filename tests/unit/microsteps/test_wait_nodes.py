"""Waiting for nodes: who must prove what, and what is told of those that do not come back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from kadeploy.boot import secret
from kadeploy.config.cluster import NodeRange
from kadeploy.config.site import Ssh
from kadeploy.microsteps import wait_nodes
from kadeploy.microsteps.memory import Begun
from kadeploy.microsteps.microstep import MicroStep, perform
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Credentials
from kadeploy.runner.request import Options, Request
from kadeploy.workflow import Attempt, GoesOn, Outcome, Verdict
from tests.unit import build

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

ADDRESS = "127.9.3.1"
ATTEMPT = Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted")


@pytest.fixture
def refused(tmp_path: Path) -> Request:
    """A request for a node whose ports are all closed, on a site that keeps logs."""
    with socket.create_server((ADDRESS, 0)) as free:
        port = free.getsockname()[1]
    site = build.site(tmp_path, ssh=Ssh(private_key="/none", host_key="", port=port), marker_port=port)
    site = msgspec.structs.replace(site, boot=msgspec.structs.replace(site.boot, log=str(tmp_path / "boot.log")))
    cluster = build.cluster(
        nodes=(NodeRange(name="n-1.site", address=ADDRESS),),
        console="conserver HOSTNAME_FQDN",
        console_log=f"{tmp_path}/HOSTNAME_SHORT.console",
    )
    options = Options(reboot_timeout="1", kexec_timeout="1")
    return build.request(tmp_path, attempt=ATTEMPT, site=site, cluster=cluster, options=options)


def waited(request: Request, kind: str = "classical", logs: Mapping[Path, str] | None = None) -> str:
    """The reason of the one node; meanwhile *logs* are written."""

    async def main() -> dict[str, Outcome]:
        remote = Connections(Credentials(Path("/none")))
        step = MicroStep(
            request,
            Begun("key", "wait_reboot", ATTEMPT.implementation, ATTEMPT.macro_step),
            tuple(node.name for node in request.nodes),
            remote,
            args={"target": "deploy", "kind": kind},
        )
        work = asyncio.create_task(perform(step, wait_nodes.run))
        await asyncio.sleep(0.3)
        for path, text in (logs or {}).items():
            with path.open("a") as file:
                file.write(text)
        try:
            return await work
        finally:
            await remote.close()

    (outcome,) = asyncio.run(asyncio.wait_for(main(), 60)).values()
    assert outcome.verdict is Verdict.KO
    return outcome.message


def test_a_node_that_does_not_come_back_tells_what_it_asked_for_and_what_its_console_showed(
    refused: Request, tmp_path: Path
) -> None:
    (tmp_path / "n-1.console").write_text("login:\n")
    logs = {
        tmp_path / "boot.log": f"tftp: {ADDRESS} 'pxelinux.cfg/7F090301' sent\n",
        tmp_path / "n-1.console": "Kernel panic - not syncing\n",
    }
    told = waited(refused, logs=logs)
    assert told.startswith("Unreachable after the reboot: the node is alive and refuses port ")
    assert told.endswith(
        f" after 1 s; the boot server's last word of it is: tftp: {ADDRESS} 'pxelinux.cfg/7F090301' sent; "
        "its console says last: Kernel panic - not syncing: see its console (kaconsole3)."
    )


def test_a_node_that_boots_from_its_disk_asked_the_boot_server_for_nothing(refused: Request, tmp_path: Path) -> None:
    (tmp_path / "boot.log").write_text(f"tftp: {ADDRESS} 'pxelinux.0' sent\n")
    assert f"; {ADDRESS} asked the boot server for nothing: see its console (kaconsole3)." in waited(refused)


def test_a_node_that_was_started_by_kexec_asks_no_boot_server(refused: Request, tmp_path: Path) -> None:
    (tmp_path / "boot.log").write_text("")
    assert waited(refused, kind="kexec").endswith(" after 1 s: see its console (kaconsole3).")


def test_a_site_without_logs_and_consoles_tells_what_the_ports_did(refused: Request) -> None:
    boot = msgspec.structs.replace(refused.site.boot, log="")
    cluster = msgspec.structs.replace(refused.cluster, console="", console_log="")
    plain = msgspec.structs.replace(refused, site=msgspec.structs.replace(refused.site, boot=boot), cluster=cluster)
    assert waited(plain).endswith(" after 1 s: see its console.")


# --- proof ------------------------------------------------------------------------------------------------------

LONG_AGO = GoesOn("wait_reboot", -1e9, 0)
"""Everything was booted after the beginning of this try."""


def answering(nodes: Nodes, folder: Path, **changes: object) -> Request:
    """A request for a node that answers as the deployment system does, and has gone on since long."""
    ssh = Ssh(private_key="/none", host_key="", port=nodes.port)
    site = build.site(folder, ssh=ssh, marker_port=nodes.port)
    cluster = build.cluster(nodes=(NodeRange(name="n-1.site", address=nodes.addresses[0]),))
    attempt = Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted", goes_on=LONG_AGO)
    asked = {"attempt": attempt, "options": Options(reboot_timeout="4")} | changes
    return build.request(folder, site=site, cluster=cluster, **asked)


def outcome_of(request: Request, nodes: Nodes, target: str) -> Outcome:
    async def main() -> Mapping[str, Outcome]:
        remote = Connections(nodes.credentials)
        step = MicroStep(
            request,
            Begun("key", "wait_reboot", ATTEMPT.implementation, ATTEMPT.macro_step),
            tuple(node.name for node in request.nodes),
            remote,
            args={"target": target, "kind": "classical"},
        )
        try:
            return await perform(step, wait_nodes.run)
        finally:
            await remote.close()

    (outcome,) = asyncio.run(asyncio.wait_for(main(), 60)).values()
    return outcome


def test_a_node_that_answers_has_to_show_the_secret_where_there_is_one(nodes: Nodes, tmp_path: Path) -> None:
    request = answering(nodes, tmp_path)
    assert outcome_of(request, nodes, "deploy").verdict is Verdict.OK
    secret.make(Path(request.workflow_dir), request.attempt)
    refuted = outcome_of(request, nodes, "deploy")
    assert refuted.verdict is Verdict.KO
    assert "did not boot by the profile of this try" in refuted.message


@pytest.mark.parametrize(
    ("target", "operation"), [("deploy", "deploy"), ("deploy", "reboot"), ("any", "reboot")], ids=str
)
def test_a_node_that_answers_and_was_booted_before_has_not_been_rebooted(
    nodes: Nodes, tmp_path: Path, target: str, operation: str
) -> None:
    outcome = outcome_of(answering(nodes, tmp_path, attempt=ATTEMPT, operation=operation), nodes, target)
    assert outcome.verdict is Verdict.KO
    assert outcome.message.startswith("Not rebooted: it still runs the system from before the reboot")
