"""An account of another machine, with an image of its own, and a service that it reaches by the network alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.caller import Account
from tests.accounts import Installation
from tests.unit.authority import Authority
from tests.unit.server.test_accounts import SLOW, Served, image_of, served, wid_of

__all__ = ["served"]

numbers = itertools.count()
HERE, THERE = "10.98.0.1", "10.98.0.2"
HTTPS = """\
service:
  socket: {run}/kadeploy3d.sock
  https: {{certificate: {home}/server.pem, private_key: {home}/server.pem, address: {here}, port: 25399}}
"""


@pytest.fixture
def space() -> Iterator[str]:
    """A network namespace, whose one link leads here."""
    name, link = f"kaf{os.getpid()}x{next(numbers)}", f"kaf{os.getpid()}"[:15]
    commands = (
        f"netns add {name}",
        f"link add {link} type veth peer name eth0 netns {name}",
        f"addr add {HERE}/30 dev {link}",
        f"link set {link} up",
        f"-n {name} link set lo up",
        f"-n {name} addr add {THERE}/30 dev eth0",
        f"-n {name} link set eth0 up",
    )
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
        yield name


@dataclass
class Far:
    """Alice at the other machine."""

    installation: Installation
    space: str
    served: Served

    @property
    def alice(self) -> Account:
        return self.installation.alice

    def start(self, name: str, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a tool there; that machine has no site and no socket."""
        who = self.alice
        variables = self.installation.environment(who) | {"KADEPLOY_CONFIG_DIR": "/nowhere"}
        inside = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--init-groups"]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.space, *inside, self.installation.tools / name, *arguments],
            env=variables,
            cwd=who.home,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def tool(self, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        running = self.start(name, *arguments)
        output, errors = running.communicate(timeout=120)
        return subprocess.CompletedProcess(running.args, running.returncode, output, errors)

    def own(self, name: str, text: str) -> Path:
        """A file that alice alone can read."""
        path = self.alice.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        for each in (path, *list(path.parents)[: len(Path(name).parents) - 1]):
            os.chown(each, self.alice.uid, self.alice.gid)
        return path


@pytest.fixture
def far(served: Served, space: str, tmp_path: Path) -> Far:
    """The service of `served` by HTTPS as well, a token of alice's, and her client.yml."""
    served.stop()
    authority = Authority(tmp_path / "authority")
    certificate = served.home / "server.pem"
    certificate.write_text(authority.issue("server", names=f"IP:{HERE}").read_text())
    os.chown(certificate, served.installation.service.uid, served.installation.service.gid)
    site = served.home / "etc/site.yml"
    kept = site.read_text().rpartition("service:")[0]
    site.write_text(kept + HTTPS.format(run=served.run, home=served.home, here=HERE))
    served.start()
    found = Far(served.installation, space, served)
    env = {"KADEPLOY_CONFIG_DIR": str(served.home / "etc")}
    until = time.strftime("%Y-%m-%d", time.localtime(time.time() + 3 * 86400))
    words = ("token", "create", found.alice.name, "--until", until)
    made = served.installation.tool("kadeploy3d", *words, account=served.installation.service, env=env)
    assert made.returncode == 0, made.stderr
    token = next(word for word in made.stdout.split() if word.startswith("kd3_"))
    found.own(".config/kadeploy/token", f"{token}\n")
    found.own(".config/kadeploy/ca.pem", authority.file.read_text())
    server = f'{{url: "https://{HERE}:25399", ca: ca.pem, token_file: token}}'
    found.own(".config/kadeploy/client.yml", f"default: paris\nservers: {{paris: {server}}}\n")
    return found


def test_an_account_elsewhere_deploys_its_own_image_with_a_token(far: Far) -> None:
    far.served.grant(far.alice, "gdx-[1-2].site")
    description = image_of(far.alice)
    done = far.tool("kadeploy3", "-m", "gdx-[1-2]", "-a", description, "-o", "ok", "-V", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (far.alice.home / "ok").read_text() == "gdx-1.site\ngdx-2.site\n"
    audited = [line for line in far.served.audit() if line["what"] == "POST /v1/deployments"]
    assert [(line["user"], line["how"], line["source"]) for line in audited] == [(far.alice.name, "token", THERE)]
    refused = far.tool("kadeploy3", "-m", "gdx-3", "-a", description)
    assert (refused.returncode, "does not have the right" in refused.stderr) == (1, True), refused.stderr


def test_an_account_elsewhere_follows_its_deployment_and_cancels_it(far: Far) -> None:
    far.served.grant(far.alice, "gdx-1.site")
    words = ["-m", "gdx-1", "-a", image_of(far.alice), "--force-steps", SLOW]
    running = far.start("kadeploy3", *words, "--write-workflow-id", "wid", "-V", "3")
    wid = wid_of(far.served, far.alice.home / "wid")
    assert running.stdout is not None
    assert any("BroadcastEnvWait begins on gdx-1.site" in line for line in running.stdout)
    assert wid in far.tool("kanodes3", "-y").stdout
    assert far.tool("kadeploy3", "--cancel", wid).returncode == 0
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 130, output + errors
    assert "gdx-1.site (aborted)" in output
    assert "gdx-1.site,aborted" in far.tool("kanodes3", "-d").stdout


def test_what_waits_in_the_background_asks_the_same_server(far: Far) -> None:
    far.served.grant(far.alice, "gdx-1.site")
    path = far.alice.home / ".config/kadeploy/client.yml"
    path.write_text(path.read_text().replace("default: paris\n", ""))
    words = ["--server", "paris", "-m", "gdx-1", "-a", image_of(far.alice), "--no-wait", "-o", "ok"]
    assert far.tool("kadeploy3", *words).returncode == 0
    limit = time.monotonic() + 60
    while (far.alice.home / "ok").read_text() != "gdx-1.site\n":
        assert time.monotonic() < limit
        time.sleep(0.2)
