"""Talk to many BMCs through libraries that block, and that may hang: one process per driver, a child of it per BMC.

The process (``python -m kadeploy.power.ipmi``) imports its library once. It reads on its standard input one line of
JSON with the `Credentials`, so that the password is in no argument, environment or file of ours, then one `Job` per
line. For each it forks a child, which the kernel ends when the job's time is over, and answers with one line, in the
order in which jobs end. It ends when its standard input closes, and so do its children.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import selectors
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Literal, NoReturn, cast

import msgspec

from kadeploy.config.cluster import Power
from kadeploy.config.logins import Login
from kadeploy.errors import NotEnteredError
from kadeploy.power import silence
from kadeploy.printable import printable
from kadeploy.process import kill, reap, spawn

Order = Literal["status", "on", "off", "reset", "shutdown", "network", "identify"]
"""``off`` and ``on`` are sent whatever the BMC says of the machine, and end when it says that it is so. ``reset``
switches on a machine that is off, ``shutdown`` asks the system to end and waits until it has. ``network`` has the
machine's next start, and no later one, boot from the network. ``identify`` asks what machine it is."""
State = Literal["on", "off"]
WANTED: Mapping[Order, State] = {"on": "on", "off": "off", "shutdown": "off"}
"""Orders that are done when the machine is in a state."""
PAUSE = 1.0
"""Seconds between two looks at a machine that is being switched."""

GRACE = 5.0
"""Seconds that an answer may be late, beyond the time that a BMC has."""


class Credentials(msgspec.Struct, frozen=True):
    """How to log in to the BMCs of a cluster."""

    user: str
    password: str
    verify_tls: bool = True


class Job(msgspec.Struct, frozen=True):
    """One order for one BMC, which may take *limit* seconds."""

    number: int
    address: str
    port: int
    order: Order
    limit: float
    uefi: bool = False
    """Whether the machine's firmware is UEFI, which BMCs want to know of ``network``."""
    login: Login = Login()
    """What this BMC has in place of the cluster's `Credentials`."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a BMC tells of its machine; empty is what it does not."""

    vendor: str = ""
    product: str = ""
    serial: str = ""
    mac: str = ""
    """MAC address of the BMC itself."""
    cards: tuple[str, ...] = ()
    """Those of the machine's network cards."""


class Answer(msgspec.Struct, frozen=True):
    """How a job ended: the machine's state, or the reason why it is unknown."""

    number: int
    state: State | None = None
    identity: Identity | None = None
    reason: str = ""
    entered: bool = True
    """Whether the BMC could be logged in to; if not, another order would fare the same."""


Act = Callable[[Credentials, Job], State | Identity | None]
"""Carries out an order and returns what it has asked for, such as the machine's state; raises when it could not."""


# --- who asks ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connect(module: str, credentials: Credentials, hidden: tuple[str, ...] = ()) -> AsyncIterator[Bmcs]:
    """The BMCs of a cluster, behind a process that runs *module*, without the environment variables *hidden*.

    For instance ``async with connect("kadeploy.power.ipmi", credentials) as bmcs: await bmcs.order(…)``.
    """
    process = await spawn(
        *(sys.executable, "-P", "-m", module),  # -P: no module of the working folder is ours
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name not in hidden},
    )
    requests, answers = cast(asyncio.StreamWriter, process.stdin), cast(asyncio.StreamReader, process.stdout)
    bmcs = Bmcs(requests, answers)
    requests.write(msgspec.json.encode(credentials) + b"\n")
    listening = asyncio.create_task(bmcs.listen())
    try:
        yield bmcs
    finally:
        requests.close()  # its children end with it, and it ends with its input
        await reap(process, GRACE)
        listening.cancel()


_AS_ALL = Login()


class Bmcs:
    """What can be asked of BMCs; made by `connect`."""

    def __init__(self, requests: asyncio.StreamWriter, answers: asyncio.StreamReader) -> None:
        self._requests = requests
        self._answers = answers
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._ended = False

    async def order(
        self, address: str, port: int, order: Order, limit: float, uefi: bool = False, login: Login = _AS_ALL
    ) -> Answer:
        """Carry out one order; the answer comes within *limit* seconds and some grace, whatever the BMC does."""
        job = Job(next(self._numbers), address, port, order, limit, uefi, login)
        if self._ended:
            return Answer(job.number, reason=_ENDED)
        self._waiting[job.number] = asyncio.get_running_loop().create_future()
        try:
            self._requests.write(msgspec.json.encode(job) + b"\n")
            async with asyncio.timeout(limit + GRACE):
                return await self._waiting[job.number]
        except TimeoutError:
            return Answer(job.number, reason=timed_out(job))
        finally:
            del self._waiting[job.number]

    async def listen(self) -> None:
        """Hand out answers until the process ends; then nobody waits any longer."""
        while line := await self._answers.readline():
            answer = msgspec.json.decode(line, type=Answer)
            if (future := self._waiting.get(answer.number)) and not future.done():
                future.set_result(answer)
        self._ended = True
        for number, future in self._waiting.items():
            if not future.done():
                future.set_result(Answer(number, reason=_ENDED))


_ENDED = "the process that talks to BMCs has ended; see what it wrote to the standard error"


def timed_out(job: Job) -> str:
    """Why a job has no answer."""
    return silence.late(job.address, job.limit)


def split_address(bmc: str, port: int) -> tuple[str, int]:
    """Address and port of a BMC that is written ``address`` or ``address:port``.

    >>> split_address("10.0.2.1", 623), split_address("10.0.2.1:6230", 623), split_address("fe80::1", 623)
    (('10.0.2.1', 623), ('10.0.2.1', 6230), ('fe80::1', 623))
    """
    host, colon, number = bmc.rpartition(":")
    return (host, int(number)) if colon and ":" not in host and number.isdecimal() else (bmc, port)


def credentials(power: Power, password: str) -> Credentials:
    """How to log in to the BMCs of a cluster."""
    return Credentials(power.user, password, power.verify_tls)


# --- what drivers have in common --------------------------------------------------------------------------------


def follow(job: Job, look: Callable[[], State]) -> State:
    """Look until the machine is as ordered; raises shortly before the job's time is over."""
    wanted = WANTED[job.order]
    while (seen := look()) != wanted:
        if seconds_left() < 2 * PAUSE:
            told = "press the power button" if job.order == "shutdown" else f"switch the machine {wanted}"
            raise RuntimeError(
                f"the BMC at {job.address} was told to {told}, and still says {seen} after {job.limit:g} s"
            )
        time.sleep(PAUSE)
    return wanted


def words(*said: object) -> str:
    """What a BMC has said of a machine, as one line that fits; firmware fills fields with blanks and zero bytes."""
    text = " ".join(printable(str(each).replace("\0", " ")) for each in said if each)
    return " ".join(text.split())[:_LONGEST]


_LONGEST = 80


def seconds_left() -> float:
    """Seconds until the job that this process does is ended."""
    return signal.getitimer(signal.ITIMER_REAL)[0]


CHECK_LOGIN = "check its user and password, which the cluster file has under power, or the inventory of its host"
"""What helps where a BMC does not let us in."""
_ADVICE = (
    (r"cipher suite|(integrity|confidentiality|authentication) algorithm", "allow cipher suite 3 or 17 on the BMC"),
    (r"resources to create|login slots|session limit", "wait until other sessions have ended, or restart the BMC"),
    (r"privilege|unauthorized role", "give {user} the privilege level administrator on the BMC"),
    (
        r"password|unauthorized name|user ?name|integrity check|rakp4 integrity",
        CHECK_LOGIN,
    ),
)
"""What BMCs say → what helps; the first that fits."""


def advice(said: str, user: str) -> str:
    """What to do about a BMC's words, to be put behind them; empty when nobody knows.

    >>> advice("Unauthorized role or privilege level requested", "admin")
    ': give admin the privilege level administrator on the BMC'
    """
    found = (text for pattern, text in _ADVICE if re.search(pattern, said, re.IGNORECASE))
    return "".join(f": {text.format(user=user or 'the user')}" for text in itertools.islice(found, 1))


# --- the process ------------------------------------------------------------------------------------------------


def serve(act: Act) -> None:
    """Answer jobs until the standard input closes; the main function of a driver's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks, and closes our input
    answers = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # whatever a library prints is no answer
    _Server(act, answers).run()


class _Server:
    def __init__(self, act: Act, answers: int) -> None:
        self.act = act
        self.answers = answers
        self.selector = selectors.DefaultSelector()
        self.children: dict[int, tuple[Job, int]] = {}
        self.credentials: Credentials | None = None
        self.rest = b""

    def run(self) -> None:
        self.selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fd != 0:
                    self._collect(key.fd)
                elif not self._take():
                    self._end()
                    return

    def _take(self) -> bool:
        """Read jobs and start them; False when there will be no more."""
        piece = os.read(0, 1 << 16)
        *lines, self.rest = (self.rest + piece).split(b"\n")
        for line in lines:
            if self.credentials is None:
                self.credentials = msgspec.json.decode(line, type=Credentials)
            else:
                job = msgspec.json.decode(line, type=Job)
                self._start(_own(self.credentials, job.login), job)
        return bool(piece)

    def _start(self, credentials: Credentials, job: Job) -> None:
        ours, childs = os.pipe()
        child = os.fork()
        if child == 0:
            _work(self.act, credentials, job, childs)
        os.close(childs)
        self.children[ours] = (job, child)
        self.selector.register(ours, selectors.EVENT_READ)

    def _collect(self, pipe: int) -> None:
        """A child has answered, or was ended without."""
        job, child = self.children.pop(pipe)
        self.selector.unregister(pipe)
        line = os.read(pipe, 1 << 12)  # written at once: less than PIPE_BUF
        os.close(pipe)
        os.waitpid(child, 0)
        os.write(self.answers, line or msgspec.json.encode(Answer(job.number, reason=timed_out(job))) + b"\n")

    def _end(self) -> None:
        for _, child in self.children.values():
            kill(child)


def _own(credentials: Credentials, login: Login) -> Credentials:
    user, password = login.user or credentials.user, login.password or credentials.password
    return msgspec.structs.replace(credentials, user=user, password=password)


def _work(act: Act, credentials: Credentials, job: Job, pipe: int) -> NoReturn:
    """Do one job in a child; SIGALRM ends it in time, in whatever call it may hang."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, job.limit)
    try:
        found = act(credentials, job)
        answer = Answer(job.number, identity=found) if isinstance(found, Identity) else Answer(job.number, state=found)
    except Exception as error:  # libraries raise what they like
        answer = Answer(job.number, reason=_reason(error)[:500], entered=not isinstance(error, NotEnteredError))
    os.write(pipe, msgspec.json.encode(answer) + b"\n")
    os._exit(0)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
