"""kapower3 as a process, with commands of a site that write down what they were asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kadeploy.caller import caller
from kadeploy.config.site import Site
from kadeploy.state import nodes, rights
from kadeploy.state.database import connect
from kadeploy.state.tables import Claim, Log, Workflow
from tests.unit.serving import PROCESS_ALONE

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), pytest.mark.usefixtures("way")]

Run = Callable[..., "subprocess.CompletedProcess[str]"]

POWER = """\
power:
  driver: command
  commands:
    status: "{program} status HOSTNAME_SHORT HOSTNAME_FQDN"
    soft_on: "{program} soft_on HOSTNAME_SHORT HOSTNAME_FQDN"
    hard_on: "{program} hard_on HOSTNAME_SHORT HOSTNAME_FQDN"
    hard_off: "{program} hard_off HOSTNAME_SHORT HOSTNAME_FQDN"
    very_hard_off: "{program} very_hard_off HOSTNAME_SHORT HOSTNAME_FQDN"
"""
PROGRAM = """\
#!/bin/sh
# OPERATION SHORT FQDN [--no-wait]: gdx-1 and nvm-1 are on and obey, gdx-2 obeys when it is hard, gdx-3 never does
echo "$*" >>{log}
state={log}.$2
case $1-$2 in
    status-*) [ ! -e "$state" ] || {{ cat "$state"; exec grep -q on "$state"; }} ;;
esac
case $1-$2 in
    status-*-1) echo "Chassis Power is on" ;;
    status-gdx-2) echo "Chassis Power is off"; exit 1 ;;
    status-*) echo "no answer" >&2; exit 2 ;;
    *-*-1|hard_*-gdx-2) echo "${{1##*_}}" >"$state" ;;
    *) echo "$1 refused" >&2; exit 1 ;;
esac
"""
NODES = ("-m", "gdx-[1-3].site")


@pytest.fixture
def ready(site: Site, site_folder: Path, tmp_path: Path) -> Site:
    """A site whose nodes are switched by `PROGRAM`, and on which the caller may do so."""
    program = tmp_path / "switch"
    program.write_text(PROGRAM.format(log=tmp_path / "log"), encoding="utf-8")
    program.chmod(0o755)
    for cluster in ("gdx", "nvm"):
        with (site_folder / "clusters" / f"{cluster}.yml").open("a", encoding="utf-8") as file:
            file.write(POWER.format(program=program))
    connect(site)
    rights.add(site, caller().name, ["*"], ["*"])
    return site


@pytest.fixture
def power(ready: Site, tool: Run) -> Run:
    """Runs the tool."""
    return lambda *words, **more: tool("kapower3", *words, **more)


def asked(folder: Path) -> list[str]:
    """What the site's commands were asked, sorted: nodes are switched side by side."""
    log = folder / "log"
    return sorted(log.read_text(encoding="utf-8").splitlines()) if log.exists() else []


def ordered(folder: Path) -> list[str]:
    """The same, without questions for the status."""
    return [line for line in asked(folder) if not line.startswith("status ")]


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSALS = {
    "no operation": (NODES, "--on, --off and --status"),
    "two operations": ((*NODES, "--on", "--off"), "--on, --off and --status"),
    "no node": (("--on",), "-m NODE"),
    "unknown node": (("--on", "-m", "mars-1"), "Unknown node: mars-1"),
    "unknown level": ((*NODES, "--on", "-l", "brutal"), "-l"),
    "level of a status": ((*NODES, "--status", "-l", "hard"), "-l goes with"),
    "a status that nobody awaits": ((*NODES, "--status", "--no-wait"), "--no-wait goes with"),
    "operation as a word and as an option": ((*NODES, "--on", "off"), "--on, --off and --status"),
    "the same file twice": ((*NODES, "--on", "-o", "{tmp}/x", "-n", "{tmp}/x"), "-o and -n"),
    "file that cannot be written": ((*NODES, "--on", "-o", "{tmp}/no/folder"), "no/folder"),
    "verbosity": ((*NODES, "--on", "-V", "5"), "-V"),
    "another server": ((*NODES, "--on", "--server", "lille"), "lille"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_request_that_makes_no_sense_is_refused_in_one_line_and_touches_nothing(
    name: str, ready: Site, power: Run, tmp_path: Path
) -> None:
    words, said = REFUSALS[name]
    done = power(*(word.format(tmp=tmp_path) for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert asked(tmp_path) == []
    assert Workflow.select().count() == 0


def test_without_rights_nothing_is_asked_of_any_node(ready: Site, power: Run, tmp_path: Path) -> None:
    rights.delete(ready, caller().name, ["*"], ["*"])
    done = power("--status", *NODES)
    assert done.returncode == 1
    assert "karights3 -a -m 'gdx-[1-3].site' -p /dev/sda3" in done.stderr
    assert asked(tmp_path) == []


# --- status -----------------------------------------------------------------------------------------------------------


def test_the_status_is_told_cluster_by_cluster_and_nodes_that_are_on_are_ok(power: Run, tmp_path: Path) -> None:
    """Use case 1 of the wiki page."""
    files = [str(tmp_path / name) for name in ("up", "down")]
    done = power("--status", *NODES, "-m", "nvm-1.site", "-o", files[0], "-n", files[1])
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.split("ended after", 1)[1].splitlines()[1:] == [
        "Nodes up on cluster gdx",
        "gdx-1.site (Chassis Power is on)",
        "Nodes down or silent on cluster gdx",
        "gdx-2.site (Chassis Power is off)",
        "gdx-3.site (no answer)",
        "Nodes up on cluster nvm",
        "nvm-1.site (Chassis Power is on)",
    ]
    up, down = (Path(file).read_text(encoding="utf-8") for file in files)
    assert (up, down) == ("gdx-1.site\nnvm-1.site\n", "gdx-2.site\ngdx-3.site\n")


def test_asking_for_the_status_leaves_the_recorded_state_alone(ready: Site, power: Run) -> None:
    nodes.set_state(["gdx-1.site"], "deployed", None, "alice")
    assert power("--status", "-m", "gdx-1.site").returncode == 0
    assert [(row.hostname, row.state) for row in nodes.states(ready)] == [("gdx-1.site", "deployed")]


def test_a_status_takes_no_node_from_others_and_is_answered_while_they_hold_it(
    ready: Site, power: Run, tmp_path: Path
) -> None:
    claimed, _ = nodes.claim(ready, ["gdx-1.site"], "D-1", "alice")
    before = [row.wid for row in Claim.select()]
    done = power("--status", "-m", "gdx-1.site", "-o", str(tmp_path / "up"))
    assert claimed == ["gdx-1.site"]
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "up").read_text(encoding="utf-8") == "gdx-1.site\n"
    assert [row.wid for row in Claim.select()] == before == ["D-1"]


@PROCESS_ALONE
def test_a_status_leaves_neither_a_workflow_nor_a_line_of_statistics_nor_a_folder(ready: Site, power: Run) -> None:
    assert power("--status", *NODES).returncode == 3
    assert (Workflow.select().count(), Log.select().count(), Claim.select().count()) == (0, 0, 0)
    assert list((ready.state / "runs").iterdir()) == []


def test_orders_that_nobody_awaits_have_their_lists_all_the_same(power: Run, tmp_path: Path) -> None:
    """-o and -n hold which nodes took the order."""
    files = [str(tmp_path / name) for name in ("ok", "ko")]
    done = power("on", "-m", "gdx-[1,3].site", "--no-wait", "-o", files[0], "-n", files[1])
    assert (done.returncode, done.stderr) == (3, "")
    assert [Path(file).read_text(encoding="utf-8") for file in files] == ["gdx-1.site\n", "gdx-3.site\n"]
    assert any(line.endswith("--no-wait") for line in asked(tmp_path))


def test_the_report_alone_is_on_standard_output_where_json_is_asked_for(power: Run, tmp_path: Path) -> None:
    done = power("--on", *NODES, "--format", "json", "-n", str(tmp_path / "down"))
    report = json.loads(done.stdout)
    assert done.returncode == 3
    assert sorted(report) == ["aborted", "answers", "at_breakpoint", "host_keys", "ko", "ok", "taken", "wid"]
    assert report["ok"] == ["gdx-1.site", "gdx-2.site"]
    assert list(report["ko"]) == ["gdx-3.site"]
    assert f"Power operation {report['wid']} ended" in done.stderr
    assert (tmp_path / "down").read_text() == "gdx-3.site\n"


def test_a_status_as_json_has_what_each_node_answered(power: Run) -> None:
    done = power("--status", *NODES, "--format", "json")
    report = json.loads(done.stdout)
    assert done.returncode == 3
    assert report["ok"] == ["gdx-1.site"]
    assert report["answers"] == {
        "gdx-1.site": "Chassis Power is on",
        "gdx-2.site": "Chassis Power is off",
        "gdx-3.site": "no answer",
    }
    assert list(report["ko"]) == ["gdx-2.site", "gdx-3.site"]
    assert "Nodes up on cluster gdx" in done.stderr


@pytest.mark.parametrize("option", ["--dry-run", "--no-wait"])
def test_a_report_as_json_needs_an_end(power: Run, tmp_path: Path, option: str) -> None:
    done = power("--on", *NODES, "--format", "json", option)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--format json tells how the operation ended: leave out --dry-run and --no-wait" in done.stderr
    assert asked(tmp_path) == []


def test_a_script_runs_at_the_end(power: Run) -> None:
    assert "The script /bin/true ended with status 0" in power("status", "-m", "gdx-1.site", "-s", "/bin/true").stdout


# --- on and off -------------------------------------------------------------------------------------------------------


def test_a_level_that_fails_or_is_missing_passes_the_node_to_the_next(ready: Site, power: Run, tmp_path: Path) -> None:
    """Use case 2: nodes from a file, the site named; there is no soft way to switch these nodes off."""
    (tmp_path / "machines").write_text("# mine\ngdx-[1-3].site\n", encoding="utf-8")
    done = power("--off", "-f", str(tmp_path / "machines"), "--server", "paris", "-n", str(tmp_path / "ko"))
    assert done.returncode == 3
    assert (tmp_path / "ko").read_text(encoding="utf-8") == "gdx-3.site\n"
    assert "Operation correctly performed on cluster gdx:\ngdx-1.site\ngdx-2.site\n" in done.stdout
    assert "soft_off is not set" in done.stdout
    assert "hard: hard_off refused; very_hard: very_hard_off refused)" in done.stdout
    assert ordered(tmp_path) == [
        *(f"hard_off gdx-{n} gdx-{n}.site" for n in (1, 2, 3)),
        "very_hard_off gdx-3 gdx-3.site",
    ]
    states = {row.hostname: row.state for row in nodes.states(ready)}
    assert states == {"gdx-1.site": "powered", "gdx-2.site": "powered", "gdx-3.site": "power_failed"}
    assert Claim.select().count() == 0


def test_the_level_says_where_to_begin(power: Run, tmp_path: Path) -> None:
    done = power("--off", "-m", "gdx-1.site", "-l", "very_hard", "-V", "0", stdin="")
    assert done.returncode == 0
    assert ordered(tmp_path) == ["very_hard_off gdx-1 gdx-1.site"]


def test_nodes_come_from_standard_input_too(power: Run, tmp_path: Path) -> None:
    assert power("--on", "-f", "-", stdin="gdx-1.site\n").returncode == 0
    assert ordered(tmp_path) == ["soft_on gdx-1 gdx-1.site"]


def test_no_wait_prints_the_workflow_id_and_is_passed_on_to_the_command(
    ready: Site, power: Run, tmp_path: Path
) -> None:
    """Use case 3, and the wiki page's note for administrators."""
    done = power("--on", "-m", "gdx-1.site", "--no-wait", "--write-workflow-id", str(tmp_path / "wid"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"P-\w+\n", done.stdout)
    assert (tmp_path / "wid").read_text(encoding="utf-8") == done.stdout
    while Workflow.get_by_id(done.stdout.strip()).state == "running":
        time.sleep(0.05)
    assert asked(tmp_path) == ["soft_on gdx-1 gdx-1.site --no-wait"]


def test_debug_mode_shows_what_was_done(power: Run) -> None:
    done = power("--on", "-m", "gdx-[1-2].site", "-d", "-V", "0")
    assert "[power] gdx-1.site: status 0\n" in re.sub(r"(?m)^\d\d:\d\d:\d\d ", "", done.stdout)
    assert "out: hard after soft: soft_on refused\n" in done.stdout


def test_a_dry_run_asks_nothing_of_any_node(power: Run, tmp_path: Path) -> None:
    done = power("--off", *NODES, "--dry-run")
    assert done.returncode == 0
    assert "Power: PowerOff" in done.stdout
    assert asked(tmp_path) == []


PLUGIN = """\
import pathlib
from ansible.plugins.callback import CallbackBase
pathlib.Path({trace!r}).touch()
class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "aggregate", "theirs"
    def v2_playbook_on_start(self, playbook):
        pass
"""


def their_code(folder: Path) -> dict[str, str]:
    """Variables with which Ansible, bash and the search for programs run somebody's code; it leaves `trace` there."""
    trace = folder / "trace"
    (folder / "theirs.py").write_text(PLUGIN.format(trace=str(trace)), encoding="utf-8")
    (folder / "start").write_text(f"touch {trace}\n", encoding="utf-8")
    program = folder / "grep"
    program.write_text(f'#!/bin/sh\ntouch {trace}\nexec /bin/grep "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    folder.chmod(0o777)
    return {
        "ANSIBLE_CALLBACK_PLUGINS": str(folder),
        "ANSIBLE_CALLBACKS_ENABLED": "theirs",
        "BASH_ENV": str(folder / "start"),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }


@PROCESS_ALONE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called with sudo")
@pytest.mark.parametrize("name", ["ANSIBLE_CALLBACK_PLUGINS", "BASH_ENV", "PATH"])
def test_no_variable_of_who_calls_with_sudo_brings_code_of_theirs_to_root(
    name: str, ready: Site, power: Run, tmp_path: Path, open_folder: Path
) -> None:
    """Root, whom nobody gives variables, keeps those that it has set: so the traps are seen to be traps."""
    program = tmp_path / "switch"
    program.write_text(program.read_text().replace("#!/bin/sh", "#!/bin/bash"), encoding="utf-8")
    rights.add(ready, "nobody", ["*"], ["*"])
    chosen = {each: value for each, value in their_code(open_folder).items() if each.startswith(name[:4])}
    assert power("--on", "-m", "gdx-1.site", SUDO_UID="65534", **chosen).returncode == 0
    assert not (open_folder / "trace").exists()
    assert power("--on", "-m", "gdx-1.site", **chosen).returncode == 0
    assert (open_folder / "trace").exists()


def test_the_sites_hook_runs_unless_it_is_not_wanted(ready: Site, power: Run, site_folder: Path) -> None:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(f"hooks: {{end_of_power: 'touch {site_folder}/hook-WORKFLOW_ID'}}\n")
    assert power("--on", "-m", "gdx-1.site", "--no-hook").returncode == 0
    assert list(site_folder.glob("hook-*")) == []
    assert power("--on", "-m", "gdx-1.site").returncode == 0
    assert [path.name[:7] for path in site_folder.glob("hook-*")] == ["hook-P-"]


def test_every_option_of_the_wiki_page_is_in_the_help(power: Run) -> None:
    done = power("-h", COLUMNS="200")
    wanted = """-d --debug-mode -f --file -l --level -m --machine --multi-server -n --output-ko-nodes -o
    --output-ok-nodes --off --on --status -v --version --no-wait --server -V --verbose-level"""
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.stdout))
    assert set(wanted.split()) <= shown
