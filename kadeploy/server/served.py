"""The site as the service answers for it: the same as within a process, but that no path of a client's is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kadeploy.caller import Account
from kadeploy.checksums import Fingerprint
from kadeploy.config.folder import Configuration
from kadeploy.environments import rules
from kadeploy.environments.environment import Environment
from kadeploy.errors import NodeListError
from kadeploy.nodeset import expand, require_few
from kadeploy.operations import admission, claims, custom, plan
from kadeploy.operations.local import Local
from kadeploy.operations.named_files import named
from kadeploy.operations.requests import DeployRequest, Described, PowerRequest, Wish
from kadeploy.operations.sources import OfSent
from kadeploy.server.auth import Caller
from kadeploy.server.notifications import choosing
from kadeploy.server.notifications.choosing import Shown
from kadeploy.server.notifications.sending import Tried
from kadeploy.state import environments, nodes, notifications, quarantine, rights
from kadeploy.state.fingerprints import RemoteUser
from kadeploy.state.nodes import Held
from kadeploy.state.notifications import Choice
from kadeploy.state.quarantine import Aside, Stay


class Served(Local):
    """The site for the user of one request; *noted* is what the audit log is told."""

    def __init__(self, caller: Caller, configuration: Configuration, noted: dict[str, Any]) -> None:
        super().__init__(Account(caller.user, os.geteuid(), os.getegid(), Path("/nonexistent")), configuration.folder)
        self.__dict__["configuration"] = configuration
        self.caller = caller
        self.fingerprints: Mapping[str, Fingerprint] = {}
        """Of files that the user has elsewhere, by name: what the request says of them."""
        self._noted = noted

    @property
    def account(self) -> None:
        """Nobody's: what is needed of a user's files has been sent."""
        return

    @property
    def recorder(self) -> RemoteUser:
        """The user, by what the request says."""
        return RemoteUser(self.user, self.fingerprints)

    def mine(self, request: Wish) -> Wish:
        """*request* in the user's name, checked as a tool would have checked it."""
        if not isinstance(request, PowerRequest) and request.options.custom_operations:
            custom.require_complete(request.options.custom_operations, self.register)
        return super().mine(self._checked(request) if isinstance(request, DeployRequest) else request)

    def _checked(self, request: DeployRequest) -> DeployRequest:
        if isinstance(request.environment, Described):
            described = Described(environment=_sound(request.environment.environment))
            request = msgspec.structs.replace(request, environment=described)
        if request.force_steps is not None:
            request = msgspec.structs.replace(request, force_steps=plan.checked(request.force_steps, self.register))
        return request

    def add_environments(self, described: Sequence[Environment]) -> list[Environment]:
        """See `kadeploy.state.environments.add_all`; they are checked as a tool would have checked them."""
        return super().add_environments([_sound(each) for each in described])

    def needed(self, request: Wish) -> list[str]:
        """Files that the user's client has to send before the request can be carried out; it is good but for them.

        Raises:
            KadeployError: the request is refused.
        """
        work = admission.admit(self.mine(request), self.configuration)
        places = OfSent(self.site, self.user, work.files, None if work.anonymous else work.environment)
        return places.missing(named(request, work.environment))

    def files_to_measure(self, moves: Sequence[tuple[str, str]]) -> list[str]:
        """See `kadeploy.state.environments.files_to_measure`."""
        return environments.files_to_measure(self.site, self.user, moves)

    def claims(self, names: Sequence[str] | None = None) -> list[Held]:
        """See `kadeploy.state.nodes.claims`."""
        return nodes.claims(self.site, names)

    def free(self, node: str) -> list[str]:
        """See `kadeploy.operations.claims.free`; for administrators."""
        [name] = self.configuration.full_names([node])
        self.note(name)
        rights.require_almighty(self.site, self.user)
        return claims.free(self.site, name)

    def put_aside(self, aside: Aside) -> list[Stay]:
        """Put nodes into quarantine: how they are in it then; for administrators."""
        rights.require_almighty(self.site, self.user)
        names = self._whole(aside.nodes)
        quarantine.put(self.site, names, self.user, aside.reason, aside.until)
        return quarantine.current(self.site, names)

    def release(self, patterns: Sequence[str]) -> list[str]:
        """See `kadeploy.state.quarantine.release`; for administrators."""
        rights.require_almighty(self.site, self.user)
        return quarantine.release(self.site, self._whole(patterns), self.user)

    def notifications(self) -> Shown:
        """What the user has chosen to be told of the ends of their operations."""
        return choosing.shown(self.configuration, self.user)

    def choose_notifications(self, choice: Choice, new_secret: bool = False) -> Shown:
        """See `kadeploy.server.notifications.choosing.choose`; URLs may hold secrets, and are not noted."""
        self.note(f"{', '.join(choice.channels) or 'nothing'} ({choice.outcome})")
        return choosing.choose(self.configuration, self.user, choice, new_secret)

    def forget_notifications(self) -> bool:
        """Tell the user nothing any more: whether anything had been chosen."""
        return notifications.forget(self.site, self.user)

    def try_notifications(self) -> list[Tried]:
        """See `kadeploy.server.notifications.choosing.trial`."""
        return choosing.trial(self.configuration, self.user)

    def _whole(self, patterns: Sequence[str]) -> list[str]:
        """The whole names of known nodes, of which at least one is named.

        Raises:
            NodeListError: none is, one is not known, or there are more than a request may have.
        """
        most = self.site.limits.nodes
        names = self.configuration.full_names(name for pattern in patterns for name in expand(pattern, most))
        if not names:
            raise NodeListError("No node is named: say which nodes are meant.")
        require_few(len(names), most, "This request")
        self.configuration.cluster_nodes(names)
        return names

    def note(self, thing: str) -> None:
        """Say for the audit log what the request is about."""
        self._noted[THING] = thing


def _sound(described: Environment) -> Environment:
    return rules.check(described, "environment")


THING = "kadeploy_thing"
"""Key of what `Served.note` says in the state of a request's scope."""
