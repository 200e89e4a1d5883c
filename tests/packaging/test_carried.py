"""An attempt is carried out on a machine that has the wheel, the secrets, and nothing else of the controller's."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ansible_runner
import pytest

from kadeploy.config.cluster import NodeRange
from kadeploy.config.site import Ssh
from kadeploy.runner.player import Player
from kadeploy.runner.request import CustomOperation, Options
from kadeploy.runner.results import Reading
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.packaging.test_wheel import ROOT, installed
from tests.unit import build

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

__all__ = ["installed"]
pytest_plugins = ["tests.unit.sshd"]
pytestmark = pytest.mark.timeout(1800)

ATTEMPT = Attempt("BroadcastEnv", "BroadcastEnvDummy", number=1)
NAMES = ("node-1", "node-2")
SCRIPT = """\
read -r _ _ address _ <<< "$SSH_CONNECTION"
echo "$1" > "$0.$address"
case $address in 127.9.0.2) echo "no room" >&2; exit 3;; esac
"""
DONE = dict.fromkeys(("127.9.0.1", "127.9.0.2"), "two words\n")
HIDE = 'for folder in $HIDDEN; do mount -t tmpfs none "$folder"; done; cd /; exec "$@"'


def player(controller: Path, nodes: Nodes) -> Player:
    """Of a controller that keeps everything under a folder; its user's own script is run on two nodes."""
    workflow = controller / "state" / "runs" / "D-1"
    (workflow / "files").mkdir(parents=True)
    script = workflow / "files" / "look.sh"
    script.write_text(SCRIPT.replace("$0", str(controller.parent / "seen")))
    look = CustomOperation(
        implementation="BroadcastEnv", micro_step="dummy", action="run", file=str(script), params="'two words'"
    )
    ssh = Ssh(private_key=str(nodes.credentials.private_key), host_key=nodes.known_key, port=nodes.port)
    assignment = build.assignment(
        controller,
        workflow_dir=str(workflow),
        site=build.site(controller, ssh=ssh),
        cluster=build.cluster(nodes=(NodeRange(name="node-[1-2]", address="127.9.0.[1-2]"),)),
        options=Options(custom_operations=(look,)),
    )
    members = {node.name: node for node in assignment.nodes}
    return Player(assignment, members, lambda _event: None, threading.Event())


def seen(folder: Path) -> dict[str, str]:
    """What the script left on the nodes, by their addresses; it is gone afterwards."""
    found = {path.name.removeprefix("seen."): path.read_text() for path in folder.glob("seen.*")}
    for path in folder.glob("seen.*"):
        path.unlink()
    return found


def told(outcomes: Mapping[str, Outcome]) -> dict[str, tuple[Verdict, str]]:
    return {node: (outcome.verdict, outcome.message) for node, outcome in outcomes.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide folders from a process")
def test_what_a_controller_wrote_is_done_by_another_machine_and_its_outcomes_come_back(
    installed: Path, nodes: Nodes, tmp_path: Path
) -> None:
    """The other machine is a mount namespace in which checkout, state and keys are empty folders."""
    controller, secrets, worker = (tmp_path / name for name in ("controller", "secrets", "worker"))
    here = player(controller, nodes).perform(ATTEMPT, NAMES)
    assert seen(tmp_path) == DONE
    assert told(here)["node-1"] == (Verdict.OK, "")

    key = nodes.credentials.private_key
    secrets.mkdir()
    shutil.copy2(key, secrets)
    run_folder = controller / "state" / "runs" / "D-1" / "01-BroadcastEnvDummy"
    runner = str(installed / "ansible-runner")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE", "PYTHON", "KADEPLOY"))}
    sent = subprocess.run(
        [runner, "transmit", run_folder, "-p", "kadeploy.core.BroadcastEnvDummy"],
        env=kept,
        capture_output=True,
        check=True,
    )
    elsewhere = kept | {
        "PATH": f"{installed}:{os.environ['PATH']}",
        "HIDDEN": f"{ROOT} {controller} {key.parent}",
        "KADEPLOY_SECRETS": str(secrets),
    }
    hidden = ["unshare", "--mount", "sh", "-ec", HIDE, "sh"]
    done = subprocess.run(
        [*hidden, runner, "worker", "--private-data-dir", worker],
        input=sent.stdout,
        env=elsewhere,
        capture_output=True,
        timeout=300,
        check=False,
    )
    reading = Reading(ATTEMPT, NAMES, frozenset(), lambda _event: None, lambda _role: False)
    ansible_runner.run(
        streamer="process",
        _input=io.BytesIO(done.stdout),
        private_data_dir=str(run_folder),
        ident="elsewhere",
        event_handler=reading.event,
        cancel_callback=lambda: False,  # without one ansible-runner takes Ctrl-C from all tests that follow
        quiet=True,
    )
    assert told(reading.outcomes("nobody did it")) == told(here), done.stdout + done.stderr
    assert seen(tmp_path) == DONE
    assert key.read_text() not in "".join(path.read_text() for path in worker.rglob("*") if path.is_file())
