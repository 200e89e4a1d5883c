"""What DHCP is to answer the nodes of a site, and how three servers are told."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from kadeploy.admin.dhcp import servers, wanted
from kadeploy.admin.dhcp.servers import SERVERS
from kadeploy.admin.dhcp.wanted import Wanted
from kadeploy.boot import loader_files
from kadeploy.config.cluster import Cluster, Loader, NodeRange
from kadeploy.config.folder import Configuration
from kadeploy.config.site import BootFolders
from kadeploy.errors import ConfigError, KadeployError, OptionError
from tests.unit import build

NODES = NodeRange(name="gdx-[1-2].site", address="10.0.0.[11-12]", mac="52-54-00-00-00-0[1-2]")


def cluster(firmware: str, profiles: str, arch: str = "", *nodes: NodeRange) -> Cluster:
    """A cluster; its nodes are `NODES` unless others are given."""
    loader = Loader(firmware=firmware, profiles=profiles)  # type: ignore[arg-type]
    return build.cluster(nodes=nodes or (NODES,), arch=arch, loader=loader)


BIOS = cluster("bios", "pxelinux")
UEFI = cluster("uefi", "grub")
SECURE = build.cluster(nodes=(NODES,), loader=Loader(firmware="uefi", profiles="grub", secure_boot=True))


def configured(
    clusters: dict[str, Cluster], address: str = "10.0.0.1", url: str = "http://10.0.0.1/", tftp: str = "/srv/tftp"
) -> Configuration:
    """A configuration, as it is once it was read; what may stand in files is another test's affair."""
    boot = BootFolders(tftp_root=tftp, http_root="/srv/http", http_url=url)
    site = build.site("/", name="paris\n# or so", server_address=address, boot=boot)
    named = {name: msgspec.structs.replace(each, name=name) for name, each in clusters.items()}
    return Configuration(folder=Path("/etc/kadeploy"), site=site, clusters=named)


def of(found: Cluster, **changed: str) -> Wanted:
    """What is to be answered to the nodes of one cluster."""
    return wanted.of(configured({"gdx": found}, **changed))


def files(found: Wanted) -> dict[tuple[int, bool | None], str]:
    """Boot files of the only cluster, by architecture and whether iPXE asks."""
    (group,) = found.groups
    return {(number, each.is_ipxe): each.file for each in group.answers for number in each.architectures}


# --- what is answered -------------------------------------------------------------------------------------------

ROM, CARD = False, True


@pytest.mark.parametrize(
    ("firmware", "profiles", "arch", "expected"),
    [
        ("bios", "pxelinux", "", {(0, ROM): "undionly.kpxe", (0, CARD): "pxelinux.0"}),
        ("bios", "ipxe", "", {(0, ROM): "undionly.kpxe", (0, CARD): "ipxe/${ip}.ipxe"}),
        ("bios", "grub", "", {(0, None): "grub/i386-pc/core.0"}),
        (
            *("uefi", "grub", "x86_64"),
            {
                (7, None): "grub/x86_64-efi/core.efi",
                (9, None): "grub/x86_64-efi/core.efi",
                (16, None): "http://10.0.0.1/grub/x86_64-efi/core.efi",
            },
        ),
        (
            *("uefi", "ipxe", ""),
            {
                (7, ROM): "snponly.efi",
                (9, ROM): "snponly.efi",
                (7, CARD): "ipxe/${ip}.ipxe",
                (9, CARD): "ipxe/${ip}.ipxe",
                (16, None): "http://10.0.0.1/snponly.efi",
            },
        ),
        (
            *("uefi", "grub", "aarch64"),
            {(11, None): "grub/arm64-efi/core.efi", (19, None): "http://10.0.0.1/grub/arm64-efi/core.efi"},
        ),
    ],
)
def test_each_kind_of_firmware_is_told_what_its_profiles_need(
    firmware: str, profiles: str, arch: str, expected: dict[tuple[int, bool | None], str]
) -> None:
    assert files(of(cluster(firmware, profiles, arch))) == expected


def test_secure_boot_begins_with_the_signed_shim_and_leaves_bios_as_it_is() -> None:
    old = NodeRange(name="old-1", address="10.0.0.21", mac="52:54:00:00:00:21")
    site = configured({"gdx": SECURE, "old": cluster("bios", "pxelinux", "", old)})
    found = wanted.of(site)
    assert found.tftp_loaders == ("bootx64.efi", "undionly.kpxe", "pxelinux.0")
    assert files(wanted.of(site, ["gdx"])) == {(7, None): "bootx64.efi", (9, None): "bootx64.efi"}


def test_what_does_not_come_up_by_http_is_not_offered_to_firmware_that_boots_by_it() -> None:
    """Seen on OVMF: syslinux.efi finds no root device then, and Debian's signed GRUB has no HTTP."""
    found = of(cluster("uefi", "pxelinux"))
    assert (found.http_loaders, set(files(found))) == ((), {(7, None), (9, None)})
    assert of(SECURE).http_loaders == ()


def test_what_firmware_cannot_load_is_refused() -> None:
    with pytest.raises(ConfigError, match="Debian has no ipxe for aarch64: set grub"):
        of(cluster("uefi", "ipxe", "aarch64"))


def test_what_ipxe_goes_on_to_for_a_disk_is_installed_too() -> None:
    """Its profile of a deployed system chains to PXELINUX or GRUB (templates/pxe/ipxe.j2)."""
    assert of(cluster("bios", "ipxe")).tftp_loaders == ("undionly.kpxe", "pxelinux.0")
    found = of(cluster("uefi", "ipxe"))
    assert found.tftp_loaders == ("snponly.efi", "grub/x86_64-efi/core.efi")
    assert found.http_loaders == ("snponly.efi",)


def test_every_loader_that_is_named_can_be_installed() -> None:
    for chain in wanted._CHAINS.values():
        assert all(name in loader_files.LOADERS or name == wanted.PROFILE for name in chain)


def test_ipxe_finds_its_profile_by_http_where_that_serves_the_folder() -> None:
    gdx = cluster("bios", "ipxe")
    assert files(of(gdx, tftp="/srv/http"))[0, CARD] == "http://10.0.0.1/ipxe/${ip}.ipxe"
    assert files(of(gdx, tftp="/srv/http/tftp"))[0, CARD] == "http://10.0.0.1/tftp/ipxe/${ip}.ipxe"


def test_nodes_without_a_mac_address_are_left_out_and_named() -> None:
    others = NodeRange(name="gdx-[3-9].site", address="10.0.0.[13-19]")
    found = of(cluster("bios", "pxelinux", "", NODES, others))
    assert [host.name for host in found.groups[0].hosts] == ["gdx-1.site", "gdx-2.site"]
    assert "gdx-[3-9].site have no MAC address" in wanted.left_out(found)
    for server in SERVERS:
        assert "gdx: told nothing, for want of a MAC address: gdx-[3-9].site" in servers.text(server, found)


def test_mac_addresses_are_written_as_every_server_reads_them() -> None:
    node = NodeRange(name="gdx-1", address="10.0.0.11", mac="52-54-00-AB-CD-EF")
    assert of(cluster("bios", "grub", "", node)).groups[0].hosts[0].mac == "52:54:00:ab:cd:ef"


def test_a_cluster_that_is_not_there_is_refused_with_what_was_meant() -> None:
    with pytest.raises(OptionError, match=r"no cluster gxd; there are gdx\. Did you mean gdx\?"):
        wanted.of(configured({"gdx": BIOS}), ["gxd"])


# --- values of users --------------------------------------------------------------------------------------------


def test_the_text_of_a_site_s_name_reaches_no_server() -> None:
    found = of(cluster("bios", "pxelinux"))
    assert not [server for server in SERVERS if "or so" in servers.text(server, found)]


@pytest.mark.parametrize(
    ("name", "address", "mac"),
    [
        ("gdx-1\n}", "10.0.0.11", "52:54:00:00:00:01"),
        ("gdx 1;", "10.0.0.11", "52:54:00:00:00:01"),
        ('gdx"1', "10.0.0.11", ""),
        ("gdx-.site", "10.0.0.11", ""),
        ("gdx..site", "10.0.0.11", "52:54:00:00:00:01"),
        (f"gdx{61 * 'x'}", "10.0.0.11", "52:54:00:00:00:01"),
        ("gdx-1", "nowhere.invalid", "52:54:00:00:00:01"),
        ("gdx-1", "10.0.0.11", "52:54:00:00:00:01\n}"),
        ("gdx-1", "10.0.0.11", "eth0"),
    ],
)
def test_a_node_whose_name_or_address_a_language_cannot_hold_is_refused(name: str, address: str, mac: str) -> None:
    with pytest.raises(KadeployError, match="gdx"):
        of(cluster("bios", "pxelinux", "", NodeRange(name=name, address=address, mac=mac)))


@pytest.mark.parametrize("name", ["gdx 1", "gdx,1", 'gdx"', "gdx'", "gdx\n1", "gdé"])
def test_a_cluster_whose_name_is_no_word_of_a_server_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="use letters, digits, dots, dashes and underscores alone"):
        wanted.of(configured({name: BIOS}))


@pytest.mark.parametrize(
    "url", ["http://h/a,b/", "http://h/a;/", 'http://h/"/', "http://h/é/", "http://h/" + 120 * "a"]
)
def test_a_url_that_an_answer_cannot_hold_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"boot\.http_url: .* an answer of DHCP"):
        of(UEFI, url=url)


def test_a_server_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"server_address: nowhere\.invalid is no IPv4 address"):
        of(UEFI, address="nowhere.invalid")


# --- three languages --------------------------------------------------------------------------------------------


def test_kea_s_lines_are_members_of_an_object() -> None:
    text = servers.text("kea", of(cluster("uefi", "ipxe")))
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("//"))
    read = json.loads(f"{{{plain}}}")
    assert [each["hw-address"] for each in read["reservations"]] == ["52:54:00:00:00:01", "52:54:00:00:00:02"]


def test_only_dnsmasq_stands_beside_another_server() -> None:
    found = of(cluster("bios", "pxelinux"))
    for server in ("isc", "kea"):
        with pytest.raises(OptionError, match=rf"--proxy: {server} cannot .* --server dnsmasq --proxy"):
            servers.text(server, found, proxy=True)
    assert "10.0.0.11" not in servers.text("dnsmasq", found, proxy=True)


def test_signed_loaders_find_nothing_where_a_proxy_names_them() -> None:
    found = of(SECURE)
    assert "bootx64.efi" in servers.text("dnsmasq", found)
    with pytest.raises(OptionError, match=r"loader\.secure_boot does not go with --proxy"):
        servers.text("dnsmasq", found, proxy=True)


def test_the_example_of_a_network_holds_all_nodes_and_the_server() -> None:
    nodes = NodeRange(name="gdx-[1-2]", address="10.0.[0,3].11", mac="52-54-00-00-00-0[1-2]")
    found = of(cluster("bios", "pxelinux", "", nodes))
    assert str(found.network) == "10.0.0.0/22"
