"""Several sites in one call of a tool: two services with nodes of their own, and the tools as their clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from kadeploy.caller import caller
from kadeploy.client import servers
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.state import nodes, rights
from kadeploy.state.database import connect
from tests.unit import build
from tests.unit.authority import Authority
from tests.unit.cli.test_kadeploy3 import ENVIRONMENT, FORCED, sleepers
from tests.unit.conftest import CLUSTERS, SITE, Tool
from tests.unit.plays import write_play
from tests.unit.serving import served, served_ways

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

HTTPS = """\
service:
  https: {{certificate: {certificate}, private_key: {certificate}, address: 127.0.0.1, port: 0, client_ca: {ca}}}
"""
NOWHERE = {"url": "https://localhost:9"}
"""A server that is not there."""
BOTH = ("-m", "gdx-[1-2]", "-m", "sag-1")
SLEEP = "  tasks:\n    - ansible.builtin.command: sleep 1000\n"
PARIS = ["Nodes correctly deployed on cluster paris/gdx", "gdx-1.site", "gdx-2.site"]
LYON = ["Nodes correctly deployed on cluster lyon/gdx", "sag-1.lyon"]
Done = subprocess.CompletedProcess[str]


@dataclass
class Sites:
    """Paris, of the nodes gdx-N.site and nvm-N.site, and Lyon, of sag-N.lyon; the caller may use all of them."""

    paris: Site
    lyon: Site
    folder: Path
    """For the client's files."""
    named: dict[str, dict[str, str]]
    """As in client.yml."""
    tool: Tool

    def variables(self, **more: dict[str, str]) -> dict[str, str]:
        """Of a machine without a site, whose client.yml has *more* servers."""
        client = self.folder / "client.yml"
        draft = client.with_suffix(".new")
        draft.write_text(yaml.safe_dump({"servers": self.named | more}, sort_keys=False))
        draft.replace(client)  # one that waits in the background may be about to read it
        return {servers.VARIABLE: str(client), "KADEPLOY_CONFIG_DIR": "/nowhere"}

    def environment(self) -> dict[str, str]:
        return os.environ | self.variables()

    def run(self, name: str, *words: str, **more: dict[str, str]) -> Done:
        return self.tool(name, "-M", *words, **self.variables(**more))

    def deployment(self, *words: str, steps: str = FORCED) -> list[str]:
        return ["-a", str(self.folder / "env.dsc"), "--force-steps", steps, *words]

    def deploy(self, *words: str, **more: dict[str, str]) -> Done:
        return self.run("kadeploy3", *self.deployment(*words), **more)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def states(self) -> dict[str, str]:
        """What is recorded at both."""
        found: dict[str, str] = {}
        for site in (self.paris, self.lyon):
            connect(site)
            found |= {row.hostname: row.state for row in nodes.states(site)}
        return found


def write_lyon(folder: Path) -> Path:
    (folder / "clusters").mkdir(parents=True)
    (folder / "state").mkdir()
    text = SITE.format(folder=folder, database=f"sqlite://{folder}/state/kadeploy.db", almighty=f"[{caller().name}]")
    (folder / "site.yml").write_text(text.replace("name: paris", "name: lyon"))
    cluster = CLUSTERS["gdx"].replace("gdx-[1-20].site", "sag-[1-4].lyon").replace("127.9.1.[1-20]", "127.9.3.[1-4]")
    (folder / "clusters" / "gdx.yml").write_text(cluster)
    return folder


@pytest.fixture
def folders(site_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The configurations of Paris and Lyon."""
    return site_folder, write_lyon(tmp_path / "lyon")


@pytest.fixture
def sites(folders: tuple[Path, Path], tmp_path: Path, tool: Tool) -> Iterator[Sites]:
    (tmp_path / "client").mkdir()
    (tmp_path / "client/image.tgz").write_bytes(build.packed("image"))
    (tmp_path / "client/env.dsc").write_text(ENVIRONMENT.format(image=tmp_path / "client/image.tgz"))
    with ExitStack() as stack:
        named = {}
        for folder in folders:
            site = load_site(folder)
            connect(site)
            rights.add(site, caller().name, ["*"], ["*"])
            named[site.name] = {"url": str(stack.enter_context(served(folder, folder / "state/test.sock")))}
        yield Sites(load_site(folders[0]), load_site(folders[1]), tmp_path / "client", named, tool)


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.fixture
def far(folders: tuple[Path, Path], sites: Sites, tmp_path: Path) -> Iterator[Sites]:
    """Lyon is on another machine, by HTTPS."""
    authority = Authority(tmp_path / "authority")
    with (folders[1] / "site.yml").open("a") as file:
        file.write(HTTPS.format(certificate=authority.issue("server"), ca=authority.file))
    shown = {"ca": str(authority.file), "certificate": str(authority.issue(caller().name))}
    with served_ways(folders[1], folders[1] / "state/more.sock") as ways:
        url = f"https://localhost:{ways[1].listening.getsockname()[1]}"
        yield replace(sites, named=sites.named | {"lyon": {"url": url} | shown})


def test_a_request_is_split_and_its_lines_files_and_status_are_put_together(far: Sites) -> None:
    sites = far
    files = ["-o", sites.path("ok"), "-n", sites.path("ko"), "--write-workflow-id", sites.path("wid")]
    script = sites.folder / "script"
    script.write_text(f"#!/bin/sh\necho once >>{sites.path('said')}\n")
    script.chmod(0o700)
    done = sites.deploy(*BOTH, *files, "-s", str(script))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert (sites.read("ok"), sites.read("ko")) == ("gdx-1.site\ngdx-2.site\nsag-1.lyon\n", "")
    assert sites.read("said") == "once\n"
    wids = {name: sites.read(f"wid_{name}").strip() for name in ("paris", "lyon")}
    assert sites.read("wid").split() == sorted(wids.values(), key=sites.read("wid").index)
    lines = done.stdout.splitlines()
    for name, begun in (("paris", "2 nodes: gdx-[1-2].site"), ("lyon", "1 node: sag-1.lyon")):
        mine = [line for line in lines if line.startswith(f"[{name}] ")]
        assert any(line.endswith(f"Deployment {wids[name]} started on {begun}") for line in mine)
        assert any(line.endswith("SetDeploymentEnvDummy begins on " + begun.split(": ")[1]) for line in mine)
    joint = [line for line in lines if line.endswith(": 3 OK, 0 KO") and not line.startswith("[")]
    assert len(joint) == 1
    assert lines[lines.index(joint[0]) + 1 :][:-1] == [*PARIS, *LYON]
    assert sites.states() == dict.fromkeys(("gdx-1.site", "gdx-2.site", "sag-1.lyon"), "deployed")


def test_a_server_that_cannot_be_asked_is_named_and_the_others_do_their_part(sites: Sites) -> None:
    files = ("-o", sites.path("ok"), "-n", sites.path("ko"))
    done = sites.deploy("-m", "sag-1", "-m", "vosges-[1-2].nancy", *files, nancy=NOWHERE)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr.startswith("WARNING: nancy is left out: nancy (https://localhost:9): nobody listens there.")
    reason = "unknown; nancy cannot be asked"
    assert f"left out: vosges-[1-2].nancy: {reason}\n" in done.stdout
    assert f"\nvosges-1.nancy ({reason})\n" in done.stdout
    assert (sites.read("ok"), sites.read("ko")) == ("sag-1.lyon\n", "vosges-1.nancy\nvosges-2.nancy\n")
    assert sites.states() == {"sag-1.lyon": "deployed"}


REFUSED = {
    ("-m", "sag-1", "--all-or-nothing"): "Not all servers can be asked, and nothing was done. nancy: nancy (https",
    ("-m", "vosges-1.nancy"): "Unknown node: vosges-1.nancy. kanodes3 -l lists the nodes of this site. It may be one "
    "of nancy, which cannot be asked.",
    ("-m", "sag-1", "-m", "vosges-1.nancy", "--no-wait"): "It may be one of nancy, which cannot be asked.",
    ("-m", "sag-1", "-m", "vosges-1.nancy", "--dry-run"): "It may be one of nancy, which cannot be asked.",
    ("-m", "sag-1", "--server", "lyon"): "--server lyon one: leave one out.",
}


def test_what_cannot_be_done_as_it_is_wanted_is_refused_before_anything_begins(sites: Sites) -> None:
    for words, said in REFUSED.items():
        done = sites.deploy(*words, nancy=NOWHERE)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    twin = sites.deploy("-m", "gdx-1", "-m", "sag-1", twin=sites.named["lyon"])
    assert (twin.returncode, twin.stderr) == (
        1,
        "ERROR: sag-1.lyon is a node of lyon and of twin: choose one of them with --server.\n",
    )
    unknown = sites.deploy("-m", "gdx-1", "-m", "sag-7")
    assert "Unknown node: sag-7." in unknown.stderr
    assert "cannot be asked" not in unknown.stderr
    alone = sites.tool("kadeploy3", *sites.deployment(*BOTH, "--all-or-nothing"), **sites.variables())
    assert "--all-or-nothing is about several servers: add --multi-server." in alone.stderr
    assert sites.states() == {}


def test_each_server_gets_the_words_of_its_own_nodes(sites: Sites) -> None:
    (sites.folder / "profile").write_text("APPEND id=NODE_SINGULARITY\n")
    (sites.folder / "words").write_text("gdx-1,one\nsag-1.lyon,two\n")
    files = ["-a", sites.path("env.dsc"), "-w", sites.path("profile"), "--set-pxe-pattern", sites.path("words")]
    words = ["--dry-run", "-m", "gdx-1", "-m", "sag-1", *files]
    done = sites.run("kadeploy3", *words)
    said = [line.split() for line in done.stdout.splitlines() if "id=" in line]
    assert said == [["[paris]", "APPEND", "id=one"], ["[lyon]", "APPEND", "id=two"]], done.stderr
    (sites.folder / "words").write_text("gdx-1,one\nsag-1.lyon,two\nsag-2.lyon,three\n")
    strange = sites.run("kadeploy3", *words)
    assert "not among the nodes of this request: sag-2.lyon" in strange.stderr


def test_a_part_that_is_refused_does_not_hold_up_the_others_unless_it_is_all_or_nothing(sites: Sites) -> None:
    connect(sites.lyon)
    rights.delete(sites.lyon, caller().name, ["*"], ["*"])
    said = f"{caller().name} does not have the right"
    for words in (("--all-or-nothing",), ("--no-wait",), ("--dry-run",)):
        whole = sites.deploy(*BOTH, *words)
        assert whole.returncode == 1
        assert whole.stderr.startswith(f"ERROR: lyon: {said}"), whole.stderr
        assert (whole.stdout, sites.states()) == ("", {})
    done = sites.deploy(*BOTH, "-n", sites.path("ko"), "--format", "json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit_status"], list(report["wids"])) == (3, 3, ["paris"])
    assert report["ok"] == ["gdx-1.site", "gdx-2.site"]
    assert report["ko"]["sag-1.lyon"].startswith(said)
    assert sites.read("ko") == "sag-1.lyon\n"
    assert any(line.startswith("[lyon] ") and said in line for line in done.stderr.splitlines())
    alone = sites.deploy("-m", "sag-1")
    assert (alone.returncode, alone.stderr.startswith(f"ERROR: lyon: {said}")) == (1, True)


@pytest.fixture
def slow(sites: Sites, folders: tuple[Path, Path]) -> str:
    """Steps that do not end."""
    for folder in folders:
        write_play(folder, "SetDeploymentEnvSleep", SLEEP)
    return FORCED.replace("SetDeploymentEnvDummy", "SetDeploymentEnvSleep")


def eventually(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_ctrl_c_ends_all_parts(sites: Sites, slow: str, tmp_path: Path) -> None:
    words = sites.deployment(*BOTH, "-n", sites.path("ko"), steps=slow)
    program = Path(sys.executable).parent / "kadeploy3"
    with subprocess.Popen(
        [program, "-M", *words], env=sites.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        eventually(lambda: all(sleepers(tmp_path / name) for name in ("site", "lyon")))
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=120)
    assert (running.returncode, "ending cleanly" in errors) == (130, True), output + errors
    assert sites.read("ko") == "gdx-1.site\ngdx-2.site\nsag-1.lyon\n"
    assert sites.states() == dict.fromkeys(("gdx-1.site", "gdx-2.site", "sag-1.lyon"), "aborted")


def test_parts_in_the_background_are_shown_and_cancelled_wherever_they_are(sites: Sites, slow: str) -> None:
    files = ("-n", sites.path("ko"), "--write-workflow-id", sites.path("wid"))
    begun = sites.run("kadeploy3", *sites.deployment(*BOTH, "--no-wait", *files, steps=slow))
    assert begun.returncode == 0, begun.stderr
    wids = dict(line.split() for line in begun.stdout.splitlines())
    assert list(wids) == ["[paris]", "[lyon]"]
    assert {sites.read("wid_paris").strip(), sites.read("wid_lyon").strip()} == set(wids.values())
    assert set(sites.read("wid").split()) == set(wids.values())
    assert set(yaml.safe_load(sites.run("kanodes3", "-y").stdout)) == set(wids.values())
    for wid in wids.values():
        assert list(yaml.safe_load(sites.run("kanodes3", "-y", "-w", wid).stdout)) == [wid]
        assert sites.run("kadeploy3", "--cancel", wid).stdout.startswith(f"{wid} ends")
    eventually(lambda: sites.read("ko") == "gdx-1.site\ngdx-2.site\nsag-1.lyon\n")
    waited = sites.run("kadeploy3", "--wait", wids["[lyon]"])
    assert (waited.returncode, "sag-1.lyon (aborted)" in waited.stdout) == (130, True), waited.stderr
    unknown = sites.run("kadeploy3", "--attach", "D-nobody")
    assert (unknown.returncode, "D-nobody" in unknown.stderr) == (1, True)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_lists_and_statistics_have_the_rows_of_all_in_one_order_and_miss_none_unnoticed(sites: Sites) -> None:
    assert sites.deploy(*BOTH, "-V", "0").returncode == 0
    rows = json.loads(sites.run("kanodes3", "-d", "--format", "json").stdout)
    assert [row["hostname"] for row in rows] == ["gdx-1.site", "gdx-2.site", "sag-1.lyon"]
    assert sites.run("kanodes3", "-d", "-m", "sag-1").stdout.startswith("sag-1.lyon,deployed,")
    listed = json.loads(sites.run("kanodes3", "-l", "--format", "json").stdout)
    assert {row["hostname"]: row["cluster"] for row in listed}.items() >= {
        ("gdx-20.site", "paris/gdx"),
        ("nvm-4.site", "paris/nvm"),
        ("sag-4.lyon", "lyon/gdx"),
    }
    partly = sites.run("kanodes3", "-l", nancy=NOWHERE)
    assert (partly.returncode, "sag-4.lyon,lyon/gdx," in partly.stdout) == (1, True)
    assert partly.stderr.startswith("WARNING: nancy is left out: ")
    complete = sites.run("kanodes3", "-d", "-m", "sag-1", nancy=NOWHERE)
    assert (complete.returncode, complete.stdout[:20]) == (0, "sag-1.lyon,deployed,")
    whole = sites.run("kanodes3", "-l", "--all-or-nothing", nancy=NOWHERE)
    assert (whole.returncode, whole.stdout) == (1, "")
    nobody = sites.tool("kanodes3", "-M", "-d", **{**sites.variables(), servers.VARIABLE: "/dev/null"})
    assert nobody.returncode == 1
    assert sites.deploy("-m", "gdx-1", "-V", "0").returncode == 0
    names = sites.run("kastat3", "-d", "-f", "hostname", "--sort", "-hostname").stdout.split()
    assert names == ["sag-1.lyon", "gdx-2.site", "gdx-1.site", "gdx-1.site"]
    assert sites.run("kastat3", "-d", "-f", "hostname", "--sort", "-start", "-l", "1").stdout == "gdx-1.site\n"
    oldest = sites.run("kastat3", "-d", "-f", "start", "-f", "hostname").stdout.splitlines()
    assert oldest == sorted(oldest, key=lambda line: int(line.split(",")[0]))
    assert len(oldest) == 4
    assert sites.run("kastat3", "-b", "-m", "sag-1").stdout == "sag-1.lyon: 0%\n"
    assert sites.run("kastat3", "-b").stdout == "gdx-1.site: 0%\ngdx-2.site: 0%\nsag-1.lyon: 0%\n"


def test_rights_are_given_at_the_servers_of_the_nodes(sites: Sites) -> None:
    words = ("-u", "bob", "-p", "/dev/sda3")
    assert sites.run("karights3", "-a", *BOTH, *words).returncode == 0
    shown = sites.run("karights3", "-s", "-u", "bob").stdout.splitlines()
    assert shown[1:] == ["### gdx-1.site:/dev/sda3", "### gdx-2.site:/dev/sda3", "### sag-1.lyon:/dev/sda3"]
    again = sites.run("karights3", "-a", "-m", "gdx-1", "-m", "sag-1", *words)
    assert again.returncode == 1
    assert {line.split()[0] for line in again.stdout.splitlines()} == {"[paris]", "[lyon]"}
    assert sites.run("karights3", "-d", *BOTH, *words).returncode == 0
    assert sites.run("karights3", "-a", "-m", "*", "-p", "*", "-u", "carol").returncode == 0
    shown = sites.run("karights3", "-s", "-u", "carol").stdout.splitlines()
    assert shown[1:] == ["### paris/*:*", "### lyon/*:*"]
    nothing = sites.run("karights3", "-a", "-u", "bob", "-p", "*")
    assert "Give at least one node" in nothing.stderr


def test_environments_are_recorded_at_all_servers_and_printed_by_the_one_that_has_them(sites: Sites) -> None:
    with (sites.folder / "env.dsc").open() as description:
        words = [str(Path(sys.executable).parent / "kaenv3"), "-M", "-a", "/dev/stdin"]
        added = subprocess.run(
            words, stdin=description, env=sites.environment(), capture_output=True, text=True, check=False
        )
    who = caller().name
    assert added.stdout == "".join(f"[{name}] Added: tiny version 3 of {who}, private\n" for name in sites.named)
    listed = json.loads(sites.run("kaenv3", "-l", "--format", "json").stdout)
    assert {name: [each["name"] for each in found] for name, found in listed.items()} == {
        "paris": ["tiny"],
        "lyon": ["tiny"],
    }
    assert [line.split()[:3] for line in sites.run("kaenv3", "-l").stdout.splitlines()] == [
        [f"[{name}]", *words]
        for name in sites.named
        for words in (["Name", "Version"], ["####", "#######"], ["tiny", "3"])
    ]
    printed = sites.run("kaenv3", "-p", "tiny")
    assert "tiny is recorded by paris and by lyon: choose one of them with --server." in printed.stderr
    deleted = sites.tool("kaenv3", "-d", "tiny", "--server", "paris", **sites.variables())
    assert deleted.returncode == 0
    assert "\nname : tiny\n" in sites.run("kaenv3", "-p", "tiny").stdout
    gone = sites.run("kaenv3", "-d", "tiny")
    assert (gone.returncode, gone.stdout) == (1, f"[lyon] Deleted: tiny version 3 of {who}\n")
    assert gone.stderr.startswith("ERROR: paris: ")


def test_a_console_is_asked_of_the_server_that_knows_the_node(sites: Sites) -> None:
    done = sites.run("kaconsole3", "-m", "sag-2")
    assert (done.returncode, "sag-2.lyon" in done.stderr or "cluster" in done.stderr) == (1, True)
    assert sites.run("kaconsole3", "--list").returncode == 0
    assert "Unknown node: sag-9." in sites.run("kaconsole3", "-m", "sag-9").stderr


def test_one_server_is_asked_as_if_it_had_been_named(sites: Sites) -> None:
    del sites.named["paris"]
    assert sites.run("kanodes3", "-l").stdout.startswith("sag-1.lyon,gdx,")
    done = sites.deploy("-m", "sag-1", "-V", "0")
    assert (done.returncode, "[lyon]" in done.stdout) == (0, False), done.stderr
    assert "\nNodes correctly deployed on cluster gdx\nsag-1.lyon\n" in done.stdout
