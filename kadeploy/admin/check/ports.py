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
        if any(not any(_may_accept(rule["expr"], kind, port) for rule in rules) for rules in chains)
    ]


def _chains_that_drop(text: str) -> list[list[dict[str, Any]]]:
    """The rules of each table that has a chain for what comes in by IPv4 whose policy is to drop."""
    try:
        entries = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):
        return []
    rules: dict[tuple[str, str], list[Any]] = {}
    for rule in (entry["rule"] for entry in entries if "rule" in entry):
        rules.setdefault((rule["family"], rule["table"]), []).append(rule)
    chains = [entry["chain"] for entry in entries if "chain" in entry]
    return [
        rules.get((chain["family"], chain["table"]), [])
        for chain in chains
        if chain.get("hook") == "input" and chain.get("policy") == "drop" and chain["family"] in _IPV4
    ]


_IPV4 = {"ip", "inet"}
"""Families of tables that see what nodes send."""
_LET_ON = {"accept", "jump", "goto"}
"""Verdicts after which a packet may come in."""


def _may_accept(expressions: list[Any], kind: str, port: int) -> bool:
    """Whether a rule may let a node's first packet in."""
    tests: list[tuple[Any, Any]] = []
    has_verdict = False
    for each in expressions:
        has_verdict |= bool(_LET_ON & each.keys())
        if "match" in each and each["match"]["op"] != "!=":
            tests.append((each["match"]["left"], each["match"]["right"]))
        if "vmap" in each:
            has_verdict = True
            tests.append((each["vmap"]["key"], _let_on(each["vmap"]["data"])))
    return has_verdict and all(_may_hold(left, right, kind, port) for left, right in tests)


def _let_on(data: Any) -> Any:
    """Keys of a map that lead to a verdict of `_LET_ON`; the name of a map that stands elsewhere."""
    if not isinstance(data, dict):
        return data
    return {"set": [key for key, verdict in data["set"] if _LET_ON & verdict.keys()]}


def _may_hold(left: Any, right: Any, kind: str, port: int) -> bool:
    """Whether what a rule compares may be so for a node's first packet to a port."""
    if not isinstance(left, dict):
        return True
    if left.get("ct", {}).get("key") == "state":
        return _holds(right, "new") or _holds(right, "untracked")
    if "meta" in left:
        return bool(right != "lo")
    payload = left.get("payload", {})
    if payload.get("field") == "dport":
        return payload["protocol"] in (kind, "th") and _holds(right, port)
    return True


def _holds(right: Any, value: str | int) -> bool:
    """Whether *value* is, or is in, the right side of a comparison; in a set that stands elsewhere it may be."""
    if isinstance(right, list):
        return any(_holds(each, value) for each in right)
    if isinstance(right, dict) and "set" in right:
        return _holds(right["set"], value)
    if isinstance(right, dict) and "elem" in right:  # which has a comment, or a time
        return _holds(right["elem"]["val"], value)
    if isinstance(right, dict) and "range" in right:
        first, last = right["range"]
        return isinstance(value, int) and bool(first <= value <= last)
    return bool(right == value) or (isinstance(right, str) and right.startswith("@"))
