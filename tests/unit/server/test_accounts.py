"""Two people and a service under an account of its own: what they can do, and what they cannot."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect
import pytest

from kadeploy.caller import Account, account
from kadeploy.process import end_group
from kadeploy.remote import console_account
from tests.accounts import Installation
from tests.unit import build

SITE = """\
name: paris
state_dir: {home}/state
server_address: 127.0.0.1
ssh:
  private_key: {home}/key
  host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf
boot: {{tftp_root: {home}/tftp, http_root: {home}/http, http_url: "http://127.0.0.1/"}}
service: {{socket: {run}/kadeploy3d.sock, console_socket: {run}/consoles.sock}}
"""
CLUSTER = """\
nodes: [{name: "gdx-[1-4].site", address: "127.0.1.[1-4]"}]
disk:
  table: gpt
  partitions: [{number: 1, size: 1GiB, role: swap}, {number: 2, size: 4GiB, role: prod}, {number: 3, role: deploy}]
power: {driver: command, commands: {soft_on: "true", status: "true"}}
console: sh
macro_steps:
  SetDeploymentEnv: [{implementation: SetDeploymentEnvDummy}]
  BroadcastEnv: [{implementation: BroadcastEnvDummy}]
  BootNewEnv: [{implementation: BootNewEnvDummy}]
"""
WAITS = """\
- name: BroadcastEnvWait
  hosts: kadeploy_nodes
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.shell: until test -e {word}; do sleep 0.2; done
"""
STEPS = "SetDeploymentEnv|SetDeploymentEnvDummy:0:0&BroadcastEnv|{way}:0:0&BootNewEnv|BootNewEnvDummy:0:0"
SLOW = STEPS.format(way="BroadcastEnvWait")
ENVIRONMENT = """\
name : {name}
version : 1
tarball : {image}|tgz
environment_kind : linux
fdisktype : 83
filesystem : ext4
kernel : /boot/vmlinuz
"""


@dataclass
class Served:
    """The service of a site, and who uses it."""

    installation: Installation
    home: Path
    """What the service's account alone may read: configuration and state."""
    run: Path
    """Where its socket is."""
    daemon: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.run / "kadeploy3d.sock"

    def start(self) -> None:
        """Start the service, and wait until it answers."""
        env = {"KADEPLOY_CONFIG_DIR": str(self.home / "etc")}
        log = (self.home / "log").open("a")
        options: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
        self.daemon = self.installation.start(
            "kadeploy3d", "run", account=self.installation.service, env=env, **options
        )
        limit = time.monotonic() + 60
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(self.socket)) != 0:
                assert self.daemon.poll() is None, (self.home / "log").read_text()
                assert time.monotonic() < limit
                time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the service, and nothing that it has begun."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        self.daemon.wait(60)

    def tool(self, who: Account, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a tool as *who*."""
        return self.installation.tool(name, *arguments, account=who, env=self.variables, timeout=120)

    def begin(self, who: Account, name: str, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start one, and do not wait for it."""
        return self.installation.start(name, *arguments, account=who, env=self.variables)

    @property
    def variables(self) -> dict[str, str]:
        return {"KADEPLOY_SERVER": str(self.socket)}

    def grant(self, who: Account, *nodes: str) -> None:
        done = self.tool(account("root"), "karights3", "-a", "-m", ",".join(nodes), "-p", "/dev/sda3", "-u", who.name)
        assert done.returncode == 0, done.stderr

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """A request as the account that this process runs as."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")

    def audit(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        return [json.loads(line) for line in (self.home / "state" / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def served(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service under its own account: its configuration and its state are nobody else's to read."""
    service = installation.service
    for path in (*installation.alice.home.iterdir(), *installation.bob.home.iterdir()):
        if path.is_file():  # an earlier test's workflow id would be taken for this one's
            path.unlink()
    home = service.home / tmp_path_factory.mktemp("site").name
    run = installation.folder / f"run-{home.name}"
    run.mkdir(mode=0o755)
    os.chown(run, service.uid, service.gid)
    for folder in (home, home / "etc", home / "etc" / "clusters", home / "etc" / "playbooks", home / "state"):
        folder.mkdir(mode=0o700)
    (home / "etc" / "site.yml").write_text(SITE.format(home=home, run=run))
    (home / "etc" / "clusters" / "gdx.yml").write_text(CLUSTER)
    (home / "etc" / "playbooks" / "BroadcastEnvWait.yml").write_text(WAITS.format(word=home / "go-on"))
    for path in (home, *home.rglob("*")):
        os.chown(path, service.uid, service.gid)
    found = Served(installation, home, run)
    found.start()
    try:
        yield found
    finally:
        (home / "go-on").touch()
        found.stop()


def image_of(who: Account, name: str = "image") -> Path:
    """An image that *who* alone can read, and its description."""
    image = who.home / f"{name}.tgz"
    image.write_bytes(build.packed(name))
    image.chmod(0o600)
    description = who.home / f"{name}.dsc"
    description.write_text(ENVIRONMENT.format(name=name, image=image))
    for path in (image, description):
        os.chown(path, who.uid, who.gid)
    return description


def wid_of(served: Served, path: Path) -> str:
    """The workflow id in a file of the user's, once it is there."""
    limit = time.monotonic() + 60
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < limit
        time.sleep(0.1)
    return path.read_text().strip()


def test_people_deploy_what_they_alone_can_read_where_they_have_rights_and_nowhere_else(served: Served) -> None:
    alice, bob = served.installation.alice, served.installation.bob
    served.grant(alice, "gdx-[1-2].site")
    description = image_of(alice)
    done = served.tool(alice, "kadeploy3", "-m", "gdx-[1-2]", "-a", description, "-o", alice.home / "ok", "-V", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (alice.home / "ok").read_text() == "gdx-1.site\ngdx-2.site\n"
    assert (alice.home / "ok").stat().st_uid == alice.uid
    refused = served.tool(alice, "kadeploy3", "-m", "gdx-3", "-a", description)
    assert (refused.returncode, "does not have the right to use /dev/sda3 of gdx-3" in refused.stderr) == (1, True)
    refused = served.tool(bob, "kadeploy3", "-m", "gdx-1", "-a", image_of(bob))
    assert (refused.returncode, "does not have the right" in refused.stderr) == (1, True)
    assert [(line["user"], line["status"]) for line in served.audit() if line["what"] == "POST /v1/deployments"] == [
        (alice.name, 201)
    ]
    assert served.tool(bob, "kapower3", "--on", "-m", "gdx-1").returncode == 1
    assert any(line["user"] == bob.name and line["status"] == 403 for line in served.audit())


def test_nobody_reads_what_the_service_keeps(served: Served) -> None:
    alice = served.installation.alice
    for path in (served.home / "etc" / "site.yml", served.home / "state" / "kadeploy.db"):
        assert served.tool(alice, "cat", path).returncode != 0
    told = served.ask("GET", "/v1/configuration")[1]
    assert str(served.home) not in json.dumps(told)


def test_recorded_environments_keep_their_visibility_and_their_owner(served: Served) -> None:
    alice, bob = served.installation.alice, served.installation.bob
    served.grant(bob, "gdx-1.site")
    assert served.tool(alice, "kaenv3", "-a", image_of(alice, "mine")).returncode == 0
    assert "mine" not in served.tool(bob, "kaenv3", "-l", "-u", "*").stdout
    assert served.tool(bob, "kadeploy3", "-m", "gdx-1", "-e", f"mine@{alice.name}").returncode == 1
    assert served.tool(bob, "kaenv3", "-d", "mine", "-u", alice.name).returncode == 1
    assert served.tool(alice, "kaenv3", "--set-visibility-tag", "mine", "-t", "public").returncode == 1
    assert served.tool(alice, "kaenv3", "--set-visibility-tag", "mine", "-t", "shared").returncode == 0
    unsent = served.tool(bob, "kadeploy3", "-m", "gdx-1", "-e", f"mine@{alice.name}")
    assert (unsent.returncode, "Permission denied" in unsent.stderr) == (1, True), "bob cannot read what nobody sent"
    served.grant(alice, "gdx-2.site")
    assert served.tool(alice, "kadeploy3", "-m", "gdx-2", "-e", "mine").returncode == 0
    shared = served.tool(bob, "kadeploy3", "-m", "gdx-1", "-e", f"mine@{alice.name}")
    assert shared.returncode == 0, shared.stderr
    assert f"gdx-1.site,deployed,{bob.name},mine,1,{alice.name}" in served.tool(bob, "kanodes3", "-d").stdout


def test_the_service_opens_no_path_that_a_client_names(served: Served) -> None:
    """This process is root's, and the service is not: it must not open its own files for anybody either."""
    key = served.home / "key"
    key.write_text("secret")
    served.ask("POST", "/v1/rights", {"user": "root", "nodes": ["*"], "parts": ["*"]})
    sums = {"size": 6, "md5": "0" * 32, "sha256": "0" * 64}
    environment = {
        "name": "theft",
        "image": {"file": str(key), "kind": "tgz"},
        "kernel": "/vmlinuz",
        "filesystem": "ext4",
    }
    status, told = served.ask(
        "POST", "/v1/environments", {"environments": [environment], "fingerprints": {str(key): sums}}
    )
    assert status == 201, told
    for wanted in ({"type": "recorded", "name": "theft"}, {"type": "described", "environment": environment}):
        status, told = served.ask("POST", "/v1/deployments", {"nodes": ["gdx-4.site"], "environment": wanted})
        assert (status, "did not send" in told["message"]) == (400, True), told
    options = {
        "custom_operations": [
            {
                "action": "send",
                "file": str(key),
                "destination": "/x",
                "implementation": "BroadcastEnvDummy",
                "micro_step": "dummy",
            }
        ]
    }
    status, told = served.ask(
        "POST",
        "/v1/reboots",
        {"nodes": ["gdx-4.site"], "kind": "simple_reboot", "options": options, "uploads": [str(key)]},
    )
    assert status == 400, told


def test_a_workflow_is_its_owners_to_follow_and_to_cancel_and_outlives_client_and_service(served: Served) -> None:
    alice, bob = served.installation.alice, served.installation.bob
    served.grant(alice, "gdx-[1-2].site")
    words = ["-m", "gdx-[1-2]", "-a", image_of(alice), "--force-steps", SLOW, "-V", "1"]
    running = served.begin(alice, "kadeploy3", *words, "--write-workflow-id", alice.home / "wid")
    wid = wid_of(served, alice.home / "wid")
    for words in (["--cancel", wid], ["--attach", wid], ["--wait", wid]):
        refused = served.tool(bob, "kadeploy3", *words)
        assert (refused.returncode, alice.name in refused.stderr) == (1, True)
    busy = served.tool(alice, "kadeploy3", "-m", "gdx-1", "-a", image_of(alice))
    assert (busy.returncode, wid in busy.stdout + busy.stderr) == (1, True)
    served.stop(signal.SIGKILL)
    served.start()
    assert wid in served.tool(alice, "kanodes3", "-y").stdout
    running.kill()  # its terminal is gone; the workflow is not
    running.wait()
    (served.home / "go-on").touch()
    done = served.tool(alice, "kadeploy3", "--attach", wid, "-n", alice.home / "ko", "-o", alice.home / "ok")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BroadcastEnvWait begins on gdx-[1-2].site" in done.stdout
    assert ((alice.home / "ok").read_text(), (alice.home / "ko").read_text()) == ("gdx-1.site\ngdx-2.site\n", "")


def test_cancel_frees_the_nodes_and_is_audited(served: Served) -> None:
    alice = served.installation.alice
    served.grant(alice, "gdx-1.site")
    words = ["-m", "gdx-1", "-a", image_of(alice), "--force-steps", SLOW, "--no-wait", "-n", alice.home / "ko"]
    wid = served.tool(alice, "kadeploy3", *words).stdout.strip()
    assert served.tool(alice, "kadeploy3", "--cancel", wid).returncode == 0
    done = served.tool(alice, "kadeploy3", "--wait", wid)
    assert done.returncode == 130, done.stdout
    limit = time.monotonic() + 30
    while not (alice.home / "ko").read_text():
        assert time.monotonic() < limit, "the process that --no-wait left behind writes the list"
        time.sleep(0.1)
    assert "gdx-1.site,aborted" in served.tool(alice, "kanodes3", "-d").stdout
    assert any(line["what"] == f"DELETE /v1/workflows/{wid}" and line["status"] == 200 for line in served.audit())
    assert "has ended already" in served.tool(alice, "kadeploy3", "--cancel", wid).stdout


def test_a_workflow_that_is_killed_goes_on_by_itself(served: Served) -> None:
    alice = served.installation.alice
    served.grant(alice, "gdx-1.site")
    words = ["-m", "gdx-1", "-a", image_of(alice), "--force-steps", SLOW, "--no-wait"]
    wid = served.tool(alice, "kadeploy3", *words).stdout.strip()
    row = next(
        iter(
            served.installation.tool(
                "sqlite3",
                served.home / "state" / "kadeploy.db",
                f"SELECT pid FROM workflows WHERE wid = '{wid}'",
                account=served.installation.service,
            ).stdout.split()
        )
    )
    os.kill(int(row), signal.SIGKILL)
    (served.home / "go-on").touch()
    done = served.tool(alice, "kadeploy3", "--attach", wid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on after its controller died" in done.stdout


def test_while_the_service_is_down_root_leaves_nothing_that_is_closed_to_it(served: Served) -> None:
    root, service = account("root"), served.installation.service
    served.stop(signal.SIGKILL)
    for path in (served.home / "state").glob("*kadeploy.db*"):
        path.unlink()
    own = shutil.copytree(served.home / "etc", served.run.with_name(f"etc-{served.home.name}"))
    here = {"KADEPLOY_CONFIG_DIR": str(own)}
    told = served.installation.tool("kanodes3", "-d", account=root, env=here).stderr
    assert "does not answer (Connection refused). Is kadeploy3d running?" in told
    served.socket.unlink()
    for name, *words in (
        ("karights3", "-a", "-m", "*", "-p", "*", "-u", "root"),
        ("kanodes3", "-d"),
        ("kadeploy3d", "run"),
    ):
        refused = served.installation.tool(name, *words, account=root, env=here)
        assert (refused.returncode, f"Is kadeploy3d running, as {service.name}?" in refused.stderr) == (1, True), name
    words = ["token", "create", service.name, "--until", "2099-01-01"]
    assert served.installation.tool("kadeploy3d", *words, account=root, env=here).returncode == 0
    served.start()
    served.grant(root, "gdx-1.site")
    others = [path for path in (served.home / "state").rglob("*") if path.stat().st_uid != service.uid]
    assert others == []


# --- consoles -------------------------------------------------------------------------------------------------------


@pytest.fixture
def consoles(served: Served) -> Iterator[subprocess.Popen[str]]:
    """What starts the programs of consoles, under its own account; its socket is made as systemd makes it."""
    path, owner = served.run / "consoles.sock", served.installation.service
    with socket.socket(socket.AF_UNIX, console_account.KIND) as listener:
        listener.bind(str(path))
        os.chown(path, owner.uid, owner.gid)
        path.chmod(0o600)
        listener.listen()
        begin = "LISTEN_PID=$$ LISTEN_FDS=1 exec kadeploy3d consoles 3<&0 </dev/null"
        helper = served.installation.start("sh", "-c", begin, account=served.installation.consoles, stdin=listener)
    with helper:
        yield helper
        end_group(helper.pid)


PROMPT = r"\$ "


def console_of(served: Served, who: Account, node: str) -> pexpect.spawn:
    """A terminal on which *who* has opened the console of a node."""
    tool = str(served.installation.tools / "kaconsole3")
    words = ["--reuid", str(who.uid), "--regid", str(who.gid), "--clear-groups", tool, "-m", node]
    env = served.installation.environment(who) | served.variables | {"NO_COLOR": "1"}
    return pexpect.spawn(
        "setpriv", words, env=env, cwd=str(who.home), timeout=60, encoding="utf-8", dimensions=(31, 97)
    )


def test_a_shell_that_a_console_leads_to_is_not_the_services(served: Served, consoles: subprocess.Popen[str]) -> None:
    alice, apart = served.installation.alice, served.installation.consoles
    (served.home / "key").write_text("the key of the site")
    served.grant(alice, "gdx-1.site")
    console = console_of(served, alice, "gdx-1")
    console.expect(PROMPT)
    for typed, told in (
        (
            "id",
            rf"uid={apart.uid}\({apart.name}\) gid={apart.gid}\({apart.name}\) groups={apart.gid}\({apart.name}\)\r",
        ),
        (f"cat {served.home}/key", "Permission denied"),
        (f"ls {served.home}/state", "Permission denied"),
        (f"cat /proc/{served.daemon.pid if served.daemon else ''}/environ", "Permission denied"),
        (f"kill {served.daemon.pid if served.daemon else ''}", "(Operation not permitted|No such process)"),
        ("env | sort | tr '\\n' ' '", rf"HOME={apart.home} LANG=C.UTF-8 LOGNAME={apart.name} .*USER={apart.name} "),
        ("stty size", "31 97"),
    ):
        console.sendline(typed)
        console.expect(told)
        console.expect(PROMPT)
    console.setwinsize(40, 100)
    console.sendline("until stty size | grep '40 100'; do sleep 0.1; done; exit 7")
    console.expect("\r\n40 100")
    console.expect("ERROR: sh ended with status 7")
    console.close()


def test_nobody_but_the_service_has_programs_started(served: Served, consoles: subprocess.Popen[str]) -> None:
    path = served.run / "consoles.sock"
    ask = f"""\
import json, socket
helper = socket.socket(socket.AF_UNIX, {console_account.KIND:d})
helper.connect("{path}")
try:
    helper.send(json.dumps({{"command": ["sh"], "environment": {{}}, "cells": [24, 80], "account": ""}}).encode())
except BrokenPipeError:
    pass
print(socket.recv_fds(helper, 1000, 9)[:2])
"""
    tool, alice, service = served.installation.tool, served.installation.alice, served.installation.service
    assert "PermissionError" in tool("python", "-c", ask, account=alice).stderr
    path.chmod(0o666)
    for stranger in (alice, account("root"), served.installation.consoles):
        told = tool("python", "-c", ask, account=stranger)
        assert f"serves the account that owns it, number {service.uid}" in told.stdout, told.stderr
        assert told.stdout.endswith("[])\n")
    assert "started" in tool("python", "-c", ask, account=service).stdout


def test_the_end_of_a_console_whose_service_or_starter_is_killed(
    served: Served, consoles: subprocess.Popen[str]
) -> None:
    alice = served.installation.alice
    served.grant(alice, "gdx-1.site")
    console = console_of(served, alice, "gdx-1")
    console.expect(PROMPT)
    console.sendline("trap '' HUP; echo this is $$.")
    console.expect(r"this is (\d+)\.")
    served.stop(signal.SIGKILL)
    limit = time.monotonic() + 30
    while Path(f"/proc/{console.match[1]}").exists():
        assert time.monotonic() < limit
        time.sleep(0.1)
    console.expect("ERROR: ")
    served.start()
    console = console_of(served, alice, "gdx-1")
    console.expect(PROMPT)
    console.sendline("echo this is $$.")
    console.expect(r"this is (\d+)\.")
    end_group(consoles.pid)
    console.expect("ERROR: Console closed: the connection to it is lost")
    assert served.ask("GET", "/v1/")[0] == 200
    console = console_of(served, alice, "gdx-1")
    console.expect("ERROR: The console cannot be opened")
    console.expect("systemctl enable --now kadeploy3d-consoles.socket")
