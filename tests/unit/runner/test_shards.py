"""Attempts on very many nodes: how they are cut, and that whoever asked for one sees one."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.broadcast.progress import Transfer
from kadeploy.config.cluster import NodeRange
from kadeploy.config.folder import collection
from kadeploy.events import Event, Listener, Progress, StepStarted
from kadeploy.nodeset import natural_key
from kadeploy.runner import playbooks, request, shards
from kadeploy.runner.player import Part, Player
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.unit import build

ATTEMPT = Attempt("BootNewEnv", "BootNewEnvDummy", 0, 0, 3)
NAMES = tuple(f"n-{number}" for number in range(1, 6))


@given(st.sets(st.integers(1, 10_000), max_size=60), st.integers(1, 20))
def test_shards_are_neighbours_as_few_and_as_even_as_can_be(numbers: set[int], most: int) -> None:
    nodes = [f"node-{number}" for number in numbers]
    found = shards.cut(nodes, most)
    sizes = [len(shard) for shard in found]
    assert max(sizes) <= most
    assert len(found) == max(1, -(-len(nodes) // most))
    assert max(sizes) - min(sizes) <= 1
    together = [name for shard in found for name in shard]
    assert sorted(together) == sorted(nodes)
    assert len(found) == 1 or together == sorted(nodes, key=natural_key)


def test_a_broadcast_is_as_far_as_the_shard_that_is_behind() -> None:
    told: list[Event] = []
    transfers = shards.Transfers(2)
    first, second = transfers.heard(1, told.append), transfers.heard(2, told.append)
    for hear, transfer in (
        (first, Transfer(total=100, done=60, sent=70, nodes=5, seconds=2.0)),
        (second, Transfer(total=100, done=10, sent=20, nodes=4, seconds=1.0)),
        (first, Transfer(total=100, done=100, sent=100, nodes=5, seconds=3.0)),
    ):
        hear(Progress(attempt=ATTEMPT, nodes=NAMES, transfer=transfer))
    assert [event.transfer for event in told if isinstance(event, Progress)] == [
        Transfer(total=100, done=0, sent=70, nodes=5, seconds=2.0),  # the second has not begun
        Transfer(total=100, done=10, sent=90, nodes=9, seconds=2.0),
        Transfer(total=100, done=10, sent=120, nodes=9, seconds=3.0),
    ]


def test_a_shard_that_breaks_costs_its_own_nodes_alone() -> None:
    def play(number: int, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        if number == 2:
            raise OSError("No space left on device")
        return dict.fromkeys(nodes, Outcome(Verdict.OK))

    outcomes = shards.at_once([("n-1", "n-2"), ("n-3",)], play)
    assert {node: outcome.verdict for node, outcome in outcomes.items()} == {
        "n-1": Verdict.OK,
        "n-2": Verdict.OK,
        "n-3": Verdict.KO,
    }
    assert outcomes["n-3"].message == "shard 2: OSError: No space left on device"


def test_all_of_ours_can_be_cut_but_for_the_command_of_a_site(tmp_path: Path) -> None:
    """A site's own playbook may do what is done once for all nodes."""
    ours = playbooks.implementations(tmp_path)
    assert {name for name, path in ours.items() if not playbooks.can_be_cut(path, tmp_path)} == {"BroadcastEnvCustom"}
    own = tmp_path / "playbooks" / "BootNewEnvDummy.yml"
    own.parent.mkdir()
    own.write_bytes((collection() / "playbooks" / own.name).read_bytes())
    assert not playbooks.can_be_cut(own, tmp_path)


@pytest.fixture
def player(tmp_path: Path) -> Player:
    """It works on five nodes, two by two."""
    config = tmp_path / "config"
    config.mkdir()
    cluster = build.cluster(name="n", nodes=(NodeRange(name="n-[1-5]"),))
    site = build.site(tmp_path, shard=2)
    workflow = str(tmp_path / "runs" / "D-1")
    assignment = build.assignment(tmp_path, config_dir=str(config), workflow_dir=workflow, cluster=cluster, site=site)
    told: list[Event] = []
    return Player(assignment, {node.name: node for node in assignment.nodes}, told.append, threading.Event())


def test_an_attempt_is_one_whatever_it_is_cut_into(player: Player, tmp_path: Path) -> None:
    """A site's own tasks count in each shard, a node that fails is KO in its own, and the whole can be repeated."""
    hook = tmp_path / "config" / "hooks" / "BootNewEnvDummy" / "dummy.pre.d" / "look.yml"
    hook.parent.mkdir(parents=True)
    hook.write_text("- ansible.builtin.fail: {msg: broken}\n  when: inventory_hostname == 'n-3'\n")
    outcomes = player.perform(ATTEMPT, NAMES)
    assert {node for node, outcome in outcomes.items() if outcome.verdict is Verdict.OK} == {"n-1", "n-2", "n-4", "n-5"}
    assert "broken" in outcomes["n-3"].message
    folders = sorted(path.name for path in (tmp_path / "runs" / "D-1").glob("03-*"))
    assert folders == ["03-BootNewEnvDummy", *(f"03-BootNewEnvDummy.00{number}" for number in (1, 2, 3))]
    of = [request.read(tmp_path / "runs" / "D-1" / name / request.FILE_NAME) for name in folders]
    assert [tuple(node.name for node in each.nodes) for each in of] == [NAMES, NAMES[:2], NAMES[2:4], NAMES[4:]]
    assert [each.of for each in of] == [0, 5, 5, 5], "time-outs depend on how many nodes there are in all"
    done = subprocess.run(
        [tmp_path / "runs" / "D-1" / folders[0] / "command"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(name in done.stdout for name in NAMES)


def test_each_shard_says_where_its_nodes_are(player: Player) -> None:
    told: list[Event] = []
    listening = Player(player.assignment, player.nodes, told.append, player.stop)
    listening.perform(ATTEMPT, NAMES)
    started = [event for event in told if isinstance(event, StepStarted)]
    assert sorted(event.nodes for event in started) == [NAMES[:2], NAMES[2:4], NAMES[4:]]
    assert {event.micro_step for event in started} == {"dummy"}


def test_what_is_the_sites_own_is_carried_out_on_the_controller_alone(player: Player, tmp_path: Path) -> None:
    """Others get what is ours: no attempt with hooks, and none that runs the site's broadcast command."""
    asked: list[Part] = []

    def elsewhere(part: Part, _tell: Listener) -> dict[str, Outcome]:
        asked.append(part)
        return dict.fromkeys(part.nodes, Outcome(Verdict.OK, "elsewhere"))

    site = build.site(tmp_path, shard=5)
    assignment = msgspec.structs.replace(player.assignment, site=site)
    sending = Player(assignment, player.nodes, player.tell, player.stop, elsewhere=elsewhere)
    assert sending.perform(ATTEMPT, NAMES) == dict.fromkeys(NAMES, Outcome(Verdict.OK, "elsewhere"))
    hook = tmp_path / "config" / "hooks" / "BootNewEnvClassical" / "reboot_from_deploy_env.pre.d" / "look.yml"
    hook.parent.mkdir(parents=True)
    hook.write_text("- ansible.builtin.fail: {msg: broken}\n")
    for macro, name, number in (("BroadcastEnv", "BroadcastEnvCustom", 4), ("BootNewEnv", "BootNewEnvClassical", 5)):
        outcomes = sending.perform(Attempt(macro, name, 0, 0, number), NAMES)
        assert {outcome.verdict for outcome in outcomes.values()} == {Verdict.KO}
    assert [part.attempt for part in asked] == [ATTEMPT]


def test_few_nodes_are_done_by_one_run(player: Player, tmp_path: Path) -> None:
    assignment = msgspec.structs.replace(player.assignment, site=build.site(tmp_path, shard=5))
    Player(assignment, player.nodes, player.tell, player.stop).perform(ATTEMPT, NAMES)
    assert [path.name for path in (tmp_path / "runs" / "D-1").glob("03-*")] == ["03-BootNewEnvDummy"]
