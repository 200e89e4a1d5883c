"""Which part of a file an HTTP request is for: all of it, some bytes, or none since the client has it (RFC 9110).

GRUB asks for the rest of a file from where it goes on reading, and takes whatever is answered for that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)
"""One range; of several, as of what is none, all of the file may be sent."""


@dataclass(frozen=True)
class Part:
    """What is sent: *length* bytes from *first* on."""

    status: HTTPStatus
    first: int
    length: int
    headers: Mapping[str, str]


def of(file: os.stat_result, asked: Message[str, str]) -> Part:
    """The part of *file* that a request with the headers *asked* is for."""
    told = {
        "Last-Modified": formatdate(int(file.st_mtime), usegmt=True),
        "ETag": f'"{file.st_mtime_ns:x}-{file.st_size:x}"',
        "Accept-Ranges": "bytes",
    }
    if _has_it_already(file, told["ETag"], asked):
        return Part(HTTPStatus.NOT_MODIFIED, 0, 0, told)
    wanted = _RANGE.fullmatch(asked.get("Range", "").replace(" ", ""))
    if wanted is None or wanted[0].endswith("=-") or not _is_of_the_same(told, asked.get("If-Range")):
        return Part(HTTPStatus.OK, 0, file.st_size, told)
    first, end = _bounds(wanted[1], wanted[2], file.st_size)
    if first >= end:
        headers = told | {"Content-Range": f"bytes */{file.st_size}"}
        return Part(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, 0, headers)
    headers = told | {"Content-Range": f"bytes {first}-{end - 1}/{file.st_size}"}
    return Part(HTTPStatus.PARTIAL_CONTENT, first, end - first, headers)


def _has_it_already(file: os.stat_result, tag: str, asked: Message[str, str]) -> bool:
    tags = asked.get("If-None-Match")
    if tags is not None:
        return any(each.strip().removeprefix("W/") in (tag, "*") for each in tags.split(","))
    try:
        since = parsedate_to_datetime(asked.get("If-Modified-Since", ""))
    except ValueError:
        return False
    return since.tzinfo is not None and datetime.fromtimestamp(int(file.st_mtime), UTC) <= since


def _is_of_the_same(told: Mapping[str, str], condition: str | None) -> bool:
    """Whether the client has the beginning of this very file, as far as it says of what."""
    return condition is None or condition in (told["ETag"], told["Last-Modified"])


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """The first byte, and the one behind the last; ``-N`` are the last N bytes."""
    if not first:
        return max(0, size - int(last)), size
    end = min(int(last) + 1, size) if last else size
    return int(first), end
