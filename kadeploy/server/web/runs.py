"""Runs in the browser: what runs and what has ended, and each of them while it goes on.

A page shows its run in two parts: what changes all the time comes once a second, the rest when something has happened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, QueryParameter
from markupsafe import Markup

from kadeploy.config.site import Site
from kadeploy.errors import FileError, RightsError, UnknownWorkflowError
from kadeploy.nodeset import expand
from kadeploy.operations import recording
from kadeploy.operations.reasons import kinds
from kadeploy.operations.service import Rows
from kadeploy.printable import printable
from kadeploy.server.web.recent import Recent
from kadeploy.server.web.rendering import answer, render
from kadeploy.server.web.replayed import replayed
from kadeploy.server.web.stands import State
from kadeploy.server.web.visit import Visit
from kadeploy.server.web.watched import SHOWN, TOOLS, Watched, watch
from kadeploy.state import flows
from kadeploy.state.flows import Wanted
from kadeploy.state.history import Selection
from kadeploy.state.journal import Flow

PAGE = 50
"""Runs that have ended, on one page."""
_RUNNING = 100
"""Runs under way that are shown."""
_PAGES = 10_000
_LONGEST = 10_000_000
"""Seconds that a run may take."""
_LINES = 60
"""Lines of a console's end."""
_PIECES = 1 << 20
"""Characters of a console's end among which they are looked for."""
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[ -/]*[0-~])")
"""What moves a terminal's cursor, colours or names its window (ECMA-48, 5.4 and 8.3.89)."""

Page = Annotated[int, QueryParameter(name="page", ge=1, le=_PAGES)]
At = Annotated[float, QueryParameter(name="at", ge=0, le=_LONGEST)]
Speed = Literal[1, 10, 60, 600]
Kind = Literal["", "deploy", "reboot", "power"]
Standing = Annotated[Literal["", "running", "ended", "aborted"], QueryParameter(name="state")]
_TITLES = {"deploy": "Deployment", "reboot": "Reboot", "power": "Power operation"}


@dataclass(frozen=True)
class Listed:
    """A run in the list."""

    flow: Flow
    nodes: int
    counts: dict[State, int]
    """Nodes by state, as far as is known."""


class Filter(msgspec.Struct, frozen=True):
    """What was asked for, as it stands in the fields of the form."""

    user: str = ""
    kind: Kind = ""
    state: Literal["", "running", "ended", "aborted"] = ""
    node: str = ""
    page: int = 1

    def path(self, page: int, under: str = "") -> str:
        """Where another *page* of the same list is."""
        given = {name: text for name in ("user", "kind", "state", "node") if (text := getattr(self, name))}
        query = urlencode(given | ({"page": str(page)} if page > 1 else {}))
        return f"/ui/runs{under}?{query}" if query else f"/ui/runs{under}"


def _asked(
    user: FromQuery[str] = "",
    kind: FromQuery[Kind] = "",
    in_state: Standing = "",
    node: FromQuery[str] = "",
    page: Page = 1,
) -> Filter:
    return Filter(user.strip(), kind, in_state, node.strip(), page)


_FILTERED = {"wanted": Provide(_asked, sync_to_thread=False)}
_lists: Recent[str] = Recent()


class Runs(Controller):
    """Runs, all that one may follow and one by one."""

    path = "/ui/runs"
    include_in_schema = False

    @get("/", sync_to_thread=True, dependencies=_FILTERED)
    def all(self, visit: NamedDependency[Visit], wanted: NamedDependency[Filter]) -> Response[str]:
        """One's own, or for administrators all, with a form that leaves some out."""
        return visit.page("runs.html", "Runs", wanted=wanted, kinds=_TITLES, now=_ready(_listed(visit, wanted)))

    @get("/now", sync_to_thread=True, dependencies=_FILTERED)
    def list_now(self, visit: NamedDependency[Visit], wanted: NamedDependency[Filter]) -> Response[str]:
        """The list alone, as it is now."""
        return answer(_listed(visit, wanted))

    @get("/{wid:str}", sync_to_thread=True)
    def one(
        self, visit: NamedDependency[Visit], wid: FromPath[str], nodes: FromQuery[str | None] = None
    ) -> Response[str]:
        """A run: while it goes on, and as long as its folder is kept; later what the log tells."""
        found = _watched(visit, wid)
        if found is None:
            return _past(visit, wid)
        parts, picture = found.parts(visit.is_administrator), found.picture
        values: dict[str, Any] = {
            "wid": wid,
            "picture": picture,
            "flow": flows.find(visit.served.site, wid),
            "goes_on": found.goes_on,
            "tool": TOOLS.get(picture.operation or "", "kadeploy3"),
            "now": _ready(parts.now),
            "rest": _ready(parts.rest),
            "rows": None if nodes is None else found.rows(nodes),
            "shown": SHOWN,
            "kinds": _TITLES,
        }
        return visit.page("run.html", f"Run {wid}", **values)

    @get("/{wid:str}/now", sync_to_thread=True)
    def run_now(self, visit: NamedDependency[Visit], wid: FromPath[str], seen: FromQuery[str] = "") -> Response[str]:
        """What has changed; *seen* is the mark of the part that the page has. At the end, the page is loaded anew."""
        found = _watched(visit, wid)
        if found is None or not found.goes_on:
            response = answer("")
            response.headers["HX-Refresh"] = "true"
            return response
        parts = found.parts(visit.is_administrator)
        return answer(parts.now if parts.mark == seen else parts.now + _out_of_band(parts.rest))

    @get("/{wid:str}/replay", sync_to_thread=True)
    def replay(
        self,
        visit: NamedDependency[Visit],
        wid: FromPath[str],
        at: At = 0.0,
        speed: FromQuery[Speed] = 10,
        play: FromQuery[str] = "",
    ) -> Response[str]:
        """The run as it was, so many seconds after its begin; where it plays, it goes on from there."""
        found = _kept(visit, wid)
        values: dict[str, Any] = {
            "wid": wid,
            "tool": TOOLS.get(found.picture.operation or "", "kadeploy3"),
            "length": found.picture.seconds,
            "at": at,
            "speed": speed,
            "speeds": get_args(Speed),
            "then": _ready(_then(visit, found, at, speed, plays=bool(play))),
        }
        return visit.page("run_replay.html", f"Run {wid}, again", **values)

    @get("/{wid:str}/then", sync_to_thread=True)
    def then(
        self, visit: NamedDependency[Visit], wid: FromPath[str], at: At = 0.0, speed: FromQuery[Speed] = 10
    ) -> Response[str]:
        """The next moment of a run that plays."""
        return answer(_then(visit, _kept(visit, wid), at, speed, plays=True))

    @get("/{wid:str}/consoles/{node:str}", sync_to_thread=True)
    def console(self, visit: NamedDependency[Visit], wid: FromPath[str], node: FromPath[str]) -> Response[str]:
        """The end of what a node's console showed last, where that was recorded and one may see it."""
        _watched(visit, wid)
        found = recording.find(visit.served.configuration, visit.user, node)
        if found is None:
            raise FileError(f"{node}: no recording of its console. kaconsole3 --list shows those that there are.")
        with recording.open_recorded(found) as file:
            _, pieces = recording.read(file, found.name)
            text = ""
            for piece in recording.texts(pieces):
                text = (text + piece)[-_PIECES:]
        return visit.page("run_console.html", f"Console of {found.node}", wid=wid, found=found, text=last_lines(text))


def _ready(text: str) -> Markup:
    """A part of a page that a template of ours has made."""
    return Markup(text)  # noqa: S704 - the template has escaped what stands in it


def last_lines(text: str) -> str:
    r"""The end of what a terminal was sent, as text.

    >>> last_lines("\x1b[1mlogin:\x1b[0m root\r\n\x1b]0;title\x07# ")
    'login: root\n#'
    """
    lines = printable(_SEQUENCE.sub("", text)).split("\n")
    return "\n".join(line.rstrip() for line in lines[-_LINES:]).strip("\n")


def _out_of_band(rest: str) -> str:
    """The same to be put in the place of the part that the page has."""
    return rest.replace('id="rest"', 'id="rest" hx-swap-oob="true"', 1)


# --- one ------------------------------------------------------------------------------------------------------------


def _watched(visit: Visit, wid: str) -> Watched | None:
    """The run *wid*, if its folder is kept.

    Raises:
        RightsError: it is another user's.
    """
    try:
        found = watch(visit.served.site, wid)
    except UnknownWorkflowError:
        return None
    if found.picture.user != visit.user and not visit.is_administrator:
        visit.served.require_mine(wid)
    return found


def _kept(visit: Visit, wid: str) -> Watched:
    """The run *wid*, whose events have to be kept.

    Raises:
        UnknownWorkflowError: they are not.
        RightsError: it is another user's.
    """
    found = _watched(visit, wid)
    if found is None:
        raise UnknownWorkflowError(f"{wid}: its events are not kept any more. What the log tells is at /ui/runs/{wid}.")
    return found


def _then(visit: Visit, found: Watched, at: float, speed: int, *, plays: bool) -> str:
    """The part of a page that shows the run after *at* seconds."""
    site, wid = visit.served.site, found.wid
    picture = replayed(site, wid, visit.user, found.picture.began + at)
    goes_on = picture.ended is None and at < found.picture.seconds
    return found.then(picture, visit.is_administrator, at=at, speed=speed, plays=plays, goes_on=goes_on)


_FIELDS = ("hostname", "user", "operation", "env", "start", "success", "error", *(f"step{step}" for step in (1, 2, 3)))


def _past(visit: Visit, wid: str) -> Response[str]:
    """What the log tells of a run whose folder is gone."""
    visit.served.require_workflow(wid)
    rows = list(visit.served.rows(Rows(selection=Selection(operation=None, wid=wid), fields=_FIELDS)))
    flow = flows.find(visit.served.site, wid)
    known = [dict(zip(_FIELDS, row, strict=True)) for row in rows]
    owner = flow.user if flow else known[0]["user"]
    if owner != visit.user and not visit.is_administrator:
        raise RightsError(f"{wid} is the workflow of {owner}, and you are {visit.user}.")
    failed = {row["hostname"]: row["error"] for row in known if row["success"] != "true"}
    values: dict[str, Any] = {
        "wid": wid,
        "flow": flow,
        "owner": owner,
        "first": known[0] if known else None,
        "ok": [row["hostname"] for row in known if row["success"] == "true"],
        "failed": sorted(kinds(failed).items(), key=lambda item: -len(item[1])),
        "ko": len(failed),
        "kinds": _TITLES,
    }
    return visit.page("run_past.html", f"Run {wid}", **values)


# --- the list -------------------------------------------------------------------------------------------------------


def _listed(visit: Visit, wanted: Filter) -> str:
    """The list, made once a second for all who ask for the same."""
    site = visit.served.site
    if visit.is_administrator:
        key: tuple[Any, ...] = (site.state, "", wanted)
    else:
        wanted = msgspec.structs.replace(wanted, user=visit.user)
        key = (site.state, visit.user, wanted)
    names = visit.served.configuration.full_names(expand(wanted.node, site.limits.nodes)) if wanted.node else []
    those = Wanted(wanted.user, wanted.kind, wanted.state, tuple(names))
    return _lists.get(key, lambda _: _made(site, wanted, those, is_one_users=not visit.is_administrator))


def _made(site: Site, wanted: Filter, those: Wanted, *, is_one_users: bool) -> str:
    going = flows.running(site, those, _RUNNING) if wanted.page == 1 else []
    past = flows.ended(site, those, PAGE + 1, PAGE * (wanted.page - 1))
    if is_one_users:  # the field of the form is an administrator's
        wanted = msgspec.structs.replace(wanted, user="")
    values = {
        "running": _running(site, going),
        "ended": _ended(site, past[:PAGE]),
        "is_last": len(past) <= PAGE,
        "wanted": wanted,
        "kinds": _TITLES,
        "shown": SHOWN,
    }
    return render("runs_now.html", **values)


def _running(site: Site, found: Sequence[Flow]) -> list[Listed]:
    sizes = flows.sizes(site, [flow.wid for flow in found])
    return [Listed(flow, sizes.get(flow.wid, 0), _counts(site, flow.wid)) for flow in found]


def _counts(site: Site, wid: str) -> dict[State, int]:
    try:
        return watch(site, wid).picture.counts
    except UnknownWorkflowError:
        return {}


def _ended(site: Site, found: Sequence[Flow]) -> list[Listed]:
    results = flows.results(site, [flow.wid for flow in found])
    listed = []
    for flow in found:
        ok, ko = results.get(flow.wid, (0, 0))
        counts: dict[State, int] = {"ko": ko, "ok": ok}
        listed.append(Listed(flow, ok + ko, {state: count for state, count in counts.items() if count}))
    return listed
