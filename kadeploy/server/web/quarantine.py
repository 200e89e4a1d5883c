"""Nodes in quarantine, for everybody, and for administrators those that the site's rule proposes, with the way back."""

from __future__ import annotations

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency

from kadeploy.errors import KadeployError
from kadeploy.nodeset import fold
from kadeploy.server.web.damaged import readable
from kadeploy.server.web.forms import Form
from kadeploy.server.web.visit import Visit
from kadeploy.state import failing
from kadeploy.state.failing import Failing
from kadeploy.state.quarantine import Aside, Stay

_FIELDS = ("nodes", "reason", "until")


class Quarantine(Controller):
    """Nodes that operations leave out."""

    path = "/ui/quarantine"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def show(self, visit: NamedDependency[Visit]) -> Response[str]:
        """Which nodes they are, since when and why."""
        return _page(visit, {})

    @post("/", sync_to_thread=True, status_code=200)
    def change(self, visit: NamedDependency[Visit], form: NamedDependency[Form]) -> Response[str]:
        """Put nodes aside, or let them out: for administrators."""
        typed = {name: form.text(name) for name in _FIELDS}
        try:
            said = _released(visit, form) if form.text("step") == "release" else _put(visit, form)
        except KadeployError as error:
            return _page(visit, typed, error=error)
        return _page(visit, {}, said)


def _put(visit: Visit, form: Form) -> str:
    nodes = tuple(form.text("nodes").split())
    visit.served.note(", ".join(nodes))
    put = visit.served.put_aside(
        Aside(nodes=nodes, reason=form.line("reason", "Reason"), until=form.end("until", "Until"))
    )
    return f"In quarantine: {fold(stay.node for stay in put)}."


def _released(visit: Visit, form: Form) -> str:
    nodes = form.text("nodes").split()
    visit.served.note(", ".join(nodes))
    released = visit.served.release(nodes)
    if not released:
        return "None of them was in quarantine; what was before does not count any more all the same."
    return f"No longer in quarantine: {fold(released)}."


def _page(visit: Visit, typed: dict[str, str], said: str = "", error: KadeployError | None = None) -> Response[str]:
    stays, left_out = readable(visit.served.quarantine)
    return visit.page(
        "quarantine.html",
        "Quarantine",
        status=200 if error is None else visit.refused(error),
        stays=stays,
        proposals=_proposals(visit, stays),
        has_rule=visit.served.site.quarantine is not None,
        left_out=left_out,
        refused="" if error is None else str(error),
        said=said,
        typed=typed,
    )


def _proposals(visit: Visit, stays: list[Stay]) -> list[Failing]:
    """Nodes that fail too often and are not in quarantine yet; administrators alone are asked what to do with them."""
    if not visit.is_administrator:
        return []
    there = {stay.node for stay in stays}
    return [each for each in failing.failing(visit.served.site) if each.node not in there]
