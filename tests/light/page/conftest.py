"""The page in Chromium: a cluster of simulated nodes whose service answers by HTTPS, and people at browsers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.lab.lab import saved
from kadeploy.state import database, environments, rights, tokens
from kadeploy.state.fingerprints import RemoteUser
from tests.browser import Seat, chromium, seat
from tests.light.conftest import lab_command
from tests.unit.authority import Authority
from tests.unit.serving import served_ways

NAME = "kadeploy-page"
NODES = 8
MINE, THEIRS = "node-[1-6]", "node-[7-8]"
"""Nodes on which alice may deploy, and those that are bob's."""
BOOT = 2
"""Seconds that nodes are away when they boot: long enough for a reader to see it."""
CONSOLE = "The console of node"
"""What consoles show, in front of the name."""
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


Sit = Callable[..., Seat]
"""A user's name (empty: nobody has signed in) and what `seat` takes → a browser that shows the first page."""


@contextmanager
def served_page(folder: Path, more: str = "") -> Iterator[Page]:
    """Serve the site of *folder*, whose ``site.yml`` ends with its ``service``, by HTTPS; *more* are lines of that."""
    with tempfile.TemporaryDirectory(prefix="kadeploy-open-") as place, ExitStack() as stack:
        certificate = Authority(Path(place) / "authority").issue("server")
        https = f"{{certificate: {certificate}, private_key: {certificate}, address: 127.0.0.1, port: 0}}"
        file = folder / "site.yml"
        text = file.read_text()
        begun = text if "\nservice:\n" in text else f"{text}\nservice:\n"
        file.write_text(begun.replace("\nservice:\n", f"\nservice:\n  https: {https}\n{more}"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KADEPLOY_CONFIG_DIR", str(folder))
        patch.setenv("TZ", "UTC")
        site = load_site(folder)
        database.connect(site)
        stack.callback(database.disconnect)
        ways = stack.enter_context(served_ways(folder, Path(place) / "service.sock"))
        yield Page(site, f"https://127.0.0.1:{ways[1].listening.getsockname()[1]}")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The service of a lab of simulated nodes, on which alice and bob may deploy."""
    shown = Path(tempfile.mkdtemp(prefix="kadeploy-shown-"))
    shown.chmod(0o755)
    lab_command("down", "--name", NAME)
    options = ("--backend", "light", "--boot-delay", str(BOOT), "--name", NAME)
    lab_command("up", "--kind", "sim", "--nodes", str(NODES), *options)
    try:
        lab = saved(NAME)
        assert lab is not None
        for node in lab.members:
            (shown / node).write_text(f"{CONSOLE} {node}\n")
        cluster = lab.config / "clusters" / "lab.yml"
        text = cluster.read_text().replace("\nconsole:", f"\nconsole: tail -n +1 -f {shown}/HOSTNAME_SHORT #")
        cluster.write_text(f"{text}\nconsole_account: nobody\n")
        described = (lab.environments_folder / "sim.dsc").read_text()
        image = described.split("tarball : ")[1].split("|")[0]
        with served_page(lab.config, f"  folders: [{Path(image).parent}]\n") as served:
            _furnish(served.site, image)
            yield served
    finally:
        lab_command("down", "--name", NAME)
        for file in shown.iterdir():
            file.unlink()
        shown.rmdir()


def _furnish(site: Site, image: str) -> None:
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
    rights.add(site, "alice", [f"node-{rank}" for rank in range(1, 7)], ["*"])
    rights.add(site, "bob", ["node-7", "node-8"], ["*"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def sit(page: Page, browser: Browser) -> Iterator[Sit]:
    """Have somebody sit down at a browser."""
    with ExitStack() as stack:

        def down(user: str = "", **options: object) -> Seat:
            found = stack.enter_context(seat(browser, page.address, **options))  # type: ignore[arg-type]
            if user:
                found.sign_in(page.token(user))
            return found

        yield down
