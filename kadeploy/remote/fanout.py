"""Nodes, many at once: what can be done on them, and how a job is done on all.

    async def job(target): return await remote.run(target, script, env, timeout=60)
    outcomes = await on_all(targets, job, window=100)

`connections.Connections` or `broker.BrokerClient` does the work: this module needs no ssh, and loads fast.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kadeploy.config.site import Site
from kadeploy.workflow import Outcome, Verdict

LOST = 255
"""Exit status of a command whose connection failed, as ssh(1) has it."""
TIMED_OUT = 124
"""Exit status of a command that was ended by its time-out, as timeout(1) has it."""


@dataclass(frozen=True)
class Target:
    """Where a node's ssh server listens."""

    name: str
    address: str
    port: int = 22
    pinned: bool = True
    """Whether it must show the known host key; false for systems that are not the deployment system."""

    def __str__(self) -> str:
        return f"{self.name} ({self.address}:{self.port})"


@dataclass(frozen=True)
class Credentials:
    """How nodes are entered; no agent, configuration file or password is ever used."""

    private_key: Path
    host_key: str = ""
    """Public key that pinned targets must show, ``ssh-ed25519 AAAA…``; empty accepts any."""
    user: str = "root"
    connect_timeout: float = 10.0
    """Seconds for the whole way from TCP to the authenticated session."""
    known_hosts: Path | None = None
    """File with the keys that targets show which are not pinned, as ssh(1) keeps them; None accepts any."""
    private_key_setting: str = "ssh.private_key in site.yml"
    """What to look at where *private_key* does not do."""
    host_key_setting: str = "ssh.host_key in site.yml"
    """What to look at where a target shows another key."""

    @classmethod
    def of(cls, site: Site) -> Credentials:
        """Those of a site; targets that are not pinned show any host key."""
        ssh = site.ssh
        return cls(Path(ssh.private_key), ssh.host_key, connect_timeout=ssh.connect_timeout)


class Process(Protocol):
    """A command that was started on a node and is listened to."""

    def lines(self) -> AsyncIterator[str]:
        """Lines of its standard output as they come, until it closes."""

    async def wait(self) -> int:
        """Its exit status; 255 when the connection was lost."""

    def kill(self) -> None:
        """End it and all that it started, if it still runs."""

    def stderr(self) -> str:
        """Its standard error so far (head and tail)."""


class Systems(Protocol):
    """The nodes' own systems, as far as those who switch nodes and wait for them ask them; see `Remote`."""

    @property
    def taken(self) -> Mapping[str, str]:
        """Nodes that were taken meanwhile, and why."""

    async def run(self, target: Target, script: bytes, *, timeout: float = 0, disconnect_ok: bool = False) -> Outcome:
        """Run a bash *script*."""

    async def forget(self, targets: Iterable[Target]) -> None:
        """Close the connections of nodes that are about to go down."""

    def hold(self, names: Iterable[str]) -> AbstractAsyncContextManager[Mapping[str, str]]:
        """While it lasts, nodes are acted on by other ways than ssh."""


class Remote(Protocol):
    """What can be done on nodes: by connections of this process, or by those of a broker."""

    @property
    def taken(self) -> Mapping[str, str]:
        """Nodes that were taken from the workflow, and why: whatever is asked for them is refused."""

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
        """Run a bash *script* to its end; see `Connections.run`."""

    async def send(self, target: Target, local: Path, remote: str, mode: int = 0o644, timeout: float = 0) -> Outcome:
        """Copy a file to a node; see `Connections.send`."""

    async def start(
        self, target: Target, command: bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a command and listen to it; see `Connections.start`."""

    async def forget(self, targets: Iterable[Target]) -> None:
        """Close the connections of nodes that are about to reboot."""

    def hold(self, names: Iterable[str]) -> AbstractAsyncContextManager[Mapping[str, str]]:
        """While it lasts, nodes are acted on by other ways than ssh; nobody else gets them meanwhile.

        Those of *names* that are taken are not held: reasons by name.
        """

    async def close(self) -> None:
        """Close everything."""


async def on_all(
    targets: Iterable[Target],
    job: Callable[[Target], Awaitable[Outcome]],
    window: int,
    on_outcome: Callable[[str, Outcome], None] | None = None,
) -> dict[str, Outcome]:
    """Do *job* for every target, at most *window* at a time; outcomes by name, in the order of *targets*.

    A job that raises is that node's failure alone. *on_outcome* hears of each node as soon as it has ended.
    """
    waiting = list(targets)
    outcomes: dict[str, Outcome | None] = {target.name: None for target in waiting}
    queue = iter(waiting)

    async def work() -> None:
        for target in queue:
            try:
                outcome = await job(target)
            except Exception as error:  # whatever it is, the other nodes go on
                outcome = Outcome(Verdict.KO, f"{type(error).__name__}: {error}", LOST)
            outcomes[target.name] = outcome
            if on_outcome:
                on_outcome(target.name, outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(max(1, window), len(waiting))):
            group.create_task(work())
    return {name: outcome for name, outcome in outcomes.items() if outcome}
