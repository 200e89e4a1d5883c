"""One image to many nodes: ours beside strangers, with faults, and over shaped links, all in the same run.

Three tables. *Speed*: N hops on this machine, each hop's sink throws the bytes away; the bare pipelines (splice and
tee, no framing, no recovery, no check) show what cannot be faster, once with a sink that takes SHA-256 as our relays
do.
*Faults*: what killing, freezing or cutting off a node, or two neighbours, adds to an undisturbed broadcast. *Links*:
network namespaces shaped by ``tc``, the share of the line rate that each node sees.

Run as root: ``python -m bench broadcast [--quick] [--json FILE]``; the status is 1 when a target is missed.
Strangers that are not installed, or do not work here, are left out: openssl, sshd, udpcast (which needs IP multicast
between network namespaces), aria2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from kadeploy.broadcast import bittorrent, chain
from kadeploy.workflow import Outcome, Verdict

SINK = "cat >/dev/null"
HASHING_SINK = "openssl dgst -sha256 >/dev/null"
SPEED_TARGET = 0.80  # of the bare pipeline whose sinks hash
FAULT_TARGET = 5.0  # seconds
LINK_TARGET = 0.94
LINE_RATE = 25_000_000  # bytes per second: 200 Mbit/s
REPLAY = 16 << 20
runs = itertools.count(1)

BARE_HOP = """
import ctypes, fcntl, os, socket, subprocess, sys
here, there, port, sink = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
libc, many = ctypes.CDLL(None), 1 << 20
listener = socket.create_server((here, port))
command = subprocess.Popen(["/bin/bash", "-c", sink], stdin=subprocess.PIPE)
print("listening", flush=True)
source, _ = listener.accept()
onward = socket.create_connection((there, port)) if there else None
take, give = os.pipe()
into = command.stdin.fileno()
for pipe in (give, into):
    fcntl.fcntl(pipe, 1031, many)
while left := os.splice(source.fileno(), give, many):
    while left:
        step = libc.tee(take, into, ctypes.c_size_t(left), 0) if onward else os.splice(take, into, left)
        left -= step
        while onward and step:
            step -= os.splice(take, onward.fileno(), step)
command.stdin.close()
if onward:
    onward.shutdown(socket.SHUT_WR)
command.wait()
"""


class UnfitError(Exception):
    """A stranger that does not work on this machine; the text says why."""


@dataclass(frozen=True)
class Speed:
    """One way of sending: wall seconds, MB/s, CPU seconds, and what a dead node does to the others."""

    name: str
    seconds: float
    rate: float
    cpu: float
    when_a_node_dies: str


@dataclass(frozen=True)
class Fault:
    """What was done to whom, the seconds it added, and how many nodes got the image."""

    fault: str
    cost: float
    served: str
    met: bool


@dataclass(frozen=True)
class Link:
    """How many nodes, and the share of the line rate of the slowest."""

    nodes: int
    slowest: float
    fastest: float
    met: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="smaller images, one run, fewer nodes: no judgement")
    options = parser.parse_args(argv)
    hops, mib, rounds = (4, 64, 1) if options.quick else (8, 512, 3)
    with tempfile.TemporaryDirectory(prefix="kadeploy-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        image = make_image(folder, mib)
        speeds = measure_speeds(folder, image, hops, rounds)
        print(speed_table(speeds, hops, mib))
        image = make_image(folder, 256)
        faults = measure_faults(image, 6, quick=options.quick)
        print(fault_table(faults))
        image = make_image(folder, 32 if options.quick else 256)
        links = [measure_link(image, nodes) for nodes in ((2, 4) if options.quick else (2, 4, 8, 16))]
        print(link_table(links))
    share = hashing_share(speeds)
    if share is not None:
        print(f"chain: {share:.0%} of the bare pipeline with hashing sinks (target {SPEED_TARGET:.0%})")
    if options.json:
        figures = {
            "speed": [asdict(row) for row in speeds],
            "faults": [asdict(row) for row in faults],
            "links": [asdict(row) for row in links],
            "share": share,
        }
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    met = all(row.met for row in faults) and all(row.met for row in links) and (share or 1.0) >= SPEED_TARGET
    return 0 if options.quick or met else 1


def make_image(folder: Path, mib: int) -> Path:
    """An image of random bytes, in memory, so that no disk is measured."""
    image = folder / "image"
    block = os.urandom(1 << 20)
    with image.open("wb") as file:
        for _ in range(mib):
            file.write(block)
    return image


def members(count: int) -> list[chain.Member]:
    """Members on loopback addresses that no other run uses."""
    net = f"127.{60 + os.getpid() % 100}.{next(runs) % 250}"
    return [chain.Member(f"node-{i}", f"{net}.{i}") for i in range(1, count + 1)]


# -- speed ------------------------------------------------------------------------------------------------------------

Sender = Callable[[Path, Path, int], float]  # folder, image, hops -> seconds of the transfer alone


def measure_speeds(folder: Path, image: Path, hops: int, rounds: int) -> list[Speed]:
    """Every way in turns, so that a noisy moment hits all of them; medians."""
    ways: list[tuple[str, Sender, str]] = [
        ("chain", send_chain, "skipped, the others go on"),
        ("tree of 2", partial(send_chain, fanout=2), "skipped, the others go on"),
        ("bare splice", partial(send_bare, sink=SINK), "all behind it fail"),
    ]
    if shutil.which("openssl"):
        ways.append(("bare splice, hashing sinks", partial(send_bare, sink=HASHING_SINK), "all behind it fail"))
    if shutil.which("aria2c"):
        ways.append(("bittorrent", send_bittorrent, "the others go on"))
    if shutil.which("sshd"):
        ways.append(("ssh per node", send_ssh, "the others go on"))
    if shutil.which("udp-sender"):
        ways.append(("udpcast", send_udpcast, "all wait for the retries, then go on"))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in ways}
    for _ in range(rounds):
        for way in list(ways):
            before = cpu_seconds()
            try:
                seconds = way[1](folder, image, hops)
            except UnfitError as error:
                print(f"{way[0]} is left out: {error}")
                ways.remove(way)
            else:
                samples[way[0]].append((seconds, cpu_seconds() - before))
    size = image.stat().st_size / 1e6
    rows = []
    for name, _, death in ways:
        seconds, cpu = (statistics.median(sample[side] for sample in samples[name]) for side in (0, 1))
        rows.append(Speed(name, seconds, size / seconds, cpu, death))
    return rows


def cpu_seconds() -> float:
    """CPU time of this process and of all that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def send_chain(_: Path, image: Path, hops: int, fanout: int = 1) -> float:
    """Our relays; the time from the start of the head (a Python start included) to the last verdict."""
    broadcast = chain.describe(image, SINK, fanout=fanout, ring=REPLAY)
    began = [0.0]

    async def start_head(member: chain.Member, program: bytes) -> chain.LocalRelay:
        began[0] = time.perf_counter()
        return await chain.start_local(member, program)

    outcomes = asyncio.run(chain.send(broadcast, members(hops), chain.start_local, start_head=start_head))
    insist(outcomes)
    return time.perf_counter() - began[0]


def insist(outcomes: dict[str, chain.Reception]) -> None:
    """A measurement of a broadcast that failed is none."""
    for name, outcome in outcomes.items():
        if outcome.verdict is not Verdict.OK:
            raise SystemExit(f"{name}: {outcome.message}")


def send_bare(_: Path, image: Path, hops: int, sink: str) -> float:
    """A chain of splice and tee without any protocol."""
    addresses = [member.address for member in members(hops)]
    programs = [
        subprocess.Popen([sys.executable, "-c", BARE_HOP, here, there, "25399", sink], stdout=subprocess.PIPE)
        for here, there in itertools.zip_longest(addresses, addresses[1:], fillvalue="")
    ]
    for program in programs:
        assert program.stdout
        program.stdout.readline()
    began = time.perf_counter()
    with socket.create_connection((addresses[0], 25399)) as sock, image.open("rb") as file:
        sock.sendfile(file)
    for program in programs:
        if program.wait():
            raise SystemExit("a hop of the bare pipeline failed")
    return time.perf_counter() - began


async def run_local(_: chain.Member, program: bytes) -> Outcome:
    """A node's script on this machine."""
    done = await asyncio.to_thread(subprocess.run, ["bash", "-s"], input=program, capture_output=True, check=False)
    verdict = Verdict.KO if done.returncode else Verdict.OK
    return Outcome(verdict, rc=done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode())


def send_bittorrent(_: Path, image: Path, hops: int) -> float:
    """A seed and aria2c clients, hashing and starting included."""
    broadcast = chain.describe(image, SINK)
    began = time.perf_counter()
    server = "127.0.0.1"
    nodes = [chain.Member(f"node-{i}", server) for i in range(hops)]
    insist(asyncio.run(bittorrent.send(broadcast, nodes, run_local, server)))
    return time.perf_counter() - began


def send_ssh(folder: Path, image: Path, hops: int) -> float:
    """A copy per node, all at once, through a real sshd."""
    key = folder / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(f"{key}.pub", folder / "authorized_keys")
        Path("/run/sshd").mkdir(exist_ok=True)
    address = members(1)[0].address
    settings = {
        "ListenAddress": f"{address}:25322",
        "HostKey": key,
        "AuthorizedKeysFile": folder / "authorized_keys",
        "StrictModes": "no",
        "UsePAM": "no",
        "MaxStartups": "100",
        "PidFile": "none",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    daemon = subprocess.Popen([str(shutil.which("sshd")), "-D", "-f", "/dev/null", *options], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(address, 25322)
        quiet = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR", "-oBatchMode=yes"]
        command = ["ssh", "-F", "/dev/null", "-i", str(key), *quiet, "-p", "25322", f"root@{address}", SINK]
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            clients = [
                subprocess.Popen(command, stdin=stack.enter_context(image.open("rb")), stdout=subprocess.DEVNULL)
                for _ in range(hops)
            ]
            if any(client.wait() for client in clients):
                raise SystemExit("a copy over ssh failed")
        return time.perf_counter() - began
    finally:
        daemon.terminate()
        daemon.wait()


def wait_for_port(address: str, port: int) -> None:
    """Until somebody listens there; ten seconds at most."""
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens at {address}:{port}")


def send_udpcast(_: Path, image: Path, hops: int) -> float:
    """One multicast stream between network namespaces that are not shaped."""
    quiet = ["--nokbd", "--no-progress", "--start-timeout", "10"]
    with network(hops, shaped=False) as net:
        where = [["ip", "netns", "exec", space] for space in net]
        take = f"set -o pipefail; udp-receiver --interface eth0 {' '.join(quiet)} 2>/dev/null | {SINK}"
        send = ["udp-sender", "--file", str(image), "--interface", "bridge", *quiet]
        send += ["--min-receivers", str(hops), "--max-wait", "10", "--full-duplex"]
        nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        receivers = [subprocess.Popen([*prefix, "/bin/bash", "-c", take], **nothing) for prefix in where[1:]]
        time.sleep(1)
        began = time.perf_counter()
        sent = subprocess.run([*where[0], *send], check=False, **nothing).returncode
        received = [receiver.wait() for receiver in receivers]
        if sent or any(received):
            raise UnfitError("its receivers and its sender did not find each other: does multicast pass a bridge here?")
        return time.perf_counter() - began


# -- faults -----------------------------------------------------------------------------------------------------------


def measure_faults(image: Path, count: int, *, quick: bool) -> list[Fault]:
    """Each fault strikes when a third of the image has left the head."""
    plain = statistics.median(send_with_fault(image, count, (), None)[0] for _ in range(1 if quick else 3))
    faults = []
    places = [("a middle", (3,)), ("two", (3, 4)), ("the first", (1,)), ("the last", (count,))]
    for name, victims in places[:2] if quick else places:
        for what in ("kill", "freeze", "cut off"):
            seconds, served = send_with_fault(image, count, victims, what)
            met = seconds - plain < FAULT_TARGET and served == count - len(victims)
            nodes = f"{what} {name} node" + ("s" if len(victims) > 1 else "")
            faults.append(Fault(nodes, seconds - plain, f"{served} of {count}", met))
    return faults


def send_with_fault(image: Path, count: int, victims: Sequence[int], what: str | None) -> tuple[float, int]:
    """Seconds and nodes served of a broadcast between namespaces in which some nodes are struck."""
    broadcast = chain.describe(image, SINK, ring=REPLAY)
    third = broadcast.size // 3
    with network(count, shaped=False) as net:
        processes: dict[int, chain.LocalRelay] = {}
        nodes = [chain.Member(f"node-{i}", f"10.98.0.{i}") for i in range(1, count + 1)]
        struck = False

        def strike(sent: int, _: int) -> None:
            nonlocal struck
            if struck or sent < third or not what:
                return
            struck = True
            for victim in victims:
                if what == "cut off":
                    ip("-n", net[0], "link", "set", f"port{victim}", "nomaster")
                else:
                    pid = node_pid(processes[victim])
                    os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)

        began = time.perf_counter()
        sending = chain.send(broadcast, nodes, starter(net, nodes, processes), strike, starter(net, nodes, processes))
        outcomes = asyncio.run(sending)
        return time.perf_counter() - began, sum(outcome.verdict is Verdict.OK for outcome in outcomes.values())


def node_pid(process: chain.LocalRelay) -> int:
    """The relay itself: `ip netns exec` replaces itself with the command."""
    return process.process.pid


def starter(
    net: Sequence[str], nodes: Sequence[chain.Member], processes: dict[int, chain.LocalRelay]
) -> Callable[[chain.Member, bytes], Awaitable[chain.LocalRelay]]:
    """Start relays in their namespaces; the head in the first."""

    async def start(member: chain.Member, program: bytes) -> chain.LocalRelay:
        number = nodes.index(member) + 1 if member in nodes else 0
        processes[number] = await chain.start_local(member, program, "ip", "netns", "exec", net[number])
        return processes[number]

    return start


# -- links ------------------------------------------------------------------------------------------------------------


def measure_link(image: Path, count: int) -> Link:
    """What share of its line's rate each node sees, from its first byte to its verdict."""
    broadcast = chain.describe(image, SINK, ring=REPLAY)
    with network(count, shaped=True) as net:
        nodes = [chain.Member(f"node-{i}", f"10.98.0.{i}") for i in range(1, count + 1)]
        start = starter(net, nodes, {})
        outcomes = asyncio.run(chain.send(broadcast, nodes, start, start_head=start))
    insist(outcomes)
    shares = [outcome.bytes / outcome.seconds / LINE_RATE for outcome in outcomes.values()]
    return Link(count, min(shares), max(shares), min(shares) >= LINK_TARGET)


def ip(*arguments: str) -> None:
    """Run the command of that name."""
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def network(count: int, *, shaped: bool) -> Iterator[list[str]]:
    """A hub with a bridge (10.98.0.254) and nodes 10.98.0.1 …; the names of their namespaces, the hub's first."""
    run = next(runs)
    spaces = [f"kab{os.getpid()}-{run}-{i}" for i in range(count + 1)]
    hub = spaces[0]
    with contextlib.ExitStack() as stack:
        for space in spaces:
            ip("netns", "add", space)
            stack.callback(subprocess.run, ["ip", "netns", "del", space], check=False)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        ip("-n", hub, "addr", "add", "10.98.0.254/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for i, space in enumerate(spaces[1:], 1):
            port = f"port{i}"
            ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", hub, "link", "set", port, "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"10.98.0.{i}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "route", "add", "default", "dev", "eth0")
            if shaped:
                shape(hub, port)
                shape(space, "eth0")
        if shaped:
            shape(hub, "bridge")
        yield spaces


def shape(space: str, device: str) -> None:
    """Bound what leaves a device to the line rate.

    The burst holds a segment of 64 KiB: the kernel cuts larger ones into packets, which costs more than all else here.
    """
    rate = ["tbf", "rate", "200mbit", "burst", "256kb", "latency", "50ms"]
    subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", device, "root", *rate], check=True)


# -- tables -----------------------------------------------------------------------------------------------------------


def speed_table(rows: Sequence[Speed], hops: int, mib: int) -> str:
    """Speeds for people."""
    lines = [f"{mib} MiB, {hops} nodes", f"{'way':<28} {'wall':>8} {'MB/s':>6} {'CPU':>8}  when a node dies"]
    lines += [f"{r.name:<28} {r.seconds:>6.2f} s {r.rate:>6.0f} {r.cpu:>6.2f} s  {r.when_a_node_dies}" for r in rows]
    return "\n".join(lines) + "\n"


def fault_table(rows: Sequence[Fault]) -> str:
    """Faults for people."""
    lines = [f"{'fault':<28} {'cost':>8}  served"]
    lines += [f"{r.fault:<28} {r.cost:>6.2f} s  {r.served}{'' if r.met else '  MISSED'}" for r in rows]
    return "\n".join(lines) + "\n"


def link_table(rows: Sequence[Link]) -> str:
    """Links for people."""
    lines = [f"{'nodes at 200 Mbit/s':<28} {'slowest':>8} {'fastest':>8}"]
    lines += [f"{r.nodes:<28} {r.slowest:>8.1%} {r.fastest:>8.1%}{'' if r.met else '  MISSED'}" for r in rows]
    return "\n".join(lines) + "\n"


def hashing_share(rows: Sequence[Speed]) -> float | None:
    """The chain's speed as a share of the bare pipeline's whose sinks hash; None when that one was not run."""
    rates = {row.name: row.rate for row in rows}
    bare = rates.get("bare splice, hashing sinks")
    return rates["chain"] / bare if bare else None


if __name__ == "__main__":
    sys.exit(main())
