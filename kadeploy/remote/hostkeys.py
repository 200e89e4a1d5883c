"""The host keys of freshly deployed systems, for the user's known-hosts file (ssh-keyscan(1) asks for them)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Mapping

from kadeploy.errors import FileError

_TIMEOUT = 10
"""Seconds that a node may take to show its key."""
_TRIES = 4
"""How often a node that shows none is asked: one that has only just booted may still be busy."""
_PAUSE = 1.0
"""Seconds before it is asked again."""


def collect(addresses: Mapping[str, str], port: int) -> list[str]:
    """Lines of a known-hosts file: every key of every node that shows one; *addresses* by node name.

    Raises:
        FileError: ssh-keyscan is not installed.
    """
    scanned: list[str] = []
    for attempt in range(_TRIES):
        shown = {line.partition(" ")[0] for line in scanned}
        silent = [address for address in addresses.values() if _host(address, port) not in shown]
        if not silent:
            break
        time.sleep(_PAUSE if attempt else 0)
        scanned += _scan(silent, port)
    return lines(addresses, scanned, port)


def _scan(addresses: Iterable[str], port: int) -> list[str]:
    command = ["ssh-keyscan", "-T", str(_TIMEOUT), "-p", str(port), "-f", "-"]
    try:
        done = subprocess.run(command, input="\n".join(addresses), capture_output=True, text=True, check=False)
    except OSError as error:
        raise FileError("--known-hosts: ssh-keyscan is missing: install the package openssh-client.") from error
    return done.stdout.splitlines()


def lines(addresses: Mapping[str, str], scanned: Iterable[str], port: int) -> list[str]:
    """What ssh-keyscan said, under the names of the nodes as well as their addresses.

    >>> lines({"n-1": "10.0.0.1"}, ["# 10.0.0.1:22 SSH-2.0", "10.0.0.1 ssh-ed25519 AAAA"], 22)
    ['n-1,10.0.0.1 ssh-ed25519 AAAA']
    """
    names: dict[str, list[str]] = {}
    for name, address in addresses.items():
        names.setdefault(_host(address, port), []).append(name)
    found = []
    for line in scanned:
        host, blank, key = line.partition(" ")
        if blank and host in names:
            hosts = [*(_host(name, port) for name in names[host]), host]
            found.append(f"{','.join(dict.fromkeys(hosts))} {key}")
    return found


def _host(name: str, port: int) -> str:
    """As known-hosts files write it (sshd(8))."""
    return name if port == 22 else f"[{name}]:{port}"
