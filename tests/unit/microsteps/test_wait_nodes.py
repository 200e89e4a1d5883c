"""Waiting for nodes: who must prove what, and what is told of those that do not come back."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import yaml

from kadeploy.boot import secret
from kadeploy.boot.server import HttpServer, TftpServer
from kadeploy.config.cluster import NodeRange, Power, PowerCommands
from kadeploy.config.site import Ssh
from kadeploy.microsteps import power_nodes, wait_nodes
from kadeploy.microsteps.memory import Begun
from kadeploy.microsteps.microstep import Engine, MicroStep, perform
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Credentials
from kadeploy.runner import known_hosts
from kadeploy.runner.request import Options, Request
from kadeploy.workflow import Attempt, GoesOn, Outcome, Verdict
from tests.unit import build
from tests.unit.boot import tftp_client

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

ADDRESS = "127.9.3.1"
CARD = "52:54:00:B1:01:01"
NEIGHBOUR = "127.9.3.50"
"""A node of another cluster."""
STRANGER = "127.9.3.77"
ATTEMPT = Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted")


@pytest.fixture
def refused(tmp_path: Path) -> Request:
    """A request for a node whose ports are all closed, on a site that keeps logs."""
    with socket.create_server((ADDRESS, 0)) as free:
        port = free.getsockname()[1]
    site = build.site(tmp_path, ssh=Ssh(private_key="/none", host_key=build.HOST_KEY, port=port), marker_port=port)
    site = msgspec.structs.replace(site, boot=msgspec.structs.replace(site.boot, log=str(tmp_path / "boot.log")))
    cluster = build.cluster(
        nodes=(NodeRange(name="n-1.site", address=ADDRESS),),
        console="conserver HOSTNAME_FQDN",
        console_log=f"{tmp_path}/HOSTNAME_SHORT.console",
    )
    options = Options(reboot_timeout="1", kexec_timeout="1")
    return build.request(tmp_path, attempt=ATTEMPT, site=site, cluster=cluster, options=options)


def waited(
    request: Request,
    kind: str = "classical",
    logs: Mapping[Path, str] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> str:
    """The reason of the one node; meanwhile *logs* are written, or what else happens."""

    def happens() -> None:
        for path, text in (logs or {}).items():
            with path.open("a") as file:
                file.write(text)
        meanwhile()

    outcome = performed(request, "wait_reboot", wait_nodes.run, happens, target="deploy", kind=kind)
    assert outcome.verdict is Verdict.KO
    return outcome.message


def performed(
    request: Request, name: str, engine: Engine, meanwhile: Callable[[], None] = lambda: None, **args: str
) -> Outcome:
    """What becomes of the one node in a micro-step."""

    async def main() -> dict[str, Outcome]:
        remote = Connections(Credentials(Path("/none")))
        begun = Begun("key", name, ATTEMPT.implementation, ATTEMPT.macro_step)
        step = MicroStep(request, begun, tuple(node.name for node in request.nodes), remote, args=args)
        work = asyncio.create_task(perform(step, engine))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(meanwhile)
        try:
            return await work
        finally:
            await remote.close()

    (outcome,) = asyncio.run(asyncio.wait_for(main(), 60)).values()
    return outcome


def test_ordinary_tasks_meet_the_key_of_a_system_that_has_come_up(
    refused: Request, nodes: Nodes, tmp_path: Path
) -> None:
    """A node that has not come up stays pinned to the deployment system's key."""
    known_hosts.write(refused)
    pinned = (tmp_path / known_hosts.FILE_NAME).read_text()
    assert performed(refused, "wait_reboot", wait_nodes.run, target="user", kind="classical").verdict is Verdict.KO
    assert (tmp_path / known_hosts.FILE_NAME).read_text() == pinned != ""

    cluster = build.cluster(nodes=(NodeRange(name="n-1.site", address=nodes.addresses[0]),))
    site = build.site(tmp_path, ssh=Ssh(private_key="/none", host_key=build.HOST_KEY, port=nodes.port))
    answering = build.request(tmp_path, attempt=ATTEMPT, site=site, cluster=cluster)
    known_hosts.write(answering)
    assert performed(answering, "wait_reboot", wait_nodes.run, target="user", kind="classical").verdict is Verdict.OK
    assert (tmp_path / known_hosts.FILE_NAME).read_text() == ""


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
    assert f"; {ADDRESS} asked the boot server for nothing, nor did anybody else: see its console (kaconsole3)." in (
        waited(refused)
    )


@pytest.fixture
def boot_server(refused: Request, tmp_path: Path) -> Iterator[BootServer]:
    """Ours, on ephemeral ports; its log is the site's."""
    (tmp_path / "tftp").mkdir()
    (tmp_path / "tftp" / "pxelinux.0").write_bytes(b"loader")

    def log(line: str) -> None:
        with Path(refused.site.boot.log).open("a") as file:
            file.write(f"{line}\n")

    tftp = TftpServer(tmp_path / "tftp", log)
    web = HttpServer(tmp_path / "tftp", "127.0.0.1", 0, log)
    threads = [
        threading.Thread(target=tftp.serve, args=("127.0.0.1", 0)),
        threading.Thread(target=web.serve_forever, args=(0.01,)),
    ]
    for thread in threads:
        thread.start()
    while tftp.port is None:
        time.sleep(0.01)
    yield BootServer(("127.0.0.1", tftp.port), web.server_address[1])
    tftp.stop()
    web.shutdown()
    for thread in threads:
        thread.join()
    web.server_close()


@dataclass(frozen=True)
class BootServer:
    """Where it listens, and how clients ask it."""

    tftp: tuple[str, int]
    http_port: int

    def ask(self, source: str, *names: str) -> None:
        """Ask by TFTP, with the address *source*."""
        for name in names:
            with tftp_client.half_open(self.tftp, name, source) as client:
                client.settimeout(10)
                client.recv(2000)

    def get(self, source: str, path: str) -> None:
        """Ask by HTTP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, 10, source_address=(source, 0))
        connection.request("GET", path)
        connection.getresponse().read()
        connection.close()


def configured(request: Request, folder: Path) -> Request:
    """*request*, whose site has another cluster as well, in a folder of configuration."""
    other = build.cluster(name="other", nodes=(NodeRange(name="m-1.site", address=NEIGHBOUR),))
    cluster = msgspec.structs.replace(request.cluster, nodes=(NodeRange(name="n-1.site", address=ADDRESS, mac=CARD),))
    (folder / "clusters").mkdir()
    for name, part in {"site": request.site, "clusters/gdx": cluster, "clusters/other": other}.items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump(msgspec.to_builtins(part)))
    return msgspec.structs.replace(request, cluster=cluster, nodes=build.nodes(cluster))


def test_a_node_that_boots_from_another_network_card_is_recognised_by_what_it_asks_for(
    refused: Request, boot_server: BootServer, tmp_path: Path
) -> None:
    def boots() -> None:
        boot_server.ask(STRANGER, "pxelinux.0", "pxelinux.cfg/01-52-54-00-b1-01-63", "pxelinux.cfg/default")
        boot_server.ask(NEIGHBOUR, "pxelinux.0")

    assert waited(configured(refused, tmp_path), meanwhile=boots).endswith(
        f"; {ADDRESS} asked the boot server for nothing, but {STRANGER} with network card 52:54:00:b1:01:63 did, "
        f"which belongs to no node of this site: tftp: {STRANGER} 'pxelinux.cfg/default' absent "
        "(does the node boot from another network card?): see its console (kaconsole3)."
    )


def test_a_stranger_that_asks_by_http_is_recognised_too(
    refused: Request, boot_server: BootServer, tmp_path: Path
) -> None:
    said = waited(configured(refused, tmp_path), meanwhile=lambda: boot_server.get(STRANGER, "/ipxe/boot.ipxe"))
    assert f'but {STRANGER} did, which belongs to no node of this site: http: {STRANGER} "GET /ipxe/boot.ipxe' in said


def test_a_node_to_which_dhcp_gave_another_address_is_recognised_by_its_card(
    refused: Request, boot_server: BootServer, tmp_path: Path
) -> None:
    grub = f"grub/grub.cfg-01-{CARD.lower().replace(':', '-')}"
    said = waited(configured(refused, tmp_path), meanwhile=lambda: boot_server.ask(STRANGER, grub))
    assert f"but its network card {CARD.lower()} did, as {STRANGER}: tftp: {STRANGER} '{grub}' absent (does" in said


def test_nodes_of_other_clusters_are_no_strangers(refused: Request, boot_server: BootServer, tmp_path: Path) -> None:
    said = waited(configured(refused, tmp_path), meanwhile=lambda: boot_server.ask(NEIGHBOUR, "pxelinux.0"))
    assert f"; {ADDRESS} asked the boot server for nothing: see its console" in said


def test_that_nobody_asked_the_boot_server_is_told(refused: Request, boot_server: BootServer, tmp_path: Path) -> None:
    boot_server.ask(ADDRESS, "pxelinux.0")  # before
    said = waited(configured(refused, tmp_path))
    assert f"; {ADDRESS} asked the boot server for nothing, nor did anybody else: see its console" in said


def test_a_node_known_by_its_name_alone_is_found_by_the_address_of_the_name(
    refused: Request, boot_server: BootServer
) -> None:
    cluster = msgspec.structs.replace(refused.cluster, nodes=(NodeRange(name="localhost"),))
    named = msgspec.structs.replace(refused, cluster=cluster, nodes=build.nodes(cluster))
    said = waited(named, meanwhile=lambda: boot_server.ask("127.0.0.1", "pxelinux.0"))
    assert "; the boot server's last word of it is: tftp: 127.0.0.1 'pxelinux.0' sent: see" in said


def test_what_nodes_asked_for_while_others_were_still_rebooted_counts_also_for_those_that_are_late(
    refused: Request, boot_server: BootServer
) -> None:
    switched = PowerCommands(hard_reboot="true")
    cluster = msgspec.structs.replace(refused.cluster, power=Power(driver="command", commands=switched))
    request = msgspec.structs.replace(refused, cluster=cluster)
    boot_server.ask(ADDRESS, "long-ago")
    assert performed(request, "reboot", power_nodes.run, operation="reboot", level="hard").verdict is Verdict.OK
    boot_server.ask(ADDRESS, "pxelinux.0")
    assert f"last word of it is: tftp: {ADDRESS} 'pxelinux.0' sent: see" in waited(request)
    late = changed(ATTEMPT, number=2, goes_on=GoesOn("wait_reboot", time.monotonic(), 0))
    assert f"last word of it is: tftp: {ADDRESS} 'pxelinux.0' sent: see" in waited(
        msgspec.structs.replace(request, attempt=late)
    )


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
