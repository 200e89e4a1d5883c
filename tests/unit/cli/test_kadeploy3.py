"""kadeploy3 as a process: every refusal, and what is left after success, failure and interruption."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.caller import caller
from kadeploy.cli.display import Display
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.state import environments, nodes, rights
from kadeploy.state.database import connect
from kadeploy.state.tables import Claim, Workflow
from tests.unit import build
from tests.unit.plays import batch, write_play
from tests.unit.serving import PROCESS_ALONE

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), pytest.mark.usefixtures("way")]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FORCED = "SetDeploymentEnv|SetDeploymentEnvDummy:0:0&BroadcastEnv|BroadcastEnvDummy:0:0&BootNewEnv|BootNewEnvDummy:0:0"
ENVIRONMENT = """\
name : tiny
version : 3
tarball : {image}|tgz
environment_kind : linux
fdisktype : 83
filesystem : ext4
kernel : /boot/vmlinuz
"""


@pytest.fixture
def ready(site: Site, tmp_path: Path) -> Site:
    """A site on which the caller may deploy everywhere, and an environment file."""
    connect(site)
    rights.add(site, caller().name, ["*"], ["*"])
    (tmp_path / "image.tgz").write_bytes(build.packed("image"))
    (tmp_path / "env.dsc").write_text(ENVIRONMENT.format(image=tmp_path / "image.tgz"), encoding="utf-8")
    return site


@pytest.fixture
def deploy(ready: Site, tool: Run, tmp_path: Path) -> Run:
    """``deploy("-V", "0")``: two nodes, the environment file, steps that do nothing."""

    def run(*options: str, steps: str = FORCED, **more: str) -> subprocess.CompletedProcess[str]:
        words = ["-m", "gdx-[1-2].site", "-a", str(tmp_path / "env.dsc"), "--force-steps", steps, *options]
        return tool("kadeploy3", *words, **more)

    return run


def touched(site: Site) -> bool:
    return bool(list(nodes.states(site)) or Claim.select().count() or Workflow.select().count())


# --- nodes ----------------------------------------------------------------------------------------------------------


def plain(tool: Run, tmp_path: Path, *words: str, **more: str) -> str:
    """What ``kadeploy3 --dry-run`` of the environment file says."""
    done = tool("kadeploy3", "-a", str(tmp_path / "env.dsc"), "--dry-run", *words, **more)
    return done.stdout + done.stderr


def test_the_beginning_of_a_nodes_name_will_do_while_no_other_begins_so(ready: Site, tool: Run, tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("APPEND id=NODE_SINGULARITY\n", encoding="utf-8")
    (tmp_path / "words").write_text("gdx-3,three\ngdx-4.site,four\n", encoding="utf-8")
    words = ("-w", str(tmp_path / "profile"), "--set-pxe-pattern", str(tmp_path / "words"))
    told = plain(tool, tmp_path, "-m", "gdx-[3-4]", *words)
    assert "cluster gdx: gdx-3.site, gdx-4.site\n" in told
    assert "id=three" in told
    assert "id=four" in told
    cluster = Path(ready.state.parent / "clusters" / "nvm.yml")
    cluster.write_text(cluster.read_text().replace("nvm-[1-4].site", "gdx-[1-4].other"), encoding="utf-8")
    assert "gdx-3 is the beginning of several nodes: gdx-3.other,gdx-3.site." in plain(tool, tmp_path, "-m", "gdx-3")
    assert "Unknown node: gdx-33." in plain(tool, tmp_path, "-m", "gdx-33")


def test_every_file_that_is_read_may_be_what_the_shell_has_opened(
    ready: Site, site_folder: Path, tmp_path: Path
) -> None:
    """Relative names in it start at the caller's folder."""
    (tmp_path / "script").touch()
    tool = Path(sys.executable).parent / "kadeploy3"
    line = f"""{tool} --dry-run -f <(echo gdx-1) -a <(sed 's|{tmp_path}/||' env.dsc) -k <(echo ssh-rsa AAAA me) \
        -w <(echo APPEND id=NODE_SINGULARITY) --set-pxe-pattern <(echo gdx-1,one) \
        --set-custom-operations <(echo 'BroadcastEnv,sync@send%script%/dest')"""
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "id=one" in done.stdout
    assert f"custom operation before BroadcastEnv:sync: send {tmp_path}/script /dest" in done.stdout
    closed = subprocess.run(
        [tool, "-m", "gdx-1", "-e", "x", "-k", "/dev/fd/63"], capture_output=True, text=True, check=False
    )
    assert closed.stderr.startswith("ERROR: /dev/fd/63: nothing is open there; sudo closes what <(…) opens.")


def test_the_nodes_of_the_callers_oar_job_are_taken_when_none_is_named(ready: Site, tool: Run, tmp_path: Path) -> None:
    """OAR writes a node as often as it has cores."""
    (tmp_path / "job").write_text("gdx-7.site\n" * 4 + "gdx-8.site\n" * 4, encoding="utf-8")
    job = {"OAR_NODE_FILE": str(tmp_path / "job")}
    assert "cluster gdx: gdx-7.site, gdx-8.site\n" in plain(tool, tmp_path, **job)
    assert "cluster gdx: gdx-1.site\n" in plain(tool, tmp_path, "-m", "gdx-1.site", **job)


def test_a_site_says_how_many_nodes_one_request_may_name(ready: Site, site_folder: Path, tool: Run) -> None:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("limits: {nodes: 10}\n")
    for name, *words in (
        ("kadeploy3", "-e", "tiny"),
        ("kareboot3", "-r", "simple_reboot"),
        ("kapower3", "--on"),
        ("kanodes3", "-d"),
        ("kastat3", "-d"),
        ("karights3", "-a", "-p", "*", "-u", "root"),
    ):
        done = tool(name, *words, "-m", "gdx-[1-8].site", "-m", "gdx-[6-11].site")
        assert (done.returncode, done.stdout) == (1, "")
        assert "11 nodes, and at most 10 are taken at a time (limits.nodes in site.yml)" in done.stderr


# --- refusals -------------------------------------------------------------------------------------------------------

NODE = ("-m", "gdx-1.site")
ENV = ("-a", "{tmp}/env.dsc")
REFUSALS = {
    "no node": (ENV, "-m NODE"),
    "no environment": (NODE, "-e NAME"),
    "two environments": ((*NODE, *ENV, "-e", "tiny"), "choose one"),
    "unknown node": (("-m", "gdx-1.site", "-m", "mars-1", *ENV), "Unknown node: mars-1"),
    "empty range": (("-m", "gdx-[].site", *ENV), "gdx-[].site"),
    "reversed range": (("-m", "gdx-[9-2].site", *ENV), "gdx-[9-2].site"),
    "unknown environment": ((*NODE, "-e", "nonesuch"), "nonesuch"),
    "owner of a file": ((*NODE, *ENV, "-u", "bob"), "go with -e"),
    "missing environment file": ((*NODE, "-a", "{tmp}/nonesuch"), "nonesuch"),
    "the same file twice": ((*NODE, *ENV, "-o", "{tmp}/x", "-n", "{tmp}/x"), "-o and -n"),
    "file that cannot be written": ((*NODE, *ENV, "-o", "{tmp}/no/folder"), "no/folder"),
    "script that cannot be run": ((*NODE, *ENV, "-s", "{tmp}/env.dsc"), "chmod +x"),
    "verbosity": ((*NODE, *ENV, "-V", "7"), "-V"),
    "file system of /tmp": ((*NODE, *ENV, "-r", "ntfs"), "-r ntfs"),
    "partition zero": ((*NODE, *ENV, "-p", "0"), "-p"),
    "partition that the disk has not": ((*NODE, *ENV, "-p", "9"), "-p 9"),
    "private key": ((*NODE, *ENV, "-k", "{tmp}/private"), "private key"),
    "missing key": ((*NODE, *ENV, "-k", "{tmp}/nonesuch"), "nonesuch"),
    "vlan on a site without": ((*NODE, *ENV, "--vlan", "5"), "no VLANs"),
    "steps that are malformed": ((*NODE, *ENV, "--force-steps", "SetDeploymentEnv|X"), "--force-steps"),
    "unknown implementation": (
        (*NODE, *ENV, "--force-steps", FORCED.replace("ChainDummy", "X").replace("EnvDummy", "EnvX")),
        "EnvX",
    ),
    "breakpoint nowhere": ((*NODE, *ENV, "--breakpoint", "BroadcastEnvChain:nonesuch"), "--breakpoint"),
    "breakpoint not used": ((*NODE, *ENV, "--breakpoint", "BroadcastEnvTree"), "--breakpoint"),
    "time-out": ((*NODE, *ENV, "--reboot-classical-timeout", "import os"), "not a time-out"),
    "kexec time-out": ((*NODE, *ENV, "--reboot-kexec-timeout", "-5"), "time-out"),
    "uploads without profile": ((*NODE, *ENV, "-x", "{tmp}/env.dsc"), "-w"),
    "pattern without value": ((*NODE, *ENV, "-w", "{tmp}/profile", "--set-pxe-pattern", "{tmp}/other"), "gdx-1.site"),
    "pattern for a stranger": ((*NODE, *ENV, "--set-pxe-pattern", "{tmp}/strangers"), "gdx-9.site"),
    "malformed pattern": ((*NODE, *ENV, "--set-pxe-pattern", "{tmp}/env.dsc"), "line 1"),
    "custom operations": ((*NODE, *ENV, "--set-custom-operations", "{tmp}/env.dsc"), "env.dsc"),
    "the -l of an example": ((*NODE, "-e", "tiny", "-l", "johnsmith"), "-u johnsmith"),
    "another server": ((*NODE, *ENV, "--server", "lille"), "lille"),
    "an environment named twice": ((*NODE, "-e", "one", "another"), "-e and the first word both name an environment"),
    "whole disk from an archive": ((*NODE, *ENV, "-b", "/dev/sdb", "-c", "0"), "dd image"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_request_that_makes_no_sense_is_refused_in_one_line_and_touches_nothing(
    name: str, ready: Site, tool: Run, tmp_path: Path
) -> None:
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n", encoding="utf-8")
    (tmp_path / "profile").write_text("APPEND id=NODE_SINGULARITY\n", encoding="utf-8")
    (tmp_path / "other").write_text("# node,value\n\n", encoding="utf-8")
    (tmp_path / "strangers").write_text("gdx-1.site,1\ngdx-9.site,2\n", encoding="utf-8")
    words, said = REFUSALS[name]
    done = tool("kadeploy3", *(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.startswith("ERROR: ")
    assert done.stderr.count("\n") == 1
    assert not touched(ready)


def test_without_rights_it_is_refused_with_the_command_that_gives_them(site: Site, ready: Site, deploy: Run) -> None:
    rights.delete(site, caller().name, ["*"], ["*"])
    done = deploy()
    assert done.returncode == 1
    assert f"karights3 -a -m 'gdx-[1-2].site' -p /dev/sda3 -u {caller().name}" in done.stderr
    assert not touched(site)


def test_an_image_that_has_changed_is_refused(ready: Site, tool: Run, tmp_path: Path) -> None:
    who = caller()
    image = Image(file=str(tmp_path / "image.tgz"), kind="tgz")
    found = Environment(name="tiny", user=who.name, image=image, kernel="/vmlinuz", filesystem="ext4")
    environments.add(ready, found, who)
    (tmp_path / "image.tgz").write_bytes(build.packed("another"))
    done = tool("kadeploy3", *NODE, "-e", "tiny")
    assert done.returncode == 1
    assert "kaenv3 --update-tarball-md5 tiny" in done.stderr
    assert not touched(ready)


# --- success and failure --------------------------------------------------------------------------------------------


def test_success_is_told_and_written_in_the_files(deploy: Run, ready: Site, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("ok", "ko", "wid")]
    done = deploy("-o", files[0], "-n", files[1], "--write-workflow-id", files[2], "-V", "0")
    assert (done.returncode, done.stderr) == (0, "")
    ok, ko, wid = (Path(file).read_text(encoding="utf-8") for file in files)
    assert (ok, ko) == ("gdx-1.site\ngdx-2.site\n", "")
    assert re.fullmatch(r"D-\w+\n", wid)
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stdout.splitlines()]
    assert lines[0] == f"Deployment {wid.strip()} started on 2 nodes: gdx-[1-2].site"
    assert lines[2:] == ["Nodes correctly deployed on cluster gdx", "gdx-1.site", "gdx-2.site"]


def test_some_nodes_ko_is_status_3(deploy: Run, site_folder: Path, tmp_path: Path) -> None:
    task = batch("reboot", gdx_1__site="ok", gdx_2__site="ko")
    write_play(site_folder, "SetDeploymentEnvBad", f"  tasks:\n{task}")
    done = deploy("-n", str(tmp_path / "ko"), steps=FORCED.replace("SetDeploymentEnvDummy", "SetDeploymentEnvBad"))
    assert done.returncode == 3
    assert (tmp_path / "ko").read_text(encoding="utf-8") == "gdx-2.site\n"
    assert "gdx-2.site (SetDeploymentEnvBad-reboot: exit status unknown)" in done.stdout


def test_the_wiki_pages_force_steps_with_line_ends_is_understood(deploy: Run) -> None:
    assert deploy("--dry-run", steps=FORCED.replace("&", "&\n")).returncode == 0


def test_a_dry_run_tells_the_plan_and_touches_nothing(deploy: Run, ready: Site) -> None:
    done = deploy("--dry-run")
    assert done.returncode == 0
    assert "SetDeploymentEnv: SetDeploymentEnvDummy (1 try, no time limit)" in done.stdout
    assert "/dev/sda3" in done.stdout
    assert not touched(ready)


def test_tasks_of_the_site_run_around_a_micro_step_and_those_of_none_are_refused(
    deploy: Run, site_folder: Path, tmp_path: Path
) -> None:
    hook = site_folder / "hooks" / "SetDeploymentEnv" / "dummy.pre.d" / "10-licence.yml"
    hook.parent.mkdir(parents=True)
    node = "{{ inventory_hostname }}"
    hook.write_text(f"""
- ansible.builtin.copy: {{content: '', dest: '{tmp_path}/{node}', mode: '0600'}}
  delegate_to: localhost
- ansible.builtin.fail: {{msg: no licence}}
  when: inventory_hostname == 'gdx-2.site'
""")
    shown = deploy("--dry-run").stdout
    assert f"hook before SetDeploymentEnvDummy:dummy: {hook}\n" in shown
    assert not list(tmp_path.glob("gdx-*"))
    done = deploy()
    assert done.returncode == 3, done.stderr
    assert "gdx-2.site (SetDeploymentEnvDummy-dummy.pre: no licence" in done.stdout
    assert {path.name for path in tmp_path.glob("gdx-*")} >= {"gdx-1.site", "gdx-2.site"}
    hook.parent.rename(hook.parent.with_name("dumy.pre.d"))
    done = deploy()
    assert (done.returncode, done.stdout) == (1, "")
    assert "SetDeploymentEnv has no micro-step 'dumy'" in done.stderr
    assert "Did you mean dummy?" in done.stderr


def test_post_installs_by_ansible_are_shown_and_those_that_are_not_there_are_refused(
    deploy: Run, site_folder: Path, ready: Site
) -> None:
    cluster = site_folder / "clusters" / "gdx.yml"
    with cluster.open("a") as file:
        file.write("\npost_installs:\n  - {role: motd}\n  - {role: motd, where: booted}\n")
    done = deploy()
    assert (done.returncode, done.stdout) == (1, "")
    assert "post_installs[0].role: there is no role motd; expected one in " in done.stderr
    assert not touched(ready)
    role = site_folder / "roles" / "motd"
    (role / "tasks").mkdir(parents=True)
    shown = deploy(
        "--dry-run",
        steps=FORCED.replace("BroadcastEnvDummy", "BroadcastEnvChain").replace("NewEnvDummy", "NewEnvKexec"),
    ).stdout
    assert f"post-install motd after BroadcastEnvChain:manage_admin_post_install: {role}\n" in shown
    assert f"post-install motd after BootNewEnvKexec:wait_reboot: {role}\n" in shown


def test_nodes_come_from_options_files_and_standard_input_together(deploy: Run, tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("# mine\n\ngdx-3.site\ngdx-1.site\n", encoding="utf-8")
    done = deploy("--dry-run", "-f", str(tmp_path / "nodes"), "-f", "-", stdin="nvm-[1-2].site\n")
    assert "cluster gdx: gdx-1.site, gdx-2.site, gdx-3.site\n" in done.stdout
    assert re.search(
        r"cluster nvm: nvm-1.site, nvm-2.site\n    environment \S+ \(not recorded\) to /dev/nvme0n1p1\n", done.stdout
    )


def test_device_and_partition_change_what_is_written(deploy: Run) -> None:
    assert "to /dev/nvme7n1p2\n" in deploy("--dry-run", "-b", "/dev/nvme7n1", "-p", "2").stdout


def test_a_key_option_without_file_reads_the_callers_own_keys(deploy: Run, ready: Site) -> None:
    own = caller().home / ".ssh" / "authorized_keys"
    done = deploy("--dry-run", "-k")
    assert done.returncode == (0 if own.is_file() and own.read_text(encoding="utf-8").strip() else 1)
    assert done.returncode == 0 or str(own) in done.stderr


def test_the_script_runs_at_the_end_and_changes_no_status(deploy: Run, tmp_path: Path) -> None:
    script = tmp_path / "launcher"
    script.write_text("#!/bin/sh\necho all is there\nexit 9\n", encoding="utf-8")
    script.chmod(0o755)
    done = deploy("-s", str(script), "-V", "0")
    assert done.returncode == 0
    assert done.stdout.endswith(f"all is there\nThe script {script} ended with status 9\n")


def test_no_wait_prints_the_workflow_id_and_goes_on(deploy: Run, ready: Site) -> None:
    done = deploy("--no-wait")
    assert done.returncode == 0
    wid = done.stdout.strip()
    while Workflow.get_by_id(wid).state == "running":
        time.sleep(0.05)
    assert {row.state for row in nodes.states(ready)} == {"deployed"}
    file = ready.state / "runs" / wid / events.FILE_NAME
    while not isinstance(list(events.read(file))[-1], events.Ended):
        time.sleep(0.05)
    assert file.stat().st_mode & 0o777 == 0o600


def test_replaying_a_runs_events_shows_the_run_again(deploy: Run, ready: Site, tmp_path: Path) -> None:
    nodes.claim(ready, ["gdx-2.site"], "D-other", "bob")
    done = deploy("-V", "4", "-d", "--write-workflow-id", str(tmp_path / "wid"))
    wid = (tmp_path / "wid").read_text(encoding="utf-8").strip()
    again = io.StringIO()
    display = Display(4, debug=True, stream=again)
    for event in events.read(ready.state / "runs" / wid / events.FILE_NAME):
        display(event)
    assert "BootNewEnvDummy" in done.stdout
    assert again.getvalue() == done.stdout


def test_the_report_as_json_is_all_there_is_on_standard_output(deploy: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho said by the script\n", encoding="utf-8")
    script.chmod(0o755)
    done = deploy("--format", "json", "-s", str(script))
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["ok"] == ["gdx-1.site", "gdx-2.site"]
    assert report["ko"] == {}
    assert f"Deployment {report['wid']} ended" in done.stderr
    assert "said by the script" in done.stderr


@pytest.mark.parametrize("option", ["--dry-run", "--no-wait"])
def test_a_report_as_json_needs_an_end(deploy: Run, ready: Site, option: str) -> None:
    done = deploy("--format", "json", option)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--format json tells how the operation ended" in done.stderr
    assert not touched(ready)


def test_no_wait_tells_a_refusal(deploy: Run, ready: Site, tmp_path: Path) -> None:
    (tmp_path / "image.tgz").unlink()
    done = deploy("--no-wait")
    assert (done.returncode, done.stdout) == (1, "")
    assert "image.tgz" in done.stderr
    assert not touched(ready)


def test_nodes_that_are_held_are_left_out_and_in_the_ko_file(deploy: Run, ready: Site, tmp_path: Path) -> None:
    nodes.claim(ready, ["gdx-2.site"], "D-other", "bob")
    done = deploy("-n", str(tmp_path / "ko"), "-o", str(tmp_path / "ok"))
    assert done.returncode == 3
    assert "already used by bob" in done.stdout
    assert (tmp_path / "ko").read_text(encoding="utf-8") == "gdx-2.site\n"
    assert deploy("--ignore-nodes-deploying", "-V", "0").returncode == 0


# --- interruption ---------------------------------------------------------------------------------------------------


@pytest.fixture
def asleep(ready: Site, site_folder: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A deployment whose first step sleeps, and does so."""
    write_play(site_folder, "SetDeploymentEnvSleep", "  tasks:\n    - ansible.builtin.command: sleep 1000\n")
    steps = FORCED.replace("SetDeploymentEnvDummy", "SetDeploymentEnvSleep")
    program = str(Path(sys.executable).parent / "kadeploy3")
    words = ["-m", "gdx-1.site", "-a", str(tmp_path / "env.dsc"), "--force-steps", steps, "-n", str(tmp_path / "ko")]
    process = subprocess.Popen([program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not sleepers(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    return process


def sleepers(folder: Path) -> list[int]:
    """Processes of attempts whose folder is under *folder* and that sleep."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = f"KADEPLOY_ATTEMPT_DIR={folder}".encode() in (entry / "environ").read_bytes()
                if ours and b"sleep" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_cleanly(
    asleep: subprocess.Popen[str], number: signal.Signals, ready: Site, tmp_path: Path
) -> None:
    asleep.send_signal(number)
    output, errors = asleep.communicate()
    assert asleep.returncode == 130
    assert "gdx-1.site (aborted)" in output
    assert "ending cleanly" in errors
    assert (tmp_path / "ko").read_text(encoding="utf-8") == "gdx-1.site\n"
    assert [row.state for row in nodes.states(ready)] == ["aborted"]
    assert Claim.select().count() == 0
    assert sleepers(tmp_path) == []


@pytest.fixture
def waiting(ready: Site, site_folder: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """The words of a deployment whose first step waits for a file, and that file."""
    word = tmp_path / "go-on"
    task = f"  tasks:\n    - ansible.builtin.shell: until test -e {word}; do sleep 0.1; done\n"
    write_play(site_folder, "SetDeploymentEnvWait", task)
    steps = FORCED.replace("SetDeploymentEnvDummy", "SetDeploymentEnvWait")
    program = str(Path(sys.executable).parent / "kadeploy3")
    files = ["-o", str(tmp_path / "ok"), "-n", str(tmp_path / "ko"), "-V", "4"]
    return [program, "-m", "gdx-1.site", "-a", str(tmp_path / "env.dsc"), "--force-steps", steps, *files], word


def begun(site: Site) -> bool:
    return any(row.state == "deploying" for row in nodes.states(site))


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_deployment_outlives_its_terminal(
    waiting: tuple[list[str], Path], ready: Site, tmp_path: Path, term: str
) -> None:
    words, word = waiting
    pid, terminal = pty.fork()
    if not pid:
        os.environ["TERM"] = term
        os.execv(words[0], words)
    while not begun(ready):
        time.sleep(0.1)
    os.read(terminal, 1)
    os.close(terminal)
    time.sleep(0.5)
    word.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "ok").read_text(encoding="utf-8") == "gdx-1.site\n"
    assert [row.state for row in nodes.states(ready)] == ["deployed"]
    assert Claim.select().count() == 0


def test_a_deployment_outlives_whoever_reads_its_output(
    waiting: tuple[list[str], Path], ready: Site, tmp_path: Path
) -> None:
    words, word = waiting
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    word.touch()
    assert process.wait() == 0
    assert (tmp_path / "ok").read_text(encoding="utf-8") == "gdx-1.site\n"
    assert [row.state for row in nodes.states(ready)] == ["deployed"]


@PROCESS_ALONE
def test_a_second_signal_leaves_at_once_and_takes_its_children_along(
    asleep: subprocess.Popen[str], ready: Site, tmp_path: Path
) -> None:
    """The first one is not noticed: the process is stopped while both arrive."""
    asleep.send_signal(signal.SIGINT)
    assert asleep.stderr is not None
    while "ending cleanly" not in asleep.stderr.readline():
        pass
    asleep.send_signal(signal.SIGINT)
    asleep.communicate()
    assert asleep.returncode == 130
    assert sleepers(tmp_path) == []


@PROCESS_ALONE
def test_after_a_kill_whoever_reads_is_told_and_nothing_is_changed(
    asleep: subprocess.Popen[str], tool: Run, ready: Site, deploy: Run
) -> None:
    asleep.kill()
    asleep.communicate()
    [wid] = [row.wid for row in Claim.select()]
    assert tool("kanodes3", "-d").stdout == f"gdx-1.site,aborted,{caller().name},,,\n"
    assert tool("kanodes3", "-y").stdout == "{}\n"
    shown = tool("kanodes3", "-y", "-w", wid).stdout
    assert re.search(rf"aborted: its controller \(process {asleep.pid} on .*\) is gone", shown)
    assert [row.wid for row in Claim.select()] == [wid]
    deploy("-V", "0")
    assert "aborted: " in tool("kanodes3", "-y", "-w", wid).stdout


@PROCESS_ALONE
def test_after_a_kill_the_next_deployment_frees_the_nodes_and_ends_what_was_left(
    asleep: subprocess.Popen[str], deploy: Run, ready: Site, tmp_path: Path
) -> None:
    asleep.kill()
    asleep.communicate()
    done = deploy("-V", "0")
    assert done.returncode == 0
    assert "was left by a controller that died" in done.stdout
    assert sleepers(tmp_path) == []
    assert {row.state for row in nodes.states(ready)} == {"deployed"}


@pytest.mark.parametrize("nodes_", ["mars-1", "gdx-["])
@pytest.mark.parametrize("command", ["kadeploy3 -e tiny --known-hosts {hosts}", "kareboot3", "kapower3 --on"])
def test_a_refusal_leaves_no_names_of_an_earlier_run(
    command: str, nodes_: str, ready: Site, tool: Run, tmp_path: Path
) -> None:
    files = {name: tmp_path / name for name in ("ok", "ko", "wid", "hosts")}
    for path in files.values():
        path.write_text("gdx-9.site\n", encoding="utf-8")
    name, *words = f"{command} -o {{ok}} -n {{ko}} --write-workflow-id {{wid}}".format(**files).split()
    assert tool(name, "-m", nodes_, *words).returncode == 1
    assert [path.name for path in files.values() if path.read_text()] == ["hosts"]


def test_a_dry_run_leaves_the_files_alone(ready: Site, tool: Run, tmp_path: Path) -> None:
    (tmp_path / "ok").write_text("gdx-9.site\n", encoding="utf-8")
    plain(tool, tmp_path, "-m", "gdx-1.site", "-o", str(tmp_path / "ok"))
    assert (tmp_path / "ok").read_text() == "gdx-9.site\n"


def test_a_list_that_cannot_be_written_at_the_end_is_a_warning(deploy: Run) -> None:
    done = deploy("-V", "0", "-o", "/dev/full")
    assert done.returncode == 0
    assert "Nodes correctly deployed on cluster gdx\n" in done.stdout
    assert done.stderr == "WARNING: /dev/full: No space left on device. Name a file that you can write.\n"


@pytest.mark.parametrize("status", [0, 7])
def test_a_site_chooses_the_status_of_a_partial_failure(
    status: int, deploy: Run, ready: Site, site_folder: Path
) -> None:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(f"partial_failure_status: {status}\n")
    nodes.claim(ready, ["gdx-2.site"], "D-1", "alice")
    done = deploy("-V", "0")
    assert "gdx-2.site (already used by alice" in done.stdout
    assert done.returncode == status


def on_a_terminal(words: Sequence[str], **environment: str) -> str:
    """What the tool writes to its terminal until its end."""
    program, line = pty.fork()
    if program == 0:
        os.execve(Path(sys.executable).parent / words[0], list(words), os.environ | {"TERM": "xterm"} | environment)
    said = b""
    with suppress(OSError):  # EIO: it has ended
        while piece := os.read(line, 1 << 16):
            said += piece
    os.close(line)
    os.waitpid(program, 0)
    return said.decode()


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"KADEPLOY_PLAIN": "1"}, {"TERM": "dumb"}])
def test_no_escape_reaches_a_terminal_that_wants_plain_lines(
    variables: dict[str, str], ready: Site, tmp_path: Path
) -> None:
    words = ("kadeploy3", "-m", "gdx-1.site", "-a", str(tmp_path / "env.dsc"), "--force-steps", FORCED)
    said = on_a_terminal(words, **variables) + on_a_terminal(("kadeploy3", "-m", "mars-1", "-e", "x"), **variables)
    assert "Nodes correctly deployed on cluster gdx" in said
    assert "ERROR: " in said
    assert "\x1b" not in said


def test_a_terminal_gets_colours_and_a_live_view_otherwise(ready: Site, tmp_path: Path) -> None:
    words = ("kadeploy3", "-m", "gdx-1.site", "-a", str(tmp_path / "env.dsc"), "--force-steps", FORCED)
    assert "\x1b" in on_a_terminal(words)


@PROCESS_ALONE
def test_a_database_that_is_lost_in_mid_run_is_no_refusal(deploy: Run, ready: Site, site_folder: Path) -> None:
    """Status 1 would say that no node was touched."""
    broken = f"for file in {ready.state}/kadeploy.db*; do echo nonsense >$file; done"
    write_play(site_folder, "SetDeploymentEnvLosing", f"  tasks:\n    - ansible.builtin.shell: '{broken}'\n")
    done = deploy("-V", "0", steps=FORCED.replace("SetDeploymentEnvDummy", "SetDeploymentEnvLosing"))
    assert done.returncode == 4
    assert "broke off after it had begun, and its nodes may be in any state: The database" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_option_of_the_wiki_page_is_in_the_help(tool: Run, site_folder: Path) -> None:
    done = tool("kadeploy3", "-h", COLUMNS="200")
    assert done.returncode == 0
    wanted = """-a --env-file -b --block-device -d --debug-mode -e --env-name -f --file -k --key -m --machine
    --multi-server -n --output-ko-nodes -o --output-ok-nodes -p --partition-number -r --reformat-tmp -s --script
    -u --user -v --version --vlan -w --set-pxe-profile --set-pxe-pattern -x --upload-pxe-files
    --env-version --server -V --verbose-level
    --write-workflow-id --ignore-nodes-deploying --disable-bootloader-install --disable-disk-partitioning --breakpoint
    --set-custom-operations --reboot-classical-timeout --reboot-kexec-timeout --force-steps"""
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.stdout))
    assert set(wanted.split()) <= shown
