"""Ports of this machine: what should listen listens, and no firewall that can be seen shuts it."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from kadeploy.admin.check.asked import ask
from kadeploy.admin.check.subject import Subject, is_local
from kadeploy.admin.findings import Finding, Look
from kadeploy.remote import namespace

TFTP = Look("ports", "tftp")
HTTP = Look("ports", "http")
HTTPS = Look("ports", "https")
FIREWALL = Look("ports", "firewall")

_LISTENS = "0A"
"""TCP state (include/net/tcp_states.h)."""
_START = "start the boot server"


def check(subject: Subject) -> Iterator[Finding]:
    """Which ports are closed that should be open."""
    site = subject.site
    with namespace.inside(site.network_namespace):
        if _is_here(site.server_address):
            yield from _listens(TFTP, "udp", 69, "nodes fetch their loader from server_address by TFTP", _START)
        parts = urlsplit(site.boot.http_url)
        if parts.hostname and _is_here(parts.hostname):
            why = f"nodes fetch kernels from {site.boot.http_url}"
            yield from _listens(HTTP, "tcp", parts.port or 80, why, f"{_START}, or correct boot.http_url")
        if site.service.https:
            port = site.service.https.port
            why = "tools on other machines call the service there"
            yield from _listens(HTTPS, "tcp", port, why, "systemctl start kadeploy3d, and see its log")
        yield from _firewall(subject)


def _is_here(name: str) -> bool:
    try:
        return is_local(socket.gethostbyname(name))
    except OSError:
        return False


def _listens(look: Look, kind: Literal["tcp", "udp"], port: int, why: str, advice: str) -> Iterator[Finding]:
    if port in listening(kind):
        yield look.ok(f"port {port}/{kind} is open")
    else:
        yield look.fail(f"nobody listens at port {port}/{kind}: {why}", advice)


def listening(kind: Literal["tcp", "udp"]) -> set[int]:
    """Ports at which somebody waits, in the network namespace of this thread (proc(5), net/tcp and net/udp)."""
    found = set()
    for name in (kind, f"{kind}6"):
        with suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if kind == "udp" or words[3] == _LISTENS:
                    found.add(int(words[1].rpartition(":")[2], 16))
    return found


# --- the firewall -------------------------------------------------------------------------------------------------


def _firewall(subject: Subject) -> Iterator[Finding]:
    if not any(map(shutil.which, ("nft", "iptables"))):
        yield FIREWALL.ok("no firewall of this machine: neither nft nor iptables is installed")
        return
    ended = ask("nft", "-j", "list", "ruleset")
    if ended is None:
        yield FIREWALL.warn("the firewall of this machine cannot be looked at without nft", "apt install nftables")
        return
    if ended.rc != 0:
        yield FIREWALL.warn(f"nft does not tell the rules of the firewall: {ended.reason}", "run this as root")
        return
    needed = _needed(subject)
    found = shut(ended.stdout, needed)
    if found:
        yield FIREWALL.warn(
            f"nftables drops what no rule accepts, and none is seen for {', '.join(found)}",
            "accept these ports from the nodes' network",
        )
    else:
        yield FIREWALL.ok("nftables shuts no port that nodes need")


def _needed(subject: Subject) -> list[tuple[str, int]]:
    parts = urlsplit(subject.site.boot.http_url)
    found = [("udp", 69)] if _is_here(subject.site.server_address) else []
    if parts.hostname and _is_here(parts.hostname):
        found.append(("tcp", parts.port or 80))
    if subject.site.service.https:
        found.append(("tcp", subject.site.service.https.port))
    return found


def shut(text: str, needed: Sequence[tuple[str, int]]) -> list[str]:
    """Those of the *needed* ports that no rule of a ruleset opens where it drops what comes in.

    *text* is what ``nft -j list ruleset`` says (libnftables-json(5)). A rule that names no port may open all of them,
    and a set or map that is not in it any port: only what is certainly shut is told.
    """
    chains = _chains_that_drop(text)
    return [
        f"{port}/{kind}"
        for kind, port in needed
        if any(not any(_may_accept(rule["expr"], port) for rule in chain["rules"]) for chain in chains)
    ]


def _chains_that_drop(text: str) -> list[dict[str, Any]]:
    """Chains for what comes in whose policy is to drop, each with its table's rules as text."""
    try:
        entries = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):
        return []
    rules: dict[str, list[Any]] = {}
    for rule in (entry["rule"] for entry in entries if "rule" in entry):
        rules.setdefault(rule["table"], []).append(rule)
    chains = [entry["chain"] for entry in entries if "chain" in entry]
    return [
        {"name": chain["name"], "rules": rules.get(chain["table"], [])}
        for chain in chains
        if chain.get("hook") == "input" and chain.get("policy") == "drop"
    ]


def _may_accept(expressions: list[Any], port: int) -> bool:
    if not any("accept" in each or "jump" in each for each in expressions):
        return False
    matches = [each["match"] for each in expressions if "match" in each]
    ports = [each["right"] for each in matches if _is_port(each["left"])]
    if ports:
        return any(_holds(right, port) for right in ports)
    return not any("ct" in each["left"] for each in matches if isinstance(each["left"], dict)) and not any(
        "meta" in each["left"] and each["right"] == "lo" for each in matches if isinstance(each["left"], dict)
    )


def _is_port(left: Any) -> bool:
    return isinstance(left, dict) and left.get("payload", {}).get("field") == "dport"


def _holds(right: Any, port: int) -> bool:
    if isinstance(right, int):
        return right == port
    if isinstance(right, dict) and "range" in right:
        return bool(right["range"][0] <= port <= right["range"][1])
    if isinstance(right, dict) and "set" in right:
        return any(_holds(each, port) for each in right["set"])
    return True  # a named set, a service's name
