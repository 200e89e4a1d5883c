"""The site of this machine's configuration, answered for within the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from kadeploy.config.folder import Configuration, configuration_folder, load_configuration, load_site
from kadeploy.errors import RightsError, UnknownWorkflowError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import natural_key
from kadeploy.operations.service import Console, Grant, Granted, Revoked, Rows
from kadeploy.state import environments, history, journal, load, nodes, quarantine, rights

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from kadeploy.caller import Account
    from kadeploy.config.site import Site
    from kadeploy.environments.environment import Environment
    from kadeploy.environments.reference import Reference
    from kadeploy.events import Listener, Report
    from kadeploy.operations.recording import Recorded
    from kadeploy.operations.requests import Wish
    from kadeploy.runner.playbooks import Register
    from kadeploy.state.environments import Change, Part, Visibility
    from kadeploy.state.fingerprints import RemoteUser
    from kadeploy.state.history import Durations, Last, Rate, Selection
    from kadeploy.state.load import Load
    from kadeploy.state.nodes import NodeRow
    from kadeploy.state.quarantine import Stay
    from kadeploy.state.rights import Given, Holder


class Local:
    """A `kadeploy.operations.service.Service` for *who*; *folder* is the configuration's (default: this machine's).

    What it is asked is answered from the state database; files are opened with the rights of *who*.
    """

    def __init__(self, who: Account, folder: Path | None = None) -> None:
        self.who = who
        self.folder = folder

    @property
    def user(self) -> str:
        """The name of the account."""
        return self.who.name

    @property
    def account(self) -> Account | None:
        """With whose rights files are opened; None: none that a user names is."""
        return self.who

    @property
    def recorder(self) -> Account | RemoteUser:
        """Who knows what is in the files of an environment that is recorded."""
        return self.who

    @cached_property
    def site(self) -> Site:
        """``site.yml``, with all it says."""
        return self.__dict__["configuration"].site if "configuration" in self.__dict__ else load_site(self.folder)

    @cached_property
    def configuration(self) -> Configuration:
        """The whole configuration."""
        return load_configuration(self.folder)

    @property
    def register(self) -> Register:
        """Our playbooks and the site's."""
        from kadeploy.runner import playbooks  # noqa: PLC0415 - reads all of them, for few options

        return playbooks.register(self.folder or configuration_folder())

    @property
    def is_administrator(self) -> bool:
        """Whether the user is almighty."""
        return self.user in self.site.almighty_users

    # --- nodes and workflows --------------------------------------------------------------------------------------

    def states(self, names: Sequence[str] | None = None) -> Iterable[NodeRow]:
        """See `kadeploy.state.nodes.states`."""
        return nodes.states(self.site, names)

    def holders(self, names: Sequence[str] | None = None) -> Mapping[str, Sequence[Holder]]:
        """See `kadeploy.state.rights.holders`; in the natural order of the nodes."""
        shown = sorted(names or self.configuration.cluster_of, key=natural_key)
        return rights.holders(self.site, shown, None if self.is_administrator else self.user)

    def workflows(self, wid: str | None = None, names: Sequence[str] | None = None) -> dict[str, Any]:
        """See `kadeploy.operations.stand.workflows`; the whole of one's own, and for administrators of all."""
        from kadeploy.operations import stand  # noqa: PLC0415 - most questions are about something else

        return stand.workflows(self.site, wid, names, lambda user: user == self.user or self.is_administrator)

    def newest(self) -> list[str]:
        """See `kadeploy.state.journal.newest`."""
        return journal.newest(self.site)

    def quarantine(self, names: Sequence[str] | None = None) -> list[Stay]:
        """See `kadeploy.state.quarantine.current`."""
        return quarantine.current(self.site, names)

    # --- consoles ---------------------------------------------------------------------------------------------------

    def console(self, node: str) -> Console:
        """See `kadeploy.operations.console.admit`."""
        from kadeploy.operations import console  # noqa: PLC0415

        return console.admit(self.configuration, self.user, node, self.account)

    def recordings(self, node: str = "") -> list[Recorded]:
        """See `kadeploy.operations.recording.listed`."""
        from kadeploy.operations import recording  # noqa: PLC0415

        names = self.configuration.full_names([node]) if node else []
        self.configuration.cluster_nodes(names)
        return recording.listed(self.configuration, self.user, names[0] if names else "")

    def recording(self, word: str) -> BinaryIO | None:
        """See `kadeploy.operations.recording.find`."""
        from kadeploy.operations import recording  # noqa: PLC0415

        found = recording.find(self.configuration, self.user, word)
        return recording.open_recorded(found) if found else None

    # --- rights ---------------------------------------------------------------------------------------------------

    def rights(self, user: str | None = None) -> dict[str, list[Given]]:
        """See `kadeploy.state.rights.show`."""
        if user != self.user:
            rights.require_almighty(self.site, self.user)
        return {name: rights.show(self.site, name) for name in ([user] if user else rights.users(self.site))}

    def grant(self, grant: Grant) -> Granted:
        """See `kadeploy.state.rights.add`."""
        rights.require_almighty(self.site, self.user)
        self._require_nodes(grant)
        wanted = (self.site, grant.user, grant.nodes, grant.parts)
        return Granted(*rights.add(*wanted, until=grant.until, overwrite=grant.overwrite))

    def revoke(self, grant: Grant) -> Revoked:
        """See `kadeploy.state.rights.delete`."""
        rights.require_almighty(self.site, self.user)
        return Revoked(*rights.delete(self.site, grant.user, grant.nodes, grant.parts))

    def _require_nodes(self, grant: Grant) -> None:
        self.configuration.cluster_nodes([node for node in grant.nodes if node != rights.ANY])

    # --- environments ---------------------------------------------------------------------------------------------

    def environments(self, owner: str | None = None, all_versions: bool = False) -> list[Environment]:
        """See `kadeploy.state.environments.listed`."""
        return environments.listed(self.site, self.user, owner, all_versions)

    def versions(self, wanted: Reference, all_versions: bool = True) -> list[Environment]:
        """See `kadeploy.state.environments.versions` and `find`."""
        asked = (self.site, self.user, wanted)
        return environments.versions(*asked) if all_versions else [environments.find(*asked)]

    def add_environments(self, described: Sequence[Environment]) -> list[Environment]:
        """See `kadeploy.state.environments.add_all`."""
        return environments.add_all(self.site, described, self.recorder)

    def delete_environments(self, wanted: Reference) -> list[Environment]:
        """See `kadeploy.state.environments.delete`."""
        return environments.delete(self.site, self.user, wanted)

    def set_visibility(self, wanted: Reference, visibility: Visibility) -> Environment:
        """See `kadeploy.state.environments.set_visibility`."""
        return environments.set_visibility(self.site, self.user, wanted, visibility)

    def reset_demolishing(self, wanted: Reference) -> Environment:
        """See `kadeploy.state.environments.reset_demolishing`."""
        return environments.reset_demolishing(self.site, self.user, wanted)

    def update_checksums(self, wanted: Reference, part: Part) -> list[Change]:
        """See `kadeploy.state.environments.update_checksums`."""
        return environments.update_checksums(self.site, self.recorder, wanted, part)

    def move_files(self, moves: Sequence[tuple[str, str]]) -> list[Change]:
        """See `kadeploy.state.environments.move_files`."""
        return environments.move_files(self.site, self.recorder, moves)

    # --- history --------------------------------------------------------------------------------------------------

    def require_workflow(self, wid: str) -> None:
        """See `kadeploy.state.journal.is_known`."""
        if not journal.is_known(self.site, wid):
            hint = did_you_mean(wid, journal.newest(self.site))
            raise UnknownWorkflowError(
                f"-w {wid}: no workflow is or was called so. kastat3 -d -o all -F wid lists them.{hint}"
            )

    def strangers(self, names: Sequence[str]) -> list[str]:
        """See `kadeploy.state.history.strangers`."""
        return history.strangers(self.site, names)

    def rows(self, wanted: Rows) -> Iterator[Sequence[Any]]:
        """See `kadeploy.state.history.rows`."""
        return history.rows(
            self.site,
            wanted.selection,
            wanted.fields,
            wanted.min_retries,
            wanted.steps,
            wanted.order,
            wanted.limit,
        )

    def latest(self, names: Sequence[str] | None = None) -> Iterable[Last]:
        """See `kadeploy.state.history.latest`."""
        return history.latest(self.site, names)

    def failure_rates(self, selection: Selection) -> list[Rate]:
        """See `kadeploy.state.history.failure_rates`."""
        return history.failure_rates(self.site, selection)

    def durations(self, selection: Selection) -> list[Durations]:
        """See `kadeploy.state.history.durations`."""
        return history.durations(self.site, selection)

    def load(self, selection: Selection) -> list[Load]:
        """See `kadeploy.state.load.load`."""
        return load.load(self.site, selection)

    # --- operations -----------------------------------------------------------------------------------------------
    # What carries them out is imported where it is needed: most tools only ask.

    def plan(self, request: Wish) -> list[str]:
        """See `kadeploy.operations.dry_run.lines`."""
        from kadeploy.operations import admission, dry_run, sources  # noqa: PLC0415

        work = admission.admit(self.mine(request), self.configuration)
        return dry_run.lines(work, sources.of(work, self.account))

    def carry_out(
        self, request: Wish, listener: Listener, stop: threading.Event, admitted: Callable[[str], None]
    ) -> Report:
        """See `kadeploy.operations.launch`."""
        from kadeploy.operations import admission, launch, sources  # noqa: PLC0415

        work = admission.admit(self.mine(request), self.configuration)
        admitted(work.wid)
        return launch.launch(work, sources.of(work, self.account), listener, stop)

    def start(self, request: Wish) -> str:
        """See `kadeploy.operations.background`."""
        from kadeploy.operations import background  # noqa: PLC0415

        return background.start(self.mine(request), self.configuration.folder, self.account)

    def attach(self, wid: str, listener: Listener, stop: threading.Event) -> Report | None:
        """See `kadeploy.operations.follow`."""
        from kadeploy.operations import follow  # noqa: PLC0415

        self.require_mine(wid)
        return follow.attach(self.site, wid, listener, stop)

    def cancel(self, wid: str) -> bool:
        """See `kadeploy.operations.background`."""
        from kadeploy.operations import background  # noqa: PLC0415

        self.require_mine(wid)
        return background.cancel(self.site, wid) != "ended"

    def interrupted(self, wid: str) -> None:
        """See `kadeploy.operations.record`."""
        from kadeploy.operations import record  # noqa: PLC0415
        from kadeploy.operations.work import run_folder  # noqa: PLC0415

        record.stop(run_folder(self.site, wid))

    def abandon(self, wid: str) -> None:
        """See `kadeploy.runner.player.end_processes`."""
        from kadeploy.operations.work import run_folder  # noqa: PLC0415
        from kadeploy.runner import player  # noqa: PLC0415

        player.end_processes(run_folder(self.site, wid))

    def require_mine(self, wid: str) -> None:
        """Refuse unless the user began the workflow *wid*, or is an administrator.

        Raises:
            UnknownWorkflowError: there is none.
            RightsError: it is another user's.
        """
        from kadeploy.operations import follow  # noqa: PLC0415

        owner = follow.begun_by(self.site, wid) or journal.workflows(self.site, wid)[wid]["user"]
        if owner != self.user and not self.is_administrator:
            raise RightsError(f"{wid} is the workflow of {owner}, and you are {self.user}.")

    def mine(self, request: Wish) -> Wish:
        """*request* in the user's name, which it need not say."""
        if request.user not in ("", self.user):
            raise RightsError(f"The request is in the name of {request.user}, and you are {self.user}.")
        return msgspec.structs.replace(request, user=self.user)
