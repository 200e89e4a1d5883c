"""A dead controller's workflow: who takes it over, and who waits for that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from kadeploy.caller import account, as_user
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError
from kadeploy.process import Controller, this
from kadeploy.state import controllers, journal, nodes, watch
from kadeploy.state.database import fetch
from kadeploy.state.tables import Claim, Log, Workflow

NAMES = ["gdx-1.site", "gdx-2.site", "gdx-3.site"]


@pytest.fixture
def dead(site: Site) -> Controller:
    """The controller of D-1, gone since the machine was booted; it has left a record."""
    nodes.claim(site, NAMES, "D-1", "alice")
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": NAMES})
    nodes.set_state(NAMES, "deploying", None, "alice")
    Claim.update(boot_id="before").execute()
    Workflow.update(boot_id="before").execute()
    folder = site.run_folders / "D-1"
    folder.mkdir(parents=True)
    (folder / controllers.RECORD).write_text("{}")
    return this()._replace(boot_id="before")


RACER = """
import sys
from kadeploy.config.folder import load_site
from kadeploy.process import Controller
from kadeploy.state import controllers, database, nodes
site = load_site()
database.connect(site)
dead = controllers.dead(site)["D-1"]
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[1] == "reap":
    print("D-1" in nodes.reap(site))
else:
    print(controllers.take_over(site, "D-1", dead) is not None)
sys.stdin.readline()  # a controller that is gone would be dead again
"""


@pytest.mark.parametrize("kinds", [("take",) * 4, ("take", "reap", "take", "reap")], ids=["takers", "and reapers"])
def test_of_processes_that_race_for_a_dead_workflow_one_gets_it(
    site: Site, dead: Controller, kinds: tuple[str, ...]
) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, kind], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for kind in kinds
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [racer.stdout.readline() == "True\n" for racer in racers if racer.stdout]
    [winner] = [rank for rank, has_won in enumerate(won) if has_won]
    if kinds[winner] == "take":
        owners = set(fetch(Claim.select(Claim.pid))) | set(fetch(Workflow.select(Workflow.pid)))
        assert owners == {(racers[winner].pid,)}
        assert Log.select().count() == 0
    else:
        assert (Claim.select().count(), Log.select().count()) == (0, len(NAMES))
    for racer in racers:
        racer.communicate("over\n")


def test_a_workflow_that_was_taken_over_lives_and_its_old_controller_has_nothing_left(
    site: Site, dead: Controller
) -> None:
    assert list(controllers.resumable(site)) == ["D-1"]
    assert controllers.take_over(site, "D-1", dead) == NAMES
    assert controllers.dead(site) == controllers.resumable(site) == {}
    assert controllers.take_over(site, "D-1", dead) is None
    assert nodes.reap(site) == {}


def test_nothing_can_be_taken_over_once_it_has_ended(site: Site, dead: Controller) -> None:
    nodes.reap(site)
    assert controllers.take_over(site, "D-1", dead) is None


def test_one_of_another_machine_or_without_a_record_is_not_resumable(site: Site, dead: Controller) -> None:
    Workflow.update(host="frontend-2", seen=0).execute()
    assert (list(controllers.dead(site)), controllers.resumable(site)) == (["D-1"], {})
    Workflow.update(host=dead.host).execute()
    (site.run_folders / "D-1" / controllers.RECORD).unlink()
    assert controllers.resumable(site) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_one_whose_record_is_for_another_account_is_not_resumable_and_hinders_nobody(
    site: Site, dead: Controller
) -> None:
    with as_user(account("nobody")):
        assert (list(controllers.dead(site)), controllers.resumable(site)) == (["D-1"], {})


# --- who watches ----------------------------------------------------------------------------------------------------


def test_while_somebody_watches_a_workflow_that_can_go_on_is_neither_ended_nor_told_as_dead(
    site: Site, dead: Controller
) -> None:
    with watch.watching(site):
        assert nodes.reap(site) == {}
        assert {row.state for row in nodes.states(site)} == {"deploying"}
        assert list(journal.workflows(site)) == ["D-1"]
        assert controllers.goes_on(site, "D-1")
    assert {row.state for row in nodes.states(site)} == {"aborted"}
    assert not controllers.goes_on(site, "D-1")
    assert list(nodes.reap(site)) == ["D-1"]


def test_a_watcher_that_does_nothing_for_the_purge_timer_does_not_hold_nodes_for_ever(
    site: Site, dead: Controller
) -> None:
    long_ago = time.time() - site.purge_deployment_timer - 1
    with watch.watching(site):
        Workflow.update(seen=int(long_ago)).execute()
        assert nodes.reap(site) == {}, "it has only begun to watch: the machine was down"
        os.utime(site.state / watch.FILE_NAME, (long_ago, long_ago))
        assert list(nodes.reap(site)) == ["D-1"]


def test_a_watcher_that_is_killed_watches_no_more_and_two_do_not_watch_at_once(site: Site) -> None:
    assert not watch.is_watched(site)
    code = "import time; from kadeploy.config.folder import load_site; from kadeploy.state import watch\n"
    code += "with watch.watching(load_site()):\n    print('ready', flush=True)\n    time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert watch.is_watched(site)
        with pytest.raises(ConfigError, match="another process serves this site already"), watch.watching(site):
            pass
        process.send_signal(signal.SIGKILL)
    assert not watch.is_watched(site)
    with watch.watching(site):
        assert watch.is_watched(site)
