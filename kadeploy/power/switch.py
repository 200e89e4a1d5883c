"""Switch nodes on and off, reboot them, or ask whether they are on.

An operation has three levels. When one fails or is not available, the next is tried:

=======  ===========================  ==============================  ==============================
level    reboot                       on                              off
=======  ===========================  ==============================  ==============================
soft     ``reboot`` over ssh          BMC on                          ``poweroff`` over ssh, or else
                                                                      the BMC asks the system to end
hard     BMC reset (on if it is off)  BMC on                          BMC off
v. hard  BMC off, wait, on            BMC off, wait, on               BMC off
=======  ===========================  ==============================  ==============================

A BMC may be mistaken about its machine: orders are sent whatever it says, and it is then asked until it says that the
machine is on or off as ordered. Before a reboot it is told that the next start is from the network
(``power.network_boot``); if it does not take that, the outcome tells, and the reboot goes on. With the driver
``command``, the site has its own command for each, and its status is asked in the same way, where it has one. Nodes are
switched inside the reboot window, which all workflows of this machine share.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from kadeploy.config import logins, secret_files
from kadeploy.config.cluster import Cluster, Node, Power, address
from kadeploy.config.logins import Login
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError
from kadeploy.power import bmc, command
from kadeploy.power.bmc import Bmcs, Order
from kadeploy.remote.fanout import TIMED_OUT, Credentials, Remote, Systems, Target, on_all
from kadeploy.remote.window import window
from kadeploy.workflow import Outcome, Verdict

PowerCommand = Literal["on", "off", "reboot", "status"]
Level = Literal["soft", "hard", "very_hard"]
LEVELS: tuple[Level, ...] = ("soft", "hard", "very_hard")

SHUTDOWN_TIMES = 3
"""How many times longer than a BMC's order a system may take to shut down."""
NETWORK_LIMIT = 10.0
"""Seconds that a BMC may take for the boot order while the node's system goes down."""
_ORDER_KEPT = "the BMC was not told to boot from the network: "
SSH_LIMIT = 20.0
"""Seconds that a node may take to accept the order to reboot."""

OnOutcome = Callable[[str, Outcome], None]


async def switch(
    site: Site,
    cluster: Cluster,
    nodes: Sequence[Node],
    operation: PowerCommand,
    level: Level | Mapping[str, Level] = "soft",
    *,
    config_dir: Path,
    window_folder: Path | None = None,
    remote: Remote | None = None,
    wait: bool = True,
    on_outcome: OnOutcome | None = None,
) -> dict[str, Outcome]:
    """Do *operation* on each of *nodes*, starting at *level*, which may differ by node; outcomes by name.

    ``status`` answers OK for a node that is on and KO for one that is off, with ``on`` or ``off`` as its answer. The
    other operations' output tells which level did it. *remote* carries the commands over ssh (default: connections of
    our own), *window_folder* is where the slots of the reboot window are (default: in the site's *state_dir*). Without
    *wait*, commands of the site that switch nodes on or off are given the word ``--no-wait`` (wiki page, Kapower).

    Raises:
        ConfigError: the BMCs' password cannot be read.
    """
    folder = window_folder or site.state / "windows" / "reboot"
    targets = {_target(site, node): node for node in nodes}
    async with AsyncExitStack() as stack:
        if remote is None:
            from kadeploy.remote.connections import Connections  # noqa: PLC0415 - only where nobody keeps connections already

            remote = Connections(Credentials.of(site))
            stack.push_async_callback(remote.close)
        driver = await stack.enter_async_context(_driver(site, cluster, config_dir, remote, wait))

        async def job(target: Target) -> Outcome:
            begun = time.monotonic()
            if operation == "status":
                outcome = await driver.do(target, targets[target], "status", "soft")
            else:
                async with window(folder, site.windows.reboot):
                    first = level if isinstance(level, str) else level[target.name]
                    outcome = await _escalate(driver, target, targets[target], operation, first)
            return replace(outcome, seconds=round(time.monotonic() - begun, 3))

        return await on_all(targets, job, site.windows.reboot, on_outcome)


async def one(
    power: Power, node: Node, login: Login, operation: PowerCommand, level: Level, *, uefi: bool, remote: Systems
) -> Outcome:
    """`switch` for a machine that no site knows, by its BMC; *uefi* is its firmware, which its BMC wants to know."""
    target = Target(node.name, node.address, pinned=False)
    async with bmc.connect(f"kadeploy.power.{power.driver}", bmc.credentials(power, "")) as bmcs:
        driver = _Machines(power, uefi, bmcs, remote, {node.name: login})
        if operation == "status":
            return await driver.do(target, node, operation, level)
        return await _escalate(driver, target, node, operation, level)


async def _escalate(driver: Driver, target: Target, node: Node, operation: PowerCommand, level: Level) -> Outcome:
    reasons: dict[str, list[Level]] = {}
    for each in LEVELS[LEVELS.index(level) :]:
        outcome = await driver.do(target, node, operation, each)
        if outcome.verdict is Verdict.OK:
            before = f" after {_told(reasons)}" if reasons else ""
            return replace(outcome, stdout=f"{each}{before}")
        reasons.setdefault(outcome.message, []).append(each)
    return Outcome(Verdict.KO, _told(reasons), 1)


def level_of(outcome: Outcome) -> Level:
    """The level that did it, of a node that is OK; the hardest one was tried in vain on the others."""
    return next((level for level in LEVELS if outcome.stdout.split(" ", 1)[0] == level), LEVELS[-1])


def harder(level: Level) -> Level:
    """The next level; the hardest one has none beyond it."""
    return LEVELS[min(LEVELS.index(level) + 1, len(LEVELS) - 1)]


def _told(reasons: Mapping[str, Sequence[Level]]) -> str:
    """Why levels failed; what several have in common is said once.

    >>> _told({"ssh: refused": ["soft"], "nobody answers": ["hard", "very_hard"]})
    'soft: ssh: refused; hard, very_hard: nobody answers'
    """
    return "; ".join(f"{', '.join(levels)}: {reason}" for reason, levels in reasons.items())


def _target(site: Site, node: Node) -> Target:
    where = address(site, node)
    return Target(node.name, where, site.ssh.port, pinned=False)  # any system may run: its host key is not known


# --- drivers ----------------------------------------------------------------------------------------------------


class Driver(Protocol):
    """How the nodes of a cluster are switched."""

    async def do(self, target: Target, node: Node, operation: PowerCommand, level: Level) -> Outcome:
        """One level of one operation on one node; KO when it fails and when there is no such level."""


@asynccontextmanager
async def _driver(site: Site, cluster: Cluster, config_dir: Path, remote: Remote, wait: bool) -> AsyncIterator[Driver]:
    power = cluster.power
    if power.driver == "command":
        yield _Commands(power, remote, wait)
        return
    own = logins.read(site, cluster.name) if cluster.inventory else {}
    credentials = bmc.credentials(power, password(power, config_dir))
    async with bmc.connect(f"kadeploy.power.{power.driver}", credentials, hidden=(power.password_env,)) as bmcs:
        yield _Machines(power, cluster.loader.firmware == "uefi", bmcs, remote, own)


@dataclass(frozen=True)
class _Commands:
    """Commands of the site."""

    power: Power
    remote: Remote
    wait: bool

    async def do(self, target: Target, node: Node, operation: PowerCommand, level: Level) -> Outcome:  # noqa: ARG002
        name = "status" if operation == "status" else f"{level}_{operation}"
        text = str(getattr(self.power.commands, name))
        if not text:
            return Outcome(Verdict.KO, f"power.commands.{name} is not set in the cluster file", 127)
        if not self.wait and operation in ("on", "off"):
            text += " --no-wait"
        async with self.remote.hold([node.name]) as taken:
            if taken:
                return Outcome(Verdict.KO, taken[node.name], 1)
            outcome = await command.run(text, node.name, self.power.timeout)
        if operation == "status":
            said = outcome.stdout.strip()
            return replace(outcome, answer=said or ("on" if outcome.verdict is Verdict.OK else outcome.message))
        if outcome.verdict is Verdict.OK and operation in ("on", "off") and self.wait and self.power.commands.status:
            limit = self.power.timeout * (SHUTDOWN_TIMES if (operation, level) == ("off", "soft") else 1)
            return await self._follow(node, name, "on" if operation == "on" else "off", limit) or outcome
        return outcome

    async def _follow(self, node: Node, order: str, wanted: bmc.State, limit: float) -> Outcome | None:
        """Ask until the node is as ordered; None when it is, KO when it is not after *limit* seconds."""
        until = time.monotonic() + limit
        while node.name not in self.remote.taken:
            status = await command.run(self.power.commands.status, node.name, self.power.timeout)
            if _broken(status):
                return _denied(order, f"its end is unknown: {status.message}")
            seen = "on" if status.verdict is Verdict.OK else "off"
            if seen == wanted:
                return None
            if time.monotonic() + bmc.PAUSE > until:
                return _denied(order, f"power.commands.status still says {seen} after {limit:g} s")
            await asyncio.sleep(bmc.PAUSE)
        return _denied(order, self.remote.taken[node.name])


def _broken(status: Outcome) -> bool:
    """Whether a status command has failed, which is not the same as saying off: off makes no error output."""
    failed = status.rc in (command.NOT_STARTED, TIMED_OUT) or bool(status.stderr.strip())
    return status.verdict is not Verdict.OK and failed


def _denied(order: str, why: str) -> Outcome:
    return Outcome(Verdict.KO, f"power.commands.{order} ended well, but {why}", 1)


_ORDERS: dict[tuple[PowerCommand, Level], Order] = {
    ("on", "soft"): "on",
    ("on", "hard"): "on",
    ("off", "hard"): "off",
    ("off", "very_hard"): "off",
}
"""Levels that are one order to the BMC; the others have a method."""


@dataclass(frozen=True)
class _Machines:
    """BMCs, and the nodes' own systems for what is soft."""

    power: Power
    uefi: bool
    bmcs: Bmcs
    remote: Systems
    own: Mapping[str, Login]
    """Users and passwords of single nodes' BMCs."""
    shut: dict[str, bmc.Answer] = field(default_factory=dict)
    """What is known of BMCs that could not be logged in to: they are not tried again at the next level."""

    async def do(self, target: Target, node: Node, operation: PowerCommand, level: Level) -> Outcome:
        if (operation, level) == ("reboot", "soft"):
            outcome, note = await asyncio.gather(self._ssh(target, "reboot"), self._from_network(node, NETWORK_LIMIT))
            return replace(outcome, stderr=outcome.stderr + note)
        if not node.bmc:
            missing = f"{node.name} has no BMC address: give it one in the cluster file, or its inventory"
            return Outcome(Verdict.KO, missing, 1)
        if operation == "status":
            return await self._status(node)
        if (operation, level) == ("off", "soft"):
            return await self._soft_off(target, node)
        if operation == "reboot":
            return await self._reboot(node, level)
        order = _ORDERS.get((operation, level))
        return await self._bmc(node, order) if order else await self._cycle(node)

    async def _reboot(self, node: Node, level: Level) -> Outcome:
        if level == "very_hard":
            return await self._cycle(node, from_network=True)
        note = await self._from_network(node, self.power.timeout)
        return replace(await self._bmc(node, "reset"), stderr=note)

    async def _from_network(self, node: Node, limit: float) -> str:
        """Have the next start boot from the network; what to tell when the BMC does not: the node may do so anyhow."""
        if self.power.network_boot == "leave" or not node.bmc:
            return ""
        answer = await self._order(node, "network", min(limit, self.power.timeout))
        if limit < self.power.timeout:
            self.shut.pop(node.bmc, None)  # it had less time than it has otherwise
        return f"{_ORDER_KEPT}{answer.reason}\n" if answer.reason else ""

    async def _status(self, node: Node) -> Outcome:
        answer = await self._order(node, "status")
        if answer.state == "on":
            return Outcome(Verdict.OK, answer="on")
        return Outcome(Verdict.KO, answer.reason or "off", 1, answer=answer.state or "")

    async def _bmc(self, node: Node, order: Order, limit: float = 0) -> Outcome:
        answer = await self._order(node, order, limit)
        return Outcome(Verdict.KO, answer.reason, 1) if answer.reason else Outcome(Verdict.OK)

    async def _order(self, node: Node, order: Order, limit: float = 0) -> bmc.Answer:
        if node.bmc in self.shut:
            return self.shut[node.bmc]
        address, port = node.bmc, self.power.port
        if self.power.driver == "ipmi":
            address, port = bmc.split_address(node.bmc, port)
        async with self.remote.hold([node.name]) as taken:
            if taken:
                answer = bmc.Answer(0, reason=taken[node.name], entered=False)
            else:
                own = self.own.get(node.name, Login())
                answer = await self.bmcs.order(address, port, order, limit or self.power.timeout, self.uefi, own)
        if not answer.entered:
            self.shut[node.bmc] = answer
        return answer

    async def _cycle(self, node: Node, from_network: bool = False) -> Outcome:
        """Switch it off, wait for a moment without current, switch it on; BMCs may forget the boot order meanwhile.

        It is switched on even if the BMC denies that it went off: it may have, and would stay dark.
        """
        off = await self._bmc(node, "off")
        if node.bmc in self.shut:
            return off
        await asyncio.sleep(self.power.off_delay)
        note = await self._from_network(node, self.power.timeout) if from_network else ""
        on = await self._bmc(node, "on")
        return replace(on if off.verdict is Verdict.OK else off, stderr=note)

    async def _soft_off(self, target: Target, node: Node) -> Outcome:
        """Let the system shut itself down, told over ssh or by its power button; the BMC sees when it is off."""
        told = await self._ssh(target, "poweroff")
        off = await self._bmc(node, "shutdown", SHUTDOWN_TIMES * self.power.timeout)
        if off.verdict is Verdict.OK or told.verdict is Verdict.OK:
            return off
        return replace(off, message=f"{told.message}; {off.message}")

    async def _ssh(self, target: Target, word: Literal["reboot", "poweroff"]) -> Outcome:
        """Detached: the session ends before the node goes down."""
        outcome = await self.remote.run(target, order(word), timeout=SSH_LIMIT, disconnect_ok=True)
        await self.remote.forget([target])
        return outcome


def order(word: Literal["reboot", "poweroff"]) -> bytes:
    """The script by which a node is told to go down."""
    return _SCRIPT.replace(b"ORDER", word.encode())


_SCRIPT = b"""\
PATH=$PATH:/usr/sbin:/sbin
command -v ORDER >/dev/null || { echo "this system has no ORDER command" >&2; exit 127; }
sync &
(sleep 1; ORDER || ORDER -f) </dev/null >/dev/null 2>&1 &
"""


# --- the password -----------------------------------------------------------------------------------------------


def password(power: Power, config_dir: Path, environment: Mapping[str, str] | None = None) -> str:
    """The BMCs' password: first line of *password_file* (relative to *config_dir*), or variable *password_env*.

    Where the folder of secrets is named, the file is there (`kadeploy.config.secret_files`).

    Raises:
        ConfigError: unset, unreadable, or readable by others.
    """
    if power.password_file:
        return secret_files.password(secret_files.place(config_dir / power.password_file), "power.password_file")
    if power.password_env:
        variables = os.environ if environment is None else environment
        if power.password_env not in variables:
            raise ConfigError(f"power.password_env: the variable {power.password_env} is not set.")
        return variables[power.password_env]
    return ""
