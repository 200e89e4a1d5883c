"""The wiki page's use cases of kadeploy3 and examples of kareboot3, as far as they can be seen without a boot.

Every tool is a process, on a site as the wiki page has it. Micro-steps are ours where they act on the controller; those
that would act on nodes are hidden by roles of the site that do nothing, or what a test wants.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kadeploy.caller import Account, caller
from kadeploy.config.folder import collection
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.environments.reference import Reference
from kadeploy.runner import request
from kadeploy.runner.request import Request
from kadeploy.state import environments, nodes, rights
from kadeploy.state.database import connect
from kadeploy.state.tables import Log
from tests.unit import build
from tests.unit.plays import write_play
from tests.unit.serving import PROCESS_ALONE
from tests.unit.sshd import serve

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), pytest.mark.usefixtures("way")]

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

LENNY = r"environment lenny-x64-base@\S+:\d+\S*"
Run = Callable[..., "subprocess.CompletedProcess[str]"]

CLUSTER = """\
nodes:
  - {{name: "gdx-[1-60].orsay.grid5000.fr", address: "127.9.1.[1-60]"}}
disk:
  device: /dev/sda
  table: gpt
  partitions:
    - {{number: 1, size: 1GiB, role: swap}}
    - {{number: 2, size: 4GiB, role: prod}}
    - {{number: 3, size: 4GiB, role: deploy}}
    - {{number: 4, size: 4GiB}}
    - {{number: 5, role: tmp}}
power:
  driver: command
  commands: {{soft_reboot: "{reboot} soft HOSTNAME_FQDN", hard_reboot: "{reboot} hard HOSTNAME_FQDN"}}
macro_steps:
  SetDeploymentEnv: [{{implementation: SetDeploymentEnvUntrusted, retries: 1, timeout: 200}}]
  BroadcastEnv: [{{implementation: BroadcastEnvKastafior, retries: 2, timeout: 300}}]
  BootNewEnv: [{{implementation: BootNewEnvClassical, retries: 0, timeout: 150}}]
"""
ON_NODES = {path.name for path in (collection() / "roles").iterdir()} - {
    *("switch_pxe", "reboot", "set_vlan", "power"),
    *("dummy", "finish", "drop_failed_nodes"),
}
"""Micro-steps that nodes would have to be there for."""
DOES_NOTHING = "- finish_step:\n  run_once: true\n"
NODE = "gdx-5.orsay.grid5000.fr"
PROFILE = """\
PROMPT 1
SERIAL 0 38400
DEFAULT bootlabel
label bootlabel
KERNEL kernels/pxe-ejeanvoine--custom-kernel
APPEND initrd=FILES_PREFIX--custom-initrd root=/dev/sda3 node_id=NODE_SINGULARITY
"""
SINGULARITIES = "".join(f"gdx-{5 + rank}.orsay.grid5000.fr,{word}\n" for rank, word in enumerate("123345"))


@pytest.fixture
def home(site: Site, site_folder: Path, tmp_path: Path) -> Path:
    """The folder of a user's files, on a site whose environments are those of the wiki page."""
    me = caller()
    john = Account("johnsmith", me.uid, me.gid, me.home)
    for path in (site_folder / "clusters").iterdir():
        path.unlink()
    reboot = site_folder / "reboot"
    reboot.write_text(f'#!/bin/sh\necho "$1 $2" >>{site_folder}/reboots\n', encoding="utf-8")
    reboot.chmod(0o755)
    (site_folder / "clusters" / "gdx.yml").write_text(CLUSTER.format(reboot=reboot), encoding="utf-8")
    for name in ON_NODES:
        role(site_folder, name, DOES_NOTHING)
    connect(site)
    rights.add(site, me.name, ["*"], ["*"])
    folder = tmp_path / "home"
    folder.mkdir()
    for name, text in {
        "id_rsa.pub": "ssh-rsa AAAAB3NzaC1yc2E= me@laptop\n",
        "id_rsa": "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        "machinefile": "# mine\ngdx-7.orsay.grid5000.fr\n\ngdx-6.orsay.grid5000.fr\n",
        "my-lenny.dsc": f"name : my-lenny\ntarball : {folder}/image.tgz|tgz\nkernel : /vmlinuz\nfdisktype : 83\n"
        "filesystem : ext3\nenvironment_kind : linux\n",
        "pxe_profile": PROFILE,
        "singularities": SINGULARITIES,
        "custom-kernel": "a kernel",
        "custom-initrd": "an initrd",
        "script.sh": "echo hello\n",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "image.tgz").write_bytes(build.packed("an image"))
    (folder / "disk.dd.gz").write_bytes(build.packed("a disk", "ddgz"))
    for name, who, visibility in (
        ("lenny-x64-nfs-1.0", me, "private"),
        ("lenny-x64-base", me, "private"),
        ("Custom_linux_env", me, "private"),
        ("production_environment", me, "private"),
        ("custom_env", john, "shared"),
    ):
        image = Image(file=str(folder / "image.tgz"), kind="tgz")
        found = Environment(name=name, image=image, kernel="/vmlinuz", filesystem="ext3", visibility=visibility)
        environments.add(site, found, who)
    freebsd = Environment(
        name="FreeBSD 7.1",
        image=Image(file=str(folder / "disk.dd.gz"), kind="ddgz"),
        fdisktype="a5",
        environment_kind="other",
    )
    environments.add(site, freebsd, me)
    return folder


def role(site_folder: Path, name: str, tasks: str) -> None:
    """A role of the site; it hides ours of the same name."""
    folder = site_folder / "roles" / name / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.yml").write_text(tasks, encoding="utf-8")


def requests(site: Site) -> list[Request]:
    """What the attempts of the only workflow were asked to do, in order."""
    return [request.read(path) for path in sorted(site.state.glob("runs/*/*/inventory.kadeploy.yml"))]


def micro_steps(output: str) -> list[str]:
    """``Implementation: micro-step`` in the order in which -V 3 announced them."""
    return re.findall(r"^[\d:]{8} ((?:SetD|Broad|BootN|Reb)\w+: \w+) on ", output, re.MULTILINE)


# --- kadeploy3 ------------------------------------------------------------------------------------------------------


def test_use_case_1_deployment_of_a_node(home: Path, site: Site, tool: Run) -> None:
    done = tool("kadeploy3", "-m", NODE, "-e", "lenny-x64-nfs-1.0", "--verbose-level", "4", "-k", f"{home}/id_rsa.pub")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"BroadcastEnvKastafior: send_key on {NODE}" in done.stdout
    assert re.search(r"BroadcastEnvKastafior: send_key took \d", done.stdout)
    assert {each.options.authorized_keys for each in requests(site)} == {"ssh-rsa AAAAB3NzaC1yc2E= me@laptop\n"}


def test_the_wiki_pages_first_deployment_goes_through_these_micro_steps(home: Path, site: Site, tool: Run) -> None:
    """Linux from an archive, without keys or post-installs: the step table of the original, less what is not asked."""
    done = tool("kadeploy3", "-m", NODE, "-e", "lenny-x64-base", "-V", "3")
    assert done.returncode == 0
    first, broadcast, boot = "SetDeploymentEnvUntrusted", "BroadcastEnvKastafior", "BootNewEnvClassical"
    assert micro_steps(done.stdout) == [
        *(f"{first}: {step}" for step in ("switch_pxe", "reboot", "wait_reboot", "create_partition_table")),
        *(f"{first}: {step}" for step in ("format_deploy_part", "mount_deploy_part", "format_swap_part")),
        *(f"{broadcast}: {step}" for step in ("send_environment", "check_kernel_files", "install_bootloader", "sync")),
        *(f"{boot}: {step}" for step in ("switch_pxe", "umount_deploy_part", "reboot_from_deploy_env", "wait_reboot")),
    ]
    assert [(row.hostname, row.state) for row in nodes.states(site)] == [(NODE, "deployed")]
    assert [(row.hostname, row.step2, row.success) for row in Log.select()] == [(NODE, broadcast, True)]


def test_use_case_2_deployment_of_a_range_of_nodes(home: Path, tool: Run) -> None:
    done = tool("kadeploy3", "-m", "gdx-[45-51].orsay.grid5000.fr", "-e", "lenny-x64-base", "--dry-run")
    assert done.returncode == 0
    names = ", ".join(f"gdx-{number}.orsay.grid5000.fr" for number in range(45, 52))
    assert f"cluster gdx: {names}\n" in done.stdout


def test_use_case_3_deployment_of_a_set_of_nodes(home: Path, tool: Run) -> None:
    """The wiki page's -l is -u (it is told when it is tried)."""
    files = ("-o", f"{home}/nodes_ok", "-n", f"{home}/nodes_ko")
    words = ("-f", f"{home}/machinefile", "-e", "custom_env", *files)
    refused = tool("kadeploy3", *words, "-l", "johnsmith")
    assert (refused.returncode, "-u johnsmith" in refused.stderr) == (1, True)
    done = tool("kadeploy3", *words, "-u", "johnsmith", "-V", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "nodes_ok").read_text() == "gdx-6.orsay.grid5000.fr\ngdx-7.orsay.grid5000.fr\n"
    assert (home / "nodes_ko").read_text() == ""


def test_use_case_3_with_the_list_on_standard_input(home: Path, tool: Run) -> None:
    done = tool("kadeploy3", "-f", "-", "-e", "lenny-x64-base", "--dry-run", stdin=(home / "machinefile").read_text())
    assert "cluster gdx: gdx-7.orsay.grid5000.fr, gdx-6.orsay.grid5000.fr\n" in done.stdout


def test_use_case_4_execution_of_a_script_after_deployment(home: Path, site: Site, tool: Run) -> None:
    launcher = home / "launcher.sh"
    launcher.write_text(f"#!/bin/sh\ntouch {home}/launched\n", encoding="utf-8")
    launcher.chmod(0o755)
    words = ("-a", f"{home}/my-lenny.dsc", "-r", "ext3", "-p", "4", "-s", str(launcher))
    done = tool("kadeploy3", "-f", f"{home}/machinefile", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "launched").exists()
    assert "SetDeploymentEnvUntrusted: format_tmp_part on " in done.stdout
    assert {each.deploy_part for each in requests(site)} == {"/dev/sda4"}


def test_use_case_5_play_with_breakpoint(home: Path, site: Site, site_folder: Path, tool: Run) -> None:
    """The node is OK and stays in the deployment system; what commands say is shown."""
    (home / "post.tgz").write_bytes(build.packed("archive"))
    with (home / "my-lenny.dsc").open("a", encoding="utf-8") as file:
        file.write(f"postinstall : {home}/post.tgz|tgz|traitement.sh\n")
    stop = ("--breakpoint", "BroadcastEnvKastafior:manage_user_post_install", "-d")
    done = tool("kadeploy3", "-m", NODE, "-a", f"{home}/my-lenny.dsc", "--verbose-level", "4", *stop)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Stopped at the breakpoint before BroadcastEnvKastafior:manage_user_post_install" in done.stdout
    assert f"[send_environment] {NODE}: status 0" in done.stdout
    assert not [step for step in micro_steps(done.stdout) if step.endswith(("sync", "install_bootloader"))]
    assert not [step for step in micro_steps(done.stdout) if step.startswith("BootNewEnv")]
    assert [row.state for row in nodes.states(site)] == ["deploy_env"]


RANGE = ("-m", "gdx-[5-10].orsay.grid5000.fr")


def mine(home: Path) -> tuple[str, ...]:
    """Options of use case 6."""
    files = f"{home}/custom-kernel,{home}/custom-initrd"
    return ("-w", f"{home}/pxe_profile", "-x", files, "--set-pxe-pattern", f"{home}/singularities")


def test_use_case_6_specific_pxe_profile_is_shown_beforehand(home: Path, site: Site, tool: Run) -> None:
    done = tool("kadeploy3", *RANGE, "-e", "lenny-x64-nfs-1.0", *mine(home), "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    words = re.findall(r"boot profile \(deployed\) of (\S+):\n(?:        .*\n)*?.*node_id=(\w+)\n", done.stdout)
    assert dict(words) == {
        "gdx-5.orsay.grid5000.fr": "1",
        "gdx-6.orsay.grid5000.fr": "2",
        "gdx-[7-8].orsay.grid5000.fr": "3",
        "gdx-9.orsay.grid5000.fr": "4",
        "gdx-10.orsay.grid5000.fr": "5",
    }
    assert not Path(site.boot.http_root).exists()
    assert not Path(site.boot.tftp_root).exists()


def test_use_case_6_specific_pxe_profile_is_written(home: Path, site: Site, tool: Run) -> None:
    done = tool("kadeploy3", *RANGE, "-e", "lenny-x64-nfs-1.0", *mine(home))
    assert (done.returncode, done.stderr) == (0, "")
    me = caller().name
    for root in (site.boot.http_root, site.boot.tftp_root):
        assert (Path(root) / "kernels" / f"pxe-{me}--custom-kernel").read_text() == "a kernel"
    written = {
        number: (Path(site.boot.tftp_root) / "pxelinux.cfg" / f"7F0901{number:02X}").read_text() for number in (5, 10)
    }
    expected = PROFILE.replace("FILES_PREFIX", f"kernels/pxe-{me}")
    assert written == {
        5: expected.replace("NODE_SINGULARITY", "1"),
        10: expected.replace("NODE_SINGULARITY", "5"),
    }


def test_use_case_7_specific_bootloader_requirement(home: Path, tool: Run) -> None:
    done = tool("kadeploy3", "-m", NODE, "-e", "Custom_linux_env", "--disable-bootloader-install")
    assert done.returncode == 0
    shown = micro_steps(done.stdout)
    assert "BroadcastEnvKastafior: check_kernel_files" in shown
    assert "BroadcastEnvKastafior: install_bootloader" not in shown


def test_use_case_8_get_a_workflow_id_for_an_external_deployment_tracking(home: Path, tool: Run) -> None:
    done = tool("kadeploy3", "-m", NODE, "-e", "Custom_linux_env", "--write-workflow-id", f"{home}/wid_file")
    assert done.returncode == 0
    wid = (home / "wid_file").read_text().strip()
    tracked = tool("kanodes3", "-y", "-w", wid, "--format", "json")
    assert tracked.returncode == 0
    flow = json.loads(tracked.stdout)[wid]
    assert (flow["state"], flow["counts"]) == ("ended", {"ok": 1, "ko": 0, "processing": 0})
    assert flow["began"] <= flow["nodes"][NODE]["since"] <= flow["nodes"][NODE]["ended"] <= flow["ended"]


USE_CASE_9 = """SetDeploymentEnv|SetDeploymentEnvProd:2:100&
BroadcastEnv|BroadcastEnvKastafior:2:300&
BootNewEnv|BootNewEnvKexec:1:150"""


def test_use_case_9_modify_the_deployment_workflow(home: Path, tool: Run) -> None:
    """Retries are additional tries; FreeBSD cannot be started by kexec, which is told."""
    done = tool("kadeploy3", "-m", NODE, "-e", "FreeBSD 7.1", "--force-steps", USE_CASE_9, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "    SetDeploymentEnv: SetDeploymentEnvProd (3 tries, 100 s each)\n" in done.stdout
    assert "    BroadcastEnv: BroadcastEnvKastafior (3 tries, 300 s each)\n" in done.stdout
    assert re.search(r"    BootNewEnv: BootNewEnvClassical \(2 tries, \d+ s each\)\n", done.stdout)
    assert "a system of kind other cannot be started by kexec" in done.stdout
    linux = tool("kadeploy3", "-m", NODE, "-e", "Custom_linux_env", "--force-steps", USE_CASE_9, "--dry-run")
    assert "    BootNewEnv: BootNewEnvKexec (2 tries, 150 s each)\n" in linux.stdout


def test_use_case_9_really_takes_these_steps(home: Path, tool: Run) -> None:
    done = tool("kadeploy3", "-m", NODE, "-e", "Custom_linux_env", "--force-steps", USE_CASE_9)
    assert done.returncode == 0
    taken = dict.fromkeys(step.partition(":")[0] for step in micro_steps(done.stdout))
    assert list(taken) == ["SetDeploymentEnvProd", "BroadcastEnvKastafior", "BootNewEnvKexec"]


@pytest.mark.parametrize("form", ["lines", "yaml"])
def test_use_case_10_insert_custom_operations_in_the_deployment_workflow(
    form: str, home: Path, site: Site, tool: Run
) -> None:
    lines = (
        f"SetDeploymentEnvUntrusted,format_tmp_part@send%{home}/script.sh%/dest,exec%/dest/script.sh%\n"
        'BootNewEnvKexec,reboot@exec%echo "s" > /proc/sysrq-trigger%\n'
    )
    later = f"""\
SetDeploymentEnvUntrusted:
  format_tmp_part:
    pre-ops:
      - {{action: send, file: {home}/script.sh, destination: /dest}}
      - {{action: exec, command: /dest/script.sh}}
BootNewEnvKexec:
  reboot:
    pre-ops: [{{action: exec, command: 'echo "s" > /proc/sysrq-trigger'}}]
"""
    (home / "custom_ops").write_text(lines if form == "lines" else later, encoding="utf-8")
    words = ("-m", NODE, "-e", "lenny-x64-nfs-1.0", "--set-custom-operations", f"{home}/custom_ops")
    refused = tool("kadeploy3", *words)
    assert (refused.returncode, "BootNewEnvKexec, of 'exec echo" in refused.stderr) == (1, True)
    assert "which uses SetDeploymentEnvUntrusted, BroadcastEnvKastafior, BootNewEnvClassical." in refused.stderr
    words = (*words, "--force-steps", USE_CASE_9.replace("Prod", "Untrusted"))
    shown = tool("kadeploy3", *words, "--dry-run").stdout
    assert [line.strip() for line in shown.splitlines() if "custom operation" in line] == [
        f"custom operation before SetDeploymentEnvUntrusted:format_tmp_part: send {home}/script.sh /dest",
        "custom operation before SetDeploymentEnvUntrusted:format_tmp_part: exec /dest/script.sh",
        'custom operation before BootNewEnvKexec:kexec: exec echo "s" > /proc/sysrq-trigger',
    ]
    tool("kadeploy3", *words)  # only as far as nodes need not answer
    asked = [
        (each.implementation, each.micro_step, each.action, Path(each.file).name or each.command, each.destination)
        for attempt in requests(site)
        for each in attempt.options.custom_operations
    ]
    assert asked[:2] == [
        ("SetDeploymentEnvUntrusted", "format_swap_part", "send", "script.sh", "/dest"),
        ("SetDeploymentEnvUntrusted", "format_swap_part", "exec", "/dest/script.sh", ""),
    ]


# --- --dry-run ------------------------------------------------------------------------------------------------------


@PROCESS_ALONE
def test_a_dry_run_shows_each_cluster_with_its_plan_and_its_boot_profiles(
    home: Path, site: Site, site_folder: Path, tool: Run
) -> None:
    """Nodes whose profiles are the same are shown together; the other cluster's loader has its own language."""
    gdx = (site_folder / "clusters" / "gdx.yml").read_text()
    other = gdx.replace("gdx-[1-60]", "azur-[1-60]").replace("127.9.1.", "127.9.3.").replace("/dev/sda", "/dev/nvme0n1")
    other = other.replace("BootNewEnvClassical", "BootNewEnvHardReboot") + "loader: {firmware: uefi, profiles: grub}\n"
    (site_folder / "clusters" / "azur.yml").write_text(other, encoding="utf-8")
    before = [path for path in sorted(site.state.rglob("*")) if "cache" not in path.parts]
    machines = ("-m", "gdx-[5-6].orsay.grid5000.fr", "-m", "azur-9.orsay.grid5000.fr")
    done = tool("kadeploy3", *machines, "-e", "lenny-x64-base", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    of_azur, of_gdx = sorted(re.split(r"^(?=cluster )", done.stdout, flags=re.MULTILINE)[1:])
    assert re.match(rf"cluster azur: azur-9.orsay.grid5000.fr\n    {LENNY} to /dev/nvme0n1p3\n", of_azur)
    assert "    BootNewEnv: BootNewEnvHardReboot (1 try, 150 s each)\n" in of_azur
    assert "menuentry" in of_azur
    assert re.match(
        rf"cluster gdx: gdx-5.orsay.grid5000.fr, gdx-6.orsay.grid5000.fr\n    {LENNY} to /dev/sda3\n", of_gdx
    )
    assert "    SetDeploymentEnv: SetDeploymentEnvUntrusted (2 tries, 200 s each)\n" in of_gdx
    for boot in ("deploy", "deployed"):
        assert f"    boot profile ({boot}) of gdx-[5-6].orsay.grid5000.fr:\n" in of_gdx
    assert "APPEND hd0 3\n" in of_gdx
    assert [path for path in sorted(site.state.rglob("*")) if "cache" not in path.parts] == before


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("simple_reboot", ["    Reboot: RebootSimple (3 tries, no time limit)"]),
        (
            "set_pxe -w {home}/mine",
            [
                "    Reboot: RebootSetPxe (3 tries, no time limit)",
                f"    boot profile (custom) of {NODE}:",
                "        MINE",
            ],
        ),
    ],
)
def test_a_dry_run_of_a_reboot_shows_what_would_be_written_for_the_loader(
    kind: str, shown: list[str], home: Path, site: Site, site_folder: Path, tool: Run
) -> None:
    (home / "mine").write_text("MINE\n", encoding="utf-8")
    done = tool("kareboot3", "-m", NODE, "-r", *kind.format(home=home).split(), "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"cluster gdx: {NODE}", *shown, "Nothing was done (--dry-run)."]
    assert not (site_folder / "reboots").exists()
    assert not Path(site.boot.tftp_root).exists()
    assert not list(nodes.states(site))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-e", "lenny-x64-base"), "kaenv3 --update-tarball-md5 lenny-x64-base"),
        (("-a", "{home}/my-lenny.dsc", "-w", "{home}/pxe_profile", "-x", "{home}/nonesuch"), "nonesuch"),
    ],
)
def test_a_dry_run_refuses_files_that_are_not_good(
    words: tuple[str, ...], said: str, home: Path, site: Site, tool: Run
) -> None:
    (home / "image.tgz").write_bytes(build.packed("another image"))
    (home / "pxe_profile").write_text("DEFAULT mine\n", encoding="utf-8")
    done = tool("kadeploy3", "-m", NODE, *(word.format(home=home) for word in words), "--dry-run")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert said in done.stderr
    assert not list(site.state.glob("dry-run-*"))


def test_a_dry_run_keeps_no_image_that_came_over_http(home: Path, site: Site, tool: Run) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(home))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = (home / "my-lenny.dsc").read_text()
        web = f"http://127.0.0.1:{server.server_port}"
        (home / "my-lenny.dsc").write_text(text.replace(f"tarball : {home}", f"tarball : {web}"), encoding="utf-8")
        words = ("kadeploy3", "-m", NODE, "-a", f"{home}/my-lenny.dsc", "--dry-run")
        done = tool(*words)
        (home / "image.tgz").unlink()
        gone = tool(*words)
        server.shutdown()
    assert (done.returncode, done.stderr) == (0, "")
    assert not [path for path in site.state.rglob("*") if path.is_file() and path.read_bytes() == b"an image"]
    assert (gone.returncode, gone.stdout, f"{web}/image.tgz" in gone.stderr) == (1, "", True)


@PROCESS_ALONE
@pytest.mark.parametrize("usable", [True, False])
def test_a_dry_run_makes_the_sites_folder_or_says_that_it_cannot(
    usable: bool, home: Path, site_folder: Path, tool: Run
) -> None:
    """The database is elsewhere; the folder has not been used yet, or cannot be one."""
    state = home / "state" if usable else home / "image.tgz"
    text = (site_folder / "site.yml").read_text()
    (site_folder / "site.yml").write_text(re.sub(r"state_dir: .*", f"state_dir: {state}", text), encoding="utf-8")
    done = tool("kadeploy3", "-m", NODE, "-a", f"{home}/my-lenny.dsc", "--dry-run")
    if usable:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"{state}: File exists: check state_dir" in done.stderr


# --- what the use cases do not show ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "status"), [("exit 0", 0), ("echo no such VLAN >&2; exit 1", 3)])
def test_nodes_are_moved_into_a_vlan_by_the_sites_command(
    answer: str, status: int, home: Path, site_folder: Path, tool: Run
) -> None:
    """The node is called 1.9.1.5 and in VLAN 27 127.9.1.5: names that resolve everywhere."""
    command = site_folder / "kavlan"
    command.write_text(f'#!/bin/sh\necho "$@" >>{home}/moves\n{answer}\n', encoding="utf-8")
    command.chmod(0o755)
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(f"vlan: {{hostname_suffix: VLAN_ID, set_command: '{command} -i VLAN_ID -u USER NODES'}}\n")
    text = (site_folder / "clusters" / "gdx.yml").read_text()
    named = text.replace("gdx-[1-60].orsay.grid5000.fr", "1.9.1.[1-60]")
    (site_folder / "clusters" / "gdx.yml").write_text(named, encoding="utf-8")
    done = tool("kadeploy3", "-m", "1.9.1.[5-6]", "-e", "lenny-x64-base", "--vlan", "27", "-n", f"{home}/ko")
    assert done.returncode == status, done.stderr
    me = caller().name
    moves = (home / "moves").read_text().splitlines()
    assert moves[0] == f"-i DEFAULT -u {me} -m 1.9.1.5 -m 1.9.1.6"
    if status == 0:
        assert moves[1:] == [f"-i 27 -u {me} -m 1.9.1.5 -m 1.9.1.6"]
        assert (home / "ko").read_text() == ""
    else:
        assert "SetDeploymentEnvUntrusted-set_vlan: " in done.stdout
        assert "no such VLAN" in done.stdout
        assert (home / "ko").read_text() == "1.9.1.5\n1.9.1.6\n"


@pytest.fixture
def nodes_that_answer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """An ssh server on the addresses of gdx-1 … gdx-8."""
    with serve(tmp_path_factory.mktemp("sshd")) as found:
        yield found


def on_sshd(site_folder: Path, found: Nodes) -> None:
    """Have the site's nodes answer ssh."""
    cluster = site_folder / "clusters" / "gdx.yml"
    cluster.write_text(cluster.read_text().replace("127.9.1.[1-60]", "127.9.0.[1-60]"), encoding="utf-8")
    text = (site_folder / "site.yml").read_text()
    text = re.sub(r"private_key: .*", f"private_key: {found.credentials.private_key}", text)
    text = re.sub(r"host_key: .*", f"host_key: {found.known_key}\n  port: {found.port}", text)
    (site_folder / "site.yml").write_text(text, encoding="utf-8")


def test_a_sites_own_implementation_is_forced_and_reported_like_ours(
    home: Path, site_folder: Path, nodes_that_answer: Nodes, tool: Run
) -> None:
    """The example of docs/workflow.md: one playbook and one role outside the package, and no Python."""
    text = (collection() / "docs" / "workflow.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(?:yaml|sh)\n# /etc/kadeploy/(\S+)\n(.*?)```", text, re.DOTALL))
    assert sorted(blocks) == [
        "playbooks/SetDeploymentEnvBurnIn.yml",
        "roles/burn_in/files/burn_in.sh",
        "roles/burn_in/meta/microstep.yml",
        "roles/burn_in/tasks/main.yml",
    ]
    for name, content in blocks.items():
        path = site_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.replace("burn_in_seconds: 60", "burn_in_seconds: 1"), encoding="utf-8")
    on_sshd(site_folder, nodes_that_answer)
    forced = USE_CASE_9.replace("SetDeploymentEnvProd", "SetDeploymentEnvBurnIn").replace(":2:100", ":0:60")
    words = ("-m", NODE, "-e", "Custom_linux_env", "--force-steps", forced)
    plan = tool("kadeploy3", *words, "--breakpoint", "SetDeploymentEnvBurnIn:burn_in", "--dry-run")
    assert "SetDeploymentEnv: SetDeploymentEnvBurnIn (1 try, 60 s each)" in plan.stdout
    assert plan.returncode == 0
    done = tool("kadeploy3", *words, "-d")
    assert done.returncode == 0, done.stdout
    assert f"[burn_in] {NODE}: status 0" in done.stdout
    taken = micro_steps(done.stdout)
    assert taken[:5] == [
        f"SetDeploymentEnvBurnIn: {step}"
        for step in ("switch_pxe", "reboot", "wait_reboot", "burn_in", "create_partition_table")
    ]
    script = site_folder / "roles" / "burn_in" / "files" / "burn_in.sh"
    script.write_text(script.read_text().replace("md5sum /dev/zero", "false"), encoding="utf-8")
    done = tool("kadeploy3", *words)
    assert done.returncode == 3
    assert f"{NODE} (SetDeploymentEnvBurnIn-burn_in: the processor gave up)" in done.stdout


# --- kareboot3 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def reboots(home: Path, site_folder: Path) -> Callable[[], list[str]]:
    """Orders that nodes got: ``soft gdx-5.orsay.grid5000.fr``."""
    assert home.is_dir()

    def read() -> list[str]:
        path = site_folder / "reboots"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    return read


Orders = Callable[[], list[str]]


def orders(*numbers: int, level: str = "soft") -> list[str]:
    return sorted(f"{level} gdx-{number}.orsay.grid5000.fr" for number in numbers)


def test_kareboot3_example_1_a_simple_reboot(reboots: Orders, site: Site, tool: Run) -> None:
    done = tool("kareboot3", "-m", NODE, "-r", "simple_reboot")
    assert (done.returncode, done.stderr) == (0, "")
    assert reboots() == orders(5)
    assert [(row.hostname, row.state) for row in nodes.states(site)] == [(NODE, "rebooted")]
    assert not Path(site.boot.tftp_root).exists()


def test_kareboot3_example_2_a_range_of_nodes(reboots: Orders, tool: Run) -> None:
    assert tool("kareboot3", "-m", "gdx-[5-8].orsay.grid5000.fr", "-r", "simple_reboot").returncode == 0
    assert reboots() == orders(5, 6, 7, 8)


def test_kareboot3_example_3_nodes_of_standard_input(reboots: Orders, home: Path, tool: Run) -> None:
    nodefile = (home / "machinefile").read_text()
    assert tool("kareboot3", "-f", "-", "-r", "simple_reboot", stdin=nodefile).returncode == 0
    assert reboots() == orders(6, 7)


def test_kareboot3_example_4_files_of_nodes_that_are_ok_and_that_are_not(
    reboots: Orders, home: Path, site_folder: Path, tool: Run
) -> None:
    script = site_folder / "reboot"
    script.write_text(f'{script.read_text()}case "$2" in gdx-6.*) exit 1;; esac\n', encoding="utf-8")
    files = ("-o", f"{home}/reboot_ok.txt", "-n", f"{home}/reboot_ko.txt")
    done = tool("kareboot3", "-m", "gdx-[5-6].orsay.grid5000.fr", "-r", "simple_reboot", *files)
    assert done.returncode == 3
    assert (home / "reboot_ok.txt").read_text() == "gdx-5.orsay.grid5000.fr\n"
    assert (home / "reboot_ko.txt").read_text() == "gdx-6.orsay.grid5000.fr\n"
    assert "RebootSimple-reboot: " in done.stdout
    assert "hard gdx-6.orsay.grid5000.fr" in reboots()


def test_kareboot3_tells_as_json_how_it_ended_and_nothing_else_on_standard_output(
    reboots: Orders, site_folder: Path, tool: Run
) -> None:
    script = site_folder / "reboot"
    script.write_text(f'{script.read_text()}case "$2" in gdx-6.*) exit 1;; esac\n', encoding="utf-8")
    done = tool("kareboot3", "-m", "gdx-[5-6].orsay.grid5000.fr", "--format", "json")
    report = json.loads(done.stdout)
    assert done.returncode == 3
    assert report["ok"] == ["gdx-5.orsay.grid5000.fr"]
    assert list(report["ko"]) == ["gdx-6.orsay.grid5000.fr"]
    assert f"Reboot {report['wid']} ended" in done.stderr
    assert "hard gdx-6.orsay.grid5000.fr" in reboots()


@pytest.mark.parametrize("option", ["--dry-run", "--no-wait"])
def test_kareboot3_has_no_report_as_json_without_an_end(reboots: Orders, tool: Run, option: str) -> None:
    done = tool("kareboot3", "-m", NODE, "--format", "json", option)
    assert (done.returncode, done.stdout, reboots()) == (1, "", [])
    assert "--format json tells how the operation ended: leave out --dry-run and --no-wait" in done.stderr


def test_kareboot3_example_5_a_customized_pxe_profile(reboots: Orders, home: Path, site: Site, tool: Run) -> None:
    (home / "customized_pxe_profile").write_text("DEFAULT mine\n", encoding="utf-8")
    words = ("-f", f"{home}/machinefile", "-r", "set_pxe", "-w", f"{home}/customized_pxe_profile")
    assert tool("kareboot3", *words).returncode == 0
    assert (Path(site.boot.tftp_root) / "pxelinux.cfg" / "7F090106").read_text() == "DEFAULT mine\n"
    assert reboots() == orders(6, 7)


def test_kareboot3_example_6_a_profile_with_files_and_a_word_per_node(
    reboots: Orders, home: Path, site: Site, tool: Run
) -> None:
    done = tool("kareboot3", *RANGE, "-r", "set_pxe", "-l", "hard", *mine(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert "node_id=2\n" in (Path(site.boot.tftp_root) / "pxelinux.cfg" / "7F090106").read_text()
    assert (Path(site.boot.tftp_root) / "kernels" / f"pxe-{caller().name}--custom-initrd").read_text() == "an initrd"
    assert reboots() == orders(*range(5, 11), level="hard")


def test_kareboot3_example_7_the_deployment_system_lets_a_key_in(
    reboots: Orders, home: Path, site: Site, tool: Run
) -> None:
    """The wiki page's example gives a private key, which is refused."""
    words = ("-f", f"{home}/machinefile", "-r", "deploy_env", "-k")
    refused = tool("kareboot3", *words, f"{home}/id_rsa")
    assert (refused.returncode, "private key" in refused.stderr, reboots()) == (1, True, [])
    done = tool("kareboot3", *words, f"{home}/id_rsa.pub")
    assert (done.returncode, done.stderr) == (0, "")
    assert micro_steps(done.stdout)[-1] == "RebootDeployEnv: send_key_in_deploy_env"
    assert "deploy-vmlinuz" in (Path(site.boot.tftp_root) / "pxelinux.cfg" / "7F090106").read_text()
    assert {row.state for row in nodes.states(site)} == {"deploy_env"}


PRODUCTION = ("-r", "env_recorded", "-e", "production_environment", "-p", "2")


def test_kareboot3_example_8_a_recorded_environment(reboots: Orders, site: Site, tool: Run) -> None:
    done = tool("kareboot3", *PRODUCTION, "-u", caller().name, "-m", NODE)
    assert (done.returncode, done.stderr) == (0, "")
    assert reboots() == orders(5)
    assert "hd0 2" in (Path(site.boot.tftp_root) / "pxelinux.cfg" / "7F090105").read_text()
    (row,) = nodes.states(site)
    assert (row.state, row.env_name) == ("prod_env", "production_environment")


def test_kareboot3_example_9_without_waiting(reboots: Orders, tool: Run) -> None:
    done = tool("kareboot3", *PRODUCTION, "-u", caller().name, "-m", NODE, "--no-wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert "RebootRecordedEnv: reboot" in micro_steps(done.stdout)
    assert "RebootRecordedEnv: wait_reboot" not in micro_steps(done.stdout)
    assert reboots() == orders(5)


@pytest.mark.parametrize(("production", "status"), [("ok", 0), ("ko", 1)])
def test_kareboot3_example_10_the_production_environment_is_checked(
    production: str, status: int, reboots: Orders, home: Path, site: Site, site_folder: Path, tool: Run
) -> None:
    """0: it is there; 1: it is not, which counts against the environment that was deployed; 2: nobody needs to look."""
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("demolishing: {threshold: 0, auto_tag: true}\n")
    me = caller().name
    deployed = environments.find(site, me, Reference("lenny-x64-base"))
    nodes.set_state([NODE], "deployed", deployed, me)
    write_play(site_folder, "Unused", "")  # brings the action `outcomes`
    answer = f"{{{NODE}: {{verdict: {production}, msg: another root}}}}"
    role(site_folder, "check_nodes", f"- run_once: true\n  outcomes: {{step: check_nodes, nodes: {answer}}}\n")
    done = tool("kareboot3", "-m", NODE, *PRODUCTION, "-c")
    assert done.returncode == status, done.stderr
    assert reboots() == orders(5)
    assert environments.find(site, me, Reference("lenny-x64-base")).demolishing_env == status
    if status == 1:
        assert "RebootRecordedEnv-check_nodes: another root" in done.stdout
        again = tool("kareboot3", "-m", NODE, *PRODUCTION, "-c")
        assert (again.returncode, "demolishing" in again.stderr) == (2, True)
        assert reboots() == orders(5)
