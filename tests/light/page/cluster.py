"""A cluster of simulated nodes whose service answers browsers, and what people do there to deploy."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.lab.lab import Lab, saved
from kadeploy.nodeset import expand
from kadeploy.state import database, environments, journal, rights, tokens
from kadeploy.state.fingerprints import RemoteUser
from tests.browser import Seat
from tests.light.conftest import lab_command
from tests.unit.authority import Authority
from tests.unit.serving import served_ways

NAME = "kadeploy-page"
NODES = 8
MINE, FAULTY, THEIRS = "node-[1-5]", "node-6", "node-7"
"""Nodes on which alice may deploy, one of hers whose disk is too small, and one that is bob's."""
BOOT = 2
"""Seconds that nodes are away when they boot: long enough for a reader to see it."""
CONSOLE = "The console of node"
"""What consoles show, in front of the name."""
NOTIFICATIONS = (
    "{mail: {server: 127.0.0.1, sender: kadeploy@site.example, domain: site.example, own_addresses: true}, "
    "webhooks: ['https://hooks.site.example/']}"
)
"""By what ways users may be told of ends; nobody asks for it."""
PATIENCE = 120
"""Seconds that an operation may take, on a busy machine."""
_DAY = 86_400


@dataclass(frozen=True)
class Page:
    """A service that can be reached by a browser."""

    site: Site
    address: str
    """``https://127.0.0.1:PORT``."""

    def token(self, user: str) -> str:
        """A new token of *user*."""
        return tokens.create(self.site, user, int(time.time()) + _DAY)


@contextmanager
def served_page(folder: Path, more: str = "") -> Iterator[Page]:
    """Serve the site of *folder*, whose ``site.yml`` ends with its ``service``, by HTTPS; *more* are lines of that."""
    with tempfile.TemporaryDirectory(prefix="kadeploy-open-") as place, ExitStack() as stack:
        certificate = Authority(Path(place) / "authority").issue("server")
        https = f"{{certificate: {certificate}, private_key: {certificate}, address: 127.0.0.1, port: 0}}"
        file = folder / "site.yml"
        text = file.read_text()
        begun = text if "\nservice:\n" in text else f"{text}\nservice:\n"
        begun = f"notifications: {NOTIFICATIONS}\n{begun}"
        file.write_text(begun.replace("\nservice:\n", f"\nservice:\n  https: {https}\n{more}"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KADEPLOY_CONFIG_DIR", str(folder))
        patch.setenv("TZ", "UTC")
        site = load_site(folder)
        database.connect(site)
        stack.callback(database.disconnect)
        ways = stack.enter_context(served_ways(folder, Path(place) / "service.sock"))
        yield Page(site, f"https://127.0.0.1:{ways[1].listening.getsockname()[1]}")


@contextmanager
def simulated(nodes: str, *options: str) -> Iterator[Page]:
    """The service of a lab, on whose *nodes* alice may deploy; *options* are those of ``kadeploy-lab up`` besides."""
    with tempfile.TemporaryDirectory(prefix="kadeploy-shown-") as shown:
        lab_command("down", "--name", NAME)
        lab_command("up", "--kind", "sim", "--backend", "light", "--boot-delay", str(BOOT), "--name", NAME, *options)
        try:
            lab = saved(NAME)
            assert lab is not None
            _write_consoles(lab, Path(shown))
            image = (lab.environments_folder / "sim.dsc").read_text().split("tarball : ")[1].split("|")[0]
            with served_page(lab.config, f"  folders: [{Path(image).parent}]\n") as served:
                _furnish(served.site, image, nodes)
                yield served
        finally:
            lab_command("down", "--name", NAME)


def _write_consoles(lab: Lab, folder: Path) -> None:
    """Have consoles show what is in files of *folder*."""
    folder.chmod(0o755)
    for node in lab.members:
        (folder / node).write_text(f"{CONSOLE} {node}\n")
    cluster = lab.config / "clusters" / "lab.yml"
    text = cluster.read_text().replace("\nconsole:", f"\nconsole: tail -n +1 -f {folder}/HOSTNAME_SHORT #")
    cluster.write_text(f"{text}\nconsole_account: nobody\n")


def _furnish(site: Site, image: str, nodes: str) -> None:
    """What is there to be deployed, and by whom."""
    environment = Environment(
        name="sim",
        image=Image(file=f"server://{image}", kind="tgz"),
        description="Small environment for simulated nodes",
        author="kadeploy-lab",
        visibility="public",
        kernel="/boot/vmlinuz",
        kernel_params="console=ttyS0,115200",
        initrd="/boot/initrd.img",
        filesystem="ext4",
    )
    environments.add(site, environment, RemoteUser("root"))
    rights.add(site, "alice", [name for each in nodes.split() for name in expand(each)], ["*"])
    rights.add(site, "bob", [THEIRS], ["*"])
    rights.add(site, "root", ["*"], ["*"])


def begin(there: Seat, nodes: str) -> str:
    """Deploy the environment on *nodes* from the page, as people do, and follow it: the id of the operation."""
    page = there.open("/ui/deploy")
    page.get_by_label("Nodes").first.fill(nodes)
    page.locator("#environment").select_option(index=1)
    page.get_by_role("button", name="Show the plan").click()
    page.get_by_role("button", name=re.compile("^Deploy [0-9]+ node")).click()
    page.wait_for_url("**/ui/runs/D-*")
    return page.url.rpartition("/")[2]


def wait_for_end(there: Seat, site: Site, wid: str) -> None:
    """Return when the operation has ended; meanwhile the browser does what it does."""
    while wid in journal.workflows(site):
        there.page.wait_for_timeout(200)


def told_at(there: Seat, path: str, wanted: str) -> str:
    """What a page tells, loaded anew until *wanted* is in it: what is made for all readers may be a second old."""
    text, end = "", time.monotonic() + PATIENCE
    while wanted not in text:
        assert time.monotonic() < end, text
        text = there.open(path).locator("main").inner_text()
    return text
