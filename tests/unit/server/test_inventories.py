"""Clusters whose nodes an Ansible inventory tells, in the service: read again beside, and published by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kadeploy.config.cluster import Cluster
from kadeploy.server import daemon, published
from kadeploy.server.daemon import Watched

PATIENCE = 120
"""Seconds for one reading of an inventory, on a busy machine."""


@pytest.fixture
def hosts(site_folder: Path) -> Path:
    """The inventory of cluster gdx."""
    path = site_folder / "hosts.ini"
    path.write_text("[gdx]\ngdx-[1:2].site bmc_password=s3cret\n")
    cluster = site_folder / "clusters/gdx.yml"
    cluster.write_text("inventory: {source: hosts.ini}\n" + cluster.read_text().partition("\n")[2].partition("\n")[2])
    return path


def in_time(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while not (held := holds()) and time.monotonic() < until:
        time.sleep(0.1)
    return held


def test_a_changed_inventory_counts_soon(site_folder: Path, hosts: Path) -> None:
    watched = Watched(site_folder, age=0.0)
    assert set(watched().clusters["gdx"].members) == {"gdx-1.site", "gdx-2.site"}
    hosts.write_text("[gdx]\ngdx-[1:3].site\n")
    assert in_time(lambda: "gdx-3.site" in watched().cluster_of)


def test_of_an_inventory_that_is_wrong_now_the_nodes_of_before_are_kept_and_the_log_says_so(
    site_folder: Path, hosts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "RETRY", 0.2)
    watched = Watched(site_folder, age=0.0)
    watched()
    hosts.write_text("[gdx]\ngdx-1.site mac=52\n")
    assert in_time(lambda: bool(watched() and "host gdx-1.site, variable mac: wrong value 52" in caplog.text))
    assert "gdx-2.site" in watched().cluster_of
    hosts.write_text("[gdx]\ngdx-1.site\n")
    assert in_time(lambda: "gdx-2.site" not in watched().cluster_of)


def test_clients_learn_the_names_of_such_nodes_and_nothing_of_the_inventory(site_folder: Path, hosts: Path) -> None:
    found = published.clusters(Watched(site_folder)())["gdx"]
    sent = msgspec.json.encode(found)
    assert set(msgspec.json.decode(sent, type=Cluster).members) == {"gdx-1.site", "gdx-2.site"}
    assert hosts.name.encode() not in sent
    assert b"s3cret" not in sent
