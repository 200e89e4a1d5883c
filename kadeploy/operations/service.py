"""What the tools ask of a site, whoever answers.

`kadeploy.operations.local` answers within the process, which must be able to read the site's secrets;
`kadeploy.client.remote` asks the service, which answers by the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, Protocol

import msgspec

from kadeploy import errors
from kadeploy.errors import KadeployError
from kadeploy.state.history import STEPS, Selection
from kadeploy.state.rights import End, Given

if TYPE_CHECKING:
    import threading

    from kadeploy.config.folder import Configuration
    from kadeploy.config.site import Site
    from kadeploy.environments.environment import Environment
    from kadeploy.environments.reference import Reference
    from kadeploy.events import Listener, Report
    from kadeploy.operations.console import Opened, Size
    from kadeploy.operations.recording import Recorded
    from kadeploy.operations.requests import Wish
    from kadeploy.runner.playbooks import Register
    from kadeploy.state.environments import Change, Part, Visibility
    from kadeploy.state.history import Durations, Last, Rate
    from kadeploy.state.load import Load
    from kadeploy.state.nodes import NodeRow
    from kadeploy.state.quarantine import Stay
    from kadeploy.state.rights import Holder


_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]
"""What a database takes for a number."""
_Step = Annotated[int, msgspec.Meta(ge=STEPS[0], le=STEPS[-1])]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Which columns of the log are wanted, of which rows, in which order (see `kadeploy.state.history.rows`)."""

    selection: Selection
    fields: tuple[str, ...]
    min_retries: _Count = 0
    steps: tuple[_Step, ...] = ()
    order: tuple[str, ...] = ()
    limit: _Count | None = None


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rights of a user on each of *parts* of each of *nodes*; ``*`` stands for all."""

    user: str
    nodes: tuple[str, ...]
    parts: tuple[str, ...]
    until: End | None = None
    overwrite: bool = False
    """Take the nodes from whoever has rights on a partition of them."""


class Granted(msgspec.Struct, frozen=True):
    """What came of a `Grant`: the rights that are new, and the nodes that were skipped."""

    new: list[Given]
    skipped: list[str]


class Revoked(msgspec.Struct, frozen=True):
    """The rights that are gone, and those that had not been there."""

    removed: list[Given]
    unknown: list[Given]


class Console(Protocol):
    """A node's console that the user may open."""

    @property
    def opened(self) -> Opened:
        """What it is."""

    def open(self, size: Size) -> Any:
        """Open it on a terminal of *size*: what `kadeploy.cli.console.attach` joins a terminal to."""

    def may_stay(self) -> bool:
        """Whether the user still has the right to it."""


class Service(Protocol):
    """A site, as one user may use it.

    Each method raises the refusals of `kadeploy.errors`; rights are decided by whoever answers.
    """

    @property
    def user(self) -> str:
        """Whose rights count."""

    @property
    def site(self) -> Site:
        """What holds for the site; a client does not get its secrets, nor its paths."""

    @property
    def configuration(self) -> Configuration:
        """The site with its clusters and their nodes; of a client's the same is missing."""

    @property
    def register(self) -> Register:
        """Implementations of macro-steps, and the micro-steps of each."""

    # --- nodes and workflows --------------------------------------------------------------------------------------

    def states(self, names: Sequence[str] | None = None) -> Iterable[NodeRow]:
        """What is recorded of nodes (default: all)."""

    def holders(self, names: Sequence[str] | None = None) -> Mapping[str, Sequence[Holder]]:
        """Who has rights on nodes (default: all); others than administrators see their own."""

    def workflows(self, wid: str | None = None, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The running workflows, or one of them: see `kadeploy.state.journal.workflows`.

        The user's own, and for administrators all, have in addition what `kadeploy.operations.stand.detailed` tells.
        """

    def newest(self) -> list[str]:
        """Ids of the workflows that began last."""

    def quarantine(self, names: Sequence[str] | None = None) -> list[Stay]:
        """Which of the nodes (default: all) are in quarantine, since when and why."""

    # --- consoles ---------------------------------------------------------------------------------------------------

    def console(self, node: str) -> Console:
        """The console of *node*."""

    def recordings(self, node: str = "") -> list[Recorded]:
        """What was recorded of consoles, of *node* or of all."""

    def recording(self, word: str) -> BinaryIO | None:
        """The recording that *word* names, open; None when it names none."""

    # --- rights ---------------------------------------------------------------------------------------------------

    def rights(self, user: str | None = None) -> dict[str, list[Given]]:
        """Rights by user, of *user* alone or of all; those of others are shown to administrators."""

    def grant(self, grant: Grant) -> Granted:
        """Give rights; for administrators."""

    def revoke(self, grant: Grant) -> Revoked:
        """Take exactly these rights back; for administrators."""

    # --- environments ---------------------------------------------------------------------------------------------

    def environments(self, owner: str | None = None, all_versions: bool = False) -> list[Environment]:
        """What ``kaenv3 -l`` lists."""

    def versions(self, wanted: Reference, all_versions: bool = True) -> list[Environment]:
        """All versions of one environment, or the one that would be deployed."""

    def add_environments(self, described: Sequence[Environment]) -> list[Environment]:
        """Record environments: all of them, or none."""

    def delete_environments(self, wanted: Reference) -> list[Environment]:
        """Delete versions of an environment; what is gone."""

    def set_visibility(self, wanted: Reference, visibility: Visibility) -> Environment:
        """Say who sees an environment."""

    def reset_demolishing(self, wanted: Reference) -> Environment:
        """Set its demolishing counter to 0."""

    def update_checksums(self, wanted: Reference, part: Part) -> list[Change]:
        """Record the checksums of its files anew."""

    def move_files(self, moves: Sequence[tuple[str, str]]) -> list[Change]:
        """Rewrite paths in all environments; for administrators."""

    # --- history --------------------------------------------------------------------------------------------------

    def require_workflow(self, wid: str) -> None:
        """Refuse a workflow that is not known, and never was."""

    def strangers(self, names: Sequence[str]) -> list[str]:
        """Those of *names* of which the log knows nothing."""

    def rows(self, wanted: Rows) -> Iterator[Sequence[Any]]:
        """Rows of the log."""

    def latest(self, names: Sequence[str] | None = None) -> Iterable[Last]:
        """The last operation on each node (default: all) that has any."""

    def failure_rates(self, selection: Selection) -> list[Rate]:
        """How often nodes failed."""

    def durations(self, selection: Selection) -> list[Durations]:
        """How long macro-steps took."""

    def load(self, selection: Selection) -> list[Load]:
        """How many nodes were at work, over time."""

    # --- operations -----------------------------------------------------------------------------------------------

    def plan(self, request: Wish) -> list[str]:
        """``--dry-run``: what would be done, once everything about the request has been found good."""

    def carry_out(
        self, request: Wish, listener: Listener, stop: threading.Event, admitted: Callable[[str], None]
    ) -> Report:
        """Do what is asked for, and tell *listener* of it, in this thread; *admitted* gets the workflow id before.

        Once *stop* is set, it is cancelled.
        """

    def start(self, request: Wish) -> str:
        """The same without waiting for its end: the workflow id, once it has begun."""

    def attach(self, wid: str, listener: Listener, stop: threading.Event) -> Report | None:
        """Tell *listener* of a workflow from its beginning to its end; None once *stop* is set, which changes nothing.

        Raises:
            OptionError: nobody, or not this user, has such a workflow; or its controller is gone.
        """

    def cancel(self, wid: str) -> bool:
        """Have a workflow end within seconds, its nodes aborted and free; for its user and administrators.

        False when it has ended already.
        """

    def interrupted(self, wid: str) -> None:
        """The user does not want what `carry_out` does any more, whatever becomes of this process."""

    def abandon(self, wid: str) -> None:
        """The user leaves at once, in the middle of `carry_out`: end what would be left over."""


# --- refusals on their way ------------------------------------------------------------------------------------------


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal as the answer of the service."""

    error: str
    """Which of `kadeploy.errors` it is."""
    message: str

    @classmethod
    def of(cls, error: KadeployError) -> Refusal:
        """What *error* says."""
        return cls(error=type(error).__name__, message=str(error))

    def raised(self) -> NoReturn:
        """Raise it, where it arrives.

        Raises:
            KadeployError: what it was.
        """
        kind = getattr(errors, self.error, KadeployError)
        # a name that is no refusal of ours is one of another version
        known = isinstance(kind, type) and issubclass(kind, KadeployError)
        raise (kind if known else KadeployError)(self.message)
