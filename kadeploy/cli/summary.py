"""The last lines of an operation: lists that programs parse, or a summary for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kadeploy.client.joint import JointReport
from kadeploy.config.site import Messages
from kadeploy.events import Ended
from kadeploy.nodeset import fold, natural_key
from kadeploy.operations.reasons import kinds
from kadeploy.workflow import Operation

WORDS_OF_3_1: Mapping[Operation, tuple[str, str, str]] = {
    "deploy": ("Nodes", "deployed", ""),
    "reboot": ("Nodes", "rebooted", ":"),
    "power": ("Operation", "performed", ":"),
}
"""What is well done, the word for it, and what ends the line: ``Nodes correctly rebooted on cluster gdx:``."""
WORDS_OF_3_2: Mapping[Operation, str] = {"deploy": "deployment", "reboot": "reboot", "power": "power operation"}


def lists(event: Ended, messages: Messages = "3.1") -> list[str]:
    """One node per line, with the reason where it failed, as clients of Kadeploy 3.1 or 3.2 told it."""
    return _by_cluster(event) if messages == "3.1" else _all_together(event)


def _by_cluster(event: Ended) -> list[str]:
    what, done, end = WORDS_OF_3_1[event.operation]
    lines = []
    for cluster, names in event.groups.items():
        good, bad = _good_and_bad(event, names)
        if good:
            lines += [f"{what} correctly {done} on cluster {cluster}{end}", *good]
        if bad:
            lines += [f"{what} not correctly {done} on cluster {cluster}{end}", *bad]
    return lines


def _all_together(event: Ended) -> list[str]:
    good, bad = _good_and_bad(event, (name for names in event.groups.values() for name in names))
    lines = [f"The {WORDS_OF_3_2[event.operation]} is successful on nodes", *good] if good else []
    return [*lines, f"The {WORDS_OF_3_2[event.operation]} failed on nodes", *bad] if bad else lines


def _good_and_bad(event: Ended, names: Iterable[str]) -> tuple[list[str], list[str]]:
    ordered, ok, ko = sorted(names, key=natural_key), set(event.report.ok), event.report.ko
    good = [name for name in ordered if name in ok]
    return good, [f"{name} ({ko[name]})" for name in ordered if name in ko]


def for_people(event: Ended, command: str, consoles: bool = False) -> list[str]:
    """Nodes folded, failures grouped by reason, and what to do next; *command* is the tool that was run.

    *consoles*: whether nodes have consoles that can be opened.
    """
    report = event.report
    lines = [f"OK  {counted(report.ok)}"] if report.ok else []
    for reason, names in sorted(kinds(report.ko).items(), key=lambda item: -len(item[1])):
        lines += [f"KO  {counted(names)}", f"    {reason}"]
    return lines + _what_next(event, command, consoles)


def _what_next(event: Ended, command: str, consoles: bool) -> list[str]:
    bad = list(event.report.ko)
    if not bad:
        return []
    ways = {"once more, these alone": f"{command} -m '{fold(bad)}' and the same options"}
    several = event.report.wids if isinstance(event.report, JointReport) else {}
    for server, wid in several.items() or {"": event.report.wid}.items():
        what, asked = (f"what they did at {server}", f" -S {server}") if server else ("what each of them did", "")
        ways[what] = f"kastat3{asked} -d -w {wid} -F hostname,step1,step2,step3,error"
    if consoles:
        ways["a console"] = f"kaconsole3{' -M' if several else ''} -m {min(bad, key=natural_key)}"
    width = max(map(len, ways))
    return [f"{what:{width}}  {way}" for what, way in ways.items()]


def counted(names: Sequence[str]) -> str:
    """``3 nodes: gdx-[1-3]``."""
    return f"{len(names)} node{'' if len(names) == 1 else 's'}: {fold(names)}"
