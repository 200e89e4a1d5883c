"""What can be done on nodes, where each is another one's: several brokers that look like one."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections import ChainMap
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

from kadeploy.remote.fanout import Process, Remote, Target
from kadeploy.workflow import Outcome


def share_of(name: str, count: int) -> int:
    """Which of *count* has the node *name*: the same for all who ask, and about as many nodes for each.

    >>> [share_of(f"node-{number}", 2) for number in range(1, 9)].count(0)
    4
    """
    return zlib.crc32(name.encode()) % count


class Routed:
    """The methods of `Remote`: each node is done by the one of *remotes* that has it, and groups by all together."""

    def __init__(self, remotes: Sequence[Remote]) -> None:
        self._remotes = tuple(remotes)

    @property
    def taken(self) -> Mapping[str, str]:
        """As `Remote.taken`."""
        return ChainMap(*(dict(remote.taken) for remote in self._remotes))

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
        """As `Remote.run`."""
        return await self._of(target.name).run(
            target, script, env, timeout, stdin=stdin, stdin_file=stdin_file, disconnect_ok=disconnect_ok
        )

    async def send(self, target: Target, local: Path, remote: str, mode: int = 0o644, timeout: float = 0) -> Outcome:
        """As `Remote.send`."""
        return await self._of(target.name).send(target, local, remote, mode, timeout)

    async def start(
        self, target: Target, command: bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Process:
        """As `Remote.start`."""
        return await self._of(target.name).start(target, command, stdin, env)

    async def forget(self, targets: Iterable[Target]) -> None:
        """As `Remote.forget`."""
        parts: dict[int, list[Target]] = {}
        for target in targets:
            parts.setdefault(share_of(target.name, len(self._remotes)), []).append(target)
        await asyncio.gather(*(self._remotes[number].forget(part) for number, part in parts.items()))

    @contextlib.asynccontextmanager
    async def hold(self, names: Iterable[str]) -> AsyncIterator[Mapping[str, str]]:
        """As `Remote.hold`."""
        parts: dict[int, list[str]] = {}
        for name in names:
            parts.setdefault(share_of(name, len(self._remotes)), []).append(name)
        async with contextlib.AsyncExitStack() as held:
            refused = [
                await held.enter_async_context(self._remotes[number].hold(part)) for number, part in parts.items()
            ]
            yield ChainMap(*map(dict, refused))

    async def close(self) -> None:
        """As `Remote.close`."""
        await asyncio.gather(*(remote.close() for remote in dict.fromkeys(self._remotes)))

    def _of(self, name: str) -> Remote:
        return self._remotes[share_of(name, len(self._remotes))]
