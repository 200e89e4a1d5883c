"""How far a broadcast is: from the relays' reports to the line on the terminal and in ``kanodes3 -y``."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kadeploy.caller import caller
from kadeploy.cli.display import Display
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import load_configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.events import Event, Progress
from kadeploy.operations.launch import carry_out
from kadeploy.operations.local import Local
from kadeploy.operations.requests import DeployRequest, Described
from kadeploy.state import journal, rights
from tests.unit import build
from tests.unit.plays import write_play, write_role

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

MEGA = 1 << 20
SLOWLY = """\
import socket
from pathlib import Path

from kadeploy.broadcast import chain
from kadeploy.broadcast.progress import ProgressFile
from kadeploy.microsteps import send_image
from kadeploy.microsteps.action import BatchAction
from tests.unit import build

SINK = "exec python3 -c $'import sys, time\\\\nwhile sys.stdin.buffer.read(1 << 21): time.sleep(0.25)'"


async def broadcast(step):
    '''A real chain of relays, but as processes of this machine, into sinks that take their time.'''
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    members = [chain.Member(name, f"127.0.0.{rank}", port) for rank, name in enumerate(step.members, 1)]
    image = chain.describe(Path(step.request.image.path), SINK, ring=1)
    progress = ProgressFile(Path(step.request.run_dir), image.size, len(members))
    return send_image.outcomes(await chain.send(image, members, chain.start_local, progress))


class ActionModule(BatchAction):
    engine = staticmethod(broadcast)
"""


@pytest.fixture
def request_(site: Site, site_folder: Path, tmp_path: Path) -> DeployRequest:
    """A deployment whose broadcast takes three seconds."""
    write_play(site_folder, "BroadcastEnvSlow", "  roles: [send_slowly, finish]\n")
    (site_folder / "action_plugins" / "slowly.py").write_text(SLOWLY, encoding="utf-8")
    write_role(site_folder, "send_slowly", "- {slowly: , run_once: true}\n")
    image = tmp_path / "image.tgz"
    image.write_bytes(build.packed(random.Random(1).randbytes(24 * MEGA)))
    me = caller().name
    rights.add(site, me, ["*"], ["*"])
    described = Environment(name="big", image=Image(file=str(image), kind="tgz"), kernel="/vmlinuz", filesystem="ext4")
    ways = {"SetDeploymentEnv": "Dummy", "BroadcastEnv": "Slow", "BootNewEnv": "Dummy"}
    return DeployRequest(
        user=me,
        nodes=("gdx-1.site", "gdx-2.site"),
        environment=Described(environment=described),
        force_steps={step: (Implementation(name=step + way, timeout=120),) for step, way in ways.items()},
    )


def on_terminal(act: Callable[[Display], None]) -> str:
    """What appears on a terminal of 160 columns while *act* uses a display there."""
    screen, program = pty.openpty()
    seen = bytearray()

    def read() -> None:
        with suppress(OSError):  # how Linux tells the end of a terminal
            while data := os.read(screen, 4096):
                seen.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(program, "w", encoding="utf-8") as stream:
        display = Display(1, stream=stream)
        with display.live(stdin=io.StringIO()):
            act(display)
    reader.join()
    os.close(screen)
    return seen.decode(errors="replace")


def test_percent_rate_and_time_left_are_seen_on_the_terminal_and_by_other_processes(
    request_: DeployRequest, site: Site, site_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    shares: list[float] = []
    told: list[str] = []
    arrived: list[tuple[int, int]] = []

    def run(display: Display) -> None:
        def listen(event: Event) -> None:
            display(event)
            if isinstance(event, Progress):
                shares.append(event.transfer.share)
                flow = next(iter(journal.workflows(site).values()))
                told.extend(entry["progress"] for entry in flow["nodes"]["gdx-2.site"] if "progress" in entry)
                mine = next(iter(Local(caller()).workflows().values()))["nodes"]["gdx-2.site"]
                known = {name: value for each in mine for name, value in each.items()}
                arrived.append((known["bytes"], known["size"]))
                assert display._view is not None
                display._view.draw()

        report = carry_out(request_, load_configuration(site_folder), caller(), listen, threading.Event())
        assert (sorted(report.ok), dict(report.ko)) == (["gdx-1.site", "gdx-2.site"], {})

    text = on_terminal(run)
    words = r"\d+ %, \d+ MB/s(?:, \d+ s left)?"
    assert shares == sorted(shares)
    assert [done / total for done, total in arrived] == pytest.approx(shares)
    assert {total for _, total in arrived} == {(tmp_path / "image.tgz").stat().st_size}
    assert any(0 < share < 1 for share in shares)
    assert told
    assert all(re.fullmatch(words, each) for each in told)
    assert set(told) & set(re.findall(words, text))
    assert "━" in text
    flow = journal.workflows(site, wid=_only(site))[_only(site)]
    assert all("progress" not in entry for entry in flow["nodes"]["gdx-2.site"])
    shown = Local(caller()).workflows(_only(site))[_only(site)]["nodes"]["gdx-2.site"]
    assert not any({"bytes", "size"} & set(entry) for entry in shown)


def _only(site: Site) -> str:
    """The only run of the site."""
    [folder] = (site.state / "runs").iterdir()
    return folder.name
