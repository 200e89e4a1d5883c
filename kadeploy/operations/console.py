"""A node's console: who may open it, and the program of the site that shows it, in a terminal of its own.

The program has a pseudo terminal as its controlling terminal. It runs as an account that the user may be: whatever a
program lets people do who know its escapes, they do it as that account. In a tool that is the user's own; the service
has it started under another account than its own (`kadeploy.remote.console_account`). Whoever joins a user to it, the
tool or the service, asks every `CHECK` seconds whether the user may stay, and ends it if not.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec

from kadeploy import commands
from kadeploy.caller import Account, account, environment_of
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration
from kadeploy.config.partition import partition_device
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, NodeListError, OptionError
from kadeploy.nodeset import expand
from kadeploy.operations.recording import Recording
from kadeploy.remote import console_account, namespace, terminal
from kadeploy.remote.terminal import Cells
from kadeploy.state import rights

CHECK = 2.0
"""Seconds between two looks at the user's rights."""
PENDING = 64 << 10
"""Bytes that may wait in one direction; whoever sends more has to wait as well."""
PIECE = 1 << 14
"""Bytes that are read at a time: a whole record of TLS, whose rest would not make its connection readable again."""
_SERVICE_VARIABLES = re.compile(r"PATH|LANG|LANGUAGE|LC_[A-Z]+|TZ")
_SERVICE_TERM = "xterm"


# --- what the two sides tell each other -----------------------------------------------------------------------------

_Cells = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class Size(msgspec.Struct, frozen=True, tag_field="type", tag="size", forbid_unknown_fields=True):
    """How large the user's terminal is: the first message of a client, and again whenever that changes."""

    rows: _Cells = 24
    columns: _Cells = 80

    @property
    def cells(self) -> Cells:
        """The same for a terminal."""
        return Cells(self.rows, self.columns)


class Opened(msgspec.Struct, frozen=True, tag_field="type", tag="opened"):
    """The program runs; what it shows comes next."""

    node: str
    """The node's whole name."""
    part: str
    """Partition whose right the console is bound to."""
    program: str
    """Name of the program."""


class Refused(msgspec.Struct, frozen=True, tag_field="type", tag="refused"):
    """There is no console for this user."""

    message: str


class End(msgspec.Struct, frozen=True, tag_field="type", tag="ended"):
    """Why a console was closed."""

    reason: Literal["left", "ended", "revoked", "unchecked", "lost"]
    """The user left, the program ended, the user may not stay, nobody can tell whether they may, or a connection is
    gone: the one to the service, or the service's own to whoever has started the program."""
    status: int = 0
    """Exit status of a program that ended; 128 and the signal's number when one ended it."""
    message: str = ""
    """Why the user may not stay who has not lost a right: they have signed out, or their token was revoked."""


# --- who may open it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Console:
    """A console that a user may open."""

    site: Site
    user: str
    node: str
    part: str
    """Partition that the user has to have a right on."""
    command: Sequence[str]
    starter: Here | Apart
    """Who starts it."""

    def may_stay(self) -> bool:
        """Whether the user still has the right to it."""
        return not rights.missing(self.site, self.user, [self.node], self.part)

    @property
    def opened(self) -> Opened:
        """What a client is told of it."""
        return Opened(self.node, self.part, self.command[0])

    def open(self, size: Size) -> Session:
        """Start its program, recorded if the site says so.

        Raises:
            KadeployError: it cannot be started, or not be recorded.
        """
        site = self.site
        recording = (
            Recording.begin(site, self.node, self.user, size.rows, size.columns)
            if site.service.record_consoles
            else None
        )
        try:
            return Session(self.starter.start(self.command, size), recording)
        except BaseException:
            if recording:
                recording.end()
            raise


def admit(configuration: Configuration, user: str, node: str, own: Account | None = None) -> Console:
    """The console of *node* for *user*.

    *own* is the account that the user is on this machine; None where the user need not have one: in the service.

    Raises:
        NodeListError: not one node of the site.
        RightsError: the user has no right to deploy on it.
        ConfigError: the cluster has no console, or none that may be opened for this user.
    """
    name = _one(configuration, node)
    cluster = configuration.clusters[configuration.cluster_of[name]]
    part = partition_device(cluster.disk.device, cluster.disk.number("deploy"))
    rights.require(configuration.site, user, [name], part)
    if not cluster.console:
        raise ConfigError(f"{cluster.file}: console is not set: the command that opens a node's console.")
    argv = commands.argv(cluster.console, commands.node_values(name), f"console in {cluster.file}")
    return Console(configuration.site, user, name, part, argv, _starter(configuration.site, cluster, own))


def _one(configuration: Configuration, node: str) -> str:
    if not node:
        raise NodeListError("No node: name it with -m NODE.")
    names = expand(node)
    if len(names) != 1:
        raise NodeListError(f"{node}: {len(names)} nodes; a console is of one node.")
    (name,) = configuration.full_names(names)
    configuration.require_sound(configuration.cluster_nodes([name]))
    return name


# --- as whom its program runs ----------------------------------------------------------------------------------------


class Program(Protocol):
    """A program in a terminal."""

    @property
    def line(self) -> int:
        """The terminal's other side; whoever has it closes it."""

    def end(self) -> int | None:
        """Its exit status, once its terminal has been taken away; None when nobody can tell."""


@dataclass(frozen=True)
class Here:
    """The program is this process's child."""

    account: Account
    """As whom it runs."""
    environment: Mapping[str, str]
    network_namespace: str = ""

    def start(self, command: Sequence[str], size: Size) -> Program:
        """Start it; raises KadeployError when that fails."""
        with namespace.inside(self.network_namespace):
            return terminal.Program(command, self.environment, size.cells, self.account)


@dataclass(frozen=True)
class Apart:
    """The program is started under an account that has no secrets, by a process of that account."""

    socket: Path
    account: str
    """The one that the cluster wants; empty: whichever that process has."""
    environment: Mapping[str, str]

    def start(self, command: Sequence[str], size: Size) -> Program:
        """Have it started; raises KadeployError when that fails."""
        return console_account.Hosted(self.socket, command, self.environment, size.cells, self.account)


def _starter(site: Site, cluster: Cluster, own: Account | None) -> Here | Apart:
    """Who starts the program: a service that is not root's has no account for it but its own, which has all secrets."""
    service = site.service
    if own is None and os.geteuid() != 0 and not service.consoles_as_service:
        return Apart(Path(service.console_socket), cluster.console_account, _of_the_service())
    runs_as = _account(cluster, own)
    return Here(runs_as, _environment(runs_as, own), site.network_namespace)


def _account(cluster: Cluster, own: Account | None) -> Account:
    """As whom this process starts it: the one that the cluster names for it, else *own*, else this process's.

    Raises:
        ConfigError: no such account, one that this process cannot become, or root's for somebody else: people would be
            root with the program's escapes.
    """
    key = f"{cluster.file}: console_account"
    try:
        this = account(pwd.getpwuid(os.geteuid()).pw_name)
        found = account(cluster.console_account) if cluster.console_account else own or this
    except (KeyError, OptionError) as error:
        raise ConfigError(f"{key}: {error}") from error
    if found.uid == 0 and (own is None or own.uid != 0):
        raise ConfigError(
            f"{key}: root is refused, for whoever opens a console would be root with the escapes of its program: name "
            "an account that can do nothing else."
        )
    if this.uid not in (0, found.uid):
        raise ConfigError(
            f"{key}: {this.name}, who works here, cannot become {found.name}: leave console_account out, or have the "
            "command of `console` go there itself, with ssh."
        )
    return found


def _environment(runs_as: Account, own: Account | None) -> Mapping[str, str]:
    """That of the user who calls, or what the service gives."""
    if own is not None:
        return environment_of(runs_as) if os.geteuid() == 0 else os.environ
    return {**_of_the_service(), "HOME": str(runs_as.home), "USER": runs_as.name, "LOGNAME": runs_as.name}


def _of_the_service() -> Mapping[str, str]:
    """The service keeps its own to itself, in which the secrets of BMCs may be."""
    kept = {name: value for name, value in os.environ.items() if _SERVICE_VARIABLES.fullmatch(name)}
    return kept | {"TERM": _SERVICE_TERM}


# --- the program ----------------------------------------------------------------------------------------------------


class Session:
    """A program in a terminal, and what is recorded of it. It never waits, but for `end`.

    Args:
        program: it has been started.
        recording: takes down what it shows.
    """

    def __init__(self, program: Program, recording: Recording | None = None) -> None:
        self.over = False
        """Whether nothing more comes."""
        self.waiting = False
        """Nothing is written later than `write` says."""
        self._program = program
        self._line = program.line
        self._recording = recording
        os.set_blocking(self._line, False)

    def fileno(self) -> int:
        """Descriptor to wait for, before reading or writing."""
        return self._line

    def read(self) -> bytes:
        """What the program shows; nothing at all when that is nothing for now."""
        try:
            piece = os.read(self._line, PIECE)
        except BlockingIOError:
            return b""
        except OSError:  # EIO: nobody has the other side open any more (pty(7))
            piece = b""
        self.over = not piece
        if self._recording:
            self._recording.shown(piece)
        return piece

    def write(self, keys: bytes) -> int:
        """Let the program read *keys*: how many of them there was room for."""
        try:
            return os.write(self._line, keys)
        except BlockingIOError:
            return 0
        except OSError:  # it is over, as reading tells
            return len(keys)

    def resize(self, size: Size) -> None:
        """The terminal has another size."""
        terminal.resize(self._line, size.cells)
        if self._recording:
            self._recording.resized(size.rows, size.columns)

    def end(self, reason: Literal["left", "ended", "revoked", "unchecked"]) -> End:
        """Take the program's terminal away, and wait until it has ended; it is killed if that does not end it."""
        os.close(self._line)  # hangs up
        status = self._program.end()
        if self._recording:
            self._recording.end()
        if reason != "ended":
            return End(reason)
        return End("lost") if status is None else End("ended", status)
