"""An attempt on very many nodes is cut into shards, each a run of ansible-playbook of its own, all at the same time.

Whoever asked for the attempt sees one: its outcomes are those of all shards, and its broadcast is as far as all are.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from kadeploy.broadcast.progress import Transfer
from kadeploy.events import Event, Listener, Progress
from kadeploy.nodeset import natural_key
from kadeploy.workflow import Outcome, Verdict


def cut(nodes: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """*nodes* as shards of at most *most*: neighbours by name, in as few shards as will do, as even as can be.

    >>> cut(["n-1", "n-3", "n-10", "n-2", "n-9"], 2)
    [('n-1', 'n-2'), ('n-3', 'n-9'), ('n-10',)]
    """
    count = -(-len(nodes) // most)
    if count <= 1:
        return [tuple(nodes)]
    ordered = sorted(nodes, key=natural_key)
    size, longer = divmod(len(ordered), count)
    ends = [rank * size + min(rank, longer) for rank in range(count + 1)]
    return [tuple(ordered[first:end]) for first, end in itertools.pairwise(ends)]


def folder(run_dir: Path, number: int) -> Path:
    """The run folder of shard *number* of the attempt in *run_dir*, which stands beside it.

    >>> folder(Path("D-1/02-BroadcastEnvChain"), 3).name
    '02-BroadcastEnvChain.003'
    """
    return run_dir.with_name(f"{run_dir.name}.{number:03d}")


def at_once(
    shards: Sequence[tuple[str, ...]], play: Callable[[int, tuple[str, ...]], Mapping[str, Outcome]]
) -> dict[str, Outcome]:
    """*play* each shard (its number, from 1, and its nodes) in a thread; one that breaks costs its own nodes alone."""

    def played(number: int, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        try:
            return play(number, nodes)
        except Exception as error:  # whatever it is, the other shards go on
            return dict.fromkeys(nodes, Outcome(Verdict.KO, f"shard {number}: {type(error).__name__}: {error}"))

    with ThreadPoolExecutor(len(shards), thread_name_prefix="shard") as pool:
        answers = list(pool.map(played, range(1, len(shards) + 1), shards))
    return {node: outcome for answer in answers for node, outcome in answer.items()}


class Transfers:
    """How far the broadcast to all shards is, from how far each is; from any thread."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._lock = threading.Lock()
        self._last: dict[int, Transfer] = {}

    def heard(self, number: int, tell: Listener) -> Listener:
        """Listens to shard *number* and tells the same, but for how far the broadcast is: that holds for all shards."""

        def hear(event: Event) -> None:
            if isinstance(event, Progress):
                event = msgspec.structs.replace(event, transfer=self._together(number, event.transfer))
            tell(event)

        return hear

    def _together(self, number: int, transfer: Transfer) -> Transfer:
        """How far all are, now that *transfer* is told of one; those that have not begun have nothing yet."""
        with self._lock:
            self._last[number] = transfer
            told = list(self._last.values())
        return Transfer(
            total=max(each.total for each in told),
            done=min(each.done for each in told) if len(told) == self._shards else 0,
            sent=sum(each.sent for each in told),
            nodes=sum(each.nodes for each in told),
            seconds=max(each.seconds for each in told),
        )
