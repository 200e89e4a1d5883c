"""A room of nodes that is switched on: the boot server beside dnsmasq (TFTP) and nginx (HTTP), in the same run.

Nodes fetch a loader, look for a profile in vain and fetch another one, in the ways of several firmwares, each with its
patience; whoever loses it is a failure. Then they fetch kernels and initrds; what they get is thrown away by the
kernel, so that the server is what is measured. Servers are one process each and take turns. Figures are medians; the
share of nginx's rate is the median of those of the turns, of which each has both servers within seconds.

Run as root, for TFTP's port: ``python -m bench boot [--quick] [--json FILE]``; the status is 1 when a node fails, or
HTTP is slower than nine tenths of nginx. Strangers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from operator import truediv
from pathlib import Path

from bench import loaders, nginx
from bench.loaders import Fetched, HttpWish, TftpWish

TARGET = 0.9  # of nginx's rate
OURS, DNSMASQ, NGINX = "127.7.0.1", "127.7.0.2", "127.7.0.3"
TFTP_PORT, HTTP_PORT = 69, 8080  # dnsmasq has no other port for TFTP
PROFILES = ("profile-of-mac-{node}", "profile")
"""As PXELINUX looks for it; the first one is absent."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    nodes: int = 1000
    loaders: Sequence[int] = (60_000, 160_000, 600_000)
    """Bytes: iPXE; PXELINUX with its modules; GRUB."""
    kernel: int = 8 << 20
    initrd: int = 60 << 20
    rounds: int = 3
    gigabytes: float = 4.0
    """What is fetched in a round at least."""


QUICK = Scale(nodes=50, loaders=(60_000,), kernel=1 << 20, initrd=4 << 20, rounds=1, gigabytes=0.1)


@dataclass(frozen=True)
class Server:
    """One that runs."""

    name: str
    address: str
    pid: int

    @property
    def seconds(self) -> float:
        """CPU time of the process."""
        times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> float:
        """The most it has had, MB."""
        return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[0]) / 1024


@dataclass(frozen=True)
class Row:
    """What a server did for a wish; of several rounds the median, and all failures."""

    what: str
    server: str
    rate: float
    """MB/s."""
    rates: Sequence[float]
    """Of each round."""
    half: float
    """Seconds within which half of the nodes had everything."""
    all: float
    cpu: float
    again: float
    """How often nodes had to say something once more."""
    failures: Sequence[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer nodes, smaller files, one round: rates are no matter"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    scale = QUICK if options.quick else Scale()
    with tempfile.TemporaryDirectory(prefix="kadeploy-bench-", dir="/dev/shm") as name, ExitStack() as stack:
        ours, dnsmasq, nginx_ = servers(Path(name), scale, stack)
        tftp = [*measure_tftp([ours, *dnsmasq], scale), measure_both(ours, scale)]
        http = measure_http([ours, *nginx_], scale)
        memory = ours.memory
    shares = shares_of(http)
    print(f"\nmemory of the boot server: {memory:.0f} MB")
    for what, share in shares.items():
        print(f"{what:<34} {share:.0%} of nginx's rate")
    if shares:
        print(f"HTTP: {min(shares.values()):.0%} of nginx's rate at least, target {TARGET:.0%}")
    failures = [failure for row in (*tftp, *http) if row.server == "ours" for failure in row.failures]
    print("\n".join(failures[:20]))
    if options.json:
        rows = {"tftp": [asdict(row) for row in tftp], "http": [asdict(row) for row in http]}
        text = json.dumps({"nodes": scale.nodes, "memory": memory, "shares": shares} | rows, indent=2)
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    slow = not options.quick and any(share < TARGET for share in shares.values())
    return 1 if failures or slow else 0


# --- the servers ------------------------------------------------------------------------------------------------------


def servers(folder: Path, scale: Scale, stack: ExitStack) -> tuple[Server, list[Server], list[Server]]:
    """Ours, dnsmasq and nginx, where they are installed: all serve the same folder until *stack* ends."""
    folder.chmod(0o755)  # strangers read as other accounts
    root = make_files(folder / "root", scale)
    words = [sys.executable, "-m", "kadeploy.boot.server", "--address", OURS, "--http-port", str(HTTP_PORT)]
    words += ["--tftp-root", str(root), "--http-root", str(root)]
    ours = stack.enter_context(started("ours", OURS, words, folder / "ours.log"))
    dnsmasq, web = [], []
    if shutil.which("dnsmasq", path="/usr/sbin"):
        words = ["/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0"]
        words += ["--enable-tftp", f"--tftp-root={root}", "--tftp-max=2000", f"--pid-file={folder}/dnsmasq.pid"]
        words += [f"--listen-address={DNSMASQ}", "--bind-interfaces", "--log-facility=-"]
        dnsmasq.append(stack.enter_context(started("dnsmasq", DNSMASQ, words, folder / "dnsmasq.log")))
    if nginx.is_here():
        pid = stack.enter_context(nginx.serving_files(folder / "nginx", root, NGINX, HTTP_PORT))
        web.append(Server("nginx", NGINX, pid))
    return ours, dnsmasq, web


def make_files(root: Path, scale: Scale) -> Path:
    """The files that nodes fetch."""
    root.mkdir()
    sizes = {"kernel": scale.kernel, "initrd": scale.initrd, "profile": 1000}
    for name, size in (sizes | {f"loader-{size}": size for size in scale.loaders}).items():
        (root / name).write_bytes(os.urandom(size))
    return root


@contextmanager
def started(name: str, address: str, words: Sequence[str], log: Path) -> Iterator[Server]:
    """A server of TFTP, once it answers."""
    with log.open("wb") as file, subprocess.Popen(words, stdout=file, stderr=file) as process:
        try:
            while loaders.by_tftp((address, TFTP_PORT), TftpWish(1, ["profile"], ["iPXE"])).failures:
                if process.poll() is not None:
                    raise SystemExit(f"{name}: {log.read_text()}")
            yield Server(name, address, process.pid)
        finally:
            process.terminate()


# --- what is measured -------------------------------------------------------------------------------------------------


def measure_tftp(candidates: Sequence[Server], scale: Scale) -> list[Row]:
    """Loaders of several sizes, each with its profile."""
    print_head(f"{scale.nodes} nodes: loader and profile by TFTP")
    rows = []
    for size in scale.loaders:
        wish = TftpWish(scale.nodes, [f"loader-{size}", *PROFILES], absent=PROFILES[:1])
        rows += compare(f"{size // 1000} kB", candidates, wish, scale.rounds)
    return rows


def measure_both(ours: Server, scale: Scale) -> Row:
    """The same while as many nodes fetch kernel and initrd."""
    size = scale.loaders[min(1, len(scale.loaders) - 1)]
    wish = TftpWish(scale.nodes, [f"loader-{size}", *PROFILES], absent=PROFILES[:1])
    with ThreadPoolExecutor(1) as pool:
        web = pool.submit(loaders.fetch, (ours.address, HTTP_PORT), HttpWish(scale.nodes, ["/kernel", "/initrd"]))
        time.sleep(1.0)
        (row,) = compare(f"{size // 1000} kB, and HTTP", [ours], wish, 1)
        return replace(row, failures=[*row.failures, *web.result().failures])


def measure_http(candidates: Sequence[Server], scale: Scale) -> list[Row]:
    """Kernels and initrds, over few connections and many."""
    print_head("kernels and initrds by HTTP")
    rows = []
    for connections in (1, 16, 200, scale.nodes):
        for files in (["/kernel"], ["/initrd"]):
            size = scale.kernel if files == ["/kernel"] else scale.initrd
            times = max(1, round(scale.gigabytes * 1e9 / size / connections))
            wish = HttpWish(connections, files * times)
            rows += compare(f"{connections} connections, {files[0][1:]}", candidates, wish, scale.rounds)
    wish = HttpWish(scale.nodes, ["/profile", "/kernel"], keep_alive=False)
    rows += compare(f"{scale.nodes} nodes, a connection a file", candidates, wish, scale.rounds)
    return rows


def compare(what: str, candidates: Sequence[Server], wish: TftpWish | HttpWish, rounds: int) -> list[Row]:
    """Let the servers take turns, and print how they did."""
    port = TFTP_PORT if isinstance(wish, TftpWish) else HTTP_PORT
    told: dict[str, list[tuple[Fetched, float]]] = {server.name: [] for server in candidates}
    for turn in range(rounds):
        for server in candidates if turn % 2 == 0 else reversed(candidates):
            before = server.seconds
            fetched = loaders.fetch((server.address, port), wish)
            told[server.name].append((fetched, server.seconds - before))
    rows = [row_of(what, name, each) for name, each in told.items()]
    for row in rows:
        print(
            f"{row.what:<34} {row.server:<8} {row.rate:>8.1f} {row.half:>7.2f} {row.all:>7.2f} {row.cpu:>7.2f} "
            f"{row.again:>7.0f} {len(row.failures):>8}",
            flush=True,
        )
    return rows


def row_of(what: str, server: str, told: Sequence[tuple[Fetched, float]]) -> Row:
    """The medians."""
    return Row(
        what=what,
        server=server,
        rate=statistics.median(each.rate for each, _ in told),
        rates=[each.rate for each, _ in told],
        half=statistics.median(each.share(0.5) for each, _ in told),
        all=statistics.median(each.seconds for each, _ in told),
        cpu=statistics.median(cpu for _, cpu in told),
        again=statistics.median(each.again for each, _ in told),
        failures=[failure for each, _ in told for failure in each.failures],
    )


def shares_of(rows: Sequence[Row]) -> dict[str, float]:
    """Our share of nginx's rate, by what was wished for."""
    ours, theirs = [{row.what: row.rates for row in rows if row.server == name} for name in ("ours", "nginx")]
    return {what: statistics.median(map(truediv, ours[what], theirs[what])) for what in theirs}


def print_head(what: str) -> None:
    """The line above a table."""
    print(
        f"\n{what:<34} {'server':<8} {'MB/s':>8} {'half s':>7} {'all s':>7} {'CPU s':>7} {'again':>7} {'failures':>8}"
    )


if __name__ == "__main__":
    sys.exit(main())
