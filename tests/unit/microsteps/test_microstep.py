"""One micro-step on its nodes: what comes before, instead and after, and that each node ends with an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kadeploy.errors import ConfigError
from kadeploy.microsteps import microstep
from kadeploy.microsteps.memory import Begun, Memory
from kadeploy.microsteps.microstep import Engine, MicroStep
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Credentials
from kadeploy.runner.request import CustomOperation, Options
from kadeploy.workflow import Attempt, GoesOn, Outcome, Verdict
from tests.unit import build

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

NAMES = ("node-1", "node-2", "node-3")
OK, KO, BRK = Verdict.OK, Verdict.KO, Verdict.BRK
FIRST = Begun("key 1", "format_tmp_part", "SetDeploymentEnvTest", "SetDeploymentEnv")
SECOND = Begun("key 2", "mount_tmp_part", "SetDeploymentEnvTest", "SetDeploymentEnv")


class Bench:
    """Plays micro-steps one after the other, as the tasks of a playbook do."""

    def __init__(self, folder: Path, nodes: Nodes | None = None, options: Options = Options(), **changes: Any) -> None:  # noqa: B008 - frozen
        self.memory = Memory(folder / "memory")
        self.credentials = nodes.credentials if nodes else Credentials(folder / "key")
        ssh = build.site(folder).ssh
        if nodes:
            ssh = type(ssh)(private_key="", host_key="", port=nodes.port)
        self.request = build.request(folder, site=build.site(folder, ssh=ssh), options=options, **changes)

    def play(self, begun: Begun, engine: Engine, members: tuple[str, ...] = NAMES) -> dict[str, Outcome]:
        async def main() -> dict[str, Outcome]:
            remote = Connections(self.credentials)
            try:
                step = MicroStep(self.request, begun, members, remote)
                return await asyncio.wait_for(microstep.play(step, engine, self.memory), 60)
            finally:
                await remote.close()

        return asyncio.run(main())


class Answer:
    """An engine that answers the same each time, and remembers for whom it was called."""

    def __init__(self, verdicts: Mapping[str, Verdict] | None = None) -> None:
        self.verdicts = verdicts or {}
        self.calls: list[tuple[str, ...]] = []

    async def __call__(self, step: MicroStep) -> dict[str, Outcome]:
        self.calls.append(step.members)
        return {node: Outcome(self.verdicts.get(node, OK), f"said by {node}") for node in step.members}


def verdicts(outcomes: Mapping[str, Outcome]) -> list[Verdict]:
    return [outcome.verdict for outcome in outcomes.values()]


# --- the engine -------------------------------------------------------------------------------------------------


def test_each_member_has_an_outcome_in_the_order_of_the_members(tmp_path: Path) -> None:
    outcomes = Bench(tmp_path).play(FIRST, Answer({"node-2": KO}))
    assert list(outcomes) == list(NAMES)
    assert verdicts(outcomes) == [OK, KO, OK]


def test_a_node_of_which_the_engine_says_nothing_is_ko(tmp_path: Path) -> None:
    async def forgetful(step: MicroStep) -> dict[str, Outcome]:
        return {"node-1": Outcome(OK)}

    outcomes = Bench(tmp_path).play(FIRST, forgetful)
    assert verdicts(outcomes) == [OK, KO, KO]
    assert outcomes["node-2"].message == "no verdict"


@pytest.mark.parametrize(
    ("error", "said"),
    [(ConfigError("There is no command."), "There is no command."), (KeyError("x"), "KeyError: 'x'")],
)
def test_an_engine_that_raises_costs_only_the_nodes_that_were_not_done(
    tmp_path: Path, error: Exception, said: str
) -> None:
    async def broken(step: MicroStep) -> dict[str, Outcome]:
        step.report("node-1", Outcome(OK))
        raise error

    outcomes = Bench(tmp_path).play(FIRST, broken)
    assert verdicts(outcomes) == [OK, KO, KO]
    assert outcomes["node-3"].message == said


def test_a_time_out_spares_the_nodes_that_are_done(tmp_path: Path) -> None:
    async def hanging(step: MicroStep) -> dict[str, Outcome]:
        step.report("node-1", Outcome(OK))
        await asyncio.Event().wait()
        raise AssertionError

    bench = Bench(tmp_path, cluster=build.cluster(micro_timeouts={FIRST.step: 1}))
    outcomes = bench.play(FIRST, hanging)
    assert verdicts(outcomes) == [OK, KO, KO]
    assert outcomes["node-2"].message == "Timeout in the format_tmp_part step"


def test_retries_are_additional_tries_for_nodes_that_are_ko_alone(tmp_path: Path) -> None:
    """A node at a breakpoint is not tried again."""
    engine = Answer({"node-1": KO, "node-2": BRK})
    bench = Bench(tmp_path, cluster=build.cluster(micro_retries={FIRST.step: 2}))
    assert verdicts(bench.play(FIRST, engine)) == [KO, BRK, OK]
    assert engine.calls == [NAMES, ("node-1",), ("node-1",)]


def test_a_retry_that_succeeds_is_what_counts(tmp_path: Path) -> None:
    tries = 0

    async def flaky(step: MicroStep) -> dict[str, Outcome]:
        nonlocal tries
        tries += 1
        return dict.fromkeys(step.members, Outcome(OK if tries == 2 else KO))

    bench = Bench(tmp_path, cluster=build.cluster(micro_retries={FIRST.step: 5}))
    assert verdicts(bench.play(FIRST, flaky)) == [OK, OK, OK]
    assert tries == 2


def test_nodes_that_are_out_are_noted_with_the_step_and_the_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.play(FIRST, Answer({"node-2": KO, "node-3": BRK}))
    out = bench.memory.out()
    assert {node: (known.verdict, known.step, known.message) for node, known in out.items()} == {
        "node-2": (KO, "format_tmp_part", "said by node-2"),
        "node-3": (BRK, "format_tmp_part", "said by node-3"),
    }


# --- breakpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "stops"),
    [
        ("SetDeploymentEnvTest:format_tmp_part", True),
        ("SetDeploymentEnv:format_tmp_part", True),
        ("SetDeploymentEnv", True),
        ("SetDeploymentEnvTest", True),
        ("SetDeploymentEnv:mount_tmp_part", False),
        ("SetDeploymentEnvOther:format_tmp_part", False),
        ("BroadcastEnv", False),
        ("", False),
    ],
)
def test_a_breakpoint_is_named_by_macro_step_or_implementation_and_perhaps_a_micro_step(
    where: str, stops: bool
) -> None:
    assert microstep.at_breakpoint(where, FIRST) == stops


def test_a_breakpoint_stops_before_its_micro_step_and_says_which(tmp_path: Path) -> None:
    bench, engine = Bench(tmp_path, options=Options(breakpoint="SetDeploymentEnv:mount_tmp_part")), Answer()
    assert verdicts(bench.play(FIRST, engine)) == [OK, OK, OK]
    outcomes = bench.play(SECOND, engine)
    assert verdicts(outcomes) == [BRK, BRK, BRK]
    assert outcomes["node-1"].message == "Stopped at the breakpoint before SetDeploymentEnvTest:mount_tmp_part."
    assert engine.calls == [NAMES]


# --- custom operations ------------------------------------------------------------------------------------------


def operation(when: str, step: Begun, command: str, **more: Any) -> CustomOperation:
    return CustomOperation(
        implementation=step.macro_step,
        micro_step=step.step,
        action="exec",
        when=when,  # type: ignore[arg-type]
        command=command,
        **more,
    )


def test_operations_run_before_after_and_instead_of_a_step_once(tmp_path: Path, nodes: Nodes) -> None:
    """A micro-step may have several tasks: what was asked for before it comes before the first alone."""
    log = tmp_path / "log"
    wanted = tuple(
        operation(when, step, f"echo {when} {step.step} >>{log}")
        for when, step in (("pre", FIRST), ("post", FIRST), ("substitute", SECOND))
    )
    bench, engine = Bench(tmp_path, nodes, Options(custom_operations=wanted)), Answer()
    for begun in (FIRST, FIRST, SECOND, SECOND):
        assert verdicts(bench.play(begun, engine, ("node-1",))) == [OK]
    assert log.read_text().splitlines() == ["pre format_tmp_part", "post format_tmp_part", "substitute mount_tmp_part"]
    assert len(engine.calls) == 2


def test_a_node_whose_operation_fails_does_not_come_to_the_step(tmp_path: Path, nodes: Nodes) -> None:
    command = "echo before; case $SSH_CONNECTION in *127.9.0.2*) echo no >&2; exit 7;; esac"
    wanted = (operation("pre", FIRST, command, name="mine"), operation("pre", FIRST, "echo second"))
    bench, engine = Bench(tmp_path, nodes, Options(custom_operations=wanted)), Answer()
    outcomes = bench.play(FIRST, engine)
    assert verdicts(outcomes) == [OK, KO, OK]
    assert engine.calls == [("node-1", "node-3")]
    assert (outcomes["node-2"].message, outcomes["node-2"].rc) == ("custom operation mine: no", 7)
    assert (outcomes["node-1"].stdout, outcomes["node-2"].stdout) == ("before\nsecond\n", "before\n")


def test_an_operations_retries_are_for_the_nodes_that_failed(tmp_path: Path, nodes: Nodes) -> None:
    log = tmp_path / "log"
    command = f'set -- $SSH_CONNECTION; echo $3 >>{log}; [ $3 != 127.9.0.2 ] || [ "$(grep -c $3 {log})" = 3 ]'
    bench = Bench(tmp_path, nodes, Options(custom_operations=(operation("pre", FIRST, command, retries=5),)))
    assert verdicts(bench.play(FIRST, Answer())) == [OK, OK, OK]
    tried = log.read_text().split()
    assert {address: tried.count(address) for address in set(tried)} == {
        "127.9.0.1": 1,
        "127.9.0.2": 3,
        "127.9.0.3": 1,
    }


def test_nodes_that_go_on_late_do_not_repeat_what_came_before_their_step(tmp_path: Path, nodes: Nodes) -> None:
    log = tmp_path / "log"
    options = Options(custom_operations=(operation("pre", FIRST, f"echo pre >>{log}"),), breakpoint=FIRST.macro_step)
    late = Attempt("SetDeploymentEnv", "SetDeploymentEnvTest", retry=1, goes_on=GoesOn(FIRST.step, 0.0, 3.0))
    bench, engine = Bench(tmp_path, nodes, options, attempt=late), Answer()
    assert verdicts(bench.play(FIRST, engine)) == [OK, OK, OK]
    assert engine.calls == [NAMES]
    assert not log.exists()
