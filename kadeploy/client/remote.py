"""The site as its service answers for it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote

import msgspec

from kadeploy.client.http import AnswerT, Http, Query
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import (
    BrokenOffError,
    DatabaseError,
    EnvironmentRefusedError,
    FileError,
    ServiceError,
    UserInterruptError,
)
from kadeploy.files import MEGA
from kadeploy.nodeset import fold
from kadeploy.operations.service import Grant, Granted, Refusal, Revoked, Rows
from kadeploy.state import damage
from kadeploy.state.environments import Change, Part, Visibility
from kadeploy.state.history import Durations, Last, Rate, Selection
from kadeploy.state.load import Load
from kadeploy.state.nodes import NodeRow
from kadeploy.state.quarantine import Stay
from kadeploy.state.rights import Given, Holder

if TYPE_CHECKING:
    import threading

    from kadeploy.caller import Account
    from kadeploy.checksums import Fingerprint
    from kadeploy.client.address import Address
    from kadeploy.client.console import RemoteConsole
    from kadeploy.environments.reference import Reference
    from kadeploy.events import Listener, Report
    from kadeploy.operations.console import Opened, Size
    from kadeploy.operations.recording import Recorded
    from kadeploy.operations.requests import Wish
    from kadeploy.runner.playbooks import Register

_ItemT = TypeVar("_ItemT")
_LEFT_OUT = "Kadeploy-Left-Out"
TOLD_EVERY = 5.0
"""Seconds between two words about files that are being sent."""


class _About(msgspec.Struct):
    user: str


class _Clusters(msgspec.Struct):
    site: Site
    clusters: dict[str, Cluster]


class _Begun(msgspec.Struct):
    wid: str


class _Cancelled(msgspec.Struct):
    was_running: bool


class _Received(msgspec.Struct):
    here: int


class _Plan(msgspec.Struct):
    lines: list[str]


class Remote:
    """A `kadeploy.operations.service.Service` by the service at *address*; *who* opens files here."""

    def __init__(self, address: Address, who: Account) -> None:
        self.who = who
        self._http = Http(address)

    @cached_property
    def user(self) -> str:
        """As whom the service knows the caller."""
        return self._http.ask("GET", "/v1/", _About).user

    @cached_property
    def site(self) -> Site:
        """What the service tells of ``site.yml``."""
        return self._http.ask("GET", "/v1/site", Site)

    @cached_property
    def configuration(self) -> Configuration:
        """The same with clusters and nodes."""
        found = self._http.ask("GET", "/v1/configuration", _Clusters)
        self.__dict__["site"] = found.site
        return Configuration(folder=Path("/nonexistent"), site=found.site, clusters=found.clusters)

    @cached_property
    def register(self) -> Register:
        """The service's playbooks."""
        return self._http.ask("GET", "/v1/implementations", dict[str, tuple[str, ...]])

    def _list(self, path: str, kind: type[_ItemT], query: Query | None = None, body: Any = None) -> list[_ItemT]:
        """A list, from which damaged rows may be missing."""
        told: list[str] = []
        method = "GET" if body is None else "POST"
        found = self._http.ask(method, path, list[kind], query, body, told.append, _LEFT_OUT)  # type: ignore[valid-type]
        for text in told:
            damage.leave_out(DatabaseError(text.encode("ascii").decode("unicode_escape")))
        return found

    # --- nodes and workflows --------------------------------------------------------------------------------------

    def states(self, names: Sequence[str] | None = None) -> list[NodeRow]:
        """``GET /v1/nodes``."""
        return self._list("/v1/nodes", NodeRow, _nodes(names))

    def holders(self, names: Sequence[str] | None = None) -> Mapping[str, Sequence[Holder]]:
        """``GET /v1/holders``."""
        return self._http.ask("GET", "/v1/holders", dict[str, list[Holder]], _nodes(names))

    def workflows(self, wid: str | None = None, names: Sequence[str] | None = None) -> dict[str, Any]:
        """``GET /v1/workflows``."""
        path = "/v1/workflows" if wid is None else f"/v1/workflows/{quote(wid, safe='')}"
        return self._http.ask("GET", path, dict[str, Any], _nodes(names))

    def newest(self) -> list[str]:
        """``GET /v1/statistics/newest``."""
        return self._http.ask("GET", "/v1/statistics/newest", list[str])

    def quarantine(self, names: Sequence[str] | None = None) -> list[Stay]:
        """``GET /v1/quarantine``."""
        return self._http.ask("GET", "/v1/quarantine", list[Stay], _nodes(names))

    # --- consoles ---------------------------------------------------------------------------------------------------

    def console(self, node: str) -> _Console:
        """``/v1/nodes/NODE/console``, a WebSocket."""
        from kadeploy.operations.console import Opened  # noqa: PLC0415 - for consoles alone

        opened = self._http.ask("GET", "/v1/consoles", Opened, {"node": node})
        return _Console(self._http, opened)

    def recordings(self, node: str = "") -> list[Recorded]:
        """``GET /v1/recordings``."""
        from kadeploy.operations.recording import Recorded  # noqa: PLC0415 - for consoles alone

        return self._http.ask("GET", "/v1/recordings", list[Recorded], {"node": node})

    def recording(self, word: str) -> BinaryIO | None:
        """``GET /v1/recording``."""
        content = self._http.content("/v1/recording", {"name": word})
        return io.BytesIO(content) if content else None

    # --- rights ---------------------------------------------------------------------------------------------------

    def rights(self, user: str | None = None) -> dict[str, list[Given]]:
        """``GET /v1/rights``."""
        return self._http.ask("GET", "/v1/rights", dict[str, list[Given]], {"user": user})

    def grant(self, grant: Grant) -> Granted:
        """``POST /v1/rights``."""
        return self._http.ask("POST", "/v1/rights", Granted, body=grant)

    def revoke(self, grant: Grant) -> Revoked:
        """``DELETE /v1/rights``."""
        query: Query = {"user": grant.user, **_nodes(grant.nodes), "parts": grant.parts}
        return self._http.ask("DELETE", "/v1/rights", Revoked, query)

    # --- environments ---------------------------------------------------------------------------------------------

    def environments(self, owner: str | None = None, all_versions: bool = False) -> list[Environment]:
        """``GET /v1/environments``."""
        return self._list("/v1/environments", Environment, {"owner": owner, "all_versions": all_versions})

    def versions(self, wanted: Reference, all_versions: bool = True) -> list[Environment]:
        """``GET /v1/environments?name=``."""
        return self._list("/v1/environments", Environment, {**_named(wanted), "all_versions": all_versions})

    def add_environments(self, described: Sequence[Environment]) -> list[Environment]:
        """``POST /v1/environments``."""
        body = {"environments": described}
        names = [file.file for each in described for file in each.files]
        return self._told_what_is_in(names, "POST", "/v1/environments", list[Environment], None, body)

    def _told_what_is_in(
        self, names: Iterable[str], method: str, path: str, kind: type[AnswerT], query: Query | None, body: Any
    ) -> AnswerT:
        """What a resource answers that wants to know what is in the user's own files of these *names*.

        Where one of them cannot be read, the service may refuse for a better reason.
        """
        from kadeploy.client import sending  # noqa: PLC0415 - for those who name files
        from kadeploy.operations import named_files  # noqa: PLC0415

        found: dict[str, Fingerprint] = {}
        unread: FileError | None = None
        try:
            found = sending.measure(named_files.own(names), self.who)
        except FileError as error:
            unread = error
        try:
            return self._http.ask(method, path, kind, query, {**body, "fingerprints": found})
        except FileError as error:
            raise unread or error from error

    def delete_environments(self, wanted: Reference) -> list[Environment]:
        """``DELETE /v1/environments``."""
        return self._http.ask("DELETE", "/v1/environments", list[Environment], _named(wanted))

    def set_visibility(self, wanted: Reference, visibility: Visibility) -> Environment:
        """``PATCH /v1/environments``."""
        return self._changed(wanted, {"visibility": visibility}, Environment)[0]

    def reset_demolishing(self, wanted: Reference) -> Environment:
        """``PATCH /v1/environments``."""
        return self._changed(wanted, {"demolishing": 0}, Environment)[0]

    def update_checksums(self, wanted: Reference, part: Part) -> list[Change]:
        """``PATCH /v1/environments``."""
        names = [file.file for each in self._mine(wanted) for file in each.files_by_part[part]]
        place, body = "/v1/environments", {"checksums": part}
        return self._told_what_is_in(names, "PATCH", place, list[Change], _named(wanted), body)

    def _mine(self, wanted: Reference) -> list[Environment]:
        """What is meant by an environment that is to be changed; whether it may be, the service says by and by."""
        try:
            return self.versions(wanted, all_versions=False)
        except EnvironmentRefusedError:
            return []

    def _changed(self, wanted: Reference, body: dict[str, Any], kind: type[_ItemT]) -> list[_ItemT]:
        return self._http.ask("PATCH", "/v1/environments", list[kind], _named(wanted), body)  # type: ignore[valid-type]

    def move_files(self, moves: Sequence[tuple[str, str]]) -> list[Change]:
        """``POST /v1/environments/moves``."""
        names = self._http.ask("POST", "/v1/environments/moved", list[str], body={"moves": moves})
        return self._told_what_is_in(names, "POST", "/v1/environments/moves", list[Change], None, {"moves": moves})

    # --- history --------------------------------------------------------------------------------------------------

    def require_workflow(self, wid: str) -> None:
        """``GET /v1/statistics/workflows``."""
        self._http.ask("GET", f"/v1/statistics/workflows/{quote(wid, safe='')}", type(None))

    def strangers(self, names: Sequence[str]) -> list[str]:
        """``POST /v1/statistics/strangers``."""
        return self._http.ask("POST", "/v1/statistics/strangers", list[str], body=names)

    def rows(self, wanted: Rows) -> Iterator[Sequence[Any]]:
        """``POST /v1/statistics/rows``."""
        for line in self._http.lines("/v1/statistics/rows", wanted):
            row = msgspec.json.decode(line)
            if isinstance(row, str):
                damage.leave_out(DatabaseError(row))
            else:
                yield row

    def latest(self, names: Sequence[str] | None = None) -> list[Last]:
        """``GET /v1/statistics/latest``."""
        return self._list("/v1/statistics/latest", Last, _nodes(names))

    def failure_rates(self, selection: Selection) -> list[Rate]:
        """``POST /v1/statistics/rates``."""
        return self._list("/v1/statistics/rates", Rate, body=selection)

    def durations(self, selection: Selection) -> list[Durations]:
        """``POST /v1/statistics/durations``."""
        return self._list("/v1/statistics/durations", Durations, body=selection)

    def load(self, selection: Selection) -> list[Load]:
        """``POST /v1/statistics/load``."""
        return self._list("/v1/statistics/load", Load, body=selection)

    # --- operations -----------------------------------------------------------------------------------------------

    def plan(self, request: Wish) -> list[str]:
        """``POST /v1/deployments?dry_run=true``, and the like."""
        return self._ordered(request, _Plan, {"dry_run": True}).lines

    def start(self, request: Wish) -> str:
        """``POST /v1/deployments``, and the like."""
        return self._ordered(request, _Begun).wid

    def _ordered(
        self, request: Wish, kind: type[AnswerT], query: Query | None = None, before: _Before | None = None
    ) -> AnswerT:
        path, before = _PLACES[type(request).__name__], before or _Before()
        request = self._with_files(msgspec.structs.replace(request, user=""), before)
        before.require_wanted()
        return self._http.ask("POST", path, kind, query, request)

    def _with_files(self, request: Wish, before: _Before) -> Wish:
        """*request*, once the files that it names are where the service finds them."""
        from kadeploy.client import sending  # noqa: PLC0415 - for those who name files
        from kadeploy.operations import named_files  # noqa: PLC0415

        if not named_files.may_name(request):
            return request
        needed = self._http.ask("POST", "/v1/files/needed", list[str], body=request)
        way = sending.Way(self._announce, self._send, pause=before.pause)
        sent = sending.send(needed, self.who, way, before.tell) if needed else {}
        return msgspec.structs.replace(request, files=sent)

    def _announce(self, sha256: str, size: int) -> int:
        return self._http.ask("PUT", f"/v1/files/{sha256}", _Received, {"size": size}).here

    def _send(self, sha256: str, offset: int, chunks: Iterator[bytes]) -> None:
        self._http.ask("PATCH", f"/v1/files/{sha256}", _Received, {"offset": offset}, pieces=chunks)

    def carry_out(
        self, request: Wish, listener: Listener, stop: threading.Event, admitted: Callable[[str], None]
    ) -> Report:
        """Start it and follow it to its end; once *stop* is set it is cancelled."""
        wid = self._ordered(request, _Begun, before=_Before(listener, stop)).wid
        admitted(wid)
        try:
            report = self.attach(wid, listener, stop)
            if report is None:
                self._cancelled(request, wid)
                report = self._followed(wid, listener, lambda: False)
        except (ServiceError, DatabaseError) as error:
            raise BrokenOffError(f"{error} {wid} goes on: kadeploy3 --attach {wid} follows it.") from error
        if report is None:
            raise BrokenOffError(
                f"{wid} goes on, and nobody tells of it any more: kadeploy3 --attach {wid} follows it."
            )
        return report

    def _cancelled(self, request: Wish, wid: str) -> None:
        if getattr(request, "operation", "") == "status":
            raise UserInterruptError("Interrupted; nothing was changed.")
        self.cancel(wid)

    def attach(self, wid: str, listener: Listener, stop: threading.Event) -> Report | None:
        """``GET /v1/workflows/WID/events``."""
        return self._followed(wid, listener, stop.is_set)

    def _followed(self, wid: str, listener: Listener, stopped: Callable[[], bool]) -> Report | None:
        from kadeploy import events  # noqa: PLC0415 - most tools only ask

        for message in self._http.events(
            f"/v1/workflows/{quote(wid, safe='')}/events", self._seen.get(wid, "0"), stopped
        ):
            if message.event == "gone":
                msgspec.json.decode(message.data, type=Refusal).raised()
            self._seen[wid] = message.number
            event = events.decode(message.data)
            if event is not None:
                listener(event)
            if isinstance(event, events.Ended):
                return event.report
        return None

    @cached_property
    def _seen(self) -> dict[str, str]:
        """The number of the last event of each workflow that was told."""
        return {}

    def cancel(self, wid: str) -> bool:
        """``DELETE /v1/workflows/WID``."""
        return self._http.ask("DELETE", f"/v1/workflows/{quote(wid, safe='')}", _Cancelled).was_running

    def interrupted(self, wid: str) -> None:
        """`carry_out` hears of it."""

    def abandon(self, wid: str) -> None:
        """Nothing is left over: what was begun goes to its end without us."""


class _Before:
    """The time before an operation begins, in which its files are sent: *listener* hears of it, *stop* ends it."""

    def __init__(self, listener: Listener | None = None, stop: threading.Event | None = None) -> None:
        self._listener = listener
        self._stop = stop
        self._told = time.monotonic()

    def require_wanted(self) -> None:
        """Refuse what nobody wants any more.

        Raises:
            UserInterruptError: the user has stopped it.
        """
        if self._stop and self._stop.is_set():
            raise UserInterruptError("Interrupted; no node was touched.")

    def tell(self, there: int, total: int) -> None:
        """How many bytes are there, of how many."""
        from kadeploy.events import Note  # noqa: PLC0415 - most tools only ask

        self.require_wanted()
        if self._listener and time.monotonic() - self._told >= TOLD_EVERY and there < total:
            self._told = time.monotonic()
            self._listener(Note(at=time.time(), text=f"sent {there / MEGA:.0f} of {total / MEGA:.0f} MiB of files"))

    def pause(self, seconds: float) -> None:
        """Between two tries."""
        (self._stop.wait if self._stop else time.sleep)(seconds)
        self.require_wanted()


class _Console:
    """A console that the service shows, and of which it says when it has to be closed."""

    def __init__(self, http: Http, opened: Opened) -> None:
        self._http = http
        self.opened = opened

    def open(self, size: Size) -> RemoteConsole:
        from kadeploy.client.console import connect  # noqa: PLC0415 - for consoles alone

        connection = self._http.connected()
        address = self._http.address
        path = f"/v1/nodes/{quote(self.opened.node, safe='')}/console"
        return connect(connection, path, list(address.headers.items()), address.host, size)

    def may_stay(self) -> bool:
        return True


_PLACES = {"DeployRequest": "/v1/deployments", "RebootRequest": "/v1/reboots", "PowerRequest": "/v1/power"}


def _nodes(names: Sequence[str] | None) -> Query:
    """Names as few ranges: they have to fit into an address."""
    if names is None:
        return {}
    plain = [name for name in names if name != "*"]
    return {"nodes": [*(["*"] if len(plain) < len(names) else []), *([fold(plain)] if plain else [])]}


def _named(wanted: Reference) -> Query:
    return {"name": wanted.name, "version": wanted.version, "owner": wanted.owner, "arch": wanted.arch}
