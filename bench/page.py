"""What people who look at the page cost: how long pages take, and how much slower a deployment is that many watch.

Nodes are light ones of a lab with its service. The same deployment is done without anybody at the page and with many
browsers at the page of its run, which ask for it each second as browsers do; they are clients in this process, and
take their share of the same processors. Then the largest pages are asked for one after the other, and beside each the
same question is answered for a program by ``/v1``, without a page.

Run as root: ``python -m bench page [--quick] [--nodes N] [--browsers N] [--rounds N] [--json FILE]``; the status is 1
when a node is KO or a browser is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.callers import Client, Latencies, RefusedError
from bench.deploy import laboratory, ours
from kadeploy.lab.lab import Lab

PERIOD = 1.0
"""Seconds between two looks of a browser at a run."""
PAGES = {
    "/ui/nodes": "/v1/nodes",
    "/ui/runs": "/v1/workflows",
    "/ui/environments": "/v1/environments",
    "/ui/statistics": "",
}
"""Pages whose size grows with the site, and who gives programs the same."""
_LOOKS = 5
"""At each of them; the median counts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 when a node is KO or a browser is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--browsers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2, help="of each kind, in turn")
    parser.add_argument("--quick", action="store_true", help="eight nodes, five browsers, one round")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    nodes, browsers, rounds = (8, 5, 1) if options.quick else (options.nodes, options.browsers, options.rounds)
    with laboratory("light", nodes, service=True) as lab:
        runs = watched(lab, browsers, rounds)
        pages = asyncio.run(timed(lab))
    figures = {"nodes": nodes, "browsers": browsers, "runs": runs, "pages": pages}
    report(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if any(run["failed"] or run["refused"] for run in runs) else 0


def watched(lab: Lab, browsers: int, rounds: int) -> list[dict[str, Any]]:
    """Deployments without and with browsers, in turn, so that a slow hour of the machine meets both."""
    found = []
    for count in [0, browsers] * rounds:
        with TemporaryDirectory(prefix="kadeploy-bench-") as folder, looking(lab, count) as told:
            run = ours(lab, Path(folder))
        found.append(
            {
                "browsers": count,
                "wall": run.wall,
                "failed": run.failed,
                "answers": len(told.seconds),
                "p95": told.share(0.95),
                "refused": told.failures[:3],
            }
        )
    return found


@contextmanager
def looking(lab: Lab, browsers: int) -> Iterator[Latencies]:
    """So many browsers at the run that begins next, each on a connection of its own, until the block ends."""
    told, over = Latencies(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_look(lab.socket, browsers, told, over)))
    thread.start()
    try:
        yield told
    finally:
        over.set()
        thread.join()


async def _look(path: Path, browsers: int, told: Latencies, over: threading.Event) -> None:
    before = await _running(path) if browsers else set()
    while browsers and not (new := await _running(path) - before):
        if over.is_set():
            return
        await asyncio.sleep(0.2)
    target = f"/ui/runs/{new.pop()}/now" if browsers else ""

    async def browser(rank: int) -> None:
        client, due = Client(path), time.perf_counter() + PERIOD * rank / browsers
        while not over.is_set():
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            try:
                await client.ask(target)
                told.seconds.append(time.perf_counter() - due)
            except (OSError, EOFError, RefusedError) as error:
                told.failures.append(f"{type(error).__name__} {error}")
                client.close()
            due += PERIOD
        client.close()

    await asyncio.gather(*map(browser, range(browsers)))


async def _running(path: Path) -> set[str]:
    client = Client(path)
    found = json.loads(await client.ask("/v1/workflows"))
    client.close()
    return set(found)


async def timed(lab: Lab) -> list[dict[str, Any]]:
    """Milliseconds that pages take, and what programs get in their place."""
    client, found = Client(lab.socket), []
    for page, resource in PAGES.items():
        size, milliseconds = await _median(client, page)
        found.append({"page": page, "bytes": size, "ms": milliseconds, "resource": resource})
        if resource:
            _, found[-1]["ms of the resource"] = await _median(client, resource)
    client.close()
    return found


async def _median(client: Client, target: str) -> tuple[int, float]:
    times, size = [], 0
    for _ in range(_LOOKS):
        began = time.perf_counter()
        size = len(await client.ask(target))
        times.append(1000 * (time.perf_counter() - began))
    return size, statistics.median(times)


def report(figures: dict[str, Any]) -> None:
    """Print it for people."""
    print(f"{figures['nodes']} light nodes, one deployment at a time")
    for run in figures["runs"]:
        looks = f"{run['answers']:>7} answers, p95 {run['p95']:.0f} ms" if run["browsers"] else ""
        print(f"{run['browsers']:>4} browsers: {run['wall']:>6.1f} s, {run['failed']} KO {looks}")
    alone, beside = (_walls(figures["runs"], count) for count in (0, figures["browsers"]))
    print(f"watched, it takes {100 * (beside / alone - 1):+.1f} % of the time more")
    for page in figures["pages"]:
        other = f"  ({page['resource']}: {page['ms of the resource']:.0f} ms)" if page["resource"] else ""
        print(f"{page['page']:<18} {page['bytes'] / 1000:>7.0f} kB {page['ms']:>6.0f} ms{other}")


def _walls(runs: Sequence[dict[str, Any]], browsers: int) -> float:
    """Seconds of the fastest: what else the machine does only adds."""
    return min(run["wall"] for run in runs if run["browsers"] == browsers)


if __name__ == "__main__":
    raise SystemExit(main())
