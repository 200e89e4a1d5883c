"""The keeper of a workflow's ssh connections: tasks come and go, connections stay.

A thread of kadeploy3 owns the connections and serves them on a unix socket in the workflow's folder; `connect` gives a
task the broker's connections when the socket answers, and connections of its own when nobody is there.

Messages are msgpack behind four bytes of length. A client has many calls under way, each with its own number. A call
ends with its answer, unless the client cancels it or goes away; then what it has started on nodes is ended too.

Nodes can be taken from the workflow (`Broker.take`): their commands are ended, and whatever is asked for them later is
refused. Who acts on nodes by other ways than ssh holds them meanwhile, so that it is known when they have been let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from kadeploy.errors import UnreachableError
from kadeploy.remote import lending, sockets
from kadeploy.remote.fanout import LOST, Credentials, Process, Remote, Target
from kadeploy.remote.routed import Routed
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from kadeploy.remote.connections import Connections

SOCKET = "broker.sock"
NUMBER = "brokers"
"""File in the workflow's folder that tells how many brokers there are, where there are several."""
_LENGTH = struct.Struct(">I")
_MESSAGE_LIMIT = 256 << 20


class Message(msgspec.Struct, frozen=True, array_like=True):
    """A message of either side; *number* is the call that it belongs to."""

    number: int


class Run(Message, frozen=True, array_like=True, tag="run"):
    """As `Connections.run`; answered by `Done`."""

    target: Target
    script: bytes
    env: dict[str, str]
    timeout: float
    stdin: bytes
    stdin_file: str
    disconnect_ok: bool


class Send(Message, frozen=True, array_like=True, tag="send"):
    """As `Connections.send`; answered by `Done`."""

    target: Target
    local: str
    remote: str
    mode: int
    timeout: float


class Start(Message, frozen=True, array_like=True, tag="start"):
    """As `Connections.start`; answered by `Started` or `Refused`, then each `Line`, then `Ended`."""

    target: Target
    command: bytes
    stdin: bytes
    env: dict[str, str]


class Forget(Message, frozen=True, array_like=True, tag="forget"):
    """As `Connections.forget`; answered by `Forgotten`."""

    targets: list[Target]


class Hold(Message, frozen=True, array_like=True, tag="hold"):
    """As `Remote.hold`; answered by `Held`, and over when it is cancelled."""

    names: list[str]


class Cancel(Message, frozen=True, array_like=True, tag="cancel"):
    """End a call and what it does on its node; not answered."""


class Done(Message, frozen=True, array_like=True, tag="done"):
    """How a command ended."""

    outcome: Outcome


class Started(Message, frozen=True, array_like=True, tag="started"):
    """A command has been started."""


class Refused(Message, frozen=True, array_like=True, tag="refused"):
    """The node cannot be entered."""

    reason: str


class Line(Message, frozen=True, array_like=True, tag="line"):
    """A line of a started command."""

    text: str


class Ended(Message, frozen=True, array_like=True, tag="ended"):
    """A started command is over: its exit status and its standard error."""

    rc: int
    stderr: str


class Forgotten(Message, frozen=True, array_like=True, tag="forgotten"):
    """The connections are closed."""


class Held(Message, frozen=True, array_like=True, tag="held"):
    """These nodes are held; the others were taken."""

    names: list[str]


class Taken(Message, frozen=True, array_like=True, tag="taken"):
    """Nodes were taken, and why; belongs to no call, and comes before any refusal for that reason."""

    reasons: dict[str, str]


Call = Run | Send | Start | Forget | Hold | Cancel
Answer = Done | Started | Refused | Line | Ended | Forgotten | Held | Taken

_ENCODER = msgspec.msgpack.Encoder()
_CALLS = msgspec.msgpack.Decoder(Call)
_ANSWERS = msgspec.msgpack.Decoder(Answer)


def _pack(message: Message) -> bytes:
    text = _ENCODER.encode(message)
    return _LENGTH.pack(len(text)) + text


async def _receive(reader: asyncio.StreamReader) -> bytes | None:
    """The next message, None at the end."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length) if length <= _MESSAGE_LIMIT else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


# --- the thread that owns the connections -----------------------------------------------------------------------------


class Broker:
    """Owns the ssh connections of a workflow while it runs, in a thread of its own; lends the user's open files."""

    def __init__(
        self, workflow_dir: Path, credentials: Credentials, lent: Mapping[str, int] | None = None, number: int = 0
    ) -> None:
        self.workflow_dir = workflow_dir
        self.credentials = credentials
        self.lent = lent or {}
        self.number = number
        """0, or which of several brokers this is: the first alone lends files."""
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._hands = _Hands()

    def start(self) -> None:
        """Serve from now on.

        Raises:
            OSError: the socket cannot be made.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """End what clients still do on nodes, close all connections, remove the socket."""
        if self._loop and self._over and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def take(self, reasons: Mapping[str, str]) -> Future[None]:
        """From any thread: take nodes from the workflow; done once nothing is done to them any more.

        Commands are ended on them as far as ssh lets us, and their connections closed. Who holds them is waited for.
        """
        assert self._loop, "the broker has been started"  # noqa: S101
        return asyncio.run_coroutine_threadsafe(self._hands.take(reasons), self._loop)

    @contextlib.contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """In any thread, while it lasts: these nodes may be acted on by ways that nobody can end."""
        assert self._loop, "the broker has been started"  # noqa: S101
        names, over = frozenset(names), asyncio.Event()
        asyncio.run_coroutine_threadsafe(self._hands.until(over, names), self._loop)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(over.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        from kadeploy.remote.connections import Connections  # noqa: PLC0415 - see `connect`

        connections = self._hands.connections = Connections(self.credentials)
        clients: set[asyncio.Task[None]] = set()

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(_Client(connections, self._hands, reader, writer).serve())
            clients.add(task)
            task.add_done_callback(clients.discard)

        with contextlib.ExitStack() as open_sockets:
            if not self.number:
                open_sockets.enter_context(lending.lend(self.workflow_dir, self.lent))
            listener = open_sockets.enter_context(sockets.listening(self.workflow_dir, socket_name(self.number)))
            server = await asyncio.start_unix_server(serve, sock=listener, limit=_MESSAGE_LIMIT)
            self._ready.set()
            await self._over.wait()
            server.close()
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            await connections.close()


class _Hands:
    """What is being done to nodes, and which of them were taken."""

    def __init__(self) -> None:
        self.taken: dict[str, str] = {}
        self.connections: Connections | None = None
        self.clients: set[_Client] = set()
        self._busy: dict[asyncio.Task[None], frozenset[str]] = {}
        self._held: set[asyncio.Task[None]] = set()

    def busy(self, task: asyncio.Task[None], names: frozenset[str], *, held: bool = False) -> None:
        """*task* acts on nodes until it is done; *held* nodes are not snatched from it."""
        self._busy[task] = names
        task.add_done_callback(self._busy.pop)
        if held:
            self._held.add(task)
            task.add_done_callback(self._held.discard)

    async def until(self, over: asyncio.Event, names: frozenset[str]) -> None:
        """Hold nodes until *over* is set."""
        if task := cast("asyncio.Task[None] | None", asyncio.current_task()):
            self.busy(task, names, held=True)
        await over.wait()

    async def take(self, reasons: Mapping[str, str]) -> None:
        """See `Broker.take`."""
        self.taken |= reasons
        for client in self.clients:
            client.say(Taken(0, dict(reasons)))
        concerned = [task for task, names in self._busy.items() if not names.isdisjoint(reasons)]
        for task in concerned:
            if task not in self._held:
                task.cancel()
        if concerned:
            await asyncio.wait(concerned)
        if self.connections:
            await self.connections.let_go(reasons)


class _Client:
    """One client of the broker, and its calls under way."""

    def __init__(
        self, connections: Connections, hands: _Hands, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections = connections
        self.hands = hands
        self.reader = reader
        self.writer = writer
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until the client ends; then end what it has started."""
        self.hands.clients.add(self)
        if self.hands.taken:
            self.say(Taken(0, self.hands.taken))
        try:
            while text := await _receive(self.reader):
                request = _CALLS.decode(text)
                if isinstance(request, Cancel):
                    if task := self.tasks.get(request.number):
                        task.cancel()
                else:
                    self._take(request)
        except msgspec.DecodeError:
            pass  # not our client: what follows cannot be read either
        finally:
            self.hands.clients.discard(self)
            tasks = list(self.tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.writer.close()

    def _take(self, request: Run | Send | Start | Forget | Hold) -> None:
        number, names = request.number, _names(request)
        granted = names - self.hands.taken.keys()
        if names and not granted and not isinstance(request, Hold):
            self._refuse(request, self.hands.taken[min(names)])
            return
        if isinstance(request, Hold):
            request = Hold(number, sorted(granted))
        task = asyncio.create_task(self._do(request))
        self.hands.busy(task, granted, held=isinstance(request, Hold))
        self.tasks[number] = task
        task.add_done_callback(lambda _: self.tasks.pop(number, None))

    def say(self, answer: Answer) -> None:
        """Send a message, unless the client has gone."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(_pack(answer))

    async def _do(self, request: Run | Send | Start | Forget | Hold) -> None:
        """Answer, whatever happens: a client must not wait for ever."""
        try:
            await self._answer(request)
        except asyncio.CancelledError:
            if not (taken := _names(request) & self.hands.taken.keys()) or isinstance(request, Hold):
                raise
            self._refuse(request, self.hands.taken[min(taken)])
        except Exception as error:  # whatever a node has done to us, the others go on
            self._refuse(request, f"{type(error).__name__}: {error}")

    def _refuse(self, request: Run | Send | Start | Forget | Hold, reason: str) -> None:
        number = request.number
        if isinstance(request, Run | Send):
            self.say(Done(number, Outcome(Verdict.KO, reason, LOST)))
        else:
            self.say(Refused(number, reason))
            self.say(Ended(number, LOST, reason))

    async def _answer(self, request: Run | Send | Start | Forget | Hold) -> None:
        number = request.number
        match request:
            case Run(_, target, script, env, timeout, stdin, stdin_file, disconnect_ok):
                path = Path(stdin_file) if stdin_file else None
                outcome = await self.connections.run(
                    target, script, env, timeout, stdin=stdin, stdin_file=path, disconnect_ok=disconnect_ok
                )
                self.say(Done(number, outcome))
            case Send(_, target, local, remote, mode, timeout):
                self.say(Done(number, await self.connections.send(target, Path(local), remote, mode, timeout)))
            case Start():
                starting = self.connections.start(request.target, request.command, request.stdin, request.env)
                del request  # what it starts lives long, and its input may be large
                await self._listen(number, starting)
            case Forget(_, targets):
                await self.connections.forget(targets)
                self.say(Forgotten(number))
            case Hold(_, names):
                self.say(Held(number, names))
                await asyncio.Event().wait()  # until the client cancels it, or goes away

    async def _listen(self, number: int, starting: Awaitable[Process]) -> None:
        try:
            process = await starting
        except (UnreachableError, ValueError) as error:
            self.say(Refused(number, str(error)))
            return
        try:
            self.say(Started(number))
            async for line in process.lines():
                self.say(Line(number, line))
            rc = await process.wait()
            self.say(Ended(number, rc, process.stderr()))
        finally:
            process.kill()


def _names(request: Run | Send | Start | Forget | Hold) -> frozenset[str]:
    """The nodes that a call acts on."""
    match request:
        case Run() | Send() | Start():
            return frozenset({request.target.name})
        case Hold():
            return frozenset(request.names)
        case Forget():
            return frozenset()


# --- the client -------------------------------------------------------------------------------------------------------


def socket_name(number: int) -> str:
    """The socket of broker *number*; the first has the name that stands for all.

    >>> socket_name(0), socket_name(2)
    ('broker.sock', 'broker-2.sock')
    """
    return SOCKET.replace(".", f"-{number}.") if number else SOCKET


def note(workflow_dir: Path, count: int) -> None:
    """Tell clients that come from now on that there are *count* brokers, whatever a process has told that died."""
    if count > 1:
        (workflow_dir / NUMBER).write_text(f"{count}\n", encoding="utf-8")
    else:
        (workflow_dir / NUMBER).unlink(missing_ok=True)


def _count(workflow_dir: Path) -> int:
    try:
        return int((workflow_dir / NUMBER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 1


async def connect(workflow_dir: Path, credentials: Credentials) -> Remote:
    """The brokers of this workflow when the first one's socket answers, connections of our own otherwise."""
    try:
        first = await _client(workflow_dir, 0)
    except OSError:
        from kadeploy.remote.connections import Connections  # noqa: PLC0415 - a sixth of a second that clients of a broker need not pay

        return Connections(credentials)
    if (count := _count(workflow_dir)) == 1:
        return first
    others = [await _client_or(first, workflow_dir, number) for number in range(1, count)]
    return Routed([first, *others])


async def _client_or(first: BrokerClient, workflow_dir: Path, number: int) -> BrokerClient:
    """A broker's client; what one that is gone had, *first* does as well."""
    try:
        return await _client(workflow_dir, number)
    except OSError:
        return first


async def _client(workflow_dir: Path, number: int) -> BrokerClient:
    with sockets.address(workflow_dir, socket_name(number)) as path:
        return BrokerClient(*await asyncio.open_unix_connection(path, limit=_MESSAGE_LIMIT))


class BrokerClient:
    """The methods of `Connections`, done by a broker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Queue[Answer | None]] = {}
        self.taken: dict[str, str] = {}
        self._listening = asyncio.create_task(self._listen(reader))

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
        """As `Connections.run`; *stdin_file* is opened by the broker."""
        path = str(stdin_file.absolute()) if stdin_file else ""
        return await self._outcome(
            lambda number: Run(number, target, script, dict(env or {}), timeout, stdin, path, disconnect_ok)
        )

    async def send(self, target: Target, local: Path, remote: str, mode: int = 0o644, timeout: float = 0) -> Outcome:
        """As `Connections.send`; *local* is opened by the broker."""
        return await self._outcome(lambda number: Send(number, target, str(local.absolute()), remote, mode, timeout))

    async def start(
        self, target: Target, command: bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Process:
        """As `Connections.start`."""
        number, answers = self._ask(lambda number: Start(number, target, command, stdin, dict(env or {})))
        try:
            answer = await answers.get()
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        if isinstance(answer, Started):
            return _BrokerProcess(answers, lambda: self._cancel(number))
        self._answers.pop(number, None)
        raise UnreachableError(answer.reason if isinstance(answer, Refused) else _GONE)

    async def forget(self, targets: Iterable[Target]) -> None:
        """As `Connections.forget`."""
        number, answers = self._ask(lambda number: Forget(number, list(targets)))
        await answers.get()
        self._answers.pop(number, None)

    @contextlib.asynccontextmanager
    async def hold(self, names: Iterable[str]) -> AsyncIterator[Mapping[str, str]]:
        """As `Remote.hold`."""
        wanted = list(names)
        number, answers = self._ask(lambda number: Hold(number, wanted))
        try:
            answer = await answers.get()
            held = set(answer.names) if isinstance(answer, Held) else set()
            yield {name: self.taken.get(name, _GONE) for name in wanted if name not in held}
        finally:
            self._cancel(number)

    async def close(self) -> None:
        """Leave the broker; it ends what was started and still runs."""
        self._listening.cancel()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _outcome(self, make: Callable[[int], Call]) -> Outcome:
        number, answers = self._ask(make)
        try:
            answer = await answers.get()
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        finally:
            self._answers.pop(number, None)
        return answer.outcome if isinstance(answer, Done) else Outcome(Verdict.KO, _GONE, LOST)

    def _ask(self, make: Callable[[int], Call]) -> tuple[int, asyncio.Queue[Answer | None]]:
        number = next(self._numbers)
        answers = self._answers[number] = asyncio.Queue()
        if self._listening.done():
            answers.put_nowait(None)
        else:
            self._writer.write(_pack(make(number)))
        return number, answers

    def _cancel(self, number: int) -> None:
        self._answers.pop(number, None)
        with contextlib.suppress(ConnectionError):
            self._writer.write(_pack(Cancel(number)))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand out answers; when the broker is gone, every call under way hears of it."""
        try:
            while text := await _receive(reader):
                answer = _ANSWERS.decode(text)
                if isinstance(answer, Taken):
                    self.taken |= answer.reasons
                elif queue := self._answers.get(answer.number):
                    queue.put_nowait(answer)
        finally:
            for queue in self._answers.values():
                queue.put_nowait(None)


_GONE = "The process that kept the ssh connections is gone: was kadeploy3 ended?"


class _BrokerProcess:
    """A command that the broker has started and listens to."""

    def __init__(self, answers: asyncio.Queue[Answer | None], cancel: Callable[[], None]) -> None:
        self._answers = answers
        self._cancel = cancel
        self._end: Ended | None = None

    async def lines(self) -> AsyncIterator[str]:
        """As `Process.lines`."""
        while self._end is None:
            answer = await self._answers.get()
            if isinstance(answer, Line):
                yield answer.text
            else:
                reason = answer.reason if isinstance(answer, Refused) else _GONE
                self._end = answer if isinstance(answer, Ended) else Ended(0, LOST, reason)

    async def wait(self) -> int:
        """As `Process.wait`; lines that nobody has read are lost."""
        async for _ in self.lines():
            pass
        return self._end.rc if self._end else LOST

    def kill(self) -> None:
        """As `Process.kill`."""
        if self._end is None:
            self._end = Ended(0, LOST, "ended by us")
            self._cancel()

    def stderr(self) -> str:
        """As `Process.stderr`."""
        return self._end.stderr if self._end else ""
