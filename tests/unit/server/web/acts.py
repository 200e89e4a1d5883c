"""A site for tests of pages that act: eight nodes on which nothing is done, and what its users may do there."""

from __future__ import annotations

import re
import time
from html import unescape
from pathlib import Path

import pytest

from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.environments.environment import Image
from kadeploy.state import database, environments, journal, rights
from kadeploy.state.fingerprints import RemoteUser
from tests.unit import build
from tests.unit.plays import write_play
from tests.unit.server.web.conftest import Answer, Browser
from tests.unit.serving import DUMMY_CLUSTER

CONSOLE = "console_account: nobody\nconsole: cat\n"


@pytest.fixture
def acted(site_folder: Path, tmp_path: Path) -> Site:
    """Alice may do everything on gdx-1 and gdx-2, bob on gdx-3, and everybody sees the environment debian12."""
    (site_folder / "clusters" / "nvm.yml").unlink()
    (site_folder / "clusters" / "gdx.yml").write_text(DUMMY_CLUSTER + CONSOLE)
    files = tmp_path / "files"
    files.mkdir()
    (files / "image.tgz").write_bytes(build.packed("image"))
    with (site_folder / "site.yml").open("a") as text:
        text.write(f"service: {{folders: [{files}], consoles_as_service: true}}\n")
    site = load_site(site_folder)
    database.connect(site)
    rights.add(site, "alice", ["gdx-1.site", "gdx-2.site"], ["*"])
    rights.add(site, "bob", ["gdx-3.site"], ["*"])
    image = Image(file=f"server://{files}/image.tgz", kind="tgz")
    described = build.environment(name="debian12", version=3, image=image, visibility="shared", user="alice")
    environments.add(site, described, RemoteUser("alice", {}))
    return site


@pytest.fixture
def slow(acted: Site, site_folder: Path, tmp_path: Path) -> Path:
    """Switching on waits for a file, which is this."""
    task = f"ansible.builtin.shell: until test -e {tmp_path}/go; do sleep 0.1; done"
    write_play(site_folder, "PowerOn", f"  tasks:\n    - {task}\n")
    return tmp_path / "go"


def hidden(answer: Answer) -> dict[str, str]:
    """What a plan carries."""
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', answer.text)
    return {name: unescape(value) for name, value in found if name != "csrf"}


def start(browser: Browser, path: str, **fields: str) -> str:
    """Have a form's operation planned and begun: its workflow."""
    return begun(browser.post(path, step="start", **hidden(browser.post(path, **fields))))


def begun(answer: Answer) -> str:
    """The workflow whose page an answer leads to."""
    found = re.fullmatch(r"/ui/runs/([A-Z]-\w+)", answer.where)
    assert answer.status == 303, answer.words
    assert found, answer.where
    return found[1]


def ended(site: Site, wid: str, seconds: float = 90.0) -> dict[str, str]:
    """How the nodes of a workflow stand, once it has ended."""
    deadline = time.monotonic() + seconds
    while not (found := journal.workflows(site, wid)[wid])["ended"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return {node: state["state"] for node, (*_, state) in found["nodes"].items()}
