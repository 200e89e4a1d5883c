"""Nodes from files that a site has: each form that its program takes, what is left out and why, and noise."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kadeploy.admin import node_sources
from kadeploy.admin.sources import dhcpd, dnsmasq, kea, table
from kadeploy.admin.sources.found import Found
from kadeploy.errors import KadeployError

DHCPD = """\
# The site's nodes
option domain-name "paris.example";
authoritative;
subnet 10.0.0.0 netmask 255.255.0.0 {
  range 10.0.9.1 10.0.9.9; # for laptops; { not a brace
  group {
    filename "pxelinux.0";
    host gdx-1 { hardware ethernet 52:54:00:00:00:01; fixed-address 10.0.1.1; }
    host gdx-2 {
      option host-name "gdx-2";
      fixed-address 10.0.1.2, 10.0.2.2;
      hardware ethernet 52:54:00:00:00:02;
    }
    host wrong-name { fixed-address 10.0.1.3; option host-name "gdx-3"; hardware ethernet 52:54:0:0:0:3; }
  }
}
host gdx-4.paris.example { option host-name "gdx-4"; fixed-address gdx-4.paris.example; }
host printer { hardware ethernet 52:54:00:00:00:09; }
host twin { hardware ethernet 52:54:00:00:00:01; fixed-address 10.0.1.5; }
class "pxe" { match if substring (option vendor-class-identifier, 0, 9) = "PXEClient"; }
"""
DNSMASQ = """\
# dhcp-host=00:00:00:00:00:00,no,10.9.9.9
domain-needed
dhcp-range=10.0.9.1,10.0.9.9,12h
dhcp-host=52:54:00:00:00:01,gdx-1,10.0.1.1
dhcp-host=52:54:00:00:00:02,set:pxe,10.0.1.2,gdx-2,infinite # the second
dhcp-host=id:01:02:03:04,gdx-3,10.0.1.3,45m
dhcp-host = id:*,gdx-4,10.0.1.4
dhcp-host=tag:blue,52:54:00:00:00:05,10.0.1.5,gdx-5,1d
dhcp-host=52:54:00:00:00:06,10.0.1.6,[fd00::6],gdx-6
dhcp-host=52:54:00:00:00:07,[fd00::7],gdx-7
dhcp-host=06-52:54:00:00:00:08,gdx-8,10.0.1.8,3600
dhcp-host=52:54:00:00:00:09,52:54:00:00:00:19,gdx-9,10.0.1.9
dhcp-host=52:54:00:00:00:*,gdx-10,10.0.1.10
dhcp-host=52:54:00:00:00:0b,ignore
dhcp-host=52:54:00:00:00:0c,gdx-12
dhcp-host=52:54:00:00:00:0d,10.0.1.13
dhcp-host=52:54:00:00:00:0e,[::14],gdx-14
"""
KEA = """\
{ // all of it
  "Dhcp4": {
    "interfaces-config": {"interfaces": []},
    "lease-database": {"type": "memfile", "persist": false},
    "host-reservation-identifiers": ["hw-address"],
    "subnet4": [{
      "subnet": "10.0.0.0/16", /* over
      two lines */
      "reservations": [
        {"hw-address": "52:54:00:00:00:01", "ip-address": "10.0.1.1", "hostname": "gdx-1"},
        {"ip-address": "10.0.1.2", "hostname": "gdx-2.paris.example.", "hw-address": "52:54:00:00:00:02",
         "user-context": {"comment": "a # and a // in a text"}},
        {"hw-address": "52:54:00:00:00:03", "ip-address": "10.0.1.3"}, # no name
        {"hw-address": "52:54:00:00:00:04", "hostname": "gdx-4"}
      ]
    }],
    "shared-networks": [{"name": "other", "subnet4": [{"subnet": "10.1.0.0/16", "reservations": [
      {"hw-address": "52:54:00:00:00:05", "ip-address": "10.1.1.5", "hostname": "gdx-5"}
    ]}]}]
  }
}
"""
INVENTORY = """\
all:
  children:
    gdx:
      vars: {bmc_user: admin}
      hosts:
        gdx-1: {ansible_host: 10.0.1.1, mac: "52:54:00:00:00:01", kadeploy_bmc: 10.0.2.1}
        gdx-2: {ansible_host: 10.0.1.2, mac_address: 52-54-00-00-00-02, ipmi_address: "10.0.2.2"}
      children:
        big: {hosts: {"gdx-[3:4]": {}}}
    web: {hosts: {www: {ansible_host: "{{ lookup('pipe', 'touch MARK') }}"}}}
"""


def write(folder: Path, text: str | bytes, name: str = "file") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def reasons(found: Found) -> dict[str, str]:
    """Why, by line."""
    return {each.where.rpartition(":")[2]: each.text for each in found.left_out}


def addresses(found: Found) -> dict[str, str]:
    return {each.name: each.address for each in found.entries}


def macs(found: Found) -> dict[str, str]:
    return {each.name: each.mac for each in found.entries}


# --- ISC dhcpd --------------------------------------------------------------------------------------------------------


def test_the_hosts_of_dhcpd_are_found_wherever_they_stand(tmp_path: Path) -> None:
    found = node_sources.read([f"dhcpd:{write(tmp_path, DHCPD)}"])
    assert addresses(found) == {
        "gdx-1": "10.0.1.1",
        "gdx-2": "10.0.1.2",
        "gdx-3": "10.0.1.3",
        "gdx-4.paris.example": "gdx-4.paris.example",
    }
    assert macs(found)["gdx-3"] == "52:54:00:00:00:03"


def test_what_dhcpd_does_not_say_is_told_by_its_line(tmp_path: Path) -> None:
    assert reasons(node_sources.read([f"dhcpd:{write(tmp_path, DHCPD)}"])) == {
        "9": "gdx-2 has several addresses; 10.0.1.2, the first one, is taken",
        "18": "printer has no fixed-address",
        "19": f"twin has the MAC address 52:54:00:00:00:01 of gdx-1 ({tmp_path}/file:8)",
    }


def test_files_that_dhcpd_includes_are_followed(tmp_path: Path) -> None:
    inner = write(tmp_path, "host gdx-1 { fixed-address 10.0.1.1; }", "inner")
    outer = write(tmp_path, 'group { include "%s"; }' % inner)  # noqa: UP031 - braces are the file's
    found = node_sources.read([f"dhcpd:{outer}"])
    assert found.entries[0].where == f"{inner}:1"


def test_files_of_dhcpd_that_include_themselves_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    write(tmp_path, f'include "{path}"; include "{path}";')
    with pytest.raises(KadeployError, match="include one another"):
        node_sources.read([f"dhcpd:{path}"])


def test_older_comments_in_latin_1_do_not_stop_us(tmp_path: Path) -> None:
    content = "# créé à Paris\r\nhost gdx-1 { fixed-address 10.0.1.1; }\r\n".encode("latin-1")
    assert addresses(node_sources.read([f"dhcpd:{write(tmp_path, content)}"])) == {"gdx-1": "10.0.1.1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host a { fixed-address 10.0.0.1;", "file:1: what is opened here by { is never closed"),
        ("\n}", "file:2: this } closes nothing"),
        ('host a { option host-name "x; }\n', 'file:1: the text that begins here with " never ends'),
        ("host a { fixed-address 10.0.0.1 }", "'fixed-address 10.0.0.1' does not end with a semicolon"),
        ("subnet 10.0.0.0 netmask 255.0.0.0 { }", "no node was found in it"),
        ("host a { fixed-address 999.0.0.1; }", "file:1: a: '999.0.0.1' is no address"),
    ],
)
def test_a_dhcpd_conf_that_is_none_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(KadeployError) as refused:
        node_sources.read([f"dhcpd:{write(tmp_path, text)}"])
    assert said in str(refused.value)


# --- dnsmasq ----------------------------------------------------------------------------------------------------------


def test_all_forms_of_dhcp_host_are_understood(tmp_path: Path) -> None:
    found = node_sources.read([f"dnsmasq:{write(tmp_path, DNSMASQ)}"])
    expected = {f"gdx-{number}": f"10.0.1.{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 10)} | {"gdx-7": "fd00::7"}
    assert addresses(found) == expected
    assert macs(found) == {
        f"gdx-{number}": "" if number in {3, 4, 10} else f"52:54:00:00:00:{number:02x}" for number in range(1, 11)
    }


def test_what_dnsmasq_does_not_say_is_told_by_its_line(tmp_path: Path) -> None:
    assert reasons(node_sources.read([f"dnsmasq:{write(tmp_path, DNSMASQ)}"])) == {
        "9": "gdx-6 has several addresses; 10.0.1.6 is taken",
        "12": "gdx-9 has several MAC addresses; 52:54:00:00:00:09 is taken",
        "13": "gdx-10 has several MAC addresses; none is taken",
        "14": "52:54:00:00:00:0b is told to be ignored",
        "15": "gdx-12 has no address",
        "16": "52:54:00:00:00:0d has no name",
        "17": "gdx-14 has an address that is not whole, [::14]",
    }


def test_lines_of_a_hosts_file_of_dnsmasq_have_no_key(tmp_path: Path) -> None:
    text = "52:54:00:00:00:01,gdx-1,10.0.1.1,infinite\n\n10.0.1.2 gdx-2.paris gdx-2\n127.0.0.1 localhost\n"
    assert addresses(node_sources.read([f"dnsmasq:{write(tmp_path, text)}"])) == {
        "gdx-1": "10.0.1.1",
        "gdx-2.paris": "10.0.1.2",
    }


def test_other_files_of_dnsmasq_are_told_of(tmp_path: Path) -> None:
    path = write(tmp_path, "dhcp-hostsfile=/etc/nodes\ndhcp-host=10.0.0.1,gdx-1\n")
    found = node_sources.read([f"dnsmasq:{path}"])
    assert "give /etc/nodes by a --from of its own" in reasons(found)["1"]


# --- Kea --------------------------------------------------------------------------------------------------------------


def test_reservations_of_kea_are_found_in_subnets_and_shared_networks(tmp_path: Path) -> None:
    found = node_sources.read([f"kea:{write(tmp_path, KEA)}"])
    assert addresses(found) == {"gdx-1": "10.0.1.1", "gdx-2.paris.example": "10.0.1.2", "gdx-5": "10.1.1.5"}
    assert reasons(found) == {"13": "52:54:00:00:00:03 has no hostname", "14": "gdx-4 has no ip-address"}
    assert found.entries[2].where.endswith(":18")


def test_a_configuration_of_kea_that_includes_another_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, '{\n<?include "x.json"?>\n}')
    with pytest.raises(KadeployError, match=r'file:2: <\?include "x.json"\?> is not followed'):
        node_sources.read([f"kea:{path}"])


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_has_its_columns_in_any_order_and_form(delimiter: str, end: str, mark: str, tmp_path: Path) -> None:
    rows = [["MAC", "Rack", "IP Address", "BMC", "Name"], ["5254.0000.0001", "7", '"10.0.1.1"', "10.0.2.1", "gdx-1"]]
    text = mark + end.join(delimiter.join(row) for row in [*rows, []])
    [entry] = node_sources.read([f"csv:{write(tmp_path, text)}"]).entries
    assert (entry.name, entry.address, entry.bmc) == ("gdx-1", "10.0.1.1", "10.0.2.1")
    assert (entry.mac, entry.where) == ("52:54:00:00:00:01", f"{tmp_path}/file:2")


def test_lines_of_a_table_that_make_no_node_are_told(tmp_path: Path) -> None:
    rows = ["name,address,mac", "# old", ",10.0.0.1,", "gdx-1,10.0.0.1,", "gdx-2,,", "gdx-3,fe80::1%eth0,"]
    text = "\n".join([*rows, "gdx-4,10.0.0.4,zz", "gdx-1,10.0.0.9,"])
    assert reasons(node_sources.read([f"csv:{write(tmp_path, text)}"])) == {
        "3": "this line has no name",
        "5": "gdx-2 has no address",
        "6": "gdx-3: 'fe80::1%eth0' is no address",
        "7": "gdx-4: 'zz' is no MAC address",
        "8": f"gdx-1 has the name gdx-1 of gdx-1 ({tmp_path}/file:4)",
    }


def test_a_table_without_addresses_is_one_of_names(tmp_path: Path) -> None:
    path = write(tmp_path, "node\ngdx-1\n")
    assert addresses(node_sources.read([f"csv:{path}"])) == {"gdx-1": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gdx-1,10.0.0.1\n", "file:1: the first line has to name the columns"),
        ("nam,address\ngdx-1,10.0.0.1\n", "Did you mean name?"),
        ("name,mac,mac_address\n", "two columns hold the mac"),
        ("", "is empty"),
        ("name\n", "no node was found in it"),
        ('name,address\n"gdx-1,10.0.0.1\n', "file:2: is no line of a table"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(KadeployError) as refused:
        node_sources.read([f"csv:{write(tmp_path, text)}"])
    assert said in str(refused.value)


# --- inventories of Ansible -------------------------------------------------------------------------------------------


def test_an_inventory_is_read_as_ansible_reads_it_and_nothing_in_it_is_evaluated(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = write(tmp_path, INVENTORY.replace("MARK", str(mark)), "hosts.yml")
    found = node_sources.read([f"inventory:{path}"])
    assert addresses(found) == {"gdx-1": "10.0.1.1", "gdx-2": "10.0.1.2", "gdx-3": "", "gdx-4": "", "www": ""}
    assert [each.bmc for each in found.entries] == ["10.0.2.1", "10.0.2.2", "", "", ""]
    assert macs(found)["gdx-2"] == "52:54:00:00:00:02"
    assert "is a template" in found.left_out[0].text
    assert not mark.exists()


def test_a_group_of_an_inventory_has_the_groups_in_it(tmp_path: Path) -> None:
    path = write(tmp_path, INVENTORY, "hosts.yml")
    assert list(addresses(node_sources.read([f"inventory:{path}:gdx"]))) == ["gdx-1", "gdx-2", "gdx-3", "gdx-4"]
    with pytest.raises(KadeployError, match=r"there is no group gxd with a host\. Did you mean gdx\?"):
        node_sources.read([f"inventory:{path}:gxd"])


def test_an_inventory_in_lines_is_one_too(tmp_path: Path) -> None:
    path = write(tmp_path, "[gdx]\ngdx-[1:2] kadeploy_bmc=bmc-1\n[gdx:vars]\nx=1\n", "hosts")
    found = node_sources.read([f"inventory:{path}:gdx"])
    assert list(addresses(found)) == ["gdx-1"]
    assert "gdx-2 has the BMC bmc-1 of gdx-1" in found.left_out[0].text


def test_what_ansible_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KadeployError, match="Ansible cannot read this inventory"):
        node_sources.read([f"inventory:{write(tmp_path, DHCPD, 'hosts.yml')}"])
    with pytest.raises(KadeployError, match="No such file"):
        node_sources.read([f"inventory:{tmp_path}/none:group"])


# --- all of them ------------------------------------------------------------------------------------------------------


def test_only_the_nodes_that_are_wanted_are_taken_and_the_others_counted(tmp_path: Path) -> None:
    found = node_sources.read([f"dhcpd:{write(tmp_path, DHCPD)}"], "paris.example", ["gdx-1", "gdx-4.paris.example"])
    assert list(addresses(found)) == ["gdx-1.paris.example", "gdx-4.paris.example"]
    assert found.left_out[-1].text == "3 other hosts are not among the nodes that are named"


def test_a_wanted_node_that_no_file_has_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(KadeployError, match=r"gdx-9 is in none of the files\. There are gdx-\[1-4\]"):
        node_sources.read([f"dhcpd:{write(tmp_path, DHCPD)}"], only=["gdx-9"])


def test_several_files_are_taken_together(tmp_path: Path) -> None:
    one, two = write(tmp_path, "name\ngdx-1\n", "one"), write(tmp_path, "dhcp-host=10.0.0.2,gdx-2", "two")
    assert list(addresses(node_sources.read([f"csv:{one}", f"dnsmasq:{two}"]))) == ["gdx-1", "gdx-2"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("dhcp:/etc/dhcp/dhcpd.conf", "Did you mean dhcpd?"),
        ("nodes.csv", "expected csv:nodes.csv"),
        ("csv:", "expected csv:nodes.csv"),
        ("csv:/nowhere/at/all", "/nowhere/at/all: No such file"),
        ("csv:/", "not a regular file"),
        ("csv:/bin/true", "is no text file"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, said: str) -> None:
    with pytest.raises(KadeployError) as refused:
        node_sources.read([source])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["dhcpd", "-t", "-cf"], DHCPD.replace("gdx-4.paris.example; }", "10.0.1.4; }").replace("host twin", "host t")),
        (["dnsmasq", "--test", "-C"], DNSMASQ),
        (["kea-dhcp4", "-t"], KEA),
    ],
    ids=["dhcpd", "dnsmasq", "kea"],
)
def test_the_files_of_these_tests_are_ones_that_the_servers_take(command: list[str], text: str, tmp_path: Path) -> None:
    program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:], write(tmp_path, text)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- noise ------------------------------------------------------------------------------------------------------------

SAMPLES = {
    "dhcpd": DHCPD,
    "dnsmasq": DNSMASQ,
    "kea": KEA,
    "csv": "name,address,mac\ngdx-1,10.0.0.1,52:54:00:00:00:01\n",
}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A kind of file, and one of it of which a piece is something else."""
    kind = draw(st.sampled_from(sorted(SAMPLES)))
    text = SAMPLES[kind].encode()
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 40)))
    noise = draw(
        st.one_of(st.binary(max_size=40), st.sampled_from([b'"', b"{", b"}", b"[", b",", b"\\", b"/*", b"=", b"\xff"]))
    )
    return kind, text[:start] + noise + text[end:]


def refuse(path: str) -> str:
    raise KadeployError(f"{path}: no file")


READERS: dict[str, Callable[[str, str], Found]] = {
    "dhcpd": lambda text, path: dhcpd.read(text, path, refuse),
    "dnsmasq": dnsmasq.read,
    "kea": kea.read,
    "csv": table.read,
}


def names_in(kind: str, text: str) -> list[str]:
    """Names of the nodes in *text*, which make sense; none where it is refused."""
    with suppress(KadeployError):
        found = node_sources.sound(READERS[kind](text, "file").entries).entries
        assert all(not each.address or node_sources.is_address(each.address) for each in found)
        return [each.name for each in found]
    return []


@settings(max_examples=600)
@given(damaged())
def test_a_damaged_file_is_read_or_refused(case: tuple[str, bytes]) -> None:
    kind, content = case
    assert all(map(node_sources.is_name, names_in(kind, content.decode("latin-1"))))


@settings(max_examples=300)
@given(st.sampled_from(sorted(SAMPLES)), st.text(max_size=200))
def test_noise_is_read_or_refused(kind: str, text: str) -> None:
    assert all(map(node_sources.is_name, names_in(kind, text)))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, json.dumps({"reservations": [1, None]})]
)
def test_a_configuration_of_kea_without_end_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(KadeployError):
        node_sources.read([f"kea:{write(tmp_path, text)}"])
