"""Past operations in the original's form: CSV."""

from __future__ import annotations

from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Literal

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.operations.service import Rows
from kadeploy.server.original import asked
from kadeploy.server.original.forms import CSV, table
from kadeploy.server.original.operations import TAG, Asked, Here
from kadeploy.server.served import Served
from kadeploy.state.history import FIELDS, Selection

_FIELDS = ("wid", *FIELDS)
_RATES = ("hostname", "failure_rate")
_OPERATIONS = ("deploy", "reboot", "power")
Several = Annotated[list[str] | None, QueryParameter()]


class Wanted(msgspec.Struct, frozen=True):
    """What is asked for."""

    kind: Literal["all", "failure_rates"]
    nodes: list[str]
    fields: list[str]
    sort: list[str]
    step_retries: list[str]
    limit: str | None
    min_retries: int
    min_failure_rate: float
    date_min: str | None
    date_max: str | None
    wid: str | None


def _wanted(
    kind: FromQuery[Literal["all", "failure_rates"]] = "all",
    nodes: Several = None,
    fields: Several = None,
    sort: Several = None,
    step_retries: Several = None,
    limit: FromQuery[str | None] = None,
    min_retries: FromQuery[int] = 0,
    min_failure_rate: FromQuery[float] = 0.0,
    date_min: FromQuery[str | None] = None,
    date_max: FromQuery[str | None] = None,
    wid: FromQuery[str | None] = None,
) -> Wanted:
    return Wanted(
        kind=kind,
        nodes=nodes or [],
        fields=fields or [],
        sort=sort or [],
        step_retries=step_retries or [],
        limit=limit,
        min_retries=min_retries,
        min_failure_rate=min_failure_rate,
        date_min=date_min,
        date_max=date_max,
        wid=wid,
    )


class StatisticsController(Controller):
    """``/stats``."""

    path = "/stats"
    tags = (TAG,)
    dependencies = {"wanted": Provide(_wanted, sync_to_thread=False)}

    @get("/", sync_to_thread=True, media_type=CSV)
    def all_rows(self, served: Here, request: Asked, wanted: NamedDependency[Wanted]) -> Stream:
        """Rows of the log, or how often nodes failed, below a line with the names of the columns."""
        return _table(served, request, None, wanted)

    @get("/{operation:str}", sync_to_thread=True, media_type=CSV)
    def rows(self, served: Here, request: Asked, operation: FromPath[str], wanted: NamedDependency[Wanted]) -> Stream:
        """The same of deployments (``deploy``), reboots or power operations alone."""
        if operation not in _OPERATIONS:
            raise OptionError(f"{operation[:40]!r} is no operation: there are {', '.join(_OPERATIONS)}.")
        return _table(served, request, operation, wanted)


def _table(served: Served, request: Asked, operation: str | None, wanted: Wanted) -> Stream:
    selection = Selection(
        operation=operation,
        nodes=served.configuration.full_names(asked.names(wanted.nodes, served)) if wanted.nodes else None,
        since=_moment("date_min", wanted.date_min),
        until=_moment("date_max", wanted.date_max),
        wid=wanted.wid,
    )
    if wanted.kind == "failure_rates":
        rates = [(each.hostname, each.failures / 100) for each in served.failure_rates(selection)]
        return table(request, _RATES, [each for each in rates if each[1] >= wanted.min_failure_rate])
    rows = Rows(
        selection=selection,
        fields=_known("fields", wanted.fields) or _FIELDS,
        min_retries=wanted.min_retries,
        steps=tuple(_step(each) for each in wanted.step_retries),
        order=_known("sort", wanted.sort),
        limit=asked.number("limit", wanted.limit),
    )
    return table(request, rows.fields, served.rows(rows))


def _known(key: str, names: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in _FIELDS:
            raise OptionError(
                f"{key}: {name[:40]!r} is no column; there are {', '.join(_FIELDS)}.{did_you_mean(name, _FIELDS)}"
            )
    return tuple(names)


def _step(word: str) -> int:
    if word not in ("1", "2", "3"):
        raise OptionError(f"step_retries: {word[:40]!r} is none of 1, 2, 3.")
    return int(word)


def _moment(key: str, text: str | None) -> int | None:
    """Unix seconds of a date: seconds, ISO 8601, or as HTTP writes it (RFC 9110, section 5.6.7)."""
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        return asked.number(key, text)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return int(read(text).timestamp())
        except (ValueError, OverflowError):
            continue
    raise OptionError(f"{key}: {text[:40]!r} is no date. Expected one such as 2027-01-31T12:00:00.")
