"""The audit log's lines, made where every answer passes, those to what is asked for nowhere too."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Send

from kadeploy.server.audit import Audit
from kadeploy.server.auth import Caller
from kadeploy.server.peers import SCOPE
from kadeploy.server.served import THING

CALLER, REASON = "kadeploy_caller", "kadeploy_reason"
"""Keys of who asks, and of why it was refused, in the state of a request's scope."""
_LOOKING = {"GET", "HEAD", "OPTIONS"}
_QUESTIONS = ("/v1/statistics/", "/v1/files/needed", "/v1/environments/moved")
"""Paths at which nothing is changed, whatever the method."""
_SIGNS_OF_LIFE = re.compile(r"/v1/workers/?|/v1/shards/[^/]+/[^/]+/(report|profiles)")
"""Paths at which workers say every second that they are there; what they take is noted."""
_STRANGERS = {401, 403, 429}
"""Answers that are noted even to those who only look."""


class Audited:
    """Notes each change that is asked for, and each caller who is turned away, with what became of it."""

    def __init__(self, app: ASGIApp, audit: Audit) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass the request on, and note the status of its answer before that is sent; consoles note theirs."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        looks = scope["method"] in _LOOKING or _is_question(scope["path"])

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and (not looks or message["status"] in _STRANGERS):
                await asyncio.to_thread(note, self._audit, scope, message["status"])
            await send(message)

        await self._app(scope, receive, noting)


def _is_question(path: str) -> bool:
    return path.startswith(_QUESTIONS) or _SIGNS_OF_LIFE.fullmatch(path) is not None


def note(audit: Audit, scope: Any, status: int) -> None:
    """Note the answer to what is asked for in *scope*, as far as its state tells; a WebSocket begins with GET."""
    known = scope["state"]
    query = scope["query_string"].decode("latin-1")
    caller: Caller | None = known.get(CALLER)
    audit.record(
        f"{scope.get('method', 'GET')} {scope['path']}",
        status,
        caller,
        source=str(known[SCOPE]),
        thing=known.get(THING, query),
        reason=known.get(REASON, ""),
    )
