"""The way of one node from its BMC to a login, rung by rung, each timed: the first deployment without an image.

Two operations of the site do it, so that the node is claimed and recorded as by any user: a reboot into the deployment
system, and one back. What they do is seen from outside, in the log of the boot server and at the node's ports. Where it
breaks, that and the operation's own reason say why.
"""

from __future__ import annotations

import re
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from kadeploy import commands
from kadeploy.admin.former_profiles import FormerProfiles
from kadeploy.admin.known_node import KnownNode
from kadeploy.admin.operating import operating
from kadeploy.boot import profile
from kadeploy.boot.traces import Log
from kadeploy.errors import KadeployError
from kadeploy.events import AttemptEnded, Event, Report, StepResult
from kadeploy.operations.requests import RebootKind, RebootRequest
from kadeploy.operations.service import Service
from kadeploy.remote import namespace
from kadeploy.runner.request import Options
from kadeploy.workflow import Verdict

Rung = Literal[
    "bmc", "power", "loader", "profile", "kernel", "initrd", "system", "ssh", "disk", "reboot", "leave", "login"
]
TICK = 0.25
"""Seconds between two looks."""
_CONNECT = 1.0
_REFUSED = re.compile(r"\b404\b|no such file|not found|absent|interrupted", re.IGNORECASE)
"""How servers say that they have not got what is asked for."""
_LOOK_AT_DISK = (
    "lsblk -dno NAME,SIZE,MODEL {device} || {{ echo {device} is not there. There are: $(lsblk -dno NAME,SIZE) >&2; "
    "exit 1; }}"
)
_LAST_LINES = 8
"""Lines of the console that are shown where it breaks."""

MEANING: dict[Rung, str] = {
    "bmc": "the BMC lets the site in and says whether the node is on",
    "power": "the node is rebooted, hard enough that it does",
    "loader": "the node has an address by DHCP and asks the boot server for its loader",
    "profile": "the loader fetches the profile that is meant for this node",
    "kernel": "the loader fetches the kernel of the deployment system",
    "initrd": "the loader fetches its initrd",
    "system": "the deployment system is up: the marker port is open",
    "ssh": "it has the host key that the site knows, and lets the site's key in",
    "disk": "the disk of the cluster file is there, and large enough",
    "reboot": "the node is rebooted into its own system",
    "leave": "the deployment system has ended",
    "login": "the system on its disk answers by ssh",
}
ADVICE: dict[Rung, str] = {
    "bmc": "see power in the cluster file; ipmitool or a browser shows whether the BMC takes that user and password",
    "power": "see what the BMC says above",
    "loader": "it boots from its disk, from another card, or DHCP does not answer it: look at its console, at its boot "
    "order (network first), and at kadeploy-site check --topic dhcp",
    "profile": "its address is not the one of the cluster file, or the loader is another one than loader.profiles says",
    "kernel": "the loader has no HTTP (a card's own ROM), or boot.http_url is wrong: see docs/dhcp.md, and "
    "kadeploy-site check --topic boot",
    "initrd": "the kernel came and the initrd did not: kadeploy-site check --topic boot",
    "system": "the kernel has no driver or no firmware for the card, or panics: look at the console, and at "
    "kadeploy-site build --module, --package",
    "ssh": "the image is of other keys than site.yml: kadeploy-site check --topic keys, then kadeploy-site build",
    "disk": "name the right disk as disk.device in the cluster file, or add its driver: kadeploy-site build --module",
    "reboot": "see what the BMC says above",
    "leave": "the node did not go down: kareboot3 -l hard",
    "login": "nothing that boots is on its disk yet, perhaps: deploy an environment",
}
FIRST: Sequence[Rung] = ("bmc", "power", "loader", "profile", "kernel", "initrd", "system", "ssh", "disk")
BACK: Sequence[Rung] = ("reboot", "leave", "login")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A rung, reached or not."""

    rung: Rung
    reached: bool
    seconds: float = 0.0
    """Since the one before."""
    seen: str = ""
    advice: str = ""


Tell = Callable[[Step], object]


def climb(service: Service, node: KnownNode, *, back: bool, tell: Tell, timeout: str = "") -> bool:
    """Take *node* up the ladder; each rung is told as it is reached, the one where it breaks as well: whether all were.

    *back*: afterwards to its own system; else it stays in the deployment system. *timeout*: seconds that a boot may
    take, in place of what the cluster file says.

    Raises:
        KadeployError: the reboot is refused.
    """
    with namespace.inside(node.site.network_namespace):
        options = Options(debug=True, reboot_timeout=timeout)
        former = FormerProfiles.of(node.site, [node.node])
        if not _climb(service, _wish(service, node, "deploy_env", options), node, FIRST, tell):
            return False
        if not back:
            return True
        former.put_back(FormerProfiles.of(node.site, [node.node]))
        return _climb(service, _wish(service, node, "simple_reboot", options), node, BACK, tell)


def _wish(service: Service, node: KnownNode, kind: RebootKind, options: Options) -> RebootRequest:
    return RebootRequest(user=service.user, nodes=(node.name,), kind=kind, level="hard", hook=False, options=options)


def _climb(service: Service, wish: RebootRequest, node: KnownNode, rungs: Sequence[Rung], tell: Tell) -> bool:
    watch = _Watch(node, rungs, tell)
    if rungs[0] == "bmc" and not watch.asked_bmc():
        return False
    with operating(service, wish, watch.hear) as operation:
        while not watch.done and not watch.failed and not operation.ended.is_set():
            watch.look()
            time.sleep(TICK)
        if watch.failed:  # one try shows where it breaks, and each takes as long as a boot may
            operation.give_up()
    watch.look()
    if operation.error:
        raise operation.error
    return watch.finish(operation.report)


# --- what is seen ---------------------------------------------------------------------------------------------------


@dataclass
class _Watch:
    """Which rungs were reached, and when."""

    node: KnownNode
    rungs: Sequence[Rung]
    tell: Tell
    at: int = 0
    """The rung that comes next."""
    since: float = field(default_factory=time.monotonic)
    heard: dict[Rung, str] = field(default_factory=dict)
    """What events have told of rungs."""
    reasons: list[str] = field(default_factory=list)
    failed: bool = False
    """Whether the operation's first try has failed."""
    _is_down: bool = False
    """Whether the deployment system that may have run before has ended since the reboot."""

    def __post_init__(self) -> None:
        site = self.node.site
        self.boot_log = Log.now(site.boot.log) if site.boot.log else None
        pattern = self.node.cluster.console_log
        self.console = Log.now(commands.filled(pattern, self.node.name)) if pattern else None

    @property
    def done(self) -> bool:
        """Whether all were reached."""
        return self.at >= len(self.rungs)

    def hear(self, event: Event) -> None:
        """What the operation tells; called in its thread."""
        if isinstance(event, StepResult) and self.node.name in event.outcomes:
            outcome = event.outcomes[self.node.name]
            if event.micro_step == "reboot" and outcome.verdict is Verdict.OK:
                self.heard["power" if self.rungs is FIRST else "reboot"] = " ".join(
                    f"{outcome.stdout} {outcome.stderr}".split()
                )
            if outcome.verdict is Verdict.KO:
                self.reasons.append(outcome.message)
        if isinstance(event, AttemptEnded) and self.node.name in event.outcomes:
            self.failed = event.outcomes[self.node.name].verdict is Verdict.KO

    def look(self) -> None:
        """Go up as far as can be seen now."""
        if self.heard and not self._is_down:
            self._is_down = not self._open(self.node.site.marker_port)
        while not self.done and (seen := self._seen(self.rungs[self.at])) is not None:
            self._reached(seen)

    def asked_bmc(self) -> bool:
        """The first rung, which needs no operation."""
        answer, good = self.node.power_state()
        if good:
            self._reached(answer)
            return True
        self._broken(answer)
        return False

    def finish(self, report: Report | None) -> bool:
        """What is to be told at the end."""
        if self.done:
            return True
        self._broken("; ".join(dict.fromkeys(self.reasons or (report.ko.values() if report else ()))))
        return False

    def _reached(self, seen: str) -> None:
        now = time.monotonic()
        self.tell(Step(rung=self.rungs[self.at], reached=True, seconds=round(now - self.since, 1), seen=seen))
        self.since, self.at = now, self.at + 1

    def _broken(self, why: str) -> None:
        rung = self.rungs[self.at]
        seconds = round(time.monotonic() - self.since, 1)
        seen = "\n".join(filter(None, [why, *self._last_words()]))
        self.tell(Step(rung=rung, reached=False, seconds=seconds, seen=seen, advice=ADVICE[rung]))

    def _last_words(self) -> list[str]:
        """What the console showed last, and what the boot server was asked by this node."""
        asked = self._asked()[-2:] if self.boot_log else []
        shown = (self.console.lines() or [])[-_LAST_LINES:] if self.console else []
        return [*(f"boot server: {line}" for line in asked), *(f"console: {line}" for line in shown)]

    def _asked(self) -> list[str]:
        lines = (self.boot_log.lines() or []) if self.boot_log else []
        names = self.node.names
        return [line for line in lines if any(word in names for word in line.replace(":", " ").split())]

    def _seen(self, rung: Rung) -> str | None:
        """What shows that *rung* is reached; None when nothing does yet."""
        looks: dict[Rung, Callable[[], str | None]] = {
            "power": lambda: self.heard.get("power"),
            "system": lambda: self._port("is open") if self._is_up() else None,
            "ssh": lambda: self._tried("uname -sr"),
            "disk": lambda: self._tried(_LOOK_AT_DISK.format(device=shlex.quote(self.node.cluster.disk.device))),
            "reboot": lambda: self.heard.get("reboot"),
            "leave": lambda: self._port("is closed") if self._is_down else None,
            "login": lambda: "ssh answers" if self._is_in() else None,
        }
        return looks[rung]() if rung in looks else self._seen_in_log(rung)

    def _is_in(self) -> bool:
        """Whether another system than the deployment system answers."""
        return self._open(self.node.site.ssh.port) and not self._open(self.node.site.marker_port)

    def _is_up(self) -> bool:
        return self._is_down and self._open(self.node.site.marker_port)

    def _port(self, how: str) -> str:
        return f"port {self.node.site.marker_port} {how}"

    def _tried(self, command: str) -> str | None:
        try:
            return " ".join(self.node.output(command).split())
        except KadeployError as error:
            self.reasons[:] = [str(error)]
            return None

    def _seen_in_log(self, rung: Rung) -> str | None:
        if self.boot_log is None:
            return "not seen: boot.log is not set in site.yml"
        if self._is_up():  # whatever its log says, it has come
            return "not in the boot server's log"
        loader = self.node.cluster.loader
        wanted = {
            "loader": "",
            "profile": Path(profile.file_name(loader.profiles, self.node.address)).name,
            "kernel": loader.kernel.rsplit("/", 1)[-1],
            "initrd": loader.initrd.rsplit("/", 1)[-1],
        }[rung]
        return next((line for line in self._asked() if wanted in line and not _REFUSED.search(line)), None)

    def _open(self, port: int) -> bool:
        try:
            socket.create_connection((self.node.address, port), _CONNECT).close()
        except OSError:
            return False
        return True
