"""Logs of others, in which nodes that do not come back left something behind."""

from __future__ import annotations

from pathlib import Path

from kadeploy.boot.traces import Log, asked, said


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
    assert asked(lines[:4], "10.0.1.2").endswith('is: http: 10.0.1.2 "GET /initrd HTTP/1.1" 200 -')
    assert asked(lines, "10.0.1.2").endswith("to 10.0.1.2.")
    assert asked(lines, "10.0.1.3") == "10.0.1.3 asked the boot server for nothing"


def test_a_console_that_is_silent_is_told_too() -> None:
    assert said([]) == "its console has said nothing"
    assert said(["Loading", "panic"]) == "its console says last: panic"
