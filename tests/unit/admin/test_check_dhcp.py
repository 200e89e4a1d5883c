"""What DHCP servers offer nodes, and what that leads to."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kadeploy.admin.check import dhcp
from kadeploy.admin.dhcp.packet import Offer
from kadeploy.admin.findings import Finding
from tests.unit.admin.sound_site import ADDRESS, SoundSite

NODE = "127.9.1.1"


def offer(**changes: Any) -> Offer:
    given = {"server": "10.0.0.1", "address": NODE, "next_server": ADDRESS, "file": "undionly.kpxe"} | changes
    return Offer(**given)


def told(sound: SoundSite, *offers: Offer) -> dict[str, Finding]:
    subject = sound.subject()
    cluster, nodes = subject.members[0]
    return {each.name: each for each in dhcp.told(subject.site, cluster, nodes[0], "eth1", offers)}


def levels(found: dict[str, Finding]) -> dict[str, str]:
    return {name: each.level for name, each in found.items()}


@pytest.fixture
def loader(sound: SoundSite) -> SoundSite:
    """The site with the loader that DHCP hands out."""
    assert (sound.folder / "tftp/undionly.kpxe").is_file()
    return sound


def test_one_server_that_offers_what_the_site_has_is_sound(loader: SoundSite) -> None:
    assert levels(told(loader, offer())) == {"servers": "ok", "address": "ok", "boot-file": "ok"}


def test_an_address_and_a_boot_file_may_come_from_two_servers(loader: SoundSite) -> None:
    """ProxyDHCP: one server gives the address, another one says what to boot."""
    proxy = offer(server="10.0.0.2", address="")
    found = told(loader, offer(file="", next_server=""), proxy)
    assert levels(found) == {"servers": "ok", "address": "ok", "boot-file": "ok"}


@pytest.mark.parametrize(
    ("offers", "name", "said"),
    [
        ([], "servers", "no DHCP server answers"),
        ([offer(), offer(server="10.0.0.66")], "servers", "10.0.0.1, 10.0.0.66"),
        ([offer(address="127.9.1.77")], "address", "127.9.1.77, and the cluster file has 127.9.1.1"),
        ([offer(address="")], "address", "no server offers an address"),
        ([offer(file="")], "boot-file", "no boot file"),
        ([offer(file="no-such.kpxe")], "boot-file", "no-such.kpxe is offered, and there is no"),
        ([offer(next_server="10.0.0.99")], "next-server", "10.0.0.99"),
        ([offer(file=f"http://{ADDRESS}:1/core.efi")], "boot-file", "does not come"),
    ],
)
def test_an_offer_that_leads_nowhere_is_told(loader: SoundSite, offers: list[Offer], name: str, said: str) -> None:
    found = told(loader, *offers)[name]
    assert found.level == "fail"
    assert said in found.text
    assert found.advice


def test_pxelinux_for_roms_that_have_no_http_is_told(sound: SoundSite) -> None:
    assert "may have no HTTP" in told(sound, offer(file="pxelinux.0"))["boot-file"].text


@pytest.mark.parametrize(
    ("profiles", "file", "level"),
    [
        ("ipxe", "ipxe/127.9.1.1.ipxe", "ok"),
        ("ipxe", "http://10.0.0.1/ipxe/${ip}.ipxe", "ok"),
        ("ipxe", "undionly.kpxe", "fail"),
        ("ipxe", "pxelinux.0", "fail"),
        ("pxelinux", "pxelinux.0", "ok"),
        ("pxelinux", "ipxe/127.9.1.1.ipxe", "fail"),
    ],
)
def test_ipxe_is_to_get_the_profile_that_the_site_writes(
    sound: SoundSite, profiles: str, file: str, level: str
) -> None:
    sound.change("gdx", loader={"profiles": profiles})
    cluster, nodes = sound.subject().members[0]
    assert [each.level for each in dhcp.as_ipxe(cluster, nodes[0], [offer(file=file)])] == [level]


def test_a_cluster_whose_cards_nobody_knows_cannot_be_asked_for(sound: SoundSite) -> None:
    sound.change("gdx", nodes=[{"name": "gdx-1.site", "address": NODE, "bmc": "127.9.8.1"}])
    assert "no node has a mac" in sound.one(dhcp.check, "asked", "warn").text


def test_an_interface_that_is_not_there_is_told(sound: SoundSite) -> None:
    assert "no-such" in sound.one(dhcp.check, "asked", "warn", interface="no-such").text


# --- a real server ------------------------------------------------------------------------------------------------


@contextmanager
def network(folder: Path, *lines: str) -> Iterator[str]:
    """A network namespace with a pair of interfaces and dnsmasq at one end; nothing leaves it."""
    name = f"site-check-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in (
            "ip link set lo up",
            "ip link add lan type veth peer name port",
            "ip address add 10.77.0.1/24 dev lan",
            "ip link set lan up",
            "ip link set port up",
        ):
            subprocess.run([*inside, *command.split()], check=True)
        (folder / "dnsmasq.conf").write_text("\n".join(lines) + "\n")
        with (folder / "dnsmasq.log").open("wb") as log:
            server = subprocess.Popen(
                [*inside, "dnsmasq", "--keep-in-foreground", "--port=0", f"--conf-file={folder}/dnsmasq.conf",
                 f"--dhcp-leasefile={folder}/leases", "--log-facility=-", "--user=root", "--interface=lan"],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            time.sleep(1)
            assert server.poll() is None, (folder / "dnsmasq.log").read_text()
            yield name
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("dnsmasq"), reason="needs root and dnsmasq")
def test_a_real_server_is_asked_as_firmware_and_as_ipxe_within_the_sites_namespace(
    loader: SoundSite, tmp_path: Path
) -> None:
    lines = (
        "dhcp-range=10.77.0.0,static",
        "dhcp-host=52:54:00:00:00:01,10.77.0.11",
        "dhcp-match=set:ipxe,175",
        "dhcp-boot=tag:!ipxe,undionly.kpxe,,10.77.0.1",
        "dhcp-boot=tag:ipxe,ipxe/10.77.0.11.ipxe,,10.77.0.1",
    )
    nodes = [{"name": "gdx-1.site", "address": "10.77.0.11", "bmc": "10.77.1.1", "mac": "52:54:00:00:00:01"}]
    loader.change("gdx", nodes=nodes, loader={"profiles": "ipxe"})
    with network(tmp_path, *lines) as name:
        loader.change("site", server_address="10.77.0.1", network_namespace=name)
        found = loader.found(dhcp.check)
        assert [(each.name, each.level) for each in found] == [
            ("servers", "ok"),
            ("address", "ok"),
            ("boot-file", "ok"),
            ("ipxe", "ok"),
        ], found
        assert "on lan" in found[0].text
        loader.change("gdx", nodes=[{**nodes[0], "mac": "52:54:00:00:00:99"}])
        assert "no DHCP server answers" in loader.one(dhcp.check, "servers", "fail").text
