"""One job on many nodes: how many at a time, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kadeploy.config.site import Ssh
from kadeploy.remote import fanout
from kadeploy.remote.fanout import Credentials, Target, on_all
from kadeploy.workflow import Outcome, Verdict
from tests.unit import build


def test_at_most_a_window_of_jobs_is_under_way_and_a_hung_one_holds_nobody_back() -> None:
    """Of twenty jobs one hangs until all others are done: with two at a time they still all end."""
    targets = [Target(f"node-{number}", "") for number in range(20)]
    others_done = asyncio.Event()
    running: set[str] = set()
    most = 0
    heard: list[str] = []

    async def job(target: Target) -> Outcome:
        nonlocal most
        running.add(target.name)
        most = max(most, len(running))
        await (others_done.wait() if target.name == "node-3" else asyncio.sleep(0))
        running.discard(target.name)
        return Outcome(Verdict.OK)

    def listen(name: str, outcome: Outcome) -> None:
        heard.append(name)
        if len(heard) == len(targets) - 1:
            others_done.set()

    outcomes = asyncio.run(asyncio.wait_for(on_all(targets, job, 2, listen), 60))
    assert list(outcomes) == [target.name for target in targets]
    assert heard[-1] == "node-3"
    assert most == 2


def test_a_job_that_raises_is_that_nodes_failure_alone() -> None:
    async def job(target: Target) -> Outcome:
        if target.name == "node-1":
            raise RuntimeError("surprise")
        return Outcome(Verdict.OK)

    outcomes = asyncio.run(on_all([Target(f"node-{n}", "") for n in range(3)], job, 3))
    assert [outcome.verdict for outcome in outcomes.values()] == [Verdict.OK, Verdict.KO, Verdict.OK]
    assert outcomes["node-1"].message == "RuntimeError: surprise"


def test_no_target_is_no_outcome() -> None:
    assert asyncio.run(on_all([], lambda _: pytest.fail("called"), 5)) == {}


# --- how nodes are entered --------------------------------------------------------------------------------------


def test_a_site_says_how_its_nodes_are_entered_and_nobody_else_puts_it_together(tmp_path: Path) -> None:
    site = build.site(tmp_path, ssh=Ssh(private_key="/etc/key", host_key="ssh-ed25519 AAAA", connect_timeout=7))
    assert Credentials.of(site) == Credentials(Path("/etc/key"), "ssh-ed25519 AAAA", "root", 7)
    sources = Path(fanout.__file__).parents[1]
    assert [path for path in sources.rglob("*.py") if "Credentials(Path" in path.read_text()] == []
