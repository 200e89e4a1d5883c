"""Rights in the original's form; for administrators."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, post
from litestar.params import FromPath, JSONBody, QueryParameter

from kadeploy.errors import NothingChangedError
from kadeploy.operations.service import Grant
from kadeploy.server.original import asked
from kadeploy.server.original.asked import Toggle, Words
from kadeploy.server.original.forms import rendered
from kadeploy.server.original.operations import TAG, Answer, Asked, Here
from kadeploy.server.served import Served
from kadeploy.state.rights import ANY, Given, require_almighty

Parts = dict[str, dict[str, list[str]]]
"""Partitions by user and node."""
Partitions = Annotated[list[str] | None, QueryParameter(name="partitions")]


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /rights``; without *nodes* or *partitions*: on all."""

    username: str | None = None
    nodes: Words | None = None
    partitions: Words | None = None
    overwrite: Toggle = None


class RightController(Controller):
    """``/rights``."""

    path = "/rights"
    tags = (TAG,)

    @post("/", sync_to_thread=True, status_code=200)
    def grant(self, served: Here, request: Asked, data: JSONBody[Wanted]) -> Answer:
        """Give rights."""
        user = data.username or served.user
        parts = (data.partitions,) if isinstance(data.partitions, str) else data.partitions or (ANY,)
        nodes = _nodes(served, data.nodes)
        served.note(f"{user}: {', '.join(parts)} of {', '.join(nodes[:3])}")
        wanted = Grant(user=user, nodes=nodes, parts=tuple(parts), overwrite=asked.is_on(data.overwrite))
        new = served.grant(wanted).new
        if not new:
            raise NothingChangedError(f"{user} gets no new right: it is there, or the nodes are others' (overwrite).")
        return rendered(request, _by_user({user: new}))

    @get("/", sync_to_thread=True)
    def show(self, served: Here, request: Asked) -> Answer:
        """Rights of all users."""
        return rendered(request, _by_user(served.rights()))

    @get("/{user:str}", sync_to_thread=True)
    def of_user(self, served: Here, request: Asked, user: FromPath[str]) -> Answer:
        """Rights of one user."""
        return rendered(request, _by_user(served.rights(user)))

    @get("/{user:str}/{node:str}", sync_to_thread=True)
    def on_node(self, served: Here, request: Asked, user: FromPath[str], node: FromPath[str]) -> Answer:
        """Rights of one user on a node."""
        wanted = (*served.configuration.full_names([node]), ANY)
        held = [each for each in served.rights(user)[user] if each.node in wanted]
        return rendered(request, _by_user({user: held}))

    @delete("/{user:str}", sync_to_thread=True, status_code=200)
    def revoke(self, served: Here, request: Asked, user: FromPath[str], partitions: Partitions = None) -> Answer:
        """Take rights of a user back: all, or those on partitions."""
        return rendered(request, _revoked(served, user, "", partitions))

    @delete("/{user:str}/{node:str}", sync_to_thread=True, status_code=200)
    def revoke_on_node(
        self, served: Here, request: Asked, user: FromPath[str], node: FromPath[str], partitions: Partitions = None
    ) -> Answer:
        """The same on one node."""
        return rendered(request, _revoked(served, user, node, partitions))


def _revoked(served: Served, user: str, node: str, partitions: list[str] | None) -> Parts:
    require_almighty(served.site, served.user)
    wanted = served.configuration.full_names([node]) if node and node != ANY else [node] if node else None
    gone = [
        each
        for each in served.rights(user).get(user, [])
        if (wanted is None or each.node in wanted) and (not partitions or each.part in partitions)
    ]
    if not gone:
        raise NothingChangedError(f"{user} has no such right.")
    for each in gone:
        served.revoke(Grant(user=user, nodes=(each.node,), parts=(each.part,)))
    return _by_user({user: gone})


def _nodes(served: Served, words: Words | None) -> tuple[str, ...]:
    if not words or words in (ANY, [ANY]):
        return (ANY,)
    return tuple(served.configuration.full_names(asked.names(words, served)))


def _by_user(found: dict[str, list[Given]]) -> Parts:
    shown: Parts = {}
    for user, rights in found.items():
        by_node = shown.setdefault(user, {})
        for each in rights:
            by_node.setdefault(each.node, []).append(each.part)
    return shown
