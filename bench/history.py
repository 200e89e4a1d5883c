"""A site with a long past, 10,000 nodes and 10⁷ rows of the log: how long its lists, pages and tools take.

A service serves the site over its socket; each page and list is asked for one after the other, and what its process
used of a processor is told beside what the client waited. Tools are whole processes. Statistics are asked for once
before, as the first look at old days sums them up: that time is told too.

Run: ``python -m bench history [--quick] [--site FOLDER] [--only WORD] [--json FILE]``; the status is 1 when a limit is
missed. A site in FOLDER stays there, and is used again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.callers import Client, Latencies
from bench.commands import cost, prepare
from bench.service import Service, serving

NODES, ROWS, ENVIRONMENTS = 10_000, 10_000_000, 200
DAYS = 365
"""For which the log goes back."""
TOGETHER = 20
"""Nodes of an operation."""
LISTS, PAGES, TOOLS = 250.0, 300.0, 5000.0
"""Milliseconds that 99 % of answers may take, and tools as processes."""
QUESTIONS = {
    "/v1/nodes": LISTS,
    "/v1/workflows": LISTS,
    "/v1/statistics/latest?nodes=node-%5B1-500%5D.bench": LISTS,
    "/metrics": LISTS,
    "/ui/nodes": PAGES,
    "/ui/nodes?nodes=node-%5B1-500%5D.bench": PAGES,
    "/ui/nodes/node-77.bench": PAGES,
    "/ui/runs": PAGES,
    "/ui/runs?page=40": PAGES,
    "/ui/runs?node=node-77.bench": PAGES,
    "/ui/environments": PAGES,
    "/ui/quarantine": PAGES,
    "/ui/statistics?days=1": PAGES,
    "/ui/statistics?days=7": PAGES,
    "/ui/statistics?days=30": PAGES,
}
"""What is asked for, and the milliseconds that it may take."""
COMMANDS = {
    "kanodes3 -d": ["kanodes3", "-d"],
    "kastat3 -d, a node": ["kastat3", "-d", "-m", "node-77.bench"],
    "kastat3 -d, a day": ["kastat3", "-d", "-x", "{day}", "-y", "{next}"],
    "kastat3 -a, a week": ["kastat3", "-a", "0", "-x", "{week}"],
    "kastat3 -b, a month": ["kastat3", "-b", "-x", "{month}"],
    "inventory": ["ansible-inventory", "--graph", "-i", "{folder}/nodes.kadeploy.yml"],
}
FILL = """
WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < :rows - 1),
  run(n, r, h, dice, kind) AS (SELECT n, n / :together, (n / :together * 7 + n % :together) % :nodes + 1,
    (n * 2654435761) % 1000003 % 1000, (n / :together * 40503) % 65537 % 20 FROM number)
INSERT INTO log (wid, operation, user, hostname, step1, step2, step3, timeout_step1, timeout_step2, timeout_step3,
  retry_step1, retry_step2, retry_step3, start, step1_duration, step2_duration, step3_duration, env, anonymous_env, md5,
  success, error, given_up)
SELECT 'D-' || r, CASE WHEN kind < 16 THEN 'deploy' WHEN kind < 19 THEN 'reboot' ELSE 'power' END,
  'user' || (r % 400), 'node-' || h || '.bench', 'SetDeploymentEnvUntrusted', 'BroadcastEnvChain',
  'BootNewEnvClassical', 600, 900, 600, dice % 7 = 0, 0, dice % 3, :since + r * :period, 100 + dice % 30,
  60 + dice % 20, 50 + dice % 40, 'debian-' || (r * 31 % :environments) || ':1', 0, '', dice >= 30,
  CASE WHEN dice < 3 THEN 'aborted: its controller is gone'
    WHEN dice < 20 THEN 'BootNewEnvClassical-wait_reboot: no answer of node-' || h || ' within 600 s'
    WHEN dice < 30 THEN 'SetDeploymentEnvUntrusted-reboot: the BMC of node-' || h || ' stays silent' ELSE '' END, ''
FROM run
"""
FILL_JOURNAL = (
    """
INSERT INTO workflows (wid, operation, user, env_name, env_version, env_owner, anonymous, started, ended, state, host,
  pid, process_start, boot_id, seen)
SELECT wid, operation, user, substr(env, 1, length(env) - 2), 1, 'root', 0, start, start + 300, 'ended', 'h', 1, '', '',
  start + 300 FROM log WHERE start >= :kept GROUP BY wid
""",
    """
INSERT INTO progress (wid, node, cluster, macro_step, micro_step, state, told)
SELECT wid, hostname, 'bench', 'BootNewEnvClassical', 'wait_reboot', 'ok', '' FROM log WHERE start >= :kept
""",
)
_SCALES = {True: (1000, 5), False: (1, 100)}
"""By what is quick: a part of the data, and how often a question is asked."""


@dataclass(frozen=True)
class Told:
    """How long a question takes, in milliseconds."""

    what: str
    first: float
    p50: float
    p99: float
    cpu: float
    """Of the service's process, or of the tool; the mean."""
    limit: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a thousandth of the data: no judgement")
    parser.add_argument("--site", metavar="FOLDER", help="the site's folder, made where it is not there")
    parser.add_argument("--only", metavar="WORD", default="", help="what has this in its name")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    scale, times = _SCALES[options.quick]
    with tempfile.TemporaryDirectory(prefix="kadeploy-bench-") as name:
        folder = Path(options.site or name)
        if not (folder / "site.yml").exists():
            fill(folder, NODES // min(scale, 10), ROWS // scale)
        found = [*asked(folder, options.only, times), *run(folder, options.only)]
    report(found)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(each) for each in found], indent=2) + "\n", encoding="utf-8")
    return 0 if options.quick or all(each.p99 <= each.limit for each in found) else 1


# --- the site ---------------------------------------------------------------------------------------------------------


def fill(folder: Path, nodes: int, rows: int) -> None:
    """Make the site, whose last operation has just ended."""
    folder.mkdir(parents=True, exist_ok=True)
    path = prepare(folder, nodes, 1, ENVIRONMENTS)
    with (folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("quarantine: {failures: 0.6, operations: 5, days: 14}\n")
    (folder / "nodes.kadeploy.yml").write_text(f"plugin: kadeploy.core.kadeploy\nconfig_dir: {folder}\n")
    now = int(time.time())
    runs = max(1, rows // TOGETHER)
    period = max(1, DAYS * 86400 // runs)
    values = {"rows": rows, "nodes": nodes, "together": TOGETHER, "environments": ENVIRONMENTS, "period": period}
    values |= {"since": now - 600 - period * runs, "kept": now - 30 * 86400}
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA cache_size = -1000000")
        connection.execute("DELETE FROM log")
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'log'")
        indexes = [(name, sql) for name, sql in found if sql]
        for name, _ in indexes:  # made afterwards, in order, they take a fifth of the time
            connection.execute(f"DROP INDEX {name}")
        connection.execute(FILL, values)
        for _, sql in indexes:
            connection.execute(sql)
        for statement in FILL_JOURNAL:
            connection.execute(statement, values)
    connection.close()


# --- the service ------------------------------------------------------------------------------------------------------


def asked(folder: Path, only: str, times: int) -> list[Told]:
    """What each question takes."""
    wanted = {target: limit for target, limit in QUESTIONS.items() if only in target}
    if not wanted:
        return []
    with serving(folder) as service:
        return asyncio.run(_asked(service, wanted, times))


async def _asked(service: Service, wanted: dict[str, float], times: int) -> list[Told]:
    client, found = Client(service.socket), []
    for target, limit in wanted.items():
        [first] = await _times(client, target, 1)
        before = service.seconds
        told = Latencies(await _times(client, target, times))
        cpu = 1000 * (service.seconds - before) / times
        found.append(Told(target, 1000 * first, told.share(0.5), told.share(0.99), cpu, limit))
    client.close()
    return found


async def _times(client: Client, target: str, times: int) -> list[float]:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        await client.ask(target)
        found.append(time.perf_counter() - began)
    return found


# --- tools ------------------------------------------------------------------------------------------------------------


def run(folder: Path, only: str) -> list[Told]:
    """What each tool takes."""
    environment = os.environ | {"KADEPLOY_CONFIG_DIR": str(folder)}
    now = int(time.time())
    days = {"day": 2, "next": 1, "week": 7, "month": 30}
    places: dict[str, Any] = {
        name: time.strftime("%Y:%m:%d:%H:%M:%S", time.localtime(now - back * 86400)) for name, back in days.items()
    }
    places["folder"] = folder
    tools, found = Path(sys.executable).parent, []
    for what, words in COMMANDS.items():
        if only in what:
            name, *rest = (word.format(**places) for word in words)
            took = cost([tools / name, *rest], environment)
            wall = 1000 * took.wall
            found.append(Told(what, wall, wall, wall, 1000 * took.cpu, TOOLS))
    return found


def report(found: Sequence[Told]) -> None:
    """Print it for people."""
    print(f"{'milliseconds':<42} {'first':>8} {'p50':>8} {'p99':>8} {'CPU':>8}  limit")
    for each in found:
        missed = "  MISSED" if each.p99 > each.limit else ""
        print(
            f"{each.what:<42} {each.first:>8.0f} {each.p50:>8.1f} {each.p99:>8.1f} {each.cpu:>8.1f}"
            f"  {each.limit:.0f}{missed}"
        )


if __name__ == "__main__":
    sys.exit(main())
