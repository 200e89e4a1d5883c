"""How long the tools that only read take, as whole processes, and how much memory.

Each is compared, in the same run, to what cannot be faster: importing the libraries it uses, or the same question put
to the ``sqlite3`` shell. Run: ``python -m bench commands [--quick] [--json FILE]``; the status is 1 when a target is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kadeploy.config.folder import load_site
from kadeploy.state import database
from kadeploy.state.tables import EnvironmentRow, NodeState

IMPORTS = "import typer, peewee"
GROUP_BY = "SELECT hostname, COUNT(*), SUM(success) FROM log GROUP BY hostname"
SITE = """\
name: bench
state_dir: {folder}/state
server_address: 127.0.0.1
ssh:
  private_key: {folder}/key
  host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf
boot: {{tftp_root: {folder}, http_root: {folder}, http_url: 'http://127.0.0.1/'}}
"""
CLUSTER = """\
nodes: [{{name: 'node-[1-{count}].bench', address: '127.[1-{a}].[1-{b}].1'}}]
disk: {{device: /dev/sda, partitions: [{{number: 1, role: deploy}}]}}
"""
FILL_LOG = """
WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < :rows - 1)
INSERT INTO log (wid, operation, user, hostname, step1, step2, step3, timeout_step1, timeout_step2, timeout_step3,
  retry_step1, retry_step2, retry_step3, start, step1_duration, step2_duration, step3_duration, env, anonymous_env, md5,
  success, error, given_up)
SELECT 'D-' || (n / 100), 'deploy', 'user' || (n % 40), 'node-' || (n % :nodes + 1) || '.bench',
  'SetDeploymentEnvUntrusted', 'BroadcastEnvChain', 'BootNewEnvClassical', 600, 900, 600,
  n % 7 = 0, 0, n % 3, 1600000000 + n, 100 + n % 30, 60 + n % 20, 50 + n % 40, 'debian:' || (n % 9), 0,
  'd41d8cd98f00b204e9800998ecf8427e', n % 11 != 0, '', '' FROM number
"""


@dataclass(frozen=True)
class Cost:
    """The best of several runs of a command: seconds of wall and CPU time, MB of memory."""

    wall: float
    cpu: float
    rss: float


@dataclass(frozen=True)
class Result:
    """A command, what it is measured against, and the target: *ratio* at most *limit*, memory below *rss_limit* MB.

    The ratio is that of CPU times, which a busy machine disturbs less than wall times.
    """

    name: str
    command: Cost
    baseline: Cost
    limit: float
    rss_limit: float

    @property
    def ratio(self) -> float:
        """CPU time as a multiple of the baseline's."""
        return self.command.cpu / self.baseline.cpu

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= self.limit and self.command.rss < self.rss_limit


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data and fewer runs: no judgement")
    options = parser.parse_args(argv)
    scale, runs = (10, 3) if options.quick else (1, 7)
    with tempfile.TemporaryDirectory(prefix="kadeploy-bench-") as name:
        path = prepare(Path(name), nodes=10_000 // scale, rows=1_000_000 // scale, environments=1_000 // scale)
        results = measure(path, Path(name), runs)
    print(table(results, judge=not options.quick))
    if options.json:
        figures = [asdict(result) | {"ratio": result.ratio, "met": result.met} for result in results]
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if options.quick or all(result.met for result in results) else 1


def prepare(folder: Path, nodes: int, rows: int, environments: int) -> Path:
    """Make a site in *folder* with so many nodes, log rows and environments; returns its database."""
    (folder / "clusters").mkdir()
    (folder / "site.yml").write_text(SITE.format(folder=folder), encoding="utf-8")
    (folder / "clusters" / "bench.yml").write_text(CLUSTER.format(count=nodes, a=nodes // 100, b=100), encoding="utf-8")
    site = load_site(folder)
    database.connect(site)
    states = (
        {
            "hostname": f"node-{rank}.bench",
            "state": "deployed",
            "user": "alice",
            "date": 1600000000,
            "env_name": "debian",
            "env_version": 12,
            "env_owner": "root",
        }
        for rank in range(1, nodes + 1)
    )
    database.insert(NodeState, states)
    image = '{"file": "/srv/images/debian.tgz", "kind": "tgz"}'
    database.insert(
        EnvironmentRow,
        (
            {
                "name": f"debian-{rank}",
                "version": 1,
                "user": "root",
                "visibility": "public",
                "description": "Debian for tests",
                "image": image,
            }
            for rank in range(environments)
        ),
    )
    database.disconnect()
    path = site.state / "kadeploy.db"
    with sqlite3.connect(path) as connection:
        connection.execute(FILL_LOG, {"rows": rows, "nodes": nodes})
    connection.close()
    return path


def measure(path: Path, folder: Path, runs: int) -> list[Result]:
    """Run every command and its baseline *runs* times, in turns, so that a noisy moment hits both."""
    tools = Path(sys.executable).parent
    imports = [sys.executable, "-c", IMPORTS]
    questions = (
        ("kanodes3 -d", [tools / "kanodes3", "-d"], imports, 2.5, 200.0),
        ("kaenv3 -l", [tools / "kaenv3", "-l"], imports, 2.5, 200.0),
        ("kastat3 -b", [tools / "kastat3", "-b"], ["sqlite3", path, GROUP_BY], 3.0, 100.0),
        ("kastat3 -d", [tools / "kastat3", "-d"], ["sqlite3", path, "SELECT * FROM log"], 6.0, 100.0),
    )
    environment = dict(os.environ, KADEPLOY_CONFIG_DIR=str(folder))
    results = []
    for name, command, baseline, limit, rss in questions:
        pairs = [(cost(command, environment), cost(baseline, environment)) for _ in range(runs)]
        ours, theirs = (best([pair[side] for pair in pairs]) for side in (0, 1))
        results.append(Result(name, ours, theirs, limit, rss))
    return results


def cost(command: Sequence[str | Path], environment: dict[str, str]) -> Cost:
    """Run *command* once, its output thrown away."""
    began = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def best(costs: Sequence[Cost]) -> Cost:
    """The least of each figure."""
    return Cost(min(c.wall for c in costs), min(c.cpu for c in costs), min(c.rss for c in costs))


def table(results: Sequence[Result], judge: bool) -> str:
    """The results for people, with the targets when they are to *judge*: little data is outweighed by the start."""
    lines = [f"{'command':<12} {'wall':>8} {'CPU':>8} {'memory':>8} {'baseline':>9} {'ratio':>6}  target"]
    for result in results:
        ours = result.command
        times = f"{ours.wall:>6.2f} s {ours.cpu:>6.2f} s {ours.rss:>5.0f} MB {result.baseline.cpu:>7.2f} s"
        target = f"≤ {result.limit}{'' if result.met else '  MISSED'}" if judge else "-"
        lines.append(f"{result.name:<12} {times} {result.ratio:>6.2f}  {target}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
