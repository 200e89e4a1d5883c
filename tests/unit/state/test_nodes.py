"""Claims, states, and what is left of controllers that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psycopg
import pytest

from kadeploy.config.service import Quota, Service
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.errors import LimitError
from kadeploy.state import journal, nodes
from kadeploy.state.database import connect, disconnect, fetch
from kadeploy.state.nodes import NO_ENVIRONMENT, NodeRow
from kadeploy.state.tables import Claim, Log, Workflow

NAMES = [f"gdx-{rank}.site" for rank in range(1, 6)]
DEBIAN = Environment(name="debian", version=12, image=Image(file="/srv/debian.tgz", kind="tgz"), user="root")

CONTROLLER = """
import sys, time
from kadeploy.config.folder import load_site
from kadeploy.state import journal, nodes
site, wid, names = load_site(), sys.argv[1], sys.argv[2:]
nodes.claim(site, names, wid, "alice")
journal.begin(site, wid, "deploy", "alice", None, {"gdx": names})
nodes.set_state(names, "deploying", None, "alice")
print("working", flush=True)
time.sleep(600)
"""


@pytest.fixture
def living(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """A controller that deploys the nodes of NAMES as workflow D-other, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", CONTROLLER, "D-other", *NAMES], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    yield process
    process.kill()
    process.communicate()


def elsewhere(wid: str, silent_for: float) -> None:
    """Move the workflow and its claims to another machine, from where nothing has come for *silent_for* seconds."""
    then = int(time.time() - silent_for)
    Claim.update(host="other.site", since=then).where(Claim.wid == wid).execute()
    Workflow.update(host="other.site", seen=then).where(Workflow.wid == wid).execute()


def states(site: Site) -> dict[str, str]:
    return {row.hostname: row.state for row in nodes.states(site)}


# --- claims -----------------------------------------------------------------------------------------------------


def test_free_nodes_are_claimed(site: Site) -> None:
    assert nodes.claim(site, NAMES, "D-1", "alice") == (NAMES, {})


def test_a_claimed_node_is_refused_and_the_reason_says_who_has_it(site: Site) -> None:
    nodes.claim(site, NAMES[:2], "D-1", "alice")
    claimed, refused = nodes.claim(site, NAMES[:3], "D-2", "bob")
    assert claimed == NAMES[2:3]
    assert sorted(refused) == NAMES[:2]
    assert all("alice" in reason and "D-1" in reason for reason in refused.values())


def test_claiming_again_what_one_holds_changes_nothing(site: Site) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    assert nodes.claim(site, NAMES, "D-1", "alice") == (NAMES, {})


def test_force_takes_nodes_over_and_the_first_holder_cannot_release_them(site: Site) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    assert nodes.claim(site, NAMES[:2], "D-2", "bob", force=True) == (NAMES[:2], {})
    nodes.release("D-1")
    assert sorted(fetch(Claim.select(Claim.node, Claim.wid))) == [(name, "D-2") for name in NAMES[:2]]


def test_released_nodes_are_free(site: Site) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    nodes.release("D-1")
    assert nodes.claim(site, NAMES, "D-2", "bob") == (NAMES, {})


def test_processes_that_race_for_the_same_nodes_get_each_node_once(site: Site) -> None:
    connect(site)
    names = [f"gdx-{rank}.site" for rank in range(300)]
    code = """
import random, sys
from kadeploy.config.folder import load_site
from kadeploy.state import nodes
site, names = load_site(), [f"gdx-{rank}.site" for rank in range(300)]
random.Random(sys.argv[1]).shuffle(names)
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 300, 30):
    print(*nodes.claim(site, names[start:start + 30], f"D-{sys.argv[1]}", "alice")[0])
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for rank in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [name for racer in racers for name in racer.communicate()[0].split()]
    assert sorted(taken) == sorted(names)


# --- dead controllers -------------------------------------------------------------------------------------------


def test_a_living_controller_keeps_its_nodes(site: Site, living: subprocess.Popen[bytes]) -> None:
    assert nodes.reap(site) == {}
    assert nodes.claim(site, NAMES, "D-1", "bob")[0] == []


def test_a_killed_controller_leaves_aborted_nodes_that_are_free_again(
    site: Site, living: subprocess.Popen[bytes]
) -> None:
    living.send_signal(signal.SIGKILL)
    living.wait()
    reaped = nodes.reap(site)
    assert {wid: sorted(names) for wid, names in reaped.items()} == {"D-other": NAMES}
    assert states(site) == dict.fromkeys(NAMES, "aborted")
    assert nodes.claim(site, NAMES, "D-1", "bob") == (NAMES, {})
    assert nodes.reap(site) == {}


def test_a_killed_controller_is_dead_even_before_its_parent_waits_for_it(
    site: Site, living: subprocess.Popen[bytes]
) -> None:
    living.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert list(nodes.reap(site)) == ["D-other"]


def test_a_killed_controller_gets_one_failed_log_row_per_node_that_says_why(
    site: Site, living: subprocess.Popen[bytes]
) -> None:
    living.send_signal(signal.SIGKILL)
    living.wait()
    code = "from kadeploy.config.folder import load_site; from kadeploy.state import nodes; nodes.reap(load_site())"
    reapers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [reaper.wait() for reaper in reapers] == [0, 0, 0]
    connect(site)
    rows = fetch(Log.select(Log.hostname, Log.success, Log.wid, Log.error).order_by(Log.hostname))
    assert [row[:3] for row in rows] == [(name, False, "D-other") for name in NAMES]
    assert all("aborted" in row[3] and str(living.pid) in row[3] for row in rows)
    assert Workflow.get_by_id("D-other").state == "aborted"


def test_nodes_that_had_arrived_before_their_controller_died_stay_deployed(
    site: Site, living: subprocess.Popen[bytes]
) -> None:
    connect(site)
    nodes.set_state(NAMES[:2], "deployed", DEBIAN, "alice")
    living.send_signal(signal.SIGKILL)
    living.wait()
    nodes.reap(site)
    assert states(site) == dict.fromkeys(NAMES[:2], "deployed") | dict.fromkeys(NAMES[2:], "aborted")
    assert sorted(fetch(Log.select(Log.hostname).where(Log.success))) == [(name,) for name in NAMES[:2]]


@pytest.mark.parametrize(("since_the_claim", "success"), [(-3600, False), (0, True), (3600, True)])
def test_a_node_counts_as_done_only_if_its_state_is_not_from_before_the_claim(
    site: Site, since_the_claim: int, success: bool
) -> None:
    """A node that an earlier workflow deployed is well in the table, and yet this one has not finished it."""
    nodes.claim(site, NAMES[:1], "D-1", "alice")
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": NAMES[:1]})
    [(since,)] = fetch(Claim.select(Claim.since))
    nodes.set_state(NAMES[:1], "deployed", DEBIAN, "bob", date=since + since_the_claim)
    Claim.update(boot_id="before").execute()
    Workflow.update(boot_id="before").execute()
    assert nodes.reap(site) == {"D-1": NAMES[:1]}
    assert fetch(Log.select(Log.success)) == [(success,)]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_of_two_reapers_at_once_the_second_waits_and_finds_nothing(site: Site, living: subprocess.Popen[bytes]) -> None:
    """The first is stopped by a lock after it has read whose nodes they are; on SQLite there is one writer anyway."""
    living.send_signal(signal.SIGKILL)
    living.wait()

    def reap() -> dict[str, list[str]]:
        reaped = nodes.reap(site)
        disconnect()
        return reaped

    connect(site)
    with ThreadPoolExecutor(2) as pool:
        with psycopg.connect(site.database) as held:
            held.execute("SELECT * FROM workflows FOR UPDATE")
            reapers = [pool.submit(reap) for _ in range(2)]
            wait_until_blocked(site.database, 2)
        found = [reaper.result(timeout=60) for reaper in reapers]
    assert sorted(len(reaped) for reaped in found) == [0, 1]
    assert Log.select().count() == len(NAMES)


def wait_until_blocked(url: str, count: int) -> None:
    """Until that many sessions that use our table of workflows wait for a lock."""
    blocked = """
    SELECT count(DISTINCT waits.pid) FROM pg_locks waits JOIN pg_locks ours ON ours.pid = waits.pid
    WHERE NOT waits.granted AND ours.relation = 'workflows'::regclass
    """
    deadline = time.monotonic() + 20
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(blocked).fetchone() != (count,):
            assert time.monotonic() < deadline, f"not {count} sessions wait for a lock"
            time.sleep(0.02)


def test_another_process_with_the_same_number_does_not_count_as_the_controller(site: Site) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    Claim.update(process_start="1").execute()
    assert {wid: sorted(names) for wid, names in nodes.reap(site).items()} == {"D-1": NAMES}


def test_a_controller_from_before_the_last_boot_is_dead(site: Site) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    Claim.update(boot_id="before").execute()
    assert list(nodes.reap(site)) == ["D-1"]


@pytest.mark.parametrize(("silent_for", "reaped"), [(899, []), (901, ["D-1"])])
def test_claims_of_other_machines_expire_after_the_purge_timer(site: Site, silent_for: int, reaped: list[str]) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": NAMES})
    # A second of slack on either side: the clock goes on while the test runs.
    elsewhere("D-1", silent_for - 20 if silent_for < site.purge_deployment_timer else silent_for)
    assert list(nodes.reap(site)) == reaped


def test_signs_of_life_keep_the_claims_of_other_machines(site: Site) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": NAMES})
    elsewhere("D-1", 5000)
    journal.keep_alive("D-1")
    assert nodes.reap(site) == {}


def test_a_claim_whose_workflow_has_ended_is_freed_without_harm(site: Site) -> None:
    """The controller died between the end of its journal and the release of its nodes."""
    nodes.claim(site, NAMES, "D-1", "alice")
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": NAMES})
    nodes.set_state(NAMES, "deployed", DEBIAN, "alice")
    journal.end("D-1", [journal.LogRow(hostname=name, success=True) for name in NAMES])
    Claim.update(boot_id="before").execute()
    Workflow.update(boot_id="before").execute()
    nodes.reap(site)
    assert set(states(site).values()) == {"deployed"}
    assert Log.select().where(Log.success).count() == Log.select().count() == len(NAMES)
    assert Claim.select().count() == 0


# --- states -----------------------------------------------------------------------------------------------------


def test_a_state_comes_with_environment_user_and_date(site: Site) -> None:
    connect(site)
    nodes.set_state(NAMES[:1], "deployed", DEBIAN, "alice", date=1600000000)
    assert list(nodes.states(site)) == [NodeRow(NAMES[0], "deployed", "alice", "debian", 12, "root", 1600000000)]


def test_the_environment_is_kept_or_forgotten_as_asked(site: Site) -> None:
    connect(site)
    nodes.set_state(NAMES[:2], "deployed", DEBIAN, "alice")
    nodes.set_state(NAMES[:1], "rebooting", None, "alice")
    nodes.set_state(NAMES[1:2], "deploy_env", NO_ENVIRONMENT, "alice")
    found = {row.hostname: (row.state, row.env_name, row.env_version) for row in nodes.states(site)}
    assert found == {NAMES[0]: ("rebooting", "debian", 12), NAMES[1]: ("deploy_env", "", None)}


def test_states_of_some_nodes_only(site: Site) -> None:
    connect(site)
    nodes.set_state(NAMES, "powered", None, "alice")
    assert [row.hostname for row in nodes.states(site, [NAMES[3], "gdx-20.site"])] == [NAMES[3]]


def test_the_user_of_a_node_is_who_deployed_it_last_whoever_reboots_it(site: Site) -> None:
    connect(site)
    nodes.set_state(NAMES[:1], "deployed", DEBIAN, "alice")
    nodes.set_state(NAMES[:2], "rebooted", None, None)
    found = {row.hostname: (row.state, row.user) for row in nodes.states(site)}
    assert found == {NAMES[0]: ("rebooted", "alice"), NAMES[1]: ("rebooted", "")}


# --- who loses nodes, and who may have no more ----------------------------------------------------------------------


def with_quota(site: Site, **quota: int) -> Site:
    return msgspec.structs.replace(site, service=Service(quota=Quota(**quota)))


def test_a_workflow_is_told_who_took_its_nodes_and_writes_nothing_of_them(site: Site) -> None:
    nodes.claim(site, NAMES, "D-1", "alice")
    nodes.set_state(NAMES, "deploying", None, "alice", held_by="D-1")
    nodes.claim(site, NAMES[:1], "R-2", "bob", force=True)
    nodes.set_state(NAMES[:1], "rebooting", None, None, held_by="R-2")
    nodes.release("D-1", NAMES[1:2])
    assert nodes.lost(site, "D-1", NAMES) == {
        NAMES[0]: "taken by workflow R-2 of bob (--ignore-nodes-deploying)",
        NAMES[1]: "its claim was freed, by a controller to which this one seemed dead",
    }
    nodes.set_state(NAMES, "aborted", NO_ENVIRONMENT, "alice", held_by="D-1")
    expected = ["rebooting", "deploying", *["aborted"] * 3]
    assert states(site) == dict(zip(NAMES, expected, strict=True))


def test_who_has_as_many_operations_as_allowed_is_refused_with_their_names_and_nothing_is_taken(site: Site) -> None:
    limited = with_quota(site, workflows=2)
    for rank in range(2):
        nodes.claim(limited, [NAMES[rank]], f"D-{rank}", "alice")
    with pytest.raises(LimitError, match=r"alice has 2 operations running \(D-0, D-1\), and .* may have 2 .*workflows"):
        nodes.claim(limited, NAMES[2:], "D-2", "alice")
    assert Claim.select().count() == 2
    nodes.claim(limited, [NAMES[2]], "D-3", "bob")
    nodes.release("D-1")
    nodes.claim(limited, [NAMES[1]], "D-4", "alice")


def test_nodes_are_counted_over_all_operations_of_a_user_and_only_those_that_were_taken(site: Site) -> None:
    limited = with_quota(site, nodes=3)
    nodes.claim(limited, NAMES[:2], "D-1", "alice")
    taken, refused = nodes.claim(limited, NAMES[:3], "D-2", "alice")
    assert (taken, sorted(refused)) == (NAMES[2:3], NAMES[:2])
    with pytest.raises(LimitError, match=r"3 nodes in running operations \(D-1, D-2\) and asks for 1; .* 3 \("):
        nodes.claim(limited, NAMES[3:4], "D-3", "alice")
    with pytest.raises(LimitError, match=r"bob has 0 nodes .* asks for 5; .* Ask for fewer\."):
        nodes.claim(limited, NAMES, "D-4", "bob", force=True)


def test_administrators_have_no_limits(site: Site) -> None:
    limited = with_quota(site, workflows=1, nodes=1)
    for rank, name in enumerate(NAMES):
        assert nodes.claim(limited, [name], f"D-{rank}", site.almighty_users[0]) == ([name], {})


def test_thirty_requests_of_one_user_at_the_same_moment_never_exceed_the_limit(site: Site) -> None:
    limited, begin = with_quota(site, workflows=5), threading.Barrier(30)
    connect(site)

    def ask(rank: int) -> bool:
        try:
            begin.wait(60)
            nodes.claim(limited, [f"node-{rank}"], f"D-{rank}", "alice")
        except LimitError:
            return False
        finally:
            disconnect()
        return True

    with ThreadPoolExecutor(30) as pool:
        granted = list(pool.map(ask, range(30)))
    assert sum(granted) == 5
    assert Claim.select().where(Claim.user == "alice").count() == 5
