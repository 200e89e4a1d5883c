"""Answers in the form that a client takes: JSON, or YAML where its ``Accept`` prefers that."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import msgspec
import yaml
from litestar import Request, Response
from litestar.response import Stream

_ValueT = TypeVar("_ValueT")
CSV = "text/csv"
_YAML = ("application/x-yaml", "application/yaml", "text/yaml", "text/x-yaml")
_BATCH = 1000
"""Lines of a table that are packed at a time."""


def rendered(request: Request[Any, Any, Any], value: _ValueT) -> Response[_ValueT]:
    """*value* as *request* takes it."""
    chosen = request.accept.best_match(["application/json", *_YAML], default="application/json")
    if chosen in _YAML:
        said = yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False, allow_unicode=True).encode()
    else:
        said = msgspec.json.encode(value)
    return cast("Response[_ValueT]", Response(said, media_type=chosen))


def table(request: Request[Any, Any, Any], fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> Stream:
    """*rows* as CSV below a line with the names of its *fields*; packed where *request* takes gzip."""
    headers = {"Vary": "Accept-Encoding"}
    pieces = _lines(fields, rows)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        pieces = map(gzip.compress, pieces)  # several members are one file (RFC 1952, section 2.2)
    return Stream(pieces, headers=headers)


def _lines(fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    page = io.StringIO(newline="")
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(fields)
    for rank, row in enumerate(rows, start=1):
        writer.writerow(row)
        if rank % _BATCH == 0:
            yield page.getvalue().encode()
            page.seek(0)
            page.truncate()
    yield page.getvalue().encode()
