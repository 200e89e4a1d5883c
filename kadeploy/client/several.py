"""Several services, asked as one (``--multi-server``): each for its own nodes, all at the same time.

A node belongs to the one server that knows it. Clusters are called ``SERVER/CLUSTER`` here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar, cast

import msgspec

from kadeploy.client import joined
from kadeploy.client.parallel import at_once, together
from kadeploy.errors import (
    BrokenOffError,
    EnvironmentRefusedError,
    KadeployError,
    OptionError,
    ServiceError,
    UnknownWorkflowError,
)
from kadeploy.nodeset import natural_key
from kadeploy.operations.service import Console, Rows, Service
from kadeploy.state.rights import ANY, Given

if TYPE_CHECKING:
    import threading

    from kadeploy.config.folder import Configuration
    from kadeploy.config.site import Site
    from kadeploy.environments.environment import Environment
    from kadeploy.environments.reference import Reference
    from kadeploy.events import Listener, Report
    from kadeploy.operations.recording import Recorded
    from kadeploy.operations.requests import Wish
    from kadeploy.runner.playbooks import Register
    from kadeploy.state.history import Durations, Last, Rate, Selection
    from kadeploy.state.load import Load
    from kadeploy.state.nodes import NodeRow
    from kadeploy.state.quarantine import Stay
    from kadeploy.state.rights import Holder

_AnswerT = TypeVar("_AnswerT")
_ErrorT = TypeVar("_ErrorT", bound=KadeployError)


def reach(makers: Mapping[str, Callable[[], Service]], all_or_nothing: bool, warn: Callable[[str], None]) -> Several:
    """Those of the servers that *makers* make, by name, which can be asked; *warn* is told of the others.

    Raises:
        ServiceError: none can be asked; or not all of them, and it is *all_or_nothing*.
    """
    there, missing = at_once({name: partial(_reached, make) for name, make in makers.items()})
    if missing and (all_or_nothing or not there):
        what = "Not all servers can be asked, and nothing was done" if there else "No server can be asked"
        raise ServiceError(f"{what}. {together(missing)}")
    for name, error in missing.items():
        warn(f"{name} is left out: {error}")
    return Several(there, tuple(missing), all_or_nothing, warn)


def _reached(make: Callable[[], Service]) -> Service:
    service = make()
    _ = service.configuration  # it shows that the service answers, and is needed later
    return service


class Several:
    """A `kadeploy.operations.service.Service` by those of *services*, by their names, that a question is about.

    Where a question is about all of them, *warn* is told who does not answer it, unless it is *all_or_nothing*.
    *missing* are the servers that could not be asked at all.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        missing: Sequence[str] = (),
        all_or_nothing: bool = False,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.services = services
        self.missing = tuple(missing)
        self.all_or_nothing = all_or_nothing
        self.is_partial = False
        """Whether something was asked of all servers that not all of them have answered."""
        self.server_of: dict[str, str] = {}
        """By workflow, of those that were begun."""
        self._warn = warn

    # --- asking -----------------------------------------------------------------------------------------------------

    def each(self, question: Callable[[Service], _AnswerT]) -> dict[str, _AnswerT]:
        """What all servers answer, by their names.

        Raises:
            KadeployError: none answers; or not all do, and it is all or nothing.
        """
        self.is_partial |= bool(self.missing)
        return self._answered({name: partial(question, service) for name, service in self.services.items()})

    def _answered(self, jobs: Mapping[str, Callable[[], _AnswerT]]) -> dict[str, _AnswerT]:
        answers, refused = at_once(jobs)
        if refused and (self.all_or_nothing or not answers):
            raise together(refused)
        for name, error in refused.items():
            self.is_partial = True
            self._warn(f"{name} is left out: {error}")
        return answers

    def _knowing(self, question: Callable[[Service], _AnswerT], stranger: type[KadeployError]) -> dict[str, _AnswerT]:
        """The answers of those who do not refuse the question as *stranger*: whom it is about they do not know.

        Raises:
            KadeployError: nobody knows; *stranger* unless a server refuses for another reason.
        """
        found, refused = at_once({name: partial(question, service) for name, service in self.services.items()})
        if found:
            return found
        other = {name: error for name, error in refused.items() if not isinstance(error, stranger)}
        raise together(other) if other else self._with_hint(next(iter(refused.values())))

    def _with_hint(self, error: _ErrorT) -> _ErrorT:
        return type(error)(f"{error} {', '.join(self.missing)} cannot be asked.") if self.missing else error

    def shares(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Nodes by the server that knows them, their names made whole; ``*`` is of all.

        Raises:
            NodeListError: nodes that nobody knows, or more than one.
        """
        plain = self.configuration.full_names(name for name in names if name != ANY)
        self.configuration.cluster_nodes(plain)
        shares: dict[str, list[str]] = {}
        if ANY in names:
            self.is_partial |= bool(self.missing)
            shares = {server: [ANY] for server in self.services}
        for name in plain:
            shares.setdefault(self.configuration.servers[name][0], []).append(name)
        return shares

    def _lists(
        self, names: Sequence[str] | None, question: Callable[[Service, Sequence[str] | None], _AnswerT]
    ) -> list[_AnswerT]:
        """What each server answers about its share of *names*; None stands for all nodes."""
        if names is None:
            return list(self.each(lambda service: question(service, None)).values())
        shares = self.shares(names)
        jobs = {server: partial(question, self.services[server], share) for server, share in shares.items()}
        return list(self._answered(jobs).values())

    # --- the site ---------------------------------------------------------------------------------------------------

    @property
    def _first(self) -> Service:
        return next(iter(self.services.values()))

    @property
    def user(self) -> str:
        """As whom the first server knows the caller."""
        return self._first.user

    @cached_property
    def site(self) -> Site:
        """The first server's, under the names of all and with the widest limit of nodes."""
        sites = [service.site for service in self.services.values()]
        limits = msgspec.structs.replace(sites[0].limits, nodes=max(site.limits.nodes for site in sites))
        return msgspec.structs.replace(sites[0], name=", ".join(self.services), limits=limits)

    @cached_property
    def configuration(self) -> joined.Joined:
        """All clusters, with their servers' names in front."""
        known = {server: service.configuration for server, service in self.services.items()}
        return joined.join(known, self.site, self.missing)

    @property
    def register(self) -> Register:
        """What any of them has; each server sees for itself what of it is its own."""
        return _merged(self.each(lambda service: service.register).values())

    # --- nodes and workflows --------------------------------------------------------------------------------------

    def states(self, names: Sequence[str] | None = None) -> list[NodeRow]:
        """Of all servers."""
        return list(chain.from_iterable(self._lists(names, lambda service, share: list(service.states(share)))))

    def holders(self, names: Sequence[str] | None = None) -> Mapping[str, Sequence[Holder]]:
        """Of all servers, in the natural order of the nodes."""
        found = _merged(self._lists(names, lambda service, share: service.holders(share)))
        return {name: found[name] for name in sorted(found, key=natural_key)}

    def workflows(self, wid: str | None = None, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Those of all servers, or the one of the server that knows it."""
        if wid is not None:
            return _merged(self._knowing(lambda service: service.workflows(wid, names), UnknownWorkflowError).values())
        return _merged(self._lists(names, lambda service, share: service.workflows(None, share)))

    def newest(self) -> list[str]:
        """Of all servers."""
        return list(chain.from_iterable(self.each(lambda service: service.newest()).values()))

    def quarantine(self, names: Sequence[str] | None = None) -> list[Stay]:
        """Of all servers."""
        return list(chain.from_iterable(self._lists(names, lambda service, share: service.quarantine(share))))

    # --- consoles ---------------------------------------------------------------------------------------------------

    def console(self, node: str) -> Console:
        """Of the server that knows *node*."""
        ((server, [name]),) = self.shares([node]).items()
        return self.services[server].console(name)

    def recordings(self, node: str = "") -> list[Recorded]:
        """Of the server that knows *node*, or of all."""
        found = self._lists(
            [node] if node else None, lambda service, share: service.recordings(share[0] if share else "")
        )
        return list(chain.from_iterable(found))

    def recording(self, word: str) -> BinaryIO | None:
        """Of the first server that has it."""
        return next((found for found in self.each(lambda service: service.recording(word)).values() if found), None)

    # --- rights ---------------------------------------------------------------------------------------------------

    def rights(self, user: str | None = None) -> dict[str, list[Given]]:
        """Of all servers; all nodes of one are ``SERVER/*``."""
        found: dict[str, list[Given]] = {}
        for server, rights in self.each(lambda service: service.rights(user)).items():
            for name, given in rights.items():
                found.setdefault(name, []).extend(_at(server, right) for right in given)
        return found

    # --- environments ---------------------------------------------------------------------------------------------

    def versions(self, wanted: Reference, all_versions: bool = True) -> list[Environment]:
        """Of the one server that has such an environment.

        Raises:
            OptionError: several have.
        """
        found = self._knowing(lambda service: service.versions(wanted, all_versions), EnvironmentRefusedError)
        if len(found) > 1:
            raise OptionError(
                f"{wanted.name} is recorded by {' and by '.join(found)}: choose one of them with --server."
            )
        return next(iter(found.values()))

    def _apart(self, *_: Any, **__: Any) -> NoReturn:
        """Not asked of several as one: who asks each of `services` can tell whose answer is which."""
        raise NotImplementedError

    grant = revoke = _apart
    environments = add_environments = delete_environments = set_visibility = _apart
    reset_demolishing = update_checksums = move_files = _apart

    # --- history --------------------------------------------------------------------------------------------------

    def require_workflow(self, wid: str) -> None:
        """Refuse a workflow that nobody knows."""
        self._knowing(lambda service: service.require_workflow(wid), UnknownWorkflowError)

    def strangers(self, names: Sequence[str]) -> list[str]:
        """Those that are strangers to all."""
        found = self.each(lambda service: set(service.strangers(names)))
        return [name for name in names if all(name in strange for strange in found.values())]

    def rows(self, wanted: Rows) -> Iterator[Sequence[Any]]:
        """Of all servers, in the order that is wanted."""
        fields = (*wanted.fields, *(name.removeprefix("-") for name in wanted.order), "start")
        more = msgspec.structs.replace(wanted, fields=fields)
        count, order = len(wanted.fields), (*wanted.order, "start")
        self.is_partial |= bool(self.missing) and wanted.selection.nodes is None
        found = (service.rows(more) for service in self.services.values())
        merged = heapq.merge(*found, key=lambda row: list(map(_rank, order, row[count:])))
        return (row[:count] for row in islice(merged, wanted.limit))

    def latest(self, names: Sequence[str] | None = None) -> list[Last]:
        """Of all servers."""
        return list(chain.from_iterable(self._lists(names, lambda service, share: list(service.latest(share)))))

    def failure_rates(self, selection: Selection) -> list[Rate]:
        """Of all servers, in the natural order of the nodes."""
        found = chain.from_iterable(self.each(lambda service: service.failure_rates(selection)).values())
        return sorted(found, key=lambda rate: natural_key(rate.hostname))

    def durations(self, selection: Selection) -> list[Durations]:
        """Of all servers, in the order of time."""
        found = chain.from_iterable(self.each(lambda service: service.durations(selection)).values())
        return sorted(found, key=lambda item: item.start)

    def load(self, selection: Selection) -> list[Load]:
        """Of all servers, added up."""
        from kadeploy.state.load import together  # noqa: PLC0415 - few ask, and the database's library comes with it

        return together(self.each(lambda service: service.load(selection)).values())

    # --- operations -----------------------------------------------------------------------------------------------

    def plan(self, request: Wish) -> list[str]:
        """What each server would do; one that refuses its part refuses all."""
        wishes, unplaced = self._wishes(request)
        self.configuration.cluster_nodes(unplaced)
        return [f"[{server}] {line}" for server, lines in self._plans(wishes).items() for line in lines]

    def _plans(self, wishes: Mapping[str, Wish]) -> dict[str, list[str]]:
        """What each server would do of its part.

        Raises:
            KadeployError: one of them refuses it.
        """
        plans, refused = at_once({server: partial(self.services[server].plan, wish) for server, wish in wishes.items()})
        if refused:
            raise together(refused)
        return plans

    def start(self, request: Wish) -> str:
        """The ids of all parts, with commas; all or nothing, for nobody is there to be told of what is left out."""
        wishes, unplaced = self._wishes(request)
        self.configuration.cluster_nodes(unplaced)
        self._plans(wishes)
        for server, wish in wishes.items():
            try:
                self.server_of[self.services[server].start(wish)] = server
            except KadeployError as error:
                raise self._taken_back(server, error) from error
        return ",".join(self.server_of)

    def _taken_back(self, server: str, error: KadeployError) -> KadeployError:
        """The refusal of a *server* to begin, once what others have begun is cancelled."""
        begun = [wid for wid in self.server_of if self.cancel(wid)]
        if not begun:
            return together({server: error})
        return BrokenOffError(f"{server}: {error} {', '.join(begun)} had begun elsewhere, and is cancelled.")

    def carry_out(
        self, request: Wish, listener: Listener, stop: threading.Event, admitted: Callable[[str], None]
    ) -> Report:
        """All parts at once; *admitted* gets the id of each, and `server_of` tells whose it is.

        A server that refuses its part holds up the others only if it is all or nothing.
        """
        from kadeploy.client.joint import Joint, Share  # noqa: PLC0415 - most tools only ask

        wishes, unplaced = self._wishes(request)
        if self.all_or_nothing:
            self._plans(wishes)

        def begun(server: str, wid: str) -> None:
            self.server_of[wid] = server
            admitted(wid)

        parts = {server: partial(self.services[server].carry_out, wish) for server, wish in wishes.items()}
        shares = {
            server: Share(self._status_of(server), self.configuration.cluster_nodes(list(wish.nodes)))
            for server, wish in wishes.items()
        }
        why = f"unknown; {', '.join(self.missing)} cannot be asked"
        joint = Joint(parts, shares, dict.fromkeys(unplaced, why), self.all_or_nothing)
        return cast("Report", joint.run(listener, stop, begun))

    def _wishes(self, request: Wish) -> tuple[dict[str, Wish], list[str]]:
        """What is wanted of each server, and nodes that only a server could know that cannot be asked.

        Raises:
            NodeListError: nodes that nobody knows, or more than one.
        """
        configuration = self.configuration
        names = configuration.full_names(request.nodes)
        unplaced = [name for name in names if self.missing and name not in configuration.cluster_of]
        shares = self.shares([name for name in names if name not in unplaced] or names)
        return {server: _part(request, share, configuration) for server, share in shares.items()}, unplaced

    def _status_of(self, server: str) -> int:
        return self.services[server].site.partial_failure_status

    def attach(self, wid: str, listener: Listener, stop: threading.Event) -> Report | None:
        """Of the server that knows it; those of ids with commas, one of each server, all at once.

        Raises:
            OptionError: nobody knows one of them, or a server has two.
        """
        from kadeploy.client.joint import Joint, Share  # noqa: PLC0415 - most tools only ask

        homes = {each: self._home(each) for each in wid.split(",")}
        if len(homes) == 1:
            return self.services[homes[wid]].attach(wid, listener, stop)
        wids = {server: each for each, server in homes.items()}
        if len(wids) < len(homes):
            raise OptionError(f"{wid}: two of them are workflows of one server: follow them one at a time.")
        parts = {server: partial(self._followed, server, each) for server, each in wids.items()}
        shares = {server: Share(self._status_of(server)) for server in parts}
        return Joint(parts, shares).run(listener, stop, lambda *_: None)

    def _followed(
        self, server: str, wid: str, listener: Listener, stop: threading.Event, _: Callable[[str], None]
    ) -> Report | None:
        return self.services[server].attach(wid, listener, stop)

    def _home(self, wid: str) -> str:
        """The server that knows a workflow."""
        if wid in self.server_of:
            return self.server_of[wid]
        return next(iter(self._knowing(lambda service: service.workflows(wid), UnknownWorkflowError)))

    def cancel(self, wid: str) -> bool:
        """Whether any of the workflows of ids with commas was running."""
        cancelled = [self.services[self._home(each)].cancel(each) for each in wid.split(",")]
        return any(cancelled)

    def interrupted(self, wid: str) -> None:
        """`carry_out` hears of it."""

    def abandon(self, wid: str) -> None:
        """Nothing is left over: each part goes to its end without us."""


_WishT = TypeVar("_WishT", bound="Wish")


def _part(request: _WishT, names: Sequence[str], configuration: Configuration) -> _WishT:
    """*request* for *names* alone, with the words of ``--set-pxe-pattern`` that are not for other nodes of it."""
    part = msgspec.structs.replace(request, nodes=tuple(names))
    options = getattr(request, "options", None)
    if options is None or not options.singularities:
        return part
    others = set(configuration.full_names(request.nodes)) - set(names)
    words = {
        name: word
        for name, word in options.singularities.items()
        if not others.issuperset(configuration.full_names([name]))
    }
    return msgspec.structs.replace(part, options=msgspec.structs.replace(options, singularities=words))


def _merged(parts: Iterable[Mapping[str, _AnswerT]]) -> dict[str, _AnswerT]:
    return {name: value for part in parts for name, value in part.items()}


def _at(server: str, right: Given) -> Given:
    return msgspec.structs.replace(right, node=f"{server}/{ANY}") if right.node == ANY else right


def _rank(field: str, value: Any) -> Any:
    """What sorts a value of *field* among others, nothing first; downwards where the field begins with ``-``."""
    rank = (value is not None, value)
    return _Downwards(rank) if field.startswith("-") else rank


class _Downwards(tuple[bool, Any]):
    """A rank that sorts the other way round."""

    __slots__ = ()

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        return super().__gt__(other)
