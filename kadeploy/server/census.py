"""What there is at a site and what has come of its runs, counted at most once every few seconds.

Totals begin at zero when the service does: workflows that end from then on count, each once, whoever began them and
whichever process did them. They are found by the second at which they ended; as other machines' clocks and long
transactions may put that into the past, it is looked back `OVERLAP` seconds.
"""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kadeploy import events
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.power import silence
from kadeploy.remote import window
from kadeploy.runner import playbooks
from kadeploy.server.broadcasts import Broadcasts, Going
from kadeploy.state import nodes, quarantine, tally
from kadeploy.state.damage import sparing
from kadeploy.state.quarantine import Stay
from kadeploy.state.tally import Closed, Nodes, Running, Took, Verdict
from kadeploy.workflow import Operation

FRESH = 5.0
"""Seconds for which what was counted is told again."""
PATIENCE = 20.0
"""Seconds for which one who asks waits while somebody else has it counted."""
OVERLAP = 300
"""Seconds by which the end of a workflow may be told late."""
BUCKETS = (5, 10, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1800, 3600)
"""Seconds: upper bounds of the histogram of macro-steps."""
NEVER = "never_operated"
"""State of a node of which nothing is recorded."""
PUT_BY = ("rule", "administrator")
"""Who puts nodes into quarantine: no number names a user."""
Values = Mapping[Any, float]
"""Numbers by the values of their labels, a tuple of strings."""
OPERATIONS: Sequence[str] = get_args(Operation)
VERDICTS: Sequence[str] = get_args(Verdict)
RESULTS = ("ok", "partly", "ko", "aborted")
"""How a run ends: all of its nodes are OK, some are, none is, or it was stopped."""


class Census:
    """The counts of a site; threads may share it, and those that ask at the same time make the work once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._counted: tuple[Configuration, float, list[Metric]] | None = None
        self._looked = time.time()
        """When what has ended was looked for last (Unix)."""
        self._began = int(self._looked)
        self._met: set[str] = set()
        """Workflows that have been counted, as far as the next look may find them again."""
        self._broadcasts = Broadcasts(self._looked)
        self._runs: Counter[tuple[str, ...]] = Counter()
        self._results: Counter[tuple[str, ...]] = Counter()
        self._failures: Counter[tuple[str, ...]] = Counter()
        self._silent: Counter[tuple[str, ...]] = Counter()
        self._steps: dict[tuple[str, ...], Counter[int]] = {}
        """How many nodes took so many seconds."""

    def metrics(self, configuration: Configuration) -> list[Metric]:
        """What is counted now, or was `FRESH` seconds ago at most.

        Raises:
            DatabaseError: the database cannot be used, or has not answered somebody else within `PATIENCE`.
        """
        if not self._turn.acquire(timeout=PATIENCE):
            raise DatabaseError("The database has not answered for a while: look at its server, and try again.")
        try:
            known = self._counted
            if known is None or known[0] is not configuration or self._clock() - known[1] >= FRESH:
                known = self._counted = (configuration, self._clock(), self._count(configuration))
            return known[2]
        finally:
            self._turn.release()

    def _count(self, configuration: Configuration) -> list[Metric]:
        """All of it is read before anything is added: an answer that fails half-way changes no total."""
        site, began, now = configuration.site, self._clock(), time.time()
        states, aside = _states(configuration), _aside(configuration)
        running = tally.running(site)
        recent = tally.closed(site, self._horizon)
        closed = [each for each in recent if each.wid not in self._met]
        wids = [each.wid for each in closed]
        ends, took = tally.ends(site, wids, silence.PHRASES), tally.durations(site, wids)
        self._add(closed, ends, took)
        self._met, self._looked = {each.wid for each in recent}, now
        going = self._broadcasts.look(site.run_folders / wid for wid in [*wids, *(each.wid for each in running)])
        return [
            *_of_runs(site, running),
            *_of_nodes(states, aside),
            *self._totals(configuration.clusters),
            *_of_broadcasts(self._broadcasts.sent, going),
            *_of_windows(site),
            gauge("kadeploy_count_seconds", "Seconds that this count took.", (), {(): self._clock() - began}),
        ]

    @property
    def _horizon(self) -> int:
        """The second from which ends are looked for (Unix)."""
        return max(self._began, int(self._looked) - OVERLAP)

    def _add(self, closed: Iterable[Closed], ends: Sequence[Nodes], took: Iterable[Took]) -> None:
        self._runs += Counter((each.operation, result(each, ends)) for each in closed)
        for end in ends:
            self._results[end.cluster, end.operation, end.verdict] += end.number
            if end.verdict == "ko":
                self._failures[end.cluster, end.operation, *_step(end.implementation), end.micro_step] += end.number
                self._silent[(end.cluster,)] += end.number * end.told
        for each in took:
            self._steps.setdefault((each.cluster, *_step(each.implementation)), Counter())[each.seconds] += each.number

    def _totals(self, clusters: Iterable[str]) -> Iterator[Metric]:
        """Those that may come are there at zero, so that their first increase is seen."""
        yield counter(
            "kadeploy_runs_ended",
            "Runs that have ended, by result: ok (all nodes), partly (some), ko (none), aborted.",
            ("operation", "result"),
            _from_nought(itertools.product(OPERATIONS, RESULTS), self._runs),
        )
        known = list(clusters)
        yield counter(
            "kadeploy_node_results",
            "Nodes whose operation has ended, by result; aborted ones were stopped or taken away.",
            ("cluster", "operation", "result"),
            _from_nought(itertools.product(known, OPERATIONS, VERDICTS), self._results),
        )
        yield counter(
            "kadeploy_node_failures",
            "Nodes that ended KO, by the step in which they were last.",
            ("cluster", "operation", "macro_step", "implementation", "micro_step"),
            self._failures,
        )
        yield counter(
            "kadeploy_bmc_timeouts",
            "Nodes that ended KO because their BMC did not answer in time.",
            ("cluster",),
            _from_nought(itertools.product(known), self._silent),
        )
        yield self._durations()

    def _durations(self) -> Metric:
        found = HistogramMetricFamily(
            "kadeploy_macro_step_seconds",
            "Seconds that nodes took for a macro-step, all tries together; aborted ones do not count.",
            labels=("cluster", "macro_step", "implementation"),
        )
        for labels, seconds in self._steps.items():
            found.add_metric(labels, buckets(seconds), float(sum(each * count for each, count in seconds.items())))
        return found


def _from_nought(expected: Iterable[tuple[str, ...]], counted: Mapping[tuple[str, ...], int]) -> Values:
    """What was *counted*, and 0 for what is *expected* and has not come yet."""
    return {**dict.fromkeys(expected, 0), **counted}


# --- what is counted --------------------------------------------------------------------------------------------------


def _states(configuration: Configuration) -> Counter[tuple[str, ...]]:
    """Nodes of the configuration by cluster and state; one whose row is damaged counts as never operated on."""
    cluster_of = configuration.cluster_of
    found: Counter[tuple[str, ...]] = Counter()
    try:
        with sparing():
            for row in nodes.states(configuration.site):
                if row.hostname in cluster_of:
                    found[cluster_of[row.hostname], row.state] += 1
    except DatabaseError:
        if not found:
            raise
    told = Counter(cluster for cluster, _ in found.elements())
    for name, count in Counter(cluster_of.values()).items():
        found[name, NEVER] = count - told[name]
    return found


def _aside(configuration: Configuration) -> Values:
    """Nodes of the configuration in quarantine, by cluster and one of `PUT_BY`; damaged rows do not count."""
    cluster_of = configuration.cluster_of
    found: list[Stay] | None = None
    try:
        with sparing():
            found = quarantine.current(configuration.site)
    except DatabaseError:
        if found is None:
            raise
    known = [stay for stay in found if stay.node in cluster_of]
    counted: Counter[tuple[str, ...]] = Counter(
        (cluster_of[stay.node], PUT_BY[stay.put_by != quarantine.RULE]) for stay in known
    )
    return _from_nought(itertools.product(configuration.clusters, PUT_BY), counted)


def result(run: Closed, ends: Iterable[Nodes]) -> str:
    """One of `RESULTS`: how *run* ended, by the *ends* of nodes, its own among them."""
    if run.state == "aborted":
        return "aborted"
    verdicts = {each.verdict for each in ends if each.wid == run.wid}
    return ("partly" if "ok" in verdicts else "ko") if verdicts - {"ok"} else "ok"


def _step(implementation: str) -> tuple[str, str]:
    """The macro-step, and which way of doing it: those of reboots and power operations are their own."""
    return playbooks.generic(implementation) or implementation, implementation


def buckets(seconds: Mapping[int, int]) -> list[tuple[str, float]]:
    """How many took at most as long as each of `BUCKETS`, and all of them.

    >>> [number for bound, number in buckets({4: 2, 5: 1, 7000: 1}) if bound in ("5.0", "3600.0", "+Inf")]
    [3, 3, 4]
    """
    within = [0] * (len(BUCKETS) + 1)
    for each, count in seconds.items():
        within[bisect_left(BUCKETS, each)] += count
    bounds = [*(f"{bound:.1f}" for bound in BUCKETS), "+Inf"]
    return list(zip(bounds, itertools.accumulate(within), strict=True))


# --- how it is told ---------------------------------------------------------------------------------------------------


def gauge(name: str, meaning: str, labels: Sequence[str], values: Values) -> Metric:
    """A number that goes up and down, by values of its *labels*."""
    found = GaugeMetricFamily(name, meaning, labels=labels)
    for each, value in values.items():
        found.add_metric(each, value)
    return found


def counter(name: str, meaning: str, labels: Sequence[str], values: Values) -> Metric:
    """A number that only goes up, by values of its *labels*; what it is called ends in ``_total``."""
    found = CounterMetricFamily(name, meaning, labels=labels)
    for each, value in values.items():
        found.add_metric(each, value)
    return found


def _of_runs(site: Site, running: Sequence[Running]) -> Iterator[Metric]:
    states = {(each, state): 0.0 for each in OPERATIONS for state in ("running", "left")}
    quiet = {(each,): 0.0 for each in OPERATIONS}
    now = time.time()
    for run in running:
        states[run.operation, "left" if run.is_left else "running"] += 1
        if not run.is_left:
            quiet[run.operation,] = max(quiet[run.operation,], now - _heard(site.run_folders / run.wid, run))
    meaning = "Runs that have not ended; of those that are left the controller is dead, and nobody goes on."
    yield gauge("kadeploy_runs", meaning, ("operation", "state"), states)
    meaning = "Seconds since the run told something that has been silent for longest; 0 where none runs."
    yield gauge("kadeploy_run_silence_seconds", meaning, ("operation",), quiet)


def _heard(folder: Path, run: Running) -> float:
    """When it told something last (Unix); when it began, where its folder is another machine's or account's."""
    with suppress(OSError):
        return (folder / events.FILE_NAME).stat().st_mtime
    return run.started


def _of_nodes(states: Mapping[tuple[str, ...], int], aside: Values) -> Iterator[Metric]:
    yield gauge("kadeploy_nodes", "Nodes, by what was last done to them.", ("cluster", "state"), states)
    meaning = "Nodes in quarantine, by who has put them there: the site's rule, or an administrator."
    yield gauge("kadeploy_nodes_quarantined", meaning, ("cluster", "put_by"), aside)


def _of_broadcasts(sent: int, going: Going) -> Iterator[Metric]:
    yield gauge("kadeploy_broadcasts", "Broadcasts that run.", (), {(): going.number})
    meaning = "Bytes per second that reach the slowest node of each broadcast that runs, all of them together."
    yield gauge("kadeploy_broadcast_bytes_per_second", meaning, (), {(): going.rate})
    yield counter("kadeploy_broadcast_sent_bytes", "Bytes that broadcasts have sent from here.", (), {(): sent})


def _of_windows(site: Site) -> Iterator[Metric]:
    held = window.used(site.state / "windows" / "reboot")
    meaning = "Nodes that may be switched at a time, by all operations of this machine together."
    yield gauge("kadeploy_window_size", meaning, ("window",), {("reboot",): site.windows.reboot})
    yield gauge("kadeploy_window_used", "Nodes that are being switched.", ("window",), {("reboot",): held})
