"""Deployments, reboots and power operations in the original's form, and where a console is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from litestar import Controller, MediaType, Request, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from kadeploy.errors import FileError, KadeployError, NodeListError, UnknownWorkflowError
from kadeploy.nodeset import fold
from kadeploy.operations import follow, stand
from kadeploy.operations.requests import PowerRequest, Wish
from kadeploy.operations.stand import Run
from kadeploy.server.original import asked, run
from kadeploy.server.original.forms import rendered
from kadeploy.server.served import Served

Here = NamedDependency[Served]
Asked = Request[Any, Any, Any]
Wid = FromPath[str]
Answer = Response[Any]
TAG = "the original's"
_MOST = 50
"""Workflows that are listed: the newest."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /console``."""

    node: str
    client: Any = None


class _Workflows(Controller):
    """What all operations have in common."""

    tags = (TAG,)
    letter: ClassVar[str]
    """With which their ids begin."""

    @get("/{wid:str}", sync_to_thread=True)
    def one(self, served: Here, request: Asked, wid: Wid) -> Answer:
        """How it stands; others than its user and administrators see little of it."""
        return rendered(request, _told(served, wid, self._run(served, wid)))

    @delete("/{wid:str}", sync_to_thread=True, status_code=200)
    def cancel(self, served: Here, request: Asked, wid: Wid) -> Answer:
        """Stop it, if it runs; how it ended may still be read."""
        self._own(served, wid)
        with suppress(UnknownWorkflowError):  # one that only looks at nodes ends by itself
            served.cancel(wid)
        return rendered(request, {"wid": wid})

    @get("/{wid:str}/state", sync_to_thread=True)
    def state(self, served: Here, request: Asked, wid: Wid) -> Answer:
        """Where each node is: ``macro``, ``micro``, ``state`` (ok, ko) and ``out``."""
        return rendered(request, run.states(self._own(served, wid)))

    @get("/{wid:str}/status", sync_to_thread=True)
    def status(self, served: Here, request: Asked, wid: Wid) -> Answer:
        """Its nodes, by cluster and by how they are."""
        found = self._own(served, wid)
        parts = {cluster: found.parted(nodes) for cluster, nodes in found.clusters.items()}
        names = {"ok": "OK", "ko": "KO", "processing": "processing"}
        shown = {cluster: {names[key]: nodes for key, nodes in each.items()} for cluster, each in parts.items()}
        return rendered(request, shown)

    @get("/{wid:str}/error", sync_to_thread=True)
    def error(self, served: Here, request: Asked, wid: Wid) -> Answer:
        """Why it broke off, as a refusal; nothing when it did not."""
        if error := stand.broken(served.site, wid, self._own(served, wid)):
            raise error
        return rendered(request, None)

    @get("/{wid:str}/logs", sync_to_thread=True, media_type=MediaType.TEXT)
    def logs(self, served: Here, wid: Wid) -> Stream:
        """What happened so far: lines of text, which may be read again."""
        return Stream(run.log(self._events(served, wid)))

    @get("/{wid:str}/logs/{cluster:str}", sync_to_thread=True, media_type=MediaType.TEXT)
    def logs_of_cluster(self, served: Here, wid: Wid, cluster: FromPath[str]) -> Stream:
        """The same of the nodes of one cluster."""
        path, clusters = self._events(served, wid), self._run(served, wid).clusters
        if cluster not in clusters:
            raise NodeListError(f"{wid} has no nodes of a cluster {cluster!r}; it has {', '.join(clusters)}.")
        return Stream(run.log(path, clusters[cluster]))

    @get("/{wid:str}/debugs", sync_to_thread=True, media_type=MediaType.TEXT)
    def debugs(self, served: Here, wid: Wid) -> Stream:
        """What commands said on its nodes: lines of text."""
        return Stream(run.debugged(self._events(served, wid)))

    @get("/{wid:str}/debugs/{node:str}", sync_to_thread=True, media_type=MediaType.TEXT)
    def debugs_of_node(self, served: Here, wid: Wid, node: FromPath[str]) -> Stream:
        """The same of one node."""
        path, nodes = self._events(served, wid), self._run(served, wid).nodes
        if node not in nodes:
            raise NodeListError(f"{node} is not among the nodes of {wid}: {fold(nodes)}.")
        return Stream(run.debugged(path, node))

    def _events(self, served: Served, wid: str) -> Path:
        self._own(served, wid)
        return follow.events_of(served.site, wid)

    def _run(self, served: Served, wid: str) -> Run:
        if not wid.startswith(self.letter):
            raise UnknownWorkflowError(
                f"{wid}: no workflow of this kind is called so; their ids begin with {self.letter}."
            )
        return stand.find(served.site, wid)

    def _own(self, served: Served, wid: str) -> Run:
        found = self._run(served, wid)
        served.require_mine(wid)
        return found

    def _listed(self, served: Served) -> list[dict[str, Any]]:
        folders = sorted(served.site.run_folders.glob(f"{self.letter}*"), key=lambda each: -each.stat().st_mtime)
        return list(islice((each for folder in folders for each in _each(served, folder.name)), _MOST))


def _each(served: Served, wid: str) -> Sequence[dict[str, Any]]:
    """What is told of it; nothing of one that has not begun."""
    with suppress(KadeployError):
        found = stand.find(served.site, wid)
        if found.began:
            return [_told(served, wid, found)]
    return []


def _told(served: Served, wid: str, found: Run) -> dict[str, Any]:
    is_own = found.began is not None and found.began.user == served.user
    if is_own or served.is_administrator:
        if found.environment is None:
            found.environment = _environment(served, wid)
        return run.summary(served.site, wid, found)
    error = stand.broken(served.site, wid, found)
    return run.outline(wid, found, found.ended is not None or error is not None, error is not None)


def _environment(served: Served, wid: str) -> dict[str, Any]:
    with suppress(UnknownWorkflowError):  # of a question the journal knows nothing
        row = served.workflows(wid)[wid]
        if row["environment_name"]:
            return {key: row[f"environment_{key}"] for key in ("name", "version", "user")}
    return {}


def _begun(served: Served, request: Asked, path: str, make: Callable[[], Wish]) -> Answer:
    """Begin what *make* makes of the request."""
    wanted = make()
    served.note(fold(wanted.nodes))
    if missing := served.needed(wanted):
        raise FileError(
            f"{', '.join(missing)}: the service opens no files of yours, and you did not send them. Name them as "
            "http(s)://HOST/PATH or server:///PATH."
        )
    wid = served.start(asked.with_keys(wanted, served))
    found = stand.find(served.site, wid)
    return rendered(
        request, {"wid": wid, "resources": _resources(f"{request.base_url}".rstrip("/") + f"{path}/{wid}", found)}
    )


def _resources(place: str, found: Run) -> dict[str, Any]:
    single = {name: f"{place}/{name}" for name in ("state", "status", "error")}
    return {
        "resource": place,
        "log": f"{place}/logs",
        "logs": {cluster: f"{place}/logs/{cluster}" for cluster in found.clusters},
        **single,
        "debug": f"{place}/debugs",
        "debugs": {node: f"{place}/debugs/{node}" for node in found.nodes},
    }


class DeploymentController(_Workflows):
    """``/deployment``."""

    path = "/deployment"
    letter = "D-"

    @post("/", sync_to_thread=True, status_code=200)
    def create(self, served: Here, request: Asked, data: JSONBody[asked.Deployment]) -> Answer:
        """Deploy an environment on nodes."""
        return _begun(served, request, self.path, lambda: asked.deployment(data, served))

    @get("/", sync_to_thread=True)
    def listed(self, served: Here, request: Asked) -> Answer:
        """The newest deployments."""
        return rendered(request, self._listed(served))


class RebootController(_Workflows):
    """``/reboot``."""

    path = "/reboot"
    letter = "R-"

    @post("/", sync_to_thread=True, status_code=200)
    def create(self, served: Here, request: Asked, data: JSONBody[asked.Reboot]) -> Answer:
        """Reboot nodes."""
        return _begun(served, request, self.path, lambda: asked.reboot(data, served))

    @get("/", sync_to_thread=True)
    def listed(self, served: Here, request: Asked) -> Answer:
        """The newest reboots."""
        return rendered(request, self._listed(served))


class PowerController(_Workflows):
    """``/power``."""

    path = "/power"
    letter = "P-"

    @put("/", sync_to_thread=True, status_code=200)
    def switch(self, served: Here, request: Asked, data: JSONBody[asked.Power]) -> Answer:
        """Switch nodes on or off."""
        return _begun(served, request, self.path, lambda: asked.power(data, served))

    @get("/", sync_to_thread=True)
    def look(
        self,
        served: Here,
        request: Asked,
        names: Annotated[list[str] | None, QueryParameter(name="nodes", description="Nodes or ranges.")] = None,
    ) -> Answer:
        """Begin to ask whether *nodes* are on: what each says is its ``out``. Without any: the newest operations."""
        if not names:
            return rendered(request, self._listed(served))
        return _begun(
            served,
            request,
            self.path,
            lambda: PowerRequest(nodes=asked.names(names, served), operation="status", hook=False),
        )


class ConsoleController(Controller):
    """``/console``."""

    path = "/console"
    tags = (TAG,)

    @post("/", sync_to_thread=True, status_code=200)
    def create(self, served: Here, request: Asked, data: JSONBody[Opened]) -> Answer:
        """Where the WebSocket of a node's console is, for who may open it."""
        [node] = served.configuration.full_names([data.node])
        served.note(node)
        served.console(node)
        scheme = "wss" if request.base_url.scheme == "https" else "ws"
        place = f"{scheme}://{request.base_url.netloc}/v1/nodes/{node}/console"
        return rendered(request, {"node": node, "resources": {"console": place}})
