"""The memory of a run: what tasks in processes of their own know of one another."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kadeploy.microsteps.memory import Begun, Memory, latest, memory_of
from kadeploy.workflow import Outcome, Verdict

STEP = Begun("key", "format_tmp_part", "SetDeploymentEnvUntrusted", "SetDeploymentEnv")


def test_only_nodes_that_are_out_are_kept_and_their_first_word_counts(tmp_path: Path) -> None:
    known = Memory(tmp_path / "memory")
    known.note(STEP, {"a": Outcome(Verdict.OK), "b": Outcome(Verdict.KO, "first"), "c": Outcome(Verdict.BRK, "there")})
    known.note(STEP, {"b": Outcome(Verdict.KO, "second")})
    out = known.out()
    assert {node: (line.verdict, line.message) for node, line in out.items()} == {
        "b": (Verdict.KO, "first"),
        "c": (Verdict.BRK, "there"),
    }
    assert out["b"].step == "format_tmp_part"


def test_steps_are_known_in_their_order_for_the_nodes_that_began_them(tmp_path: Path) -> None:
    known = Memory(tmp_path / "memory")
    assert known.begun(("a",)) == []
    second = Begun("other", "sync", "BroadcastEnvChain", "BroadcastEnv")
    known.begin(STEP, ("a", "b"))
    known.begin(second, ("b",))
    assert (known.begun(("a",)), known.begun(("b",)), known.begun(("c",))) == ([STEP], [STEP, second], [])


@given(st.integers(0, 200), st.text())
def test_a_torn_last_line_costs_that_line_alone(tmp_path_factory: object, cut: int, message: str) -> None:
    """Property: wherever the file was cut, what was written before and after is read."""
    folder = tmp_path_factory.mktemp("torn")  # type: ignore[attr-defined]
    known = Memory(folder / "memory")
    known.note(STEP, {"a": Outcome(Verdict.KO, message.encode("utf-8", "replace").decode())})
    whole = known.path.read_bytes()
    known.note(STEP, {"b": Outcome(Verdict.KO, "torn")})
    known.path.write_bytes(known.path.read_bytes()[: len(whole) + cut % (len(known.path.read_bytes()) - len(whole))])
    known.note(STEP, {"c": Outcome(Verdict.KO, "later")})
    assert {"a", "c"} <= set(known.out())


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_note, [tmp_path / "memory"] * 200, range(200)))
    assert set(Memory(tmp_path / "memory").out()) == {f"node-{number}" for number in range(200)}


def _note(path: Path, number: int) -> None:
    Memory(path).note(STEP, {f"node-{number}": Outcome(Verdict.KO, "x" * 500)})


def test_each_process_has_a_memory_of_its_own_and_the_last_one_is_found(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    mine, others = memory_of(tmp_path, os.getpid()), memory_of(tmp_path, os.getppid())
    assert mine.path != others.path
    assert memory_of(tmp_path, os.getpid()) == mine
    others.begin(STEP, ("a",))
    os.utime(others.path, (1, 1))
    mine.begin(STEP, ("a",))
    assert latest(tmp_path) == mine


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    known = Memory(tmp_path / "memory")
    known.begin(STEP, ("a", "b"))
    assert known.path.stat().st_mode & 0o777 == 0o600
