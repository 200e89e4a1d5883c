"""The resources of ``/v1``: each answers with what `kadeploy.operations.local` answers for whoever asks.

The types of bodies and answers are the structs that the tools use; OpenAPI is made from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import msgspec
from litestar import Controller, Request, Response, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from kadeploy import __version__
from kadeploy.checksums import Fingerprint
from kadeploy.config.cluster import Cluster
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import DatabaseError, NodeListError
from kadeploy.files import MEGA
from kadeploy.nodeset import expand, fold
from kadeploy.operations.console import Opened
from kadeploy.operations.recording import Recorded
from kadeploy.operations.requests import DeployRequest, PowerRequest, RebootRequest, Wish
from kadeploy.operations.service import Grant, Granted, Refusal, Revoked, Rows
from kadeploy.server import bodies, feed, published, stream
from kadeploy.server.auth import Caller
from kadeploy.server.notifications.choosing import Shown
from kadeploy.server.notifications.sending import Tried
from kadeploy.server.served import Served
from kadeploy.server.site import of as site_of
from kadeploy.server.standing import Require
from kadeploy.state import sent
from kadeploy.state.damage import sparing
from kadeploy.state.environments import Change, Part, Visibility
from kadeploy.state.history import Durations, Last, Rate, Selection
from kadeploy.state.load import Load
from kadeploy.state.nodes import Held, NodeRow
from kadeploy.state.notifications import Choice
from kadeploy.state.quarantine import Aside, Stay
from kadeploy.state.rights import Given, Holder

LEFT_OUT = "Kadeploy-Left-Out"
"""Header of an answer from which rows are missing that cannot be read: what people are told."""

Here = NamedDependency[Served]
Who = NamedDependency[Caller]
Asked = Request[Any, Any, Any]
DryRun = FromQuery[bool]
_ItemT = TypeVar("_ItemT")
_NODES = "Nodes or ranges, gdx-[5-12].site; default: all."
Nodes = Annotated[list[str] | None, QueryParameter(name="nodes", description=_NODES)]


class About(msgspec.Struct, frozen=True):
    """Who answers, and whom."""

    version: str
    site: str
    user: str
    how: str
    """How the service knows who asks."""
    is_administrator: bool


class Clusters(msgspec.Struct, frozen=True):
    """What tools need to know of a site."""

    site: Site
    clusters: dict[str, Cluster]


class Begun(msgspec.Struct, frozen=True):
    """An operation that has begun."""

    wid: str


class Cancelled(msgspec.Struct, frozen=True):
    """A workflow that ends within seconds, or has ended before."""

    was_running: bool


class Plan(msgspec.Struct, frozen=True):
    """What would be done."""

    lines: list[str]


class Received(msgspec.Struct, frozen=True):
    """How many bytes of a file are here."""

    here: int


class Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Environments, and what is in those of their files that are the user's own."""

    environments: list[Environment]
    fingerprints: dict[str, Fingerprint] = {}


class Changed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different with an environment: one of the first three."""

    visibility: Visibility | None = None
    demolishing: Literal[0] | None = None
    checksums: Part | None = None
    fingerprints: dict[str, Fingerprint] = {}
    """Of files that are the user's own."""


class Moves(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files and folders that have moved: from, to."""

    moves: list[tuple[str, str]]
    fingerprints: dict[str, Fingerprint] = {}
    """Of files that are the user's own."""


def _names(served: Served, patterns: Sequence[str] | None) -> list[str] | None:
    """The whole names of known nodes."""
    if not patterns:
        return None
    most = served.site.limits.nodes
    found = served.configuration.full_names(name for pattern in patterns for name in expand(pattern, most))
    if len(found) > most:
        raise NodeListError(f"{len(found)} nodes are more than {most}, which a request may have.")
    served.configuration.cluster_nodes(found)
    return found


def _sparing(found: Iterable[_ItemT]) -> Response[list[_ItemT]]:
    """A list without what is damaged, which a header tells."""
    rows: list[_ItemT] = []
    headers = {}
    try:
        with sparing():
            rows.extend(found)
    except DatabaseError as error:
        if not rows:
            raise
        headers = {LEFT_OUT: str(error).encode("unicode_escape").decode("ascii")}
    return Response(rows, headers=headers)


class SiteController(Controller):
    """The site."""

    path = "/v1"
    tags = ("site",)

    @get("/", sync_to_thread=True)
    def about(self, served: Here, caller: Who) -> About:
        """Who answers, and as whom you are known."""
        return About(__version__, served.site.name, served.user, caller.how, served.is_administrator)

    @get("/site", sync_to_thread=True)
    def site(self, served: Here) -> Site:
        """The settings that tools follow."""
        return published.site(served.site)

    @get("/configuration", sync_to_thread=True)
    def configuration(self, served: Here) -> Clusters:
        """The clusters, their nodes and disks."""
        return Clusters(published.site(served.site), published.clusters(served.configuration))

    @get("/implementations", sync_to_thread=True)
    def implementations(self, served: Here) -> dict[str, tuple[str, ...]]:
        """Implementations of macro-steps, and the micro-steps of each."""
        return dict(served.register)


class NodeController(Controller):
    """Nodes."""

    path = "/v1"
    tags = ("nodes",)

    @get("/nodes", sync_to_thread=True)
    def states(self, served: Here, names: Nodes = None) -> Response[list[NodeRow]]:
        """State of nodes that were ever operated on."""
        return _sparing(served.states(_names(served, names)))

    @get("/holders", sync_to_thread=True)
    def holders(self, served: Here, names: Nodes = None) -> dict[str, list[Holder]]:
        """Who has rights on each node; others than administrators see their own rights."""
        return {name: list(found) for name, found in served.holders(_names(served, names)).items()}


_HELD = {409: ResponseSpec(Refusal, generate_examples=False, description="A workflow that runs holds it.")}


class ClaimController(Controller):
    """Which nodes are in the hands of which workflow."""

    path = "/v1/claims"
    tags = ("claims",)

    @get("/", sync_to_thread=True)
    def claims(self, served: Here, names: Nodes = None) -> list[Held]:
        """Nodes that workflows hold: whose, since when, on which partition; and whether a dead controller left them."""
        return served.claims(_names(served, names))

    @delete("/{node:str}", sync_to_thread=True, status_code=200, responses=_HELD)
    def free(self, served: Here, node: FromPath[str]) -> list[str]:
        """End the workflow that holds the node and does not run any more: nodes that are free. For administrators."""
        return served.free(node)


class QuarantineController(Controller):
    """Nodes that are put aside, because they fail or are being repaired."""

    path = "/v1/quarantine"
    tags = ("quarantine",)

    @get("/", sync_to_thread=True)
    def quarantine(self, served: Here, names: Nodes = None) -> list[Stay]:
        """Nodes in quarantine: since when, put there by whom and why, and until when where that is known."""
        return served.quarantine(_names(served, names))

    @put("/", sync_to_thread=True)
    def put_aside(self, served: Here, data: JSONBody[Aside]) -> list[Stay]:
        """Put nodes into quarantine: operations of others than administrators leave them out. For administrators."""
        served.note(", ".join(data.nodes))
        return served.put_aside(data)

    @delete("/", sync_to_thread=True, status_code=200)
    def release(self, served: Here, names: Annotated[list[str], QueryParameter(name="nodes")]) -> list[str]:
        """Let nodes out, of which those that were in quarantine are told; all begin anew. For administrators."""
        served.note(", ".join(names))
        return served.release(names)


class Forgotten(msgspec.Struct, frozen=True):
    """What was chosen is forgotten."""

    was_chosen: bool


class NotificationController(Controller):
    """What you want to be told of operations of yours that have ended."""

    path = "/v1/notifications"
    tags = ("notifications",)

    @get("/", sync_to_thread=True)
    def notifications(self, served: Here) -> Shown:
        """What you have chosen, what the site offers, and what became of the last messages."""
        return served.notifications()

    @put("/", sync_to_thread=True)
    def choose(self, served: Here, data: JSONBody[Choice], new_secret: FromQuery[bool] = False) -> Shown:
        """Be told of what ends from now on, by mail or by a call of your URL; a new *secret* is told this once."""
        return served.choose_notifications(data, new_secret)

    @delete("/", sync_to_thread=True, status_code=200)
    def forget(self, served: Here) -> Forgotten:
        """Be told nothing any more, nor what has not been told yet."""
        return Forgotten(served.forget_notifications())

    @post("/test", sync_to_thread=True, status_code=200)
    def test(self, served: Here) -> list[Tried]:
        """Be sent something now, on each channel that you have chosen: what became of it."""
        return served.try_notifications()


_PLANNED = {200: ResponseSpec(Plan, generate_examples=False, description="With *dry_run*: what would be done.")}
_OFFSET = re.compile("[0-9]{1,18}")


class WorkflowController(Controller):
    """Operations, running and ended."""

    path = "/v1"
    tags = ("workflows",)

    @get("/workflows", sync_to_thread=True)
    def running(self, served: Here, names: Nodes = None) -> dict[str, Any]:
        """The running workflows, node by node."""
        return served.workflows(None, _names(served, names))

    @get("/workflows/{wid:str}", sync_to_thread=True)
    def one(self, served: Here, wid: FromPath[str], names: Nodes = None) -> dict[str, Any]:
        """One workflow, even when it has ended."""
        return served.workflows(wid, _names(served, names))

    @delete("/workflows/{wid:str}", sync_to_thread=True, status_code=200)
    def cancel(self, served: Here, wid: FromPath[str]) -> Cancelled:
        """Have it end within seconds, its nodes aborted and free."""
        return Cancelled(served.cancel(wid))

    @get("/workflows/{wid:str}/events", media_type="text/event-stream")
    async def events(self, served: Here, request: Asked, wid: FromPath[str]) -> Stream:
        """Its events from the beginning (server-sent), or behind ``Last-Event-ID``, until its end."""
        after = request.headers.get("last-event-id", "0")
        require = _standing(request, served, lambda now: now.require_mine(wid))
        lines = await stream.of(served, wid, int(after) if _OFFSET.fullmatch(after) else 0, require)
        return Stream(lines, headers={"Cache-Control": "no-store"})

    @get("/events", media_type="text/event-stream")
    async def all_events(self, served: Here, request: Asked, user: FromQuery[str | None] = None) -> Stream:
        """Events of all your workflows that run or begin (server-sent), for administrators of everybody's or *user*'s.

        Each is ``{wid, event}``; behind ``Last-Event-ID``, or from the beginning of those that run.
        """
        require = _standing(request, served, lambda now: feed.require_same(now, user, served))
        lines = await feed.of(served, user, request.headers.get("last-event-id", ""), require)
        return Stream(lines, headers={"Cache-Control": "no-store"})

    @post("/deployments", sync_to_thread=True, responses=_PLANNED)
    def deploy(self, served: Here, data: JSONBody[DeployRequest], dry_run: DryRun = False) -> Response[Begun | Plan]:
        """Deploy an environment on nodes; with *dry_run*, tell what would be done."""
        return _operation(served, data, dry_run)

    @post("/reboots", sync_to_thread=True, responses=_PLANNED)
    def reboot(self, served: Here, data: JSONBody[RebootRequest], dry_run: DryRun = False) -> Response[Begun | Plan]:
        """Reboot nodes."""
        return _operation(served, data, dry_run)

    @post("/power", sync_to_thread=True, responses=_PLANNED)
    def power(self, served: Here, data: JSONBody[PowerRequest], dry_run: DryRun = False) -> Response[Begun | Plan]:
        """Switch nodes on or off, or ask whether they are on."""
        return _operation(served, data, dry_run)


def _standing(request: Asked, served: Served, may: Callable[[Served], None]) -> Require:
    """Refuses what is open once the caller is let in no more, or *may* refuses them by the configuration of then."""
    at = site_of(request)
    lets_in = at.standing(request, served.caller)

    def require() -> None:
        lets_in()
        may(Served(served.caller, at.configuration, {}))

    return require


def _told(names: Sequence[str]) -> str:
    """Nodes as ranges; ``*`` would mean something else to them."""
    return ", ".join(filter(None, ["*" if "*" in names else "", fold([name for name in names if name != "*"])]))


def _operation(served: Served, request: Wish, dry_run: bool) -> Response[Begun | Plan]:
    served.note(f"{fold(request.nodes)}{' (dry run)' if dry_run else ''}")
    if dry_run:
        return Response(Plan(served.plan(request)), status_code=200)
    return Response(Begun(served.start(request)), status_code=201)


class RightController(Controller):
    """Rights."""

    path = "/v1/rights"
    tags = ("rights",)

    @get("/", sync_to_thread=True)
    def rights(self, served: Here, user: FromQuery[str | None] = None) -> dict[str, list[Given]]:
        """Rights by user; those of others are shown to administrators."""
        return served.rights(user)

    @post("/", sync_to_thread=True)
    def grant(self, served: Here, data: JSONBody[Grant]) -> Granted:
        """Give rights; for administrators."""
        served.note(f"{data.user}: {', '.join(data.parts)} of {_told(data.nodes)}")
        return served.grant(data)

    @delete("/", sync_to_thread=True, status_code=200)
    def revoke(
        self,
        served: Here,
        user: FromQuery[str],
        names: Annotated[list[str], QueryParameter(name="nodes")],
        parts: FromQuery[list[str]],
    ) -> Revoked:
        """Take exactly these rights back; for administrators."""
        most = served.site.limits.nodes
        nodes = [name for pattern in names for name in ([pattern] if pattern == "*" else expand(pattern, most))]
        return served.revoke(Grant(user=user, nodes=tuple(nodes), parts=tuple(parts)))


class EnvironmentController(Controller):
    """Recorded environments."""

    path = "/v1/environments"
    tags = ("environments",)

    @get("/", sync_to_thread=True)
    def environments(
        self,
        served: Here,
        name: FromQuery[str | None] = None,
        version: FromQuery[int | None] = None,
        owner: FromQuery[str | None] = None,
        arch: FromQuery[str | None] = None,
        all_versions: FromQuery[bool] = False,
    ) -> Response[list[Environment]]:
        """Those that you see, or the one called *name*, which may be ``name@user:version%arch``."""
        if name is None:
            return _sparing(served.environments(owner, all_versions))
        return _sparing(served.versions(Reference(name, version, owner, arch), all_versions))

    @post("/", sync_to_thread=True)
    def add(self, served: Here, data: JSONBody[Described]) -> list[Environment]:
        """Record environments: all of them, or none."""
        served.note(", ".join(each.name for each in data.environments))
        served.fingerprints = data.fingerprints
        return served.add_environments(data.environments)

    @delete("/", sync_to_thread=True, status_code=200)
    def delete_versions(
        self,
        served: Here,
        name: FromQuery[str],
        version: FromQuery[int | None] = None,
        owner: FromQuery[str | None] = None,
        arch: FromQuery[str | None] = None,
    ) -> list[Environment]:
        """Delete all versions of an environment, or the one given."""
        return served.delete_environments(Reference(name, version, owner, arch))

    @patch("/", sync_to_thread=True)
    def change(
        self,
        served: Here,
        data: JSONBody[Changed],
        name: FromQuery[str],
        version: FromQuery[int | None] = None,
        owner: FromQuery[str | None] = None,
        arch: FromQuery[str | None] = None,
    ) -> list[Environment] | list[Change]:
        """Say who sees it, take its demolishing tag off, or record the checksums of its files anew."""
        wanted = Reference(name, version, owner, arch)
        served.fingerprints = data.fingerprints
        if data.checksums is not None:
            return served.update_checksums(wanted, data.checksums)
        if data.visibility is not None:
            return [served.set_visibility(wanted, data.visibility)]
        return [served.reset_demolishing(wanted)]

    @post("/moves", sync_to_thread=True)
    def move(self, served: Here, data: JSONBody[Moves]) -> list[Change]:
        """Rewrite paths in all environments; for administrators."""
        served.fingerprints = data.fingerprints
        return served.move_files(data.moves)

    @post("/moved", sync_to_thread=True, status_code=200)
    def moved(self, served: Here, data: JSONBody[Moves]) -> list[str]:
        """Names of your own files that environments would have after these moves."""
        return served.files_to_measure(data.moves)


_BATCH = 1000
"""Rows of the log that are sent at a time."""


class StatisticsController(Controller):
    """Past operations."""

    path = "/v1/statistics"
    tags = ("statistics",)

    @get("/newest", sync_to_thread=True)
    def newest(self, served: Here) -> list[str]:
        """Ids of the workflows that began last."""
        return served.newest()

    @get("/workflows/{wid:str}", sync_to_thread=True)
    def known(self, served: Here, wid: FromPath[str]) -> None:
        """Whether a workflow is or was called so."""
        served.require_workflow(wid)

    @post("/strangers", sync_to_thread=True, status_code=200)
    def strangers(self, served: Here, data: JSONBody[list[str]]) -> list[str]:
        """Names of which the log knows nothing."""
        return served.strangers(data)

    @post("/rows", sync_to_thread=True, status_code=200, media_type="application/x-ndjson")
    def rows(self, served: Here, data: JSONBody[Rows]) -> Stream:
        """Rows of the log, one JSON list a line."""
        return Stream(_lines(served.rows(data)))

    @get("/latest", sync_to_thread=True)
    def latest(self, served: Here, names: Nodes = None) -> Response[list[Last]]:
        """The last operation on each node that has any, and what came of it."""
        return _sparing(served.latest(_names(served, names)))

    @post("/rates", sync_to_thread=True, status_code=200)
    def rates(self, served: Here, data: JSONBody[Selection]) -> Response[list[Rate]]:
        """How often nodes failed."""
        return _sparing(served.failure_rates(data))

    @post("/durations", sync_to_thread=True, status_code=200)
    def durations(self, served: Here, data: JSONBody[Selection]) -> Response[list[Durations]]:
        """How long macro-steps took, over time."""
        return _sparing(served.durations(data))

    @post("/load", sync_to_thread=True, status_code=200)
    def load(self, served: Here, data: JSONBody[Selection]) -> Response[list[Load]]:
        """How many nodes were at work, over time."""
        return _sparing(served.load(data))


def _lines(rows: Iterator[Sequence[Any]]) -> Iterator[bytes]:
    """Some thousand at a time; the last line is a string where rows were left out, or the rest could not be read."""
    encoder = msgspec.json.Encoder()
    batch: list[bytes] = []
    try:
        with sparing():
            for row in rows:
                batch.append(encoder.encode(row))
                if len(batch) == _BATCH:
                    yield b"\n".join(batch) + b"\n"
                    batch.clear()
    except DatabaseError as error:
        batch.append(encoder.encode(str(error)))
    yield b"".join(line + b"\n" for line in batch)


_BUSY = {409: ResponseSpec(Refusal, generate_examples=False, description="It is being sent from elsewhere.")}


@dataclass
class _Sending(Operation):
    """What the schema says of a request whose body is a piece of a file."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(content={"application/octet-stream": OpenAPIMediaType()}, required=True)


class FileController(Controller):
    """Files that users send, known by their SHA-256; each user's are their own."""

    path = "/v1/files"
    tags = ("files",)

    @post("/needed", sync_to_thread=True, status_code=200)
    def needed(self, served: Here, data: JSONBody[Wish]) -> list[str]:
        """Names of files that have to be sent before a request can be carried out; it is good but for them."""
        return served.needed(data)

    @put("/{sha256:str}", sync_to_thread=True, responses=_BUSY)
    def announce(self, served: Here, sha256: FromPath[str], size: Annotated[int, QueryParameter(ge=0)]) -> Received:
        """Say that a file of so many bytes will be sent: how many of them are here already."""
        return Received(sent.begin(served.site, served.user, sha256, size))

    @patch("/{sha256:str}", request_max_body_size=None, operation_class=_Sending, responses=_BUSY)
    async def receive(self, served: Here, request: Asked, sha256: FromPath[str], offset: FromQuery[int]) -> Received:
        """Send what follows the first *offset* bytes, or a part of it: how many are here then."""
        arrival = sent.Arrival(served.site, served.user, sha256, offset)
        most = served.site.service.quota.uploads
        return Received(await bodies.receive(request.stream(), arrival, served.user, most))


class ConsoleController(Controller):
    """Consoles, open and recorded."""

    path = "/v1"
    tags = ("consoles",)

    @get("/consoles", sync_to_thread=True)
    def console(self, served: Here, node: FromQuery[str]) -> Opened:
        """The console of a node, if you may open it; it is opened at ``/v1/nodes/NODE/console``, a WebSocket."""
        return served.console(node).opened

    @get("/recordings", sync_to_thread=True)
    def recordings(self, served: Here, node: FromQuery[str] = "") -> list[Recorded]:
        """Recordings of your own consoles, and of nodes on which you have rights."""
        return served.recordings(node)

    @get("/recording", sync_to_thread=True, media_type="application/x-asciicast")
    def recording(self, served: Here, name: FromQuery[str]) -> Stream:
        """A recording in asciicast format; for who opened the console, and administrators. No bytes: there is none."""
        file = served.recording(name)
        return Stream(_pieces(file))


def _pieces(file: BinaryIO | None) -> Iterator[bytes]:
    if file is not None:
        with file:
            while piece := file.read(MEGA):
                yield piece


CONTROLLERS: Sequence[type[Controller]] = (
    SiteController,
    NodeController,
    ClaimController,
    QuarantineController,
    NotificationController,
    WorkflowController,
    RightController,
    EnvironmentController,
    StatisticsController,
    FileController,
    ConsoleController,
)
