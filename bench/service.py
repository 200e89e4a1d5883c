"""A service and its many users: how long lists take, how late events come, what becomes of its memory.

A real service serves a site over its socket. While five deployments run, a thousand users ask it for lists, each every
ten seconds; nginx, which has the same bytes in files, answers the same clients beside it. The deployments act nothing
on nodes: they are what competes with the service for the controller's processors. Then a thousand clients follow one
deployment, and fifty deployments begin at once.

Run as root, who may ask in everybody's name: ``python -m bench service [--quick] [--minutes N] [--json FILE]``; the
status is 1 when lists take too long or a deployment does not end as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import commands, nginx
from bench.callers import Client, Latencies, follow, poll
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import load_site
from kadeploy.operations.requests import DeployRequest, Recorded
from kadeploy.state import database, rights

LIMIT = 100.0
"""Milliseconds within which 95 % of the lists have to be there."""
LISTS = (
    "/v1/nodes",
    "/v1/workflows",
    "/v1/environments",
    "/v1/nodes?nodes=node-%5B1-20%5D.bench",
    "/v1/holders",
    "/v1/site",
)
"""What users ask for, in turn."""
GROWTH = 0.5
"""MB a minute by which the memory may grow, where `_LONG` minutes or more are measured."""
BESIDE = 5
"""Deployments that run meanwhile."""
OWNERS, QUOTA = 5, 10
"""Users who begin as many deployments as they may have, at once."""
PAUSE = 20
"""Seconds for which a deployment waits, as for nodes that boot."""
PLAY = """\
- name: {name}
  hosts: kadeploy_nodes
  gather_facts: false
  connection: local
  vars: {{ansible_python_interpreter: {python}}}
  tasks:
    - ansible.builtin.shell: {waits}
      run_once: true
"""
_AT_ONCE = 16
"""Connections that ask without a pause."""
_LONG = 5.0
_LOOK = 1.0
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    nodes: int = 1000
    environments: int = 200
    users: int = 1000
    period: float = 10.0
    """Seconds between two questions of a user."""
    seconds: float = 30.0
    followers: int = 1000
    requests: int = 2000
    """Of each list, without a pause."""
    quota: int = QUOTA


QUICK = Scale(nodes=100, environments=20, users=100, seconds=5.0, followers=100, requests=200, quota=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 when something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: times are not judged")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="N", help="and for so long all of it at once")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    scale = QUICK if options.quick else Scale()
    with tempfile.TemporaryDirectory(prefix="kadeploy-bench-") as name:
        prepare(Path(name), scale)
        with serving(Path(name)) as service:
            figures, faults = asyncio.run(measure(service, scale, options.minutes))
    if not options.quick and figures["lists"]["service"]["p95"] > LIMIT:
        faults.append(f"lists take more than {LIMIT:.0f} ms")
    print("\n".join(f"FAULT: {fault}" for fault in faults))
    if options.json:
        Path(options.json).write_text(json.dumps(figures | {"faults": faults}, indent=2) + "\n", encoding="utf-8")
    return 1 if faults else 0


# --- the service ------------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """A service that runs: its folder, its socket, and what its process took."""

    folder: Path
    socket: Path
    pid: int

    @property
    def memory(self) -> float:
        """Resident memory, MB (proc(5))."""
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[0]) / 1024

    @property
    def seconds(self) -> float:
        """CPU time of the process itself."""
        times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """A service of the site whose configuration is in *folder*."""
    words = [Path(sys.executable).parent / "kadeploy3d", "run"]
    environment = os.environ | {"KADEPLOY_CONFIG_DIR": str(folder)}
    with (folder / "log").open("wb") as log, subprocess.Popen(words, env=environment, stderr=log) as process:
        path = folder / "state" / "kadeploy3d.sock"
        try:
            while not listens(path):
                time.sleep(0.1)
                if process.poll() is not None:
                    raise SystemExit((folder / "log").read_text())
            yield Service(folder, path, process.pid)
        finally:
            process.terminate()


def listens(path: Path) -> bool:
    """Whether somebody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def prepare(folder: Path, scale: Scale) -> None:
    """Make the site, and who may deploy what on it."""
    commands.prepare(folder, nodes=scale.nodes, rows=10_000, environments=scale.environments)
    with (folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(f"service: {{folders: [{folder}/images], quota: {{workflows: {scale.quota}}}}}\n")
    (folder / "playbooks").mkdir()
    for name, waits in (("Pause", f"sleep {PAUSE}"), ("Gate", f"until test -e {folder}/gate; do sleep 1; done")):
        text = PLAY.format(name=f"BroadcastEnv{name}", python=sys.executable, waits=waits)
        (folder / "playbooks" / f"BroadcastEnv{name}.yml").write_text(text, encoding="utf-8")
    (folder / "images").mkdir()
    with tarfile.open(folder / "images" / "tiny.tgz", "w:gz") as archive:
        archive.add(__file__, "file")
    site = load_site(folder)
    for user in ["root", *owners()]:
        rights.add(site, user, ["*"], ["*"])
    database.disconnect()


def owners() -> list[str]:
    """Users who deploy."""
    return [f"owner{rank}" for rank in range(OWNERS)]


# --- what is measured -------------------------------------------------------------------------------------------------


async def measure(service: Service, scale: Scale, minutes: float) -> tuple[dict[str, Any], list[str]]:
    """Figures by what was done, and what was not as it should be."""
    faults: list[str] = []
    image = {"file": f"server://{service.folder}/images/tiny.tgz", "kind": "tgz"}
    tiny = {"name": "tiny", "image": image, "kernel": "/vmlinuz", "filesystem": "ext4", "visibility": "public"}
    await Client(service.socket).ask("/v1/environments", {"environments": [tiny]})
    with Memory(service) as memory:
        figures = {
            "rates": await rates(service, scale),
            "lists": await lists(service, scale, faults),
            "events": await followed(service, scale, faults),
            "at once": await at_once(service, scale, faults),
        }
        if minutes:
            figures["minutes"] = await endured(service, scale, minutes, memory, faults)
        figures["memory"] = memory.figures()
    return figures, faults


async def rates(service: Service, scale: Scale) -> dict[str, Any]:
    """Lists without a pause, while nothing else runs: questions per second, ours and nginx's."""
    print(f"{'list':<40} {'bytes':>8} {'ours/s':>8} {'nginx/s':>8}  share", flush=True)
    found = {}
    async with stranger(service) as (answers, other):
        for target in LISTS:
            ours, theirs = [await saturated(path, target, scale.requests) for path in (service.socket, other)]
            found[target] = {"bytes": len(answers[target]), "ours": ours, "nginx": theirs}
            share = f"{100 * ours / theirs:.1f} %" if theirs else "-"
            print(f"{target:<40} {len(answers[target]):>8} {ours:>8.0f} {theirs:>8.0f}  {share}", flush=True)
    return found


async def saturated(path: Path | None, target: str, requests: int) -> float:
    """Answers per second, as h2load counts them; 0 where it, or who would answer, is not installed."""
    if path is None or shutil.which("h2load") is None:
        return 0.0
    words = ["h2load", "--h1", "-n", str(requests), "-c", str(_AT_ONCE), "-B", f"unix:{path}"]
    words += ["-H", "X-Kadeploy-User: user0"]
    done = await asyncio.create_subprocess_exec(*words, f"http://localhost{target}", stdout=subprocess.PIPE)
    said = (await done.communicate())[0].decode()
    if f" {requests} succeeded" not in said:
        raise SystemExit(said)
    return float(re.findall(r"([\d.]+) req/s", said)[0])


async def lists(service: Service, scale: Scale, faults: list[str]) -> dict[str, Any]:
    """Users who ask for lists while deployments run."""
    async with deployments(service, faults), stranger(service) as (_, other):
        before, began = service.seconds, time.monotonic()
        ours = await poll(service.socket, LISTS, scale.users, scale.period, scale.seconds)
        share = (service.seconds - before) / (time.monotonic() - began)
        used, began = time.process_time(), time.monotonic()
        theirs = await poll(other, LISTS, scale.users, scale.period, scale.seconds) if other else {}
        clients = (time.process_time() - used) / (time.monotonic() - began)
    faults += [f"{target}: {told.failures[0]}" for target, told in ours.items() if told.failures]
    print(f"\n{scale.users} users, each asks every {scale.period:g} s; {BESIDE} deployments run; milliseconds")
    print(f"{'list':<40} {'p50':>8} {'p95':>8} {'p99':>8}")
    for target, told in ours.items():
        print(f"{target:<40} {told.share(0.5):>8.1f} {told.share(0.95):>8.1f} {told.share(0.99):>8.1f}")
    told = {"service": summary(ours), "nginx": summary(theirs), "CPU": share, "CPU of the clients": clients}
    for who in ("service", "nginx"):
        print(f"{who + ', all':<40} {told[who]['p50']:>8.1f} {told[who]['p95']:>8.1f} {told[who]['p99']:>8.1f}")
    print(f"the service takes {share:.0%} of a processor, the clients {clients:.0%}", flush=True)
    return told | {"targets": {target: summary({target: each}) for target, each in ours.items()}}


def summary(told: Mapping[str, Latencies]) -> dict[str, float]:
    """Milliseconds of all answers together."""
    every = Latencies([second for each in told.values() for second in each.seconds])
    return {f"p{part:.0f}": every.share(part / 100) for part in (50, 95, 99)} | {"answers": len(every.seconds)}


async def followed(service: Service, scale: Scale, faults: list[str]) -> dict[str, Any]:
    """Followers of one deployment: milliseconds from when an event was told to when each has it."""
    gate = service.folder / "gate"
    gate.unlink(missing_ok=True)
    wid = await begin(service, "root", names(90, 10), "Gate")
    before, memory = service.seconds, service.memory
    following = asyncio.create_task(follow(service.socket, wid, scale.followers))
    await asyncio.sleep(10)
    idle, memory = (service.seconds - before) / 10, service.memory - memory
    gate.touch()
    told = await following
    faults += told.failures[:1]
    found = summary({wid: told}) | {"CPU while nothing happens": idle, "memory": memory}
    print(f"\n{scale.followers} followers of a deployment, milliseconds from an event to who follows")
    print(f"p50 {found['p50']:.0f}, p95 {found['p95']:.0f}, p99 {found['p99']:.0f}; {found['answers']} events arrived")
    print(f"while nothing happens they take {idle:.0%} of a processor; {memory:.0f} MB", flush=True)
    return found


async def at_once(service: Service, scale: Scale, faults: list[str]) -> dict[str, Any]:
    """Each owner begins one deployment more than the quota; all want one node in common."""
    (service.folder / "gate").unlink(missing_ok=True)
    began = time.monotonic()
    asked = [(user, rank) for rank in range(scale.quota + 1) for user in owners()]
    wanted = [
        begin(service, user, [*names(20 + 2 * number, 2), names(10, 1)[0]], "Gate")
        for number, (user, _) in enumerate(asked)
    ]
    answers = await asyncio.gather(*wanted, return_exceptions=True)
    started = time.monotonic() - began
    wids = [answer for answer in answers if isinstance(answer, str)]
    refused = [str(answer) for answer in answers if not isinstance(answer, str)]
    if len(wids) != OWNERS * scale.quota or not all("LimitError" in each for each in refused):
        faults.append(f"{len(wids)} of {OWNERS * scale.quota} deployments began: {refused}")
    running = len(json.loads(await Client(service.socket).ask("/v1/workflows")))
    (service.folder / "gate").touch()
    reports = await asyncio.gather(*(report(service, wid) for wid in wids))
    seconds = time.monotonic() - began
    done = [name for each in reports for name in each["ok"]]
    if running != len(wids) or len(done) != len(set(done)) or len(done) != 2 * len(wids) + 1:
        faults.append(f"{running} ran at once; {len(done)} nodes were deployed, {len(set(done))} different ones")
    print(f"\n{len(wids)} deployments at once: begun after {started:.1f} s, ended after {seconds:.1f} s;", end=" ")
    print(f"{len(refused)} more than the quota were refused, and one had the node that all wanted", flush=True)
    return {"deployments": len(wids), "begun": started, "ended": seconds}


async def endured(service: Service, scale: Scale, minutes: float, memory: Memory, faults: list[str]) -> dict[str, Any]:
    """Users, followers and deployments for so long."""
    first, end = len(memory.told), time.monotonic() + 60 * minutes

    async def following() -> None:
        while time.monotonic() < end:
            wid = await begin(service, "root", names(90, 10), "Pause")
            faults.extend((await follow(service.socket, wid, scale.followers // 10)).failures[:1])

    async with deployments(service, faults):
        told, _ = await asyncio.gather(
            poll(service.socket, LISTS, scale.users, scale.period, 60 * minutes), following()
        )
    faults += [f"{target}: {each.failures[0]}" for target, each in told.items() if each.failures]
    slope = memory.slope(first + 60)
    if minutes >= _LONG and slope > GROWTH:
        faults.append(f"the memory of the service grows by {slope:.1f} MB a minute")
    found = summary(told) | {"MB per minute": slope}
    print(
        f"\n{minutes:g} minutes: p50 {found['p50']:.1f} ms, p95 {found['p95']:.1f} ms; {found['answers']} answers;",
        end=" ",
    )
    print(f"memory from {memory.told[first][1]:.1f} to {memory.told[-1][1]:.1f} MB, {slope:+.2f} MB a minute")
    return found


# --- deployments ------------------------------------------------------------------------------------------------------


def names(first: int, count: int) -> list[str]:
    """Nodes of the site."""
    return [f"node-{rank}.bench" for rank in range(first, first + count)]


async def begin(service: Service, user: str, nodes: Sequence[str], broadcast: str) -> str:
    """Deploy: the workflow id."""
    client = Client(service.socket, user)
    words = {"SetDeploymentEnv": "Dummy", "BroadcastEnv": broadcast, "BootNewEnv": "Dummy"}
    steps = {step: (Implementation(name=step + word),) for step, word in words.items()}
    environment = Recorded(name="tiny", owner="root")
    request = DeployRequest(nodes=tuple(nodes), environment=environment, force_steps=steps)
    try:
        return str(json.loads(await client.ask("/v1/deployments", request))["wid"])
    finally:
        client.close()


async def report(service: Service, wid: str) -> dict[str, Any]:
    """How it ended, once it has."""
    client = Client(service.socket)
    told = [json.loads(event) async for event in client.events(wid)]
    client.close()
    return dict(told[-1]["report"])


@asynccontextmanager
async def deployments(service: Service, faults: list[str]) -> AsyncIterator[None]:
    """Some run all the time, each one after the other on its nodes; they do not begin all at once."""
    over = False

    async def again(rank: int) -> None:
        await asyncio.sleep(rank * PAUSE / BESIDE)
        while not over:
            wid = await begin(service, "root", names(1 + 2 * rank, 2), "Pause")
            found = await report(service, wid)
            if found["ko"]:
                faults.append(f"{wid}: {found['ko']}")

    tasks = [asyncio.create_task(again(rank)) for rank in range(BESIDE)]
    try:
        yield
    finally:
        over = True
        await asyncio.gather(*tasks)


@asynccontextmanager
async def stranger(service: Service) -> AsyncIterator[tuple[dict[str, bytes], Path | None]]:
    """What the service answers, and the socket of an nginx that answers the same, where it is installed."""
    client = Client(service.socket, "user0")
    answers = {target: await client.ask(target) for target in LISTS}
    client.close()
    if not nginx.is_here():
        print("nginx is not installed (Debian's nginx-light): ours are measured alone")
        yield answers, None
        return
    with nginx.serving(service.folder / "nginx", answers) as path:
        yield answers, path


class Memory(threading.Thread):
    """Looks at the memory of a service, from beginning to end."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.told: list[tuple[float, float]] = []
        """Seconds, MB."""
        self._service = service
        self._over = threading.Event()

    def __enter__(self) -> Memory:
        self._look()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(_LOOK):
            self._look()

    def slope(self, since: int) -> float:
        """MB a minute, by least squares, from a look on."""
        seconds, sizes = zip(*self.told[min(since, len(self.told) // 2) :], strict=True)
        return 60 * statistics.linear_regression(seconds, sizes).slope

    def figures(self) -> dict[str, float]:
        """At the beginning, at most, at the end."""
        sizes = [size for _, size in self.told]
        found = {"first": sizes[0], "most": max(sizes), "last": sizes[-1]}
        print(f"memory of the service: {', '.join(f'{name} {size:.0f} MB' for name, size in found.items())}")
        return found

    def _look(self) -> None:
        self.told.append((time.monotonic(), self._service.memory))


if __name__ == "__main__":
    sys.exit(main())
