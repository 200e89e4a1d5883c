"""Ssh connections that are kept, one per node: asyncssh's one home.

    connections = Connections(Credentials(private_key=Path("deploy_key"), host_key="ssh-ed25519 AAAA…"))
    outcome = await connections.run(target, b"uname -r", timeout=60)

A script never travels in an argument: sshd starts a constant command that reads exactly the announced number of bytes
from its standard input, and evaluates them once all have arrived. A connection that breaks before that has run nothing,
so that trying again is safe; what follows on standard input is the script's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from kadeploy.commands import Capture, last_line
from kadeploy.errors import UnreachableError
from kadeploy.remote.fanout import LOST, TIMED_OUT, Credentials, Target
from kadeploy.remote.script import program
from kadeploy.workflow import Outcome, Verdict

PIECE = 256 << 10
OUTPUT_LIMIT = 16 << 20
"""Bytes that a command may write: one that writes more is ended, since each costs the other nodes time."""
LISTEN_LIMIT = 1 << 20
"""The same for a command that is listened to: each of its lines is kept until it has been heard."""
LINE_LIMIT = 64 << 10
"""Bytes of a line that is listened to."""
LINES_LIMIT = 20_000
"""Lines that are listened to."""
KILLED = 128 + 9
"""Exit status of a command that a signal has ended, as a shell has it."""
_GREETING_LIMIT = 64 << 10  # bytes of what login files print

# `read -N` takes exactly that many bytes, also from a pipe; C locale: a character is a byte, and messages are English.
_TAKE = (
    "export LC_ALL=C; BASH_ARGV0=kadeploy; IFS= read -r -N {0} program || exit 254; "
    'printf "\\036%s\\n" "$$" >&2; eval "$program"'
)
# A login shell that is bash does it itself: starting another one would be the most expensive part of a small step.
_START = f"test -n \"$BASH_VERSION\" || exec bash -c '{_TAKE}'; eval '{_TAKE}'"
_STARTED = re.compile(rb"\x1e(\d{1,10})\n")
_KILL = "kill -TERM -{0} && sleep 1; kill -KILL -{0} || kill -KILL {0}"  # without `--`: dash and busybox refuse it
RECEIVE = rb"""
if [ -d "$KADEPLOY_SEND_TO" ]; then KADEPLOY_SEND_TO=${KADEPLOY_SEND_TO%/}/$KADEPLOY_SEND_NAME; fi
mkdir -p -- "$(dirname -- "$KADEPLOY_SEND_TO")" || exit
part=$KADEPLOY_SEND_TO.part.$$
trap 'rm -f -- "$part"' EXIT
(umask 077; cat >"$part") || exit
received=$(wc -c <"$part")
if [ "$received" -ne "$KADEPLOY_SEND_SIZE" ]; then
    echo "only $received of $KADEPLOY_SEND_SIZE bytes of $KADEPLOY_SEND_NAME arrived" >&2
    exit 1
fi
chmod -- "$KADEPLOY_SEND_MODE" "$part" && mv -f -- "$part" "$KADEPLOY_SEND_TO"
"""
"""The script behind `Connections.send`: the file is its standard input."""
LINGER, LINGER_LIMIT = 1.0, 10.0
"""Seconds without output, and in all, after which a command that has ended is no longer listened to: something that it
started lives on and holds its output open."""

# Cheap and safe algorithms first; the others are for old deployment systems.
_ALGORITHMS: dict[str, Any] = {
    "kex_algs": [
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
        "diffie-hellman-group14-sha256",
    ],
    "encryption_algs": [
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes128-ctr",
    ],
    "mac_algs": ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"],
    "compression_algs": ["none"],
}


class _Session(asyncssh.SSHClientSession[bytes]):
    """One command on a node: collects what it writes and how it ends.

    A node may say what it likes, but not without end: `cut` is called when it has said too much.
    """

    def __init__(self, on_data: Callable[[bytes], None] | None = None) -> None:
        self.stdout = Capture()
        self.stderr = Capture()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()
        """Its number has come, or never will."""
        self.ended.add_done_callback(lambda _: self.begun.set())
        self.rc: int | None = None
        self.pid = 0
        self.reason = ""
        self.writable = asyncio.Event()
        self.writable.set()
        self.cut: Callable[[], None] | None = None
        self._on_data = on_data or self.stdout.add
        self._left = LISTEN_LIMIT if on_data else OUTPUT_LIMIT
        self._greeting = b""
        self._heard = self._exited = 0.0
        self.lingers = False

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Sort the two streams."""
        self._heard = time.monotonic()
        self._left -= len(data)
        if self._left < 0:
            self.too_much("its output is too long")
        elif datatype is None:
            self._on_data(data)
        elif self.pid:
            self.stderr.add(data)
        else:
            self._look_for_start(data)

    def _look_for_start(self, data: bytes) -> None:
        """What login files print comes before our mark."""
        self._greeting += data
        if len(self._greeting) > _GREETING_LIMIT:
            self.too_much("its login files print too much")
        elif found := _STARTED.search(self._greeting):
            self.pid = int(found[1])
            self.begun.set()
            self.stderr.add(self._greeting[: found.start()] + self._greeting[found.end() :])
            self._greeting = b""

    def too_much(self, what: str) -> None:
        """It is over for us, whether or not the node closes the channel; `cut` ends it there as far as possible."""
        if self.cut and not self.ended.done():
            self.rc, self.reason = KILLED, f"{what}: the command was ended"
            self.cut()
            self.writable.set()
            self.ended.set_result(None)

    def exit_status_received(self, status: int) -> None:
        """The command ended by itself; what it said may still be on its way."""
        if self.reason:
            return
        self.rc = status
        self._heard = self._exited = time.monotonic()
        self._listen_on()

    def _listen_on(self) -> None:
        """Wait for the end of the output, though not for ever."""
        if self.ended.done():
            return
        now = time.monotonic()
        left = min(self._heard + LINGER, self._exited + LINGER_LIMIT) - now
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._listen_on)
            return
        self.lingers = True
        self.stderr.add(
            b"[it has ended; something that it started goes on and holds its output, which is not waited for]\n"
        )
        self.ended.set_result(None)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:  # noqa: ARG002
        """The command was ended by a signal."""
        if not self.reason:
            self.rc, self.reason = KILLED, f"ended by signal {signal}"

    def pause_writing(self) -> None:
        """The node takes less than we send."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """The node takes more."""
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed, for whatever reason."""
        self.stderr.add(self._greeting)
        self._greeting = b""
        if exc and not self.reason:
            self.reason = str(exc) or type(exc).__name__
        self.writable.set()
        if not self.ended.done():
            self.ended.set_result(None)


@dataclass
class _Link:
    """A kept connection, or none yet; the lock makes concurrent users of a node connect once."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connection: asyncssh.SSHClientConnection | None = None


class Connections:
    """Keeps one ssh connection per target, opened when first needed. Belongs to one event loop."""

    def __init__(self, credentials: Credentials) -> None:
        _allow_many_descriptors()
        self.credentials = credentials
        self._links: dict[Target, _Link] = {}
        self._options: dict[bool, asyncssh.SSHClientConnectionOptions] = {}
        self._feeding: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(
        self,
        target: Target,
        script: bytes,
        env: Mapping[str, str] | None = None,
        timeout: float = 0,
        *,
        stdin: bytes = b"",
        stdin_file: Path | None = None,
        disconnect_ok: bool = False,
    ) -> Outcome:
        """Run a bash *script* with *env* exported, to its end or at most *timeout* seconds (0: no limit).

        The script's standard input is *stdin*, or the content of *stdin_file*. With *disconnect_ok* a connection that
        is lost while the script runs is a success: the script makes the node reboot. Whatever happens is told in the
        outcome: KO with the script's last words, or with what to look at when the node cannot be entered.
        """
        begun = time.monotonic()
        session: _Session | None = None
        try:
            text = program(script, env)
            async with asyncio.timeout(timeout or None):
                session, channel = await self._open(target, text, None)
                await self._feed(session, channel, stdin, stdin_file)
                await asyncio.shield(session.ended)
        except TimeoutError:
            message = f"Timed out after {timeout:g} s"
            outcome = Outcome(Verdict.KO, f"{message}; it was ended." if session else f"{message}.", TIMED_OUT)
        except (UnreachableError, ValueError) as error:
            outcome = Outcome(Verdict.KO, str(error), LOST)
        except OSError as error:
            outcome = Outcome(Verdict.KO, f"{error.filename or stdin_file}: {error.strerror or error}", LOST)
        else:
            outcome = self._judge(target, session, disconnect_ok)
        finally:
            if session and not session.ended.done():  # timed out, cancelled, or its input could not be read
                await self._end(target, session, channel)
            elif session and session.lingers:
                channel.close()
        return _with_output(outcome, session, time.monotonic() - begun)

    async def send(self, target: Target, local: Path, remote: str, mode: int = 0o644, timeout: float = 0) -> Outcome:
        """Copy file *local* to *remote* (a file, or a folder that exists) with permission bits *mode*.

        The file appears under its name when it has arrived completely, or not at all.
        """
        try:
            size = local.stat().st_size
        except OSError as error:
            return Outcome(Verdict.KO, f"{local}: {error.strerror}", 1)
        env = {
            "KADEPLOY_SEND_TO": remote,
            "KADEPLOY_SEND_NAME": local.name,
            "KADEPLOY_SEND_SIZE": str(size),
            "KADEPLOY_SEND_MODE": f"{mode:o}",
        }
        return await self.run(target, RECEIVE, env, timeout, stdin_file=local)

    async def start(
        self, target: Target, command: bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> RemoteProcess:
        """Start a bash *command*, give it *stdin*, and listen to it while it runs.

        Raises:
            UnreachableError: the node cannot be entered.
        """
        data: asyncio.Queue[bytes] = asyncio.Queue()
        session, channel = await self._open(target, program(command, env), data.put_nowait)
        _spawn(self._feed(session, channel, stdin, None), self._feeding)
        return RemoteProcess(session, data, functools.partial(self._spawn_end, target, session, channel))

    async def forget(self, targets: Iterable[Target]) -> None:
        """Close the connections of nodes that are about to reboot."""
        for target in targets:
            self._drop(target)

    @property
    def taken(self) -> Mapping[str, str]:
        """None: who has no broker works by hand."""
        return {}

    @contextlib.asynccontextmanager
    async def hold(self, names: Iterable[str]) -> AsyncIterator[Mapping[str, str]]:  # noqa: ARG002
        """As `Remote.hold`; see `taken`."""
        yield {}

    async def let_go(self, names: Container[str]) -> None:
        """Close the connections of nodes on which nothing may be done any more, once what was told to end has ended."""
        if self._ending:
            await asyncio.wait(list(self._ending))
        await self.forget([target for target in self._links if target.name in names])

    async def close(self) -> None:
        """Close every connection, once those who were told to end commands on nodes have done so."""
        for task in list(self._feeding):
            task.cancel()
        await asyncio.gather(*self._feeding, *self._ending, return_exceptions=True)
        links, self._links = self._links, {}
        for link in links.values():
            if link.connection:
                link.connection.abort()

    # --- connections --------------------------------------------------------------------------------------------

    async def _open(
        self, target: Target, text: bytes, on_data: Callable[[bytes], None] | None
    ) -> tuple[_Session, asyncssh.SSHClientChannel[bytes]]:
        """A session that has been given its program; a kept connection that is dead is replaced once."""
        command = _START.format(len(text))
        for last in (False, True):
            connection, kept = await self._connection(target)
            session = _Session(on_data)
            try:
                async with asyncio.timeout(self.credentials.connect_timeout):
                    channel, _ = await connection.create_session(
                        functools.partial(_same, session), command, encoding=None
                    )
            except (asyncssh.Error, OSError, AttributeError) as error:  # the last when it closes meanwhile
                self._drop(target, connection)
                if kept and not last:
                    continue
                raise UnreachableError(f"ssh to {target}: {_reason(error)}: see its console.") from error
            session.cut = functools.partial(self._spawn_end, target, session, channel)
            try:
                channel.write(text)
            except BrokenPipeError as error:
                raise UnreachableError(
                    f"ssh to {target}: it ended the session before the command began: see its console."
                ) from error
            return session, channel
        raise AssertionError("unreachable")  # pragma: no cover

    async def _connection(self, target: Target) -> tuple[asyncssh.SSHClientConnection, bool]:
        link = self._links.setdefault(target, _Link())
        async with link.lock:
            if link.connection and not link.connection.is_closed():
                return link.connection, True
            link.connection = await self._connect(target)
            return link.connection, False

    async def _connect(self, target: Target) -> asyncssh.SSHClientConnection:
        limit = self.credentials.connect_timeout
        options = self._known(target.pinned)
        try:
            async with asyncio.timeout(limit):
                return await asyncssh.connect(target.address, target.port, options=options)
        except TimeoutError as error:
            raise UnreachableError(
                f"ssh to {target}: no answer within {limit:g} s: is the node up? See its console."
            ) from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise UnreachableError(
                f"ssh to {target}: its host key is not the known one: is it another system than the deployment system? "
                f"See its console, and {self.credentials.host_key_setting}."
            ) from error
        except asyncssh.PermissionDenied as error:
            raise UnreachableError(
                f"ssh to {target}: it refuses the key {self.credentials.private_key} for {self.credentials.user}: "
                "is the public key in the deployment system's authorized_keys?"
            ) from error
        except ConnectionRefusedError as error:
            raise UnreachableError(
                f"ssh to {target}: connection refused: is the deployment system up? See its console."
            ) from error
        except socket.gaierror as error:
            raise UnreachableError(f"ssh to {target}: {error.strerror}: check its address.") from error
        except (asyncssh.Error, OSError) as error:
            raise UnreachableError(f"ssh to {target}: {_reason(error)}: see its console.") from error

    def _known(self, pinned: bool) -> asyncssh.SSHClientConnectionOptions:
        """Options are costly to make and the same for all: made once."""
        if pinned not in self._options:
            self._options[pinned] = _options(self.credentials, pinned)
        return self._options[pinned]

    def _drop(self, target: Target, connection: asyncssh.SSHClientConnection | None = None) -> None:
        link = self._links.get(target)
        if link and link.connection and connection in (None, link.connection):
            link.connection.abort()
            link.connection = None

    # --- sessions -----------------------------------------------------------------------------------------------

    async def _feed(
        self, session: _Session, channel: asyncssh.SSHClientChannel[bytes], stdin: bytes, stdin_file: Path | None
    ) -> None:
        """Give a session its standard input, at the pace of the node; a session that ended early takes no more."""
        with contextlib.suppress(BrokenPipeError):
            if stdin:
                channel.write(stdin)
            if stdin_file:
                with stdin_file.open("rb") as file:
                    while (piece := file.read(PIECE)) and not session.ended.done():
                        await session.writable.wait()
                        channel.write(piece)
            channel.write_eof()

    def _judge(self, target: Target, session: _Session, disconnect_ok: bool) -> Outcome:
        if session.rc == 0:
            return Outcome(Verdict.OK)
        if session.rc is None:
            self._drop(target)
            if disconnect_ok:  # its program has been sent: whoever waits for the node sees whether it was in vain
                return Outcome(Verdict.OK)
            why = session.reason or "connection lost"
            return Outcome(Verdict.KO, f"ssh to {target}: {why} while it ran: see its console.", LOST)
        words = last_line(session.stderr.text()) or last_line(session.stdout.text())
        return Outcome(Verdict.KO, session.reason or words or f"exit status {session.rc}", session.rc)

    def _spawn_end(self, target: Target, session: _Session, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        _spawn(self._end(target, session, channel), self._ending)

    async def _end(self, target: Target, session: _Session, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        """End a command on its node as far as ssh lets us: over a second session, since sshd refuses root's signals.

        One that has been sent, and has not told its number yet, is waited for: it may have begun.
        """
        link = self._links.get(target)
        connection = link.connection if link else None
        try:
            async with asyncio.timeout(min(5, self.credentials.connect_timeout)):
                await session.begun.wait()
                channel.abort()
                if connection and session.pid:
                    command = f"sh -c '({_KILL.format(session.pid)}) </dev/null >/dev/null 2>&1 &'"
                    killer, _ = await connection.create_session(asyncssh.SSHClientSession, command, encoding=None)
                    await killer.wait_closed()
        except (asyncssh.Error, OSError, AttributeError):  # the node hangs or closes: the connection is of no more use
            channel.abort()
            if connection:
                self._drop(target, connection)


def _spawn(job: Coroutine[Any, Any, None], into: set[asyncio.Task[None]]) -> None:
    """Run it in the background; the set keeps it alive, and is what is waited for."""
    task = asyncio.create_task(job)
    into.add(task)
    task.add_done_callback(into.discard)


class RemoteProcess:
    """A command started by `Connections.start`."""

    def __init__(self, session: _Session, data: asyncio.Queue[bytes], end: Callable[[], None]) -> None:
        self._session = session
        self._data = data
        self._kill = end
        session.ended.add_done_callback(lambda _: data.put_nowait(b""))

    async def lines(self) -> AsyncIterator[str]:
        """Lines of its standard output as they come, without line ends, until it closes.

        A line or a number of lines beyond the limits ends the command.
        """
        rest, left = b"", LINES_LIMIT
        while piece := await self._data.get():
            *complete, rest = (rest + piece).split(b"\n")
            left -= len(complete)
            if left < 0 or max(map(len, [*complete, rest])) > LINE_LIMIT:
                self._session.too_much(
                    "a line of its output is too long" if left >= 0 else "its output has too many lines"
                )
                return
            for line in complete:
                yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")

    async def wait(self) -> int:
        """Its exit status; 255 when the connection was lost."""
        await asyncio.shield(self._session.ended)
        return LOST if self._session.rc is None else self._session.rc

    def kill(self) -> None:
        """End it and all that it started, if it still runs."""
        if not self._session.ended.done():
            self._kill()

    def stderr(self) -> str:
        """Its standard error so far (head and tail), and why it was cut off if it was."""
        return "\n".join(filter(None, (self._session.stderr.text().strip(), self._session.reason)))


def _options(credentials: Credentials, pinned: bool) -> asyncssh.SSHClientConnectionOptions:
    try:
        key = asyncssh.read_private_key(credentials.private_key)
        known = asyncssh.import_public_key(credentials.host_key) if pinned and credentials.host_key else None
        file = None if pinned else credentials.known_hosts
        others = asyncssh.read_known_hosts(str(file)) if file else None
    except OSError as error:
        raise UnreachableError(
            f"{error.filename}: {error.strerror}: check {credentials.private_key_setting}."
        ) from error
    except asyncssh.KeyImportError as error:
        settings = f"{credentials.private_key_setting} and {credentials.host_key_setting}"
        raise UnreachableError(f"{error}: check {settings}.") from error
    return asyncssh.SSHClientConnectionOptions(
        username=credentials.user,
        client_keys=[key],
        known_hosts=([known], [], []) if known else others,
        server_host_key_algs=[known.algorithm.decode()] if known and known.algorithm == b"ssh-ed25519" else (),
        agent_path=None,
        config=None,
        preferred_auth=["publickey"],
        gss_host=None,
        keepalive_interval=20,
        keepalive_count_max=3,
        **_ALGORITHMS,
    )


def _same(session: _Session) -> _Session:
    return session


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer on a connection that was open"
    if isinstance(error, AttributeError):
        return "it closed the connection while a session was opened"
    return getattr(error, "strerror", "") or getattr(error, "reason", "") or str(error) or type(error).__name__


def _with_output(outcome: Outcome, session: _Session | None, seconds: float) -> Outcome:
    stdout, stderr = (session.stdout.text(), session.stderr.text()) if session else ("", "")
    return Outcome(outcome.verdict, outcome.message, outcome.rc, stdout, stderr, round(seconds, 3))


def _allow_many_descriptors() -> None:
    """One connection per node: take as many descriptors as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
