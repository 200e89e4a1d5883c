"""Networks in namespaces, with Debian's DHCP servers in them, fed with what ``kadeploy-site dhcp`` prints (root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TOOL = Path(sys.executable).parent / "kadeploy-site"
CONTROLLER = "10.99.0.1"
START = 60.0
"""Seconds in which a server has to have its port."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def running(where: str, port: int, command: list[str], log: Path, **variables: str) -> Iterator[None]:
    """A server in a namespace, once it has its UDP port; one that ends at once is started again."""
    server = started(where, port, command, log, variables)
    try:
        yield
    finally:
        end(server)


def started(where: str, port: int, command: list[str], log: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    for _ in range(3):
        with log.open("wb") as stream:
            words = ["ip", "netns", "exec", where, *command]
            server = subprocess.Popen(words, stdout=stream, stderr=stream, env=os.environ | variables)
        deadline = time.monotonic() + START
        while server.poll() is None and time.monotonic() < deadline:
            if has_port(server.pid, port):
                return server
            time.sleep(0.05)
        end(server)
        time.sleep(1)
    raise RuntimeError(log.read_text(errors="replace")[-2000:])


def end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def has_port(pid: int, port: int) -> bool:
    """Whether anybody has the UDP port in the namespace of process *pid*, which `ip` enters before it runs anything."""
    try:
        if Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net"):
            return False
        lines = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    except OSError:
        return False
    return any(line.split()[1].endswith(f":{port:04X}") for line in lines)


# --- what the tool writes ------------------------------------------------------------------------------------------


def tool(folder: Path, *words: str) -> str:
    variables = os.environ | {"KADEPLOY_CONFIG_DIR": str(folder)}
    done = subprocess.run([TOOL, *words], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Daemon(NamedTuple):
    """A DHCP server, and how it is fed."""

    program: str
    main: str
    """Its own configuration, that of the site's administrator, into which the lines are included."""
    check: Callable[[str, Path], list[str]]
    run: Callable[[str, Path], list[str]]


def leases(main: Path) -> Path:
    path = main.with_suffix(".leases")
    path.touch()
    return path


DAEMONS = {
    "dnsmasq": Daemon(
        "dnsmasq",
        "port=0\nuser=root\ngroup=root\nleasefile-ro\ninterface=eth0\nbind-interfaces\nexcept-interface=lo\nlog-dhcp\n"
        "no-ping\ndhcp-range=10.99.200.1,10.99.200.9,255.255.0.0\nconf-file={included}\n",
        lambda program, main: [program, "--test", f"--conf-file={main}"],
        lambda program, main: [
            *(program, "--keep-in-foreground", "--log-facility=-", "--pid-file=", f"--conf-file={main}")
        ],
    ),
    "isc": Daemon(
        "dhcpd",
        'authoritative;\nping-check false;\ninclude "{included}";\n'
        "subnet 10.99.0.0 netmask 255.255.0.0 {{ range 10.99.200.1 10.99.200.9; }}\n",
        lambda program, main: [program, "-t", "-cf", str(main), "-lf", str(leases(main))],
        lambda program, main: [
            *(program, "-4", "-f", "-d", "-cf", str(main), "-lf", str(leases(main))),
            *("-pf", str(main.with_suffix(".pid")), "eth0"),
        ],
    ),
    "kea": Daemon(
        "kea-dhcp4",
        '{{"Dhcp4": {{ <?include "{included}"?>, "interfaces-config": {{"interfaces": ["eth0"]}}, '
        '"lease-database": {{"type": "memfile", "persist": false}}, "subnet4": [{{"id": 1, "subnet": "10.99.0.0/16", '
        '"pools": [{{"pool": "10.99.200.1-10.99.200.9"}}]}}], '
        '"loggers": [{{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{{"output": "stdout"}}]}}] }} }}\n',
        lambda program, main: [program, "-t", str(main)],
        lambda program, main: [program, "-c", str(main)],
    ),
}


def fed(name: str, folder: Path, included: str, place: Path) -> tuple[str, Path, dict[str, str]]:
    """Program, configuration and environment of a server that includes what the tool has printed.

    The program runs from a folder of the test, where AppArmor's profiles of Debian do not hold: they would let it read
    configurations in ``/etc`` alone.
    """
    daemon = DAEMONS[name]
    installed = shutil.which(daemon.program, path=f"{os.environ['PATH']}:/usr/sbin")
    assert installed, f"{daemon.program} is not installed: scripts/prepare dev"
    program = shutil.copy(installed, place / daemon.program)
    lines = place / "kadeploy.conf"
    lines.write_text(included)
    main = place / "main.conf"
    main.write_text(daemon.main.format(included=lines))
    return str(program), main, {"KEA_PIDFILE_DIR": str(place), "KEA_LOCKFILE_DIR": str(place)}


# --- a ProxyDHCP ------------------------------------------------------------------------------------------------

ROUTER_LINES = """\
port=0
user=root
group=root
leasefile-ro
interface=eth0
bind-interfaces
except-interface=lo
no-ping
dhcp-range=10.99.200.1,10.99.200.99,255.255.0.0
"""
"""Of a DHCP server of somebody else's, which gives addresses and knows nothing of boots."""
PROXY_LINES = (
    "port=0\nuser=root\ngroup=root\nleasefile-ro\ninterface=eth0\nbind-interfaces\nexcept-interface=lo\nlog-dhcp\n"
)
