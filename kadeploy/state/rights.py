"""Rights: who may operate on which partition of which node.

A right is a row (user, node, partition); node and partition may be ``*``. Administrators get none by themselves: being
almighty allows them to give rights, to themselves too (reference §4).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import msgspec

from kadeploy.config.site import Site
from kadeploy.errors import RightsError
from kadeploy.nodeset import fold, natural_key
from kadeploy.state.database import chunked, connect, fetch, insert, transaction
from kadeploy.state.tables import Moment, Right

ANY = "*"
_NAMES = 5000
End = Annotated[int, msgspec.Meta(ge=0, lt=Moment.END)]
"""When a right ends, in Unix seconds."""


class Given(msgspec.Struct, frozen=True):
    """One right; *until* is its end in Unix seconds, None when it has none."""

    node: str
    part: str
    until: int | None = None


class Holder(msgspec.Struct, frozen=True):
    """Who has a right on a node; *until* as in `Given`."""

    user: str
    part: str
    until: int | None = None


def missing(site: Site, user: str, nodes: Sequence[str], part: str) -> list[str]:
    """Those of *nodes* where *user* has no right on *part* (``/dev/sda3``) today."""
    if site.rights == "dummy":
        return []
    connect(site)
    rows = Right.select(Right.node, Right.until).where(_valid(), Right.user == user, Right.part.in_([part, ANY]))
    granted = {node for node, _ in fetch(rows)}
    return [] if ANY in granted else [node for node in nodes if node not in granted]


def require(site: Site, user: str, nodes: Sequence[str], part: str) -> None:
    """Refuse unless *user* may operate on *part* of all *nodes*.

    Raises:
        RightsError: names the nodes, and the command an administrator runs to give the right.
    """
    without = missing(site, user, nodes, part)
    if without:
        names = fold(without)
        command = shlex.join(["karights3", "-a", "-m", names, "-p", part, "-u", user])
        raise RightsError(
            f"{user} does not have the right to use {part} of {names}. An administrator gives it with: {command}"
        )


def require_almighty(site: Site, user: str) -> None:
    """Refuse unless *user* is an administrator of the site.

    Raises:
        RightsError: names the administrators.
    """
    if user not in site.almighty_users:
        names = ", ".join(site.almighty_users) or "nobody"
        raise RightsError(f"Only administrators may do this ({names}: almighty_users in site.yml), and you are {user}.")


def add(
    site: Site,
    user: str,
    nodes: Sequence[str],
    parts: Sequence[str],
    *,
    until: int | None = None,
    overwrite: bool = False,
) -> tuple[list[Given], list[str]]:
    """Give *user* rights on each of *parts* of each of *nodes*: the rights that are new, and the nodes skipped.

    A node that carries any right on a partition of its own, whoever has it, is taken: it is skipped, or with
    *overwrite* those rights go first, of all users. Rights with ``*`` never make a node taken and are never removed.
    """
    connect(site)
    with transaction():
        _forget_expired(nodes)
        taken = _taken(nodes)
        if overwrite:
            _delete_fine(taken)
            taken = set()
        free = [node for node in nodes if node not in taken]
        new = [right for right in _product(free, parts, until) if not _exists(user, right)]
        insert(Right, [msgspec.structs.asdict(right) | {"user": user} for right in new])
    return new, [node for node in nodes if node in taken]


def delete(site: Site, user: str, nodes: Sequence[str], parts: Sequence[str]) -> tuple[list[Given], list[Given]]:
    """Take back exactly these rights (``*`` means the row with ``*``): those removed, and those that did not exist."""
    connect(site)
    removed: list[Given] = []
    unknown: list[Given] = []
    with transaction():
        for right in _product(nodes, parts, None):
            (removed if _delete_one(user, right) else unknown).append(right)
    return removed, unknown


def show(site: Site, user: str) -> list[Given]:
    """The rights that *user* has today, sorted by node and partition."""
    connect(site)
    rows = Right.select(Right.node, Right.part, Right.until).where(_valid(), Right.user == user)
    return sorted((Given(*row) for row in fetch(rows)), key=lambda right: (natural_key(right.node), right.part))


def holders(site: Site, nodes: Sequence[str], user: str | None = None) -> dict[str, list[Holder]]:
    """Who has rights today on each of *nodes*, those with ``*`` among them; with *user*, this user alone."""
    connect(site)
    columns = Right.select(Right.node, Right.user, Right.part, Right.until).where(_valid())
    rows = columns if user is None else columns.where(Right.user == user)
    by_node: dict[str, set[Holder]] = {}
    for node, *holder in fetch(rows):
        by_node.setdefault(node, set()).add(Holder(*holder))
    everywhere = by_node.get(ANY, set())
    return {
        node: sorted(by_node.get(node, set()) | everywhere, key=lambda each: (each.user, each.part)) for node in nodes
    }


def users(site: Site) -> list[str]:
    """Who has any right today, by name."""
    connect(site)
    return sorted(name for (name,) in fetch(Right.select(Right.user).where(_valid()).distinct()))


def forget(site: Site, before: int, dry_run: bool = False) -> int:
    """Forget rights that ended before the Unix second *before*, or count them alone: how many there are."""
    connect(site)
    old = Right.until < before
    if dry_run:
        return int(Right.select().where(old).count())
    return int(Right.delete().where(old).execute())


def _valid() -> Any:
    return Right.until.is_null() | (Right.until > int(time.time()))


def _product(nodes: Iterable[str], parts: Sequence[str], until: int | None) -> Iterator[Given]:
    return (Given(node, part, until) for node in dict.fromkeys(nodes) for part in dict.fromkeys(parts))


def _taken(nodes: Iterable[str]) -> set[str]:
    names = [node for node in nodes if node != ANY]
    query = Right.select(Right.node)
    rows = (fetch(query.where(Right.node.in_(part), Right.part != ANY)) for part in chunked(names, _NAMES))
    return {node for part in rows for (node,) in part}


def _delete_fine(nodes: Iterable[str]) -> None:
    for part in chunked(nodes, _NAMES):
        Right.delete().where(Right.node.in_(part), Right.part != ANY).execute()


def _forget_expired(nodes: Iterable[str]) -> None:
    for part in chunked(nodes, _NAMES):
        Right.delete().where(Right.node.in_(part), Right.until <= int(time.time())).execute()


def _exists(user: str, right: Given) -> bool:
    return bool(_row(user, right, Right.select()).exists())


def _delete_one(user: str, right: Given) -> bool:
    return bool(_row(user, right, Right.delete()).execute())


def _row(user: str, right: Given, query: Any) -> Any:
    return query.where(Right.user == user, Right.node == right.node, Right.part == right.part)
