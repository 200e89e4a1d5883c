"""A request gets the part of a file that it is for, and all of it when it says nothing sensible."""

from __future__ import annotations

import os
from email.message import Message
from pathlib import Path

import pytest

from kadeploy.boot import parts

MODIFIED = 1_700_000_000
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"


@pytest.fixture
def file(tmp_path: Path) -> os.stat_result:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    os.utime(path, ns=(0, MODIFIED * 10**9 + 5))
    return path.stat()


def asked(file: os.stat_result, **headers: str) -> tuple[int, str]:
    """Status, and the bytes that are sent."""
    message: Message[str, str] = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    part = parts.of(file, message)
    return part.status, "0123456789"[part.first : part.first + part.length]


RANGES = {
    "bytes=0-": (206, "0123456789"),
    "bytes=4-": (206, "456789"),
    "bytes=4-6": (206, "456"),
    "bytes=0-0": (206, "0"),
    "BYTES = 4-6": (206, "456"),
    "bytes=9-900": (206, "9"),
    "bytes=-3": (206, "789"),
    "bytes=-300": (206, "0123456789"),
    "bytes=10-": (416, ""),
    "bytes=-0": (416, ""),
    "bytes=6-4": (416, ""),
    "bytes=-": (200, "0123456789"),
    "bytes=0-1,4-5": (200, "0123456789"),
    "bytes=a-b": (200, "0123456789"),
    f"bytes={'9' * 5000}-": (200, "0123456789"),
    "lines=1-2": (200, "0123456789"),
    "": (200, "0123456789"),
}


@pytest.mark.parametrize(("asks", "answer"), RANGES.items(), ids=lambda each: str(each)[:20])
def test_a_range_is_what_is_sent_of_the_file(file: os.stat_result, asks: str, answer: tuple[int, str]) -> None:
    assert asked(file, Range=asks) == answer


def test_of_an_empty_file_there_is_no_part(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert asked((tmp_path / "file").stat(), Range="bytes=0-") == (416, "")
    assert asked((tmp_path / "file").stat()) == (200, "")


def test_a_part_says_where_in_the_file_it_belongs(file: os.stat_result) -> None:
    message: Message[str, str] = Message()
    message["range"] = "bytes=4-6"
    assert parts.of(file, message).headers["Content-Range"] == "bytes 4-6/10"
    message.replace_header("range", "bytes=70-")
    assert parts.of(file, message).headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize("since", [DATE, "Wed, 15 Nov 2023 00:00:00 GMT"])
def test_who_has_the_file_since_its_last_change_is_not_sent_it_again(file: os.stat_result, since: str) -> None:
    assert asked(file, If_Modified_Since=since) == (304, "")


@pytest.mark.parametrize("since", [EARLIER, "yesterday", "", "Tue, 14 Nov 2023 22:13:20 -0000", "Tue, 99 Nov 99999999"])
def test_who_may_have_an_older_file_is_sent_it(file: os.stat_result, since: str) -> None:
    assert asked(file, If_Modified_Since=since)[0] == 200


def test_a_tag_tells_two_versions_of_a_second_apart(file: os.stat_result, tmp_path: Path) -> None:
    tag = parts.of(file, Message()).headers["ETag"]
    assert asked(file, If_None_Match=f'"other", W/{tag}') == (304, "")
    os.utime(tmp_path / "file", ns=(0, MODIFIED * 10**9 + 6))
    changed = (tmp_path / "file").stat()
    assert asked(changed, If_None_Match=tag) == (200, "0123456789")
    assert asked(changed, If_None_Match=tag, If_Modified_Since=DATE)[0] == 200, "the tag counts"


def test_the_rest_of_a_file_is_not_sent_to_who_has_the_beginning_of_another(file: os.stat_result) -> None:
    tag = parts.of(file, Message()).headers["ETag"]
    assert asked(file, Range="bytes=4-", If_Range=tag) == (206, "456789")
    assert asked(file, Range="bytes=4-", If_Range=DATE) == (206, "456789")
    assert asked(file, Range="bytes=4-", If_Range='"other"') == (200, "0123456789")
    assert asked(file, Range="bytes=4-", If_Range=EARLIER) == (200, "0123456789")
