"""The site that the application serves, and what belongs to it from one request to the next."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from litestar.connection import ASGIConnection

from kadeploy.config.folder import Configuration
from kadeploy.server import pages
from kadeploy.server.audit import Audit
from kadeploy.server.audited import CALLER
from kadeploy.server.auth import Authenticator, Caller, Connection, grouped
from kadeploy.server.consoles import Consoles
from kadeploy.server.peers import SCOPE, Peer
from kadeploy.server.standing import Require
from kadeploy.server.web.once import Once
from kadeploy.server.web.sessions import Sessions

SITE = "kadeploy_site"
"""Key of `Site` in the state of a request's scope."""
Asking = ASGIConnection[Any, Any, Any, Any]


class Site:
    """The site that is served, with what belongs to its configuration of the moment."""

    def __init__(self, configuration: Callable[[], Configuration]) -> None:
        self.consoles, self.audit = Consoles(), Audit(configuration().site)
        self.sessions, self.once = Sessions(), Once()
        self.secret = secrets.token_bytes(32)
        """Of this process: by it the forms of browsers without a session are known."""
        self._configuration = configuration
        self._authenticator: tuple[Configuration, Authenticator] | None = None

    @property
    def configuration(self) -> Configuration:
        """As it is now."""
        return self._configuration()

    @property
    def authenticator(self) -> Authenticator:
        """By what the configuration says now; what it remembers of failures lasts until that changes."""
        now, known = self.configuration, self._authenticator
        if known is None or known[0].site != now.site:
            known = self._authenticator = (now, Authenticator(now.site.service, now.site))
        return known[1]

    def caller(self, connection: Asking) -> Caller:
        """Who asks."""
        asked = shown(connection)
        found = self.authenticator.authenticate(asked)
        connection.scope["state"][CALLER] = found
        pages.require_own(found, asked.headers)
        return found

    def standing(self, connection: Asking, caller: Caller) -> Require:
        """Refuses, later on, what *caller* has opened by *connection* and would not be let in for again."""
        asked, proof = shown(connection), self.authenticator.proof(caller)
        return lambda: self.authenticator.require_still(asked, caller, proof)


def of(connection: Asking) -> Site:
    """The site that a request is for."""
    site: Site = connection.scope["state"][SITE]
    return site


def shown(connection: Asking) -> Connection:
    """What a request shows of who asks."""
    peer: Peer = connection.scope["state"][SCOPE]
    return Connection(peer.uid, peer.pid, peer.address, peer.certificate, grouped(connection.scope["headers"]))
