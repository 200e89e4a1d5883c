"""Rights as karights3 shows them, and for administrators what it changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from kadeploy.caller import is_user_name
from kadeploy.errors import KadeployError, OptionError
from kadeploy.nodeset import expand, fold, natural_key
from kadeploy.operations.service import Grant, Granted, Revoked
from kadeploy.server.served import Served
from kadeploy.server.web.damaged import readable
from kadeploy.server.web.forms import Form
from kadeploy.server.web.visit import Visit
from kadeploy.state.rights import ANY, Given

MOST = 1000
"""Rows of the table of rights."""
_FIELDS = ("user", "nodes", "parts", "until", "overwrite")


class Range(msgspec.Struct, frozen=True):
    """Rights of a user that differ in their nodes alone."""

    user: str
    part: str
    until: int | None
    nodes: str
    """Folded; ``*`` stands for all."""
    count: int
    """How many names these are."""


def _ranges(user: str, given: Iterable[Given], wanted: set[str] | None) -> list[Range]:
    """*given* to *user*, of the nodes that are *wanted* (None: all), by partition and end."""
    groups: dict[tuple[str, int | None], list[str]] = {}
    for right in given:
        if wanted is None or right.node == ANY or right.node in wanted:
            groups.setdefault((right.part, right.until), []).append(right.node)
    return [Range(user, part, until, _told(nodes), len(nodes)) for (part, until), nodes in groups.items()]


def _told(nodes: Sequence[str]) -> str:
    """Nodes as ranges; ``*`` would mean something else to them."""
    named = sorted((name for name in nodes if name != ANY), key=natural_key)
    return ", ".join(filter(None, [ANY if ANY in nodes else "", fold(named) if named else ""]))


# --- what administrators ask for ------------------------------------------------------------------------------------


def _nodes(text: str, served: Served) -> list[str]:
    """The nodes that *text* names, by their whole names; ``*`` among them when it was given."""
    words = text.split()
    most = served.site.limits.nodes
    names = served.configuration.full_names(name for word in words if word != ANY for name in expand(word, most))
    return [ANY, *names] if ANY in words else names


def _grant(form: Form, served: Served) -> Grant:
    """What a form asks for.

    Raises:
        KadeployError: a field is missing or malformed.
    """
    user, parts = form.text("user"), form.text("parts").replace(",", " ").split()
    if not is_user_name(user):
        raise OptionError(f"{user!r} is not a user name.")
    nodes = _nodes(form.text("nodes"), served)
    if not nodes:
        raise OptionError("Give at least one node, or * for all nodes.")
    if not parts:
        raise OptionError("Give at least one partition, such as /dev/sda3, or * for all partitions.")
    for part in parts:
        if part != ANY and not (part.startswith("/dev/") and part.isprintable()):
            raise OptionError(f"{part!r} is not a partition: expected a device such as /dev/sda3, or *.")
    until = form.end("until", "Until")
    return Grant(
        user=user, nodes=tuple(nodes), parts=tuple(parts), until=until, overwrite=form.text("overwrite") == "on"
    )


def _granted(grant: Grant, done: Granted) -> list[str]:
    """What came of giving rights, in words."""
    said = [f"Rights of {grant.user} added: {_counted(done.new)}."] if done.new else []
    if done.skipped:
        said.append(f"Some rights are already set on {_told(done.skipped)}: skipped. Overwrite them if you mean it.")
    if not done.new and not done.skipped:
        said.append(f"The user {grant.user} has these rights already. To change their end, take them back first.")
    return said if done.new else [*said, "No rights added."]


def _revoked(grant: Grant, done: Revoked) -> list[str]:
    """What came of taking rights back, in words."""
    said = [f"Rights of {grant.user} taken back: {_counted(done.removed)}."] if done.removed else []
    if done.unknown:
        said.append(f"The user {grant.user} has no right on {_counted(done.unknown)}: nothing to delete there.")
    return said


def _counted(given: Iterable[Given]) -> str:
    by_part: dict[str, list[str]] = {}
    for right in given:
        by_part.setdefault(right.part, []).append(right.node)
    return "; ".join(f"{part} of {_told(nodes)}" for part, nodes in by_part.items())


# --- the page -------------------------------------------------------------------------------------------------------


class Filter(msgspec.Struct, frozen=True):
    """Which rights of others an administrator wants to see."""

    user: str = ""
    nodes: str = ""


def _page(
    visit: Visit,
    wanted: Filter = Filter(),  # noqa: B008 - frozen
    typed: Mapping[str, str] | None = None,
    said: Sequence[str] = (),
    error: KadeployError | None = None,
) -> Response[str]:
    """The rights of the visitor, of all users for administrators, and what came of a form."""
    served, refused = visit.served, "" if error is None else str(error)
    status = 200 if error is None else visit.refused(error)
    mine, left_out = readable(lambda: served.rights(served.user)[served.user])
    others: list[Range] = []
    if visit.is_administrator:
        try:
            others = _others(served, wanted)
        except KadeployError as wrong:
            refused, status = str(wrong), visit.refused(wrong)
    return visit.page(
        "rights.html",
        "Rights",
        status=status,
        mine=_ranges(served.user, mine, None),
        others=others[:MOST],
        more=max(0, len(others) - MOST),
        everybody=served.site.rights == "dummy",
        left_out=left_out,
        refused=refused,
        said=said,
        wanted=wanted,
        typed=typed or {},
    )


def _others(served: Served, wanted: Filter) -> list[Range]:
    names = set(_nodes(wanted.nodes, served)) if wanted.nodes else None
    found, _ = readable(lambda: served.rights(wanted.user or None).items())
    return [each for user, given in found for each in _ranges(user, given, names)]


class Rights(Controller):
    """Rights."""

    path = "/ui/rights"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def show(
        self, visit: NamedDependency[Visit], user: FromQuery[str] = "", nodes: FromQuery[str] = ""
    ) -> Response[str]:
        """The visitor's own, and those of others for administrators."""
        return _page(visit, Filter(user.strip(), nodes.strip()))

    @post("/", sync_to_thread=True, status_code=200)
    def change(self, visit: NamedDependency[Visit], form: NamedDependency[Form]) -> Response[str]:
        """Give rights, or take exactly these back."""
        typed = {name: form.text(name) for name in _FIELDS}
        try:
            grant = _grant(form, visit.served)
            visit.served.note(f"{grant.user}: {', '.join(grant.parts)} of {_told(grant.nodes)}")
            if form.text("step") == "revoke":
                said = _revoked(grant, visit.served.revoke(grant))
            else:
                said = _granted(grant, visit.served.grant(grant))
        except KadeployError as error:
            return _page(visit, typed=typed, error=error)
        return _page(visit, Filter(grant.user), typed, said)
