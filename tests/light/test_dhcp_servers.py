"""Three DHCP servers and a ProxyDHCP, fed with what ``kadeploy-site dhcp`` prints, asked as firmware asks (root).

A controller, a node and a router of somebody else's, each in a network namespace of its own; nothing else is reachable.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from kadeploy.admin import probe
from kadeploy.admin.dhcp.packet import BIOS, IPXE, UEFI, UEFI_ARM64, UEFI_BC, UEFI_HTTP
from kadeploy.admin.probe import Offer
from kadeploy.boot import profile
from kadeploy.config.folder import load_configuration
from kadeploy.remote import namespace
from tests.dhcp_network import CONTROLLER, DAEMONS, PROXY_LINES, ROUTER_LINES, fed, ip, running, tool

ROUTER, NODE = "10.99.0.254", "10.99.100.1"
PATIENCE = 6.0
"""Seconds for the answers to all questions, which are put at the same time."""

SITE = """\
name: paris
state_dir: {folder}/state
server_address: {controller}
ssh:
  private_key: {folder}/key
  host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf
boot: {{tftp_root: "{folder}/tftp", http_root: "{folder}/http", http_url: "http://{controller}/"}}
"""
CLUSTER = """\
nodes:
  - {{name: "{name}-1.site", address: 10.99.{rank}.1, mac: "{mac}"}}
  - {{name: "{name}-2.site", address: 10.99.{rank}.2}}
arch: "{arch}"
disk: {{device: /dev/sda, partitions: [{{number: 1, size: 4GiB, role: deploy}}]}}
loader: {{firmware: {firmware}, profiles: {profiles}, secure_boot: {secure_boot}}}
"""


class Kind(NamedTuple):
    """A cluster, by what its nodes boot."""

    rank: int
    firmware: str
    profiles: str
    arch: str = ""
    secure_boot: str = "false"

    @property
    def mac(self) -> str:
        """Of its first node."""
        return f"52:54:00:00:00:0{self.rank}"


KINDS = {
    "old": Kind(1, "bios", "pxelinux"),
    "older": Kind(2, "bios", "ipxe"),
    "oldest": Kind(3, "bios", "grub"),
    "new": Kind(4, "uefi", "pxelinux"),
    "newer": Kind(5, "uefi", "ipxe"),
    "newest": Kind(6, "uefi", "grub", "x86_64"),
    "other": Kind(7, "uefi", "grub", "aarch64"),
    "secure": Kind(8, "uefi", "grub", secure_boot="true"),
}
ON_THIS_MACHINE = [name for name, kind in KINDS.items() if not kind.arch.startswith("aarch")]
"""Clusters whose loaders Debian has for x86-64."""
STRANGER = "52:54:00:00:00:99"


class Question(NamedTuple):
    """What is asked, of which cluster's first node; an empty name is a machine that nobody knows."""

    cluster: str
    architecture: int
    user_class: str = ""
    http: bool = False

    @property
    def mac(self) -> str:
        """Who asks."""
        return KINDS[self.cluster].mac if self.cluster else STRANGER


URL = f"http://{CONTROLLER}/"
EXPECTED = {
    Question("old", BIOS): "undionly.kpxe",
    Question("old", BIOS, IPXE): "pxelinux.0",
    Question("old", UEFI): "",
    Question("older", BIOS): "undionly.kpxe",
    Question("older", BIOS, IPXE): "ipxe/${ip}.ipxe",
    Question("oldest", BIOS): "grub/i386-pc/core.0",
    Question("oldest", BIOS, IPXE): "grub/i386-pc/core.0",
    Question("new", UEFI): "syslinux.efi",
    Question("new", UEFI_HTTP, http=True): "",
    Question("newer", UEFI): "snponly.efi",
    Question("newer", UEFI_BC): "snponly.efi",
    Question("newer", UEFI, IPXE): "ipxe/${ip}.ipxe",
    Question("newer", UEFI_HTTP, http=True): f"{URL}snponly.efi",
    Question("newest", UEFI): "grub/x86_64-efi/core.efi",
    Question("newest", UEFI_BC): "grub/x86_64-efi/core.efi",
    Question("newest", UEFI, IPXE): "grub/x86_64-efi/core.efi",
    Question("newest", UEFI_HTTP, http=True): f"{URL}grub/x86_64-efi/core.efi",
    Question("newest", BIOS): "",
    Question("other", UEFI_ARM64): "grub/arm64-efi/core.efi",
    Question("secure", UEFI): "bootx64.efi",
    Question("secure", UEFI_HTTP, http=True): "",
    Question("", BIOS): "",
    Question("", UEFI, IPXE): "",
}
"""What is asked, and the file that is named in answer, by all servers alike."""
BESIDE = {question: file for question, file in EXPECTED.items() if question.cluster != "secure"}
"""The same beside a server that gives the addresses, where signed loaders do not come up."""
TOLD = sorted({file for question, file in EXPECTED.items() if question.cluster in ON_THIS_MACHINE and file})


# --- a network --------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """Names of the namespaces."""

    controller: str
    node: str
    router: str


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """The controller has a bridge, into which the others are plugged."""
    made = Network(*(f"kad{os.getpid()}-{part}" for part in ("controller", "node", "router")))
    with ExitStack() as stack:
        for name in made:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", made.controller, "link", "add", "eth0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        ip("-n", made.controller, "addr", "add", f"{CONTROLLER}/16", "dev", "eth0")
        ip("-n", made.controller, "link", "set", "eth0", "up")
        for port, name, address in (("port1", made.node, NODE), ("port2", made.router, ROUTER)):
            peer = ("type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", made.controller, "link", "add", port, *peer)
            ip("-n", made.controller, "link", "set", port, "master", "eth0", "up")
            ip("-n", name, "addr", "add", f"{address}/16", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield made


# --- what the tool writes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a cluster of each kind, and its loaders."""
    made = tmp_path_factory.mktemp("dhcp")
    for name in ("clusters", "tftp", "http"):
        (made / name).mkdir()
    (made / "site.yml").write_text(SITE.format(folder=made, controller=CONTROLLER))
    for name, kind in KINDS.items():
        (made / "clusters" / f"{name}.yml").write_text(CLUSTER.format(name=name, mac=kind.mac, **kind._asdict()))
    tool(made, "loaders", *(word for name in ON_THIS_MACHINE for word in ("--cluster", name)))
    return made


@pytest.fixture(scope="module", params=list(DAEMONS))
def offers(
    request: pytest.FixtureRequest, network: Network, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Question, list[Offer]]:
    """What a server offers to all who ask."""
    place = tmp_path_factory.mktemp(request.param)
    lines = tool(folder, "dhcp", "--server", request.param)
    program, main, variables = fed(request.param, folder, lines, place)
    command = DAEMONS[request.param].run(program, main)
    with running(network.controller, 67, command, place / "log", **variables):
        return asked(network, EXPECTED, lambda _question: 1)


def asked(
    network: Network, questions: Iterable[Question], least: Callable[[Question], int]
) -> dict[Question, list[Offer]]:
    """The offers to all *questions*, which are put at the same time; those with less than *least* offers again."""

    def ask(question: Question) -> list[Offer]:
        with namespace.inside(network.node):
            _, architecture, user_class, http = question
            return probe.dhcp("eth0", question.mac, architecture, user_class, http, PATIENCE)

    found: dict[Question, list[Offer]] = {question: [] for question in questions}
    for _ in range(3):
        open_ones = [question for question, some in found.items() if len(some) < least(question)]
        with ThreadPoolExecutor(len(found)) as pool:
            found |= zip(open_ones, pool.map(ask, open_ones), strict=True)
    return found


# --- three servers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DAEMONS)
def test_each_server_finds_no_fault_with_its_lines(name: str, folder: Path, tmp_path: Path) -> None:
    lines = tool(folder, "dhcp", "--server", name)
    program, main, variables = fed(name, folder, lines, tmp_path)
    command = DAEMONS[name].check(program, main)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_node_is_told_the_file_that_its_firmware_needs(offers: dict[Question, list[Offer]]) -> None:
    found = {question: [offer.file for offer in some] for question, some in offers.items()}
    assert found == {question: [file] for question, file in EXPECTED.items()}
    assert {offer.next_server for question, (offer,) in offers.items() if EXPECTED[question]} == {CONTROLLER}


def test_every_node_gets_its_own_address_and_name(offers: dict[Question, list[Offer]]) -> None:
    found = {
        question.cluster: (offer.address, offer.options[12])
        for question, (offer,) in offers.items()
        if question.cluster
    }
    assert found == {name: (f"10.99.{kind.rank}.1", f"{name}-1".encode()) for name, kind in KINDS.items()}


def test_uefi_http_boot_hears_its_own_class_and_nobody_else_does(offers: dict[Question, list[Offer]]) -> None:
    assert {question: offer.vendor_class for question, (offer,) in offers.items()} == {
        question: "HTTPClient" if question.http and file else "" for question, file in EXPECTED.items()
    }


def test_a_machine_that_is_no_node_gets_an_address_of_the_site_s_and_no_loader(
    offers: dict[Question, list[Offer]],
) -> None:
    strangers = [offer for question, (offer,) in offers.items() if not question.cluster]
    assert {offer.address.rpartition(".")[0] for offer in strangers} == {"10.99.200"}
    assert {offer.file for offer in strangers} == {""}


# --- a ProxyDHCP ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(network: Network, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Question, list[Offer]]:
    """What is offered where the router gives the addresses and dnsmasq stands beside it."""
    place = tmp_path_factory.mktemp("proxy")
    (place / "router.conf").write_text(ROUTER_LINES)
    others = [word for name in KINDS if name != "secure" for word in ("--cluster", name)]
    lines = tool(folder, "dhcp", "--server", "dnsmasq", "--proxy", *others)
    program, main, _ = fed("dnsmasq", folder, lines, place)
    main.write_text(f"{PROXY_LINES}conf-file={place / 'kadeploy.conf'}\n")
    run = DAEMONS["dnsmasq"].run
    with (
        running(network.router, 67, run(program, place / "router.conf"), place / "router.log"),
        running(network.controller, 4011, run(program, main), place / "proxy.log"),
    ):
        return asked(network, BESIDE, lambda question: 2 if question.cluster else 1)


def test_a_proxy_tells_every_node_the_same_file_and_gives_no_address(beside: dict[Question, list[Offer]]) -> None:
    """UEFI is told it at port 4011, and so the probe asks there."""
    told = {question: [offer for offer in some if offer.server == CONTROLLER] for question, some in beside.items()}
    assert {question: [offer.file for offer in some if offer.file] for question, some in told.items()} == {
        question: [file] if file else [] for question, file in BESIDE.items()
    }
    assert {offer.address for some in told.values() for offer in some} == {""}
    assert {offer.next_server for some in told.values() for offer in some if offer.file} == {CONTROLLER}


def test_a_proxy_answers_in_the_class_of_who_asks_and_leaves_strangers_alone(
    beside: dict[Question, list[Offer]],
) -> None:
    for question, some in beside.items():
        classes = {offer.vendor_class for offer in some if offer.server == CONTROLLER}
        expected = "HTTPClient" if question.http else "PXEClient"
        assert classes == ({expected} if question.cluster else set())


def test_addresses_come_from_the_server_that_was_there(beside: dict[Question, list[Offer]]) -> None:
    for some in beside.values():
        (leasing,) = (offer for offer in some if offer.address)
        assert (leasing.server, leasing.file) == (ROUTER, "")


# --- the files --------------------------------------------------------------------------------------------------


def test_what_is_named_is_served_by_our_boot_server(network: Network, folder: Path, tmp_path: Path) -> None:
    configuration = load_configuration(folder)
    profiles = {}
    for name in ("older", "newer"):
        cluster = configuration.clusters[name]
        node = cluster.members[f"{name}-1.site"]
        sources = profile.Sources(
            site=configuration.site, cluster=cluster, config_dir=folder, user="root", device="/dev/sda", partition=1
        )
        profile.write(sources, "deploy", [node])
        profiles[node.address] = profile.render(sources, "deploy", node).encode()
    command = [sys.executable, "-m", "kadeploy.boot.server", "--address", CONTROLLER]
    command += ["--tftp-root", str(folder / "tftp"), "--http-root", str(folder / "http")]
    with running(network.controller, 69, command, tmp_path / "log"), namespace.inside(network.node):
        for file in TOLD:
            if "${ip}" in file:
                for address, text in profiles.items():
                    assert probe.tftp(CONTROLLER, file.replace("${ip}", address)).content == text
            elif file.startswith("http://"):
                path = folder / "http" / file.removeprefix(URL)
                assert probe.http(file, most=1 << 24).content == path.read_bytes()
            else:
                assert probe.tftp(CONTROLLER, file).content == (folder / "tftp" / file).read_bytes()


def test_signed_loaders_are_served_where_shim_looks_for_them(network: Network, folder: Path, tmp_path: Path) -> None:
    tool(folder, "loaders", "--cluster", "secure")
    command = [sys.executable, "-m", "kadeploy.boot.server", "--address", CONTROLLER]
    command += ["--tftp-root", str(folder / "tftp"), "--http-root", str(folder / "http")]
    with running(network.controller, 69, command, tmp_path / "log"), namespace.inside(network.node):
        assert probe.tftp(CONTROLLER, "bootx64.efi").content[:2] == b"MZ"
        assert probe.tftp(CONTROLLER, "grubx64.efi").content[:2] == b"MZ"
        assert b"(tftp,10.99.0.1)/grub" in probe.tftp(CONTROLLER, "grub/grub.cfg").content
