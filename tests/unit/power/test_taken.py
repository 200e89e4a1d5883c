"""Nodes that are taken from an operation while they are switched: the order under way ends, and no other follows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from kadeploy.config.cluster import Node, Power, PowerCommands
from kadeploy.config.site import Site
from kadeploy.power import switch
from kadeploy.remote import broker
from kadeploy.remote.broker import Broker
from kadeploy.remote.fanout import Credentials
from kadeploy.workflow import Verdict
from tests.unit import build

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

REASON = "aborted: it is bob's now"
ORDERED = "sh -c 'echo begins HOSTNAME_FQDN >>{0}; sleep {1}; echo ends HOSTNAME_FQDN >>{0}; exit 1'"


def test_a_node_that_is_taken_gets_no_further_order_and_is_free_when_the_one_under_way_has_ended(
    site: Site, tmp_path: Path
) -> None:
    """Each order fails, which would lead to the next level; the other node goes through all of them."""
    log = tmp_path / "orders"
    orders = PowerCommands(hard_reboot=ORDERED.format(log, 2), very_hard_reboot=ORDERED.format(log, 0))
    cluster = build.cluster(power=Power(driver="command", timeout=10, commands=orders))
    keeper = Broker(tmp_path, Credentials.of(site))
    keeper.start()

    async def reboot() -> tuple[list[str], dict[str, tuple[Verdict, str]]]:
        remote = await broker.connect(tmp_path, Credentials.of(site))
        nodes = [Node(name="lost"), Node(name="kept")]
        switching = asyncio.create_task(
            switch.switch(site, cluster, nodes, "reboot", "hard", config_dir=tmp_path, remote=remote)
        )
        while not log.exists() or log.read_text().count("begins") < 2:
            await asyncio.sleep(0.02)
        begun = time.monotonic()
        letting = keeper.take({"lost": REASON})
        await asyncio.wrap_future(letting)
        ended = log.read_text().splitlines()
        assert time.monotonic() - begun > 1
        outcomes = await switching
        await remote.close()
        return ended, {name: (outcome.verdict, outcome.message) for name, outcome in outcomes.items()}

    try:
        ended, outcomes = asyncio.run(reboot())
    finally:
        keeper.stop()
    assert "ends lost" in ended, "it is free only then"
    assert log.read_text().count("begins lost") == 1
    assert log.read_text().count("begins kept") == 2
    assert outcomes["lost"][0] is Verdict.KO
    assert outcomes["lost"][1].endswith(f"very_hard: {REASON}")
