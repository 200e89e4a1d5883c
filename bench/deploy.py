"""Whole deployments of simulated nodes, from a few to a thousand: time, controller's CPU, memory and ssh connections.

``openssh`` nodes have a real sshd and shell behind every connection, on this same machine: their work is part of the
wall time, not of the controller's CPU. ``light`` nodes cost less, and come by the thousand. Beside ours, on the same
nodes and in the same run, two strangers do a dozen commands per node that such a deployment needs; they broadcast no
image, boot nothing and wait for nothing: a plain playbook, and ``ssh`` for every node and step.

Run as root: ``python -m bench deploy [--quick] [--json FILE] [--plot FILE.svg]``; the status is 1 when a node is KO.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from kadeploy.lab import network
from kadeploy.lab.lab import Lab, saved
from kadeploy.lab.sim.machine import CONNECTIONS_LOG

NAME = "kadeploy-bench"
SIZES = {"openssh": (50, 100, 200), "light": (200, 1000)}
QUICK = {"openssh": (8,)}
BOOT = 0
"""Seconds that a simulated boot takes."""
FORKS = 20
STRANGERS_UP_TO = 50
"""Nodes beyond which the strangers are left out, unless ``--strangers`` says otherwise: they take minutes."""
STEPS = (
    "SetDeploymentEnv|SetDeploymentEnvUntrusted:0:900&"
    "BroadcastEnv|BroadcastEnvChain:0:900&"
    "BootNewEnv|BootNewEnvClassical:0:900"
)
DOZEN = (
    "true",
    "sfdisk --no-reread /dev/sda < /dev/null",
    "partprobe /dev/sda",
    "mkfs.ext4 -F -q /dev/sda5",
    "mkdir -p /tmp/dest && mount /dev/sda5 /tmp/dest",
    "mkswap /dev/sda1",
    "head -c 500000 /dev/zero > /tmp/dest/vmlinuz",
    "test -s /tmp/dest/vmlinuz",
    "echo key >> /tmp/dest/authorized_keys",
    "grub-install --boot-directory=/tmp/dest /dev/sda",
    "sync",
    "umount /tmp/dest",
)
"""What the strangers do on every node, one after the other."""
_TOOLS = Path(sys.executable).parent
_SSH_OPTIONS = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
_SAMPLE = 0.5
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Run:
    """What one run has cost: seconds of wall and CPU time (its own and its children's), MB, connections per node."""

    what: str
    backend: str
    nodes: int
    failed: int
    wall: float
    cpu: float
    memory: float
    connections: float
    steps: dict[str, int] = field(default_factory=dict)
    """Seconds of each macro-step, as the deployment tells them."""

    @property
    def cpu_per_node(self) -> float:
        """Milliseconds of controller CPU per node, start included."""
        return 1000 * self.cpu / self.nodes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return 1 when a deployment has left a node behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw time and CPU against nodes there")
    parser.add_argument("--quick", action="store_true", help="eight nodes")
    parser.add_argument(
        "--sizes", metavar="BACKEND=N,N", action="append", help="other sizes: openssh=50,200; repeatable"
    )
    parser.add_argument("--strangers", metavar="N", type=int, default=STRANGERS_UP_TO, help="strangers up to N nodes")
    options = parser.parse_args(argv)
    sizes = dict(map(_size, options.sizes)) if options.sizes else QUICK if options.quick else SIZES
    results: list[Run] = []
    print(HEADER)
    for backend, counts in sizes.items():
        for nodes in counts:
            for run in measure(backend, nodes, strangers=backend == "openssh" and nodes <= options.strangers):
                print(row(run), flush=True)
                results.append(run)
    if options.json:
        figures = [asdict(run) | {"cpu_ms_per_node": run.cpu_per_node} for run in results]
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        plot(results, Path(options.plot))
    return 1 if any(run.failed for run in results) else 0


def _size(text: str) -> tuple[str, tuple[int, ...]]:
    backend, _, counts = text.partition("=")
    return backend, tuple(int(count) for count in counts.split(","))


# --- what is measured -------------------------------------------------------------------------------------------------


def measure(backend: str, nodes: int, *, strangers: bool) -> Iterator[Run]:
    """Deploy a fresh lab of so many nodes, then let the strangers work on it."""
    with laboratory(backend, nodes) as lab, tempfile.TemporaryDirectory(prefix="kadeploy-bench-") as name:
        yield ours(lab, Path(name))
        if strangers:
            yield playbook(lab, Path(name))
            yield ssh_per_step(lab)


@contextmanager
def laboratory(backend: str, nodes: int, *, service: bool = False) -> Iterator[Lab]:
    """A lab that is up, with its service or without, and root's right to deploy on it."""
    _lab("down")
    _lab(
        "up",
        *([] if service else ["--no-service"]),
        "--kind",
        "sim",
        "--backend",
        backend,
        "--nodes",
        str(nodes),
        "--boot-delay",
        str(BOOT),
    )
    try:
        lab = saved(NAME)
        if lab is None:
            raise SystemExit(f"{NAME} has not come up")
        rights = [_TOOLS / "karights3", "-a", "-m", lab.column("node-"), "-p", "*", "-u", "root"]
        subprocess.run(rights, env=_environment(lab), check=True, stdout=subprocess.DEVNULL)
        yield lab
    finally:
        _lab("down")


def _lab(command: str, *options: str) -> None:
    words = [_TOOLS / "kadeploy-lab", command, "--name", NAME, *options]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kadeploy-lab {command}: {done.stdout}{done.stderr}")


def ours(lab: Lab, folder: Path) -> Run:
    """A deployment: Untrusted, Chain, Classical, with a key."""
    files = ("-o", folder / "ok", "-n", folder / "ko")
    image = ("-a", lab.environments_folder / "sim.dsc", "-k", lab.public_key)
    words = [_TOOLS / "kadeploy3", "-m", lab.column("node-"), *image, "--force-steps", STEPS, *files, "-V", "3"]

    def failed(output: str) -> int:
        ko = folder / "ko"
        if not ko.exists():
            raise SystemExit(output)
        return len(ko.read_text().split())

    return cost("kadeploy3", lab, words, failed)


def playbook(lab: Lab, folder: Path) -> Run:
    """The dozen as tasks of a plain playbook: the linear strategy, a worker per host and task."""
    hosts = {node.name: {"ansible_host": node.address} for node in lab.members.values()}
    common = " ".join(f"-o {name}={value}" for name, value in _SSH_OPTIONS.items())
    variables = {"ansible_user": "root", "ansible_ssh_private_key_file": str(lab.private_key)}
    inventory = {"all": {"hosts": hosts, "vars": variables | {"ansible_ssh_common_args": common}}}
    tasks = [{"name": command, "ansible.builtin.raw": command} for command in DOZEN]
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (folder / "dozen.yml").write_text(
        yaml.safe_dump([{"name": "A dozen", "hosts": "all", "gather_facts": False, "tasks": tasks}])
    )
    words = [_TOOLS / "ansible-playbook", "-i", folder / "hosts.yml", "-f", str(FORKS), folder / "dozen.yml"]

    def failed(output: str) -> int:
        return lab.nodes - len(re.findall(rf"ok={len(DOZEN)} .*unreachable=0 +failed=0", output))

    return cost("ansible-playbook", lab, network.inside(lab.name, [str(word) for word in words]), failed)


def ssh_per_step(lab: Lab) -> Run:
    """The dozen by an ``ssh`` for every node and step, some at a time, as a shell script would."""
    options = " ".join(f"-o {name}={value}" for name, value in _SSH_OPTIONS.items())
    addresses = "\\n".join(node.address for node in lab.members.values())
    command = f"ssh -n -i {lab.private_key} {options} root@{{}}"
    script = "".join(
        f"printf '{addresses}\\n' | xargs -P {FORKS} -I {{}} {command} '{step}' || echo failed\n" for step in DOZEN
    )
    words = network.inside(lab.name, ["sh", "-c", script])
    return cost("ssh per step", lab, words, lambda output: output.count("failed"))


def cost(what: str, lab: Lab, words: Sequence[str | Path], failed: Callable[[str], int]) -> Run:
    """Run *words*; *failed* counts in its output the nodes that it has left behind."""
    before = _connections(lab)
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        command = [str(word) for word in words]
        with subprocess.Popen(
            command, env=_environment(lab), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as p:
            memory = _Memory(p.pid)
            memory.start()
            _, status, usage = os.wait4(p.pid, 0)
            wall = time.perf_counter() - began
            p.returncode = os.waitstatus_to_exitcode(status)
            memory.stop()
        output.seek(0)
        text = output.read().decode(errors="replace")
    steps = {name: int(seconds) for name, seconds in re.findall(r"(\w+) done in (\d+) s", text)}
    connections = (_connections(lab) - before) / lab.nodes
    cpu = usage.ru_utime + usage.ru_stime
    return Run(what, lab.backend, lab.nodes, failed(text), wall, cpu, memory.peak / 1e6, connections, steps)


def _connections(lab: Lab) -> int:
    log = lab.log(CONNECTIONS_LOG)
    return sum(line.endswith(" ssh") for line in log.read_text().splitlines()) if log.exists() else 0


def _environment(lab: Lab) -> dict[str, str]:
    return os.environ | {"KADEPLOY_CONFIG_DIR": str(lab.config), "ANSIBLE_NOCOLOR": "1"}


class _Memory(threading.Thread):
    """Looks now and then at the memory that a process and its descendants hold, shared pages counted once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(_SAMPLE):
            self.peak = max(self.peak, sum(map(_share, _family(self._pid))))

    def stop(self) -> None:
        """No more looks."""
        self._over.set()
        self.join()


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += [int(word) for word in (thread / "children").read_text().split()]
    return found


def _share(pid: int) -> int:
    """Bytes, as ``Pss`` of /proc/PID/smaps_rollup counts them (proc(5))."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# --- how it is shown --------------------------------------------------------------------------------------------------

HEADER = (
    f"{'what':<17} {'backend':<8} {'nodes':>5} {'KO':>4} {'wall':>8} {'CPU':>8} {'CPU/node':>9} {'memory':>8} ssh/node"
)


def row(run: Run) -> str:
    """A run for people."""
    times = f"{run.wall:>6.1f} s {run.cpu:>6.1f} s {run.cpu_per_node:>6.0f} ms {run.memory:>5.0f} MB"
    steps = "  " + ", ".join(f"{name} {seconds} s" for name, seconds in run.steps.items()) if run.steps else ""
    return f"{run.what:<17} {run.backend:<8} {run.nodes:>5} {run.failed:>4} {times} {run.connections:>8.1f}{steps}"


def plot(results: Sequence[Run], path: Path) -> None:
    """Draw seconds of wall time and of controller CPU against nodes."""
    from matplotlib import rcParams  # noqa: PLC0415 - an extra, only for this
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, what, seconds in zip(
        figure.subplots(1, 2), ("wall time", "controller's CPU"), (lambda r: r.wall, lambda r: r.cpu), strict=True
    ):
        for what_, backend in dict.fromkeys((run.what, run.backend) for run in results):
            series = [run for run in results if (run.what, run.backend) == (what_, backend)]
            axes.plot([r.nodes for r in series], [seconds(r) for r in series], marker="o", label=f"{what_}, {backend}")
        axes.set(xlabel="nodes", ylabel="seconds", title=what, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
