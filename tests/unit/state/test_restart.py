"""A database server that died and came again is used again, by all threads that knew it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kadeploy.errors import DatabaseError
from kadeploy.state import database, nodes
from kadeploy.state.database import connect, disconnect, transaction
from tests.postgresql import Server, running
from tests.unit import build


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as found:
        yield found
        disconnect()


def test_after_a_restart_of_the_server_nobody_fails(server: Server, tmp_path: Path) -> None:
    """Not once, in none of the threads: each had a connection to the server before."""
    site = build.site(tmp_path, database=server.url)
    together = threading.Barrier(3)

    def ask(_rank: int) -> list[str]:
        together.wait(60)
        return [row.hostname for row in nodes.states(site)]

    with ThreadPoolExecutor(3, initializer=lambda: database.connect(site)) as pool:
        nodes.claim(site, ["gdx-1"], "D-1", "root")
        connect(site)
        nodes.set_state(["gdx-1"], "deployed", None, "root")
        assert list(pool.map(ask, range(3))) == [["gdx-1"]] * 3
        server.kill()
        with pytest.raises(DatabaseError, match="Is its server running"):
            list(nodes.states(site))
        server.start()
        assert list(pool.map(ask, range(3))) == [["gdx-1"]] * 3
        list(pool.map(lambda _: disconnect(), range(3)))
    assert nodes.holders(site, ["gdx-1"]) == ["D-1"]


def test_a_transaction_that_the_server_did_not_outlive_is_lost_as_a_whole(server: Server, tmp_path: Path) -> None:
    site = build.site(tmp_path, database=server.url)
    connect(site)
    nodes.set_state(["gdx-1"], "deployed", None, "root")

    def cut() -> None:
        with transaction():
            nodes.set_state(["gdx-1"], "aborted", None, "root")
            server.kill()
            server.start()
            connect(site)
            nodes.set_state(["gdx-2"], "aborted", None, "root")

    with pytest.raises(DatabaseError):
        cut()
    assert [(row.hostname, row.state) for row in nodes.states(site)] == [("gdx-1", "deployed")]
