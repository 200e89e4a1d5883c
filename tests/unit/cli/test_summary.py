"""The last lines of an operation: those that programs of either version parse, and those for people."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kadeploy.cli import summary
from kadeploy.config.site import Messages
from kadeploy.events import Ended, Report
from kadeploy.nodeset import expand

LATE = "SetDeploymentEnvUntrusted-wait_reboot: Unreachable after the reboot"
FULL = "BroadcastEnvChain-send_environment: the image is bigger than the partition"
BROKEN = "SetDeploymentEnvUntrusted-create_partition_table: sfdisk: cannot open /dev/sda"


def ended(operation: Any = "deploy") -> Ended:
    """A hundred nodes, of which eight failed in three ways."""
    names = expand("gdx-[1-100].site")
    ko = {
        **dict.fromkeys(expand("gdx-[12,40-42].site"), LATE),
        **dict.fromkeys(expand("gdx-[7,9,77].site"), FULL),
        "gdx-50.site": BROKEN,
    }
    report = Report("D-1", ok=tuple(name for name in names if name not in ko), ko=ko)
    return Ended(at=160.0, operation=operation, groups={"gdx": tuple(names)}, report=report)


PATTERNS: dict[Messages, tuple[str, str]] = {
    "3.1": (r"^Nodes correctly deployed on cluster \w+\s*$", r"^Nodes not correctly deployed on cluster \w+\s*$"),
    "3.2": (r"^The \w+ is successful on nodes\s*$", r"^The \w+ failed on nodes\s*$"),
}
"""As programs look for them in the output of Kadeploy before 3.2, and from 3.2 on."""
NODE = re.compile(r"^(\w+-\d+\.site)(\s+\(.*)?\s*$")


@pytest.mark.parametrize("messages", PATTERNS)
def test_programs_find_the_nodes_of_both_kinds(messages: Messages) -> None:
    found: dict[str, list[str]] = {"good": [], "bad": []}
    kind = ""
    for line in summary.lists(ended(), messages):
        for word, pattern in zip(found, PATTERNS[messages], strict=True):
            kind = word if re.match(pattern, line) else kind
        if match := NODE.match(line):
            found[kind].append(match[1])
    assert len(found["good"]) == 92
    assert found["bad"] == [f"gdx-{number}.site" for number in (7, 9, 12, 40, 41, 42, 50, 77)]


@pytest.mark.parametrize(
    ("operation", "messages", "said"),
    [
        ("reboot", "3.1", "Nodes correctly rebooted on cluster gdx:"),
        ("power", "3.1", "Operation not correctly performed on cluster gdx:"),
        ("reboot", "3.2", "The reboot is successful on nodes"),
        ("power", "3.2", "The power operation failed on nodes"),
    ],
)
def test_other_operations_have_their_own_words(operation: str, messages: Messages, said: str) -> None:
    assert said in summary.lists(ended(operation), messages)


def test_people_read_each_kind_of_failure_once_and_what_to_do_on_one_screen() -> None:
    lines = summary.for_people(ended(), "kadeploy3", consoles=True)
    assert len(lines) <= 20
    assert [sum(reason in line for line in lines) for reason in (LATE, FULL, BROKEN)] == [1, 1, 1]
    assert lines[0].startswith("OK  92 nodes: gdx-[1-6,8,")
    assert lines[1:3] == ["KO  4 nodes: gdx-[12,40-42].site", f"    {LATE}"]
    assert lines[-3:] == [
        "once more, these alone  kadeploy3 -m 'gdx-[7,9,12,40-42,50,77].site' and the same options",
        "what each of them did   kastat3 -d -w D-1 -F hostname,step1,step2,step3,error",
        "a console               kaconsole3 -m gdx-7.site",
    ]


def test_what_differs_in_names_addresses_and_times_alone_is_one_kind() -> None:
    ko = {
        f"n-{number}": f"A-b: ssh to n-{number} (10.0.0.{number}:22): no answer after 1{number} s" for number in (1, 2)
    }
    ended = Ended(at=1.0, operation="deploy", groups={"gdx": ("n-1", "n-2")}, report=Report("D-1", ko=ko))
    assert summary.for_people(ended, "kadeploy3")[:2] == ["KO  2 nodes: n-[1-2]", f"    {ko['n-1']}"]


def test_without_failures_and_consoles_there_is_nothing_to_do() -> None:
    fine = Ended(at=1.0, operation="deploy", groups={"gdx": ("n-1",)}, report=Report("D-1", ok=("n-1",)))
    assert summary.for_people(fine, "kadeploy3") == ["OK  1 node: n-1"]
    assert not any("console" in line for line in summary.for_people(ended(), "kadeploy3"))
