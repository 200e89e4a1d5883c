"""The lab's router answers whoever asks for one, and gives nobody an address or a route."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from kadeploy.lab import network, router
from kadeploy.lab.lab import Lab

LAB = Lab(name="light-router", nodes=1)
HOST = "light-router-host"
CABLE = f"""\
link add name port type veth peer name eth0 netns {HOST}
link set dev port master {network.BRIDGE} up
"""
ASK = """\
import socket
import time
index = socket.if_nametoindex("eth0")
host = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
host.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
host.settimeout(0.5)
for _ in range(60):
    try:
        host.sendto(bytes([133, 0, 0, 0, 0, 0, 0, 0]), ("ff02::2", 0, 0, index))
        answer = host.recv(1500)
    except OSError:  # nobody answers, or the device has only just come up
        time.sleep(0.2)
        continue
    if answer[0] == 134:
        print(answer.hex())
        break
"""


@pytest.fixture
def asking() -> Iterator[None]:
    """A network with the router, and a host in it that has no address yet."""
    network.create(LAB)
    subprocess.run(["ip", "netns", "delete", HOST], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "add", HOST], check=True)
    subprocess.run(["ip", "-n", LAB.name, "-batch", "-"], input=CABLE, text=True, check=True)
    subprocess.run(["ip", "-n", HOST, "link", "set", "dev", "eth0", "up"], check=True)
    (service,) = router.services()
    with subprocess.Popen(network.inside(LAB.name, service.command)) as running:
        yield
        running.terminate()
    network.remove(LAB.name)
    subprocess.run(["ip", "netns", "delete", HOST], check=True)


def in_host(*command: str) -> str:
    words = ["ip", "netns", "exec", HOST, *command]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.usefixtures("asking")
def test_it_answers_that_there_is_nothing_to_configure() -> None:
    answer = bytes.fromhex(in_host(sys.executable, "-c", ASK))
    assert (len(answer), answer[5], answer[6:8]) == (16, 0, bytes(2)), "no option, no flag, no time as default router"
    assert in_host("ip", "-6", "-brief", "address", "show", "dev", "eth0", "scope", "global") == ""
    assert in_host("ip", "-6", "route", "show", "default") == ""
