"""Logs of others, in which nodes that do not come back left something behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from kadeploy.boot.traces import Log, Machines, Requests, said

NOBODY = Machines(frozenset(), {})
SITE = Machines(
    frozenset({"10.0.1.1", "10.0.1.2", "10.0.1.3"}), {"52:54:00:b1:01:02": "n-2", "52:54:00:b1:01:03": "n-3"}
)
OURS = "tftp: 10.0.1.99 'pxelinux.cfg/01-52-54-00-b1-01-{}' absent"


def test_only_what_was_written_since_counts_and_only_what_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"yesterday\r\n")
    log = Log.now(path)
    assert log.lines() == []
    with path.open("ab") as file:
        file.write(b"\x1b[31mKernel panic\x07 - \xff not syncing\r\n\r\n")
    assert log.lines() == ["[31mKernel panic - \N{REPLACEMENT CHARACTER} not syncing"]


def test_a_log_that_was_rotated_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("long ago\n" * 10)
    log = Log.now(path)
    path.write_text("today\n")
    assert log.lines() == ["today"]


def test_a_log_that_is_not_there_tells_nothing_and_one_that_comes_later_does(tmp_path: Path) -> None:
    log = Log.now(tmp_path / "log")
    assert log.lines() is None
    (tmp_path / "log").write_text("first\n")
    assert log.lines() == ["first"]


def test_of_an_endless_line_a_piece_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x" * (3 << 20))
    (line,) = Log(path, 0).lines() or []
    assert len(line) < 1000


def test_the_last_request_of_an_address_is_told_and_of_no_other_one_that_looks_alike() -> None:
    lines = [
        "tftp: 10.0.1.2 'pxelinux.0' sent",
        'http: 10.0.1.2 "GET /initrd HTTP/1.1" 200 -',
        "tftp: 10.0.1.23 'pxelinux.0' sent",
        "tftp: 110.0.1.2 'pxelinux.0' sent",
        "dnsmasq-tftp: sent pxelinux.0 to 10.0.1.2.",
    ]
    assert told(lines[:4], "10.0.1.2").endswith('is: http: 10.0.1.2 "GET /initrd HTTP/1.1" 200 -')
    assert told(lines, "10.0.1.2").endswith("to 10.0.1.2.")
    assert told(lines, "10.0.1.3") == "10.0.1.3 asked the boot server for nothing"


@pytest.mark.parametrize(
    "line",
    [
        "tftp: 10.0.1.99 'pxelinux.0' sent",
        'http: 10.0.1.99 "GET /deploy-vmlinuz HTTP/1.1" 200 -',
        "Nov 28 12:00:01 dnsmasq-tftp[71]: sent /srv/tftp/pxelinux.0 to 10.0.1.99",
        "Nov 28 12:00:01 srv in.tftpd[71]: RRQ from ::ffff:10.0.1.99 filename pxelinux.0",
        "Nov 28 12:00:01 srv atftpd[71.140]: Serving pxelinux.0 to 10.0.1.99:2070",
        '10.0.1.99 - - [28/Nov/2026:12:00:01 +0000] "GET /v HTTP/1.1" 200 9 "http://10.0.1.1/" "Chrome/120.0.0.0"',
        "tftp: 10.0.1.99 'ipxe/10.0.1.99.ipxe' absent",
    ],
)
def test_the_logs_of_the_usual_servers_are_read(line: str) -> None:
    assert told([line], "10.0.1.99", NOBODY) == f"the boot server's last word of it is: {line}"
    assert told([line], "10.0.1.2", SITE) == (
        f"10.0.1.2 asked the boot server for nothing, but 10.0.1.99 did, which belongs to no node of this site: {line} "
        "(does the node boot from another network card?)"
    )
    assert told([line], "10.0.1.2", NOBODY) == "10.0.1.2 asked the boot server for nothing"


def test_the_card_of_a_stranger_is_told_and_how_many_there_are() -> None:
    lines = ["tftp: 10.0.1.98 'pxelinux.0' sent", OURS.format("63"), "tftp: 10.0.1.99 'pxelinux.cfg/default' sent"]
    assert told(lines, "10.0.1.2", SITE) == (
        "10.0.1.2 asked the boot server for nothing, but 10.0.1.99 with network card 52:54:00:b1:01:63 did, which "
        "belongs to no node of this site (nor do 1 more): tftp: 10.0.1.99 'pxelinux.cfg/default' sent "
        "(does the node boot from another network card?)"
    )


def test_a_node_with_a_wrong_address_is_known_by_its_card_and_is_no_other_node() -> None:
    line = OURS.format("02")
    assert told([line], "10.0.1.2", SITE) == (
        "10.0.1.2 asked the boot server for nothing, but its network card 52:54:00:b1:01:02 did, as 10.0.1.99: "
        f"{line} (does DHCP know another address than the cluster file?)"
    )
    assert Requests.read([line], SITE).of("n-3", ["10.0.1.3"]) == "10.0.1.3 asked the boot server for nothing"


def test_a_node_is_found_under_each_of_its_names() -> None:
    read = Requests.read(["GET /initrd from n-2.site", "tftp: 10.9.0.2 'pxelinux.0' sent"], SITE)
    assert read.of("n-2.site", ["10.0.1.2", "n-2.site"]).endswith("from n-2.site")
    assert read.of("n-2.site", ["10.0.1.2", "10.9.0.2"]).endswith("'pxelinux.0' sent")


def test_when_nobody_asked_that_is_told() -> None:
    assert told([], "10.0.1.2", SITE) == "10.0.1.2 asked the boot server for nothing, nor did anybody else"


def told(lines: list[str], address: str, known: Machines = NOBODY) -> str:
    return Requests.read(lines, known).of("n-2", [address])


def test_a_console_that_is_silent_is_told_too() -> None:
    assert said([]) == "its console has said nothing"
    assert said(["Loading", "panic"]) == "its console says last: panic"
