"""A node's console: who may open it, and the program of the site that shows it, in a terminal of its own.

The program has a pseudo terminal as its controlling terminal. It runs as an account that the user may be: whatever a
program lets people do who know its escapes, they do it as that account. Whoever joins a user to it, the tool or the
service, asks every `CHECK` seconds whether the user may stay, and ends it if not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import pwd
import re
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from kadeploy import commands
from kadeploy.caller import Account, account, environment_of
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration
from kadeploy.config.partition import partition_device
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, KadeployError, NodeListError, OptionError
from kadeploy.nodeset import expand
from kadeploy.operations.recording import Recording
from kadeploy.process import end_group
from kadeploy.remote import namespace
from kadeploy.state import rights

CHECK = 2.0
"""Seconds between two looks at the user's rights."""
GRACE = 1.0
"""Seconds that the program has to end by itself once its terminal is gone."""
PENDING = 64 << 10
"""Bytes that may wait in one direction; whoever sends more has to wait as well."""
PIECE = 1 << 14
"""Bytes that are read at a time: a whole record of TLS, whose rest would not make its connection readable again."""
_SETSID = "/usr/bin/setsid"
_TICK = 0.02
_SERVICE_VARIABLES = re.compile(r"PATH|LANG|LANGUAGE|LC_[A-Z]+|TZ")
_SERVICE_TERM = "xterm"


# --- what the two sides tell each other -----------------------------------------------------------------------------

_Cells = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class Size(msgspec.Struct, frozen=True, tag_field="type", tag="size", forbid_unknown_fields=True):
    """How large the user's terminal is: the first message of a client, and again whenever that changes."""

    rows: _Cells = 24
    columns: _Cells = 80


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
    """The user left, the program ended, the user may not stay, nobody can tell whether they may, or the connection to
    the service is gone."""
    status: int = 0
    """Exit status of a program that ended; 128 and the signal's number when one ended it."""


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
    account: Account
    """As whom the command runs."""
    environment: Mapping[str, str]

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
            with namespace.inside(site.network_namespace):
                return Session(self.command, self.environment, self.account, size, recording)
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
        raise ConfigError(f"clusters/{cluster.name}.yml: console is not set: the command that opens a node's console.")
    argv = commands.argv(cluster.console, commands.node_values(name), f"console in clusters/{cluster.name}.yml")
    runs_as = _account(cluster, own)
    return Console(configuration.site, user, name, part, argv, runs_as, _environment(runs_as, own))


def _one(configuration: Configuration, node: str) -> str:
    if not node:
        raise NodeListError("No node: name it with -m NODE.")
    names = expand(node)
    if len(names) != 1:
        raise NodeListError(f"{node}: {len(names)} nodes; a console is of one node.")
    (name,) = configuration.full_names(names)
    configuration.cluster_nodes([name])
    return name


def _account(cluster: Cluster, own: Account | None) -> Account:
    """As whom the console's program runs: the one that the cluster names for it, else *own*, else this process's.

    Raises:
        ConfigError: no such account, one that this process cannot become, or root's for somebody else: people would be
            root with the program's escapes.
    """
    key = f"clusters/{cluster.name}.yml: console_account"
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
    """That of the user who calls; the service keeps its own to itself, in which the secrets of BMCs may be."""
    if own is not None:
        return environment_of(runs_as) if os.geteuid() == 0 else os.environ
    kept = {name: value for name, value in os.environ.items() if _SERVICE_VARIABLES.fullmatch(name)}
    mine = {"HOME": str(runs_as.home), "USER": runs_as.name, "LOGNAME": runs_as.name, "TERM": _SERVICE_TERM}
    return kept | mine


# --- the program ----------------------------------------------------------------------------------------------------


class Session:
    """A program in a pseudo terminal of its own. It never waits, but for `end`.

    Args:
        command: program and arguments.
        environment: all of its variables.
        account: as whom it runs, where this process is root and may choose.
        size: of its terminal, at first.
        recording: takes down what it shows.

    Raises:
        KadeployError: the machine has no terminal or no process left.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        account: Account | None = None,
        size: Size = Size(),  # noqa: B008 - frozen
        recording: Recording | None = None,
    ) -> None:
        self.over = False
        """Whether nothing more comes."""
        self.waiting = False
        """Nothing is written later than `write` says."""
        self._recording = recording
        try:
            self._line, other = pty.openpty()
        except OSError as error:
            raise KadeployError(f"The console cannot be opened: no terminal is left ({error.strerror}).") from error
        try:
            _set_size(self._line, size)
            self._program = _start(command, environment, account, other)
        except OSError as error:
            os.close(self._line)
            raise KadeployError(f"The console cannot be opened: {error}.") from error
        finally:
            os.close(other)
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
        _set_size(self._line, size)
        if self._recording:
            self._recording.resized(size.rows, size.columns)

    def end(self, reason: Literal["left", "ended", "revoked", "unchecked"]) -> End:
        """Take the program's terminal away, and wait until it has ended; it is killed if that does not end it."""
        os.close(self._line)  # hangs up
        status = _end(self._program)
        if self._recording:
            self._recording.end()
        return End(reason, status if reason == "ended" else 0)


def _start(
    command: Sequence[str], environment: Mapping[str, str], account: Account | None, line: int
) -> subprocess.Popen[bytes]:
    """Start the program with *line* as its controlling terminal; between fork and exec no code of Python runs.

    Raises:
        OSError: it cannot be started. That there is no such program is what its terminal shows.
    """
    argv = [_SETSID, "--ctty", "--", *command]
    if account is None or os.geteuid() != 0:
        return subprocess.Popen(argv, stdin=line, stdout=line, stderr=line, env=environment)
    os.fchown(line, account.uid, -1)
    return subprocess.Popen(
        argv,
        stdin=line,
        stdout=line,
        stderr=line,
        env=environment,
        user=account.uid,
        group=account.gid,
        extra_groups=os.getgrouplist(account.name, account.gid),
    )


def _set_size(line: int, size: Size) -> None:
    fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("4H", size.rows, size.columns, 0, 0))


def _end(program: subprocess.Popen[bytes]) -> int:
    """Exit status of a program that has lost its terminal."""
    deadline = time.monotonic() + GRACE
    while program.poll() is None:
        if time.monotonic() >= deadline:
            end_group(program.pid)  # it leads its session, and so its group
            program.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel, waiting for a device
                program.wait(GRACE)
            break
        time.sleep(_TICK)
    code = program.returncode
    return 128 + 9 if code is None else code if code >= 0 else 128 - code
