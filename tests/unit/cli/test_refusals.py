"""The numbered acceptance cases of the original's behaviour: what they refuse, as users see it, and where the rest is.

A refusal is exit status 1 (2 where ``kareboot3 -c`` says so), one line on standard error that says what to do, and
nothing that has changed: no node, no claim, no workflow, no file that boot loaders read, no run folder.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.caller import Account, caller
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.environments.reference import Reference
from kadeploy.state import environments, nodes, rights
from kadeploy.state.database import connect
from kadeploy.state.tables import Claim, Workflow
from tests.unit import build

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Refusal:
    """A command line, and what has to be said; ``{tmp}`` is the test's folder, ``{me}`` the caller."""

    case: int
    what: str
    command: str
    said: str
    status: int = 1
    stdin: str = ""


DEPLOY = "kadeploy3 -e tiny -m gdx-1.site"
REBOOT = "kareboot3 -m gdx-1.site"
PRODUCTION = f"{REBOOT} -r env_recorded -e tiny"
FORCE = f"{DEPLOY} --force-steps"
REFUSALS = [
    Refusal(1, "reversed range", "kadeploy3 -e tiny -m gdx-[12-5].site", "gdx-[12-5].site"),
    Refusal(1, "empty brackets", "kadeploy3 -e tiny -m gdx-[].site", "gdx-[].site"),
    Refusal(1, "bracket that is never closed", "kadeploy3 -e tiny -m gdx-[1-2.site", "gdx-[1-2.site"),
    Refusal(1, "two groups, one of them empty", "kadeploy3 -e tiny -m gdx-[1-2]-[].site", "gdx-[1-2]-[].site"),
    Refusal(2, "unknown node", f"{DEPLOY} -m mars-1", "Unknown node: mars-1."),
    Refusal(2, "unknown node of -f -", f"{DEPLOY} -f -", "Unknown node: gdx-99.site.", stdin="# mine\n\ngdx-99.site\n"),
    Refusal(2, "nothing in -f -", f"{DEPLOY} -f -", "no node", stdin="# none today\n"),
    Refusal(3, "no node", "kadeploy3 -e tiny", "-m NODE"),
    Refusal(3, "no environment", "kadeploy3 -m gdx-1.site", "-e NAME"),
    Refusal(3, "one file for -o and -n", f"{DEPLOY} -o {{tmp}}/x -n {{tmp}}/x", "-o and -n"),
    Refusal(3, "script that cannot be run", f"{DEPLOY} -s {{tmp}}/image.tgz", "chmod +x"),
    Refusal(3, "script that is not there", f"{DEPLOY} -s {{tmp}}/none", "{tmp}/none"),
    Refusal(3, "verbosity", f"{DEPLOY} -V 5", "-V"),
    Refusal(3, "file system of /tmp", f"{DEPLOY} -r ntfs", "ext4"),
    Refusal(4, "unknown key", "kadeploy3 -a {tmp}/unknown.dsc -m gdx-1.site", "line 3: unknown key 'tarbal'"),
    Refusal(4, "missing tarball", "kaenv3 -a {tmp}/short.dsc", "tarball, fdisktype are missing"),
    Refusal(4, "linux without kernel", "kaenv3 -a {tmp}/linux.dsc", "kernel is missing"),
    Refusal(4, "xen without hypervisor", "kaenv3 -a {tmp}/xen.dsc", "hypervisor is missing"),
    Refusal(
        5, "private one of another user", "kadeploy3 -m gdx-1.site -e secret -u bob", "no environment 'secret' of bob"
    ),
    Refusal(5, "shared one without -u", "kadeploy3 -m gdx-1.site -e common", "-u USER"),
    Refusal(5, "version that there is not", f"{DEPLOY} --env-version 7", "no version 7"),
    Refusal(5, "the -l of use case 3", f"{DEPLOY} -l johnsmith", "-u johnsmith"),
    Refusal(6, "list with an operation of another", "kaenv3 -l --env-version 1", "-l"),
    Refusal(7, "image that has changed", "kadeploy3 -m gdx-1.site -e changed", "kaenv3 --update-tarball-md5 changed"),
    Refusal(7, "image that is gone", "kadeploy3 -m gdx-1.site -e gone", "{tmp}/gone.tgz"),
    Refusal(7, "recording it anew", "kaenv3 --update-tarball-md5 gone", "{tmp}/gone.tgz"),
    Refusal(
        8,
        "cluster with another default partition",
        f"{DEPLOY} -m nvm-[1-2].site",
        "karights3 -a -m 'nvm-[1-2].site' -p /dev/nvme0n1p1 -u {me}",
    ),
    Refusal(8, "another partition", f"{DEPLOY} -p 5", "-p /dev/sda5 -u {me}"),
    Refusal(8, "another disk", f"{DEPLOY} -b /dev/sdb -p 3", "-p /dev/sdb3 -u {me}"),
    Refusal(8, "reboot", "kareboot3 -m nvm-1.site -r simple_reboot", "-p /dev/nvme0n1p1 -u {me}"),
    Refusal(8, "power", "kapower3 -m nvm-1.site --off", "-p /dev/nvme0n1p1 -u {me}"),
    Refusal(8, "console", "kaconsole3 -m nvm-1.site", "{me}"),
    Refusal(16, "profile of nothing, to deploy", f"{DEPLOY} -w {{tmp}}/empty", "{tmp}/empty"),
    Refusal(16, "profile of nothing", f"{REBOOT} -r set_pxe -w {{tmp}}/empty", "{tmp}/empty"),
    Refusal(
        17,
        "node without its word",
        f"{DEPLOY} -m gdx-2.site -w {{tmp}}/word --set-pxe-pattern {{tmp}}/words",
        "gdx-2.site",
    ),
    Refusal(17, "word of a stranger", f"{DEPLOY} -w {{tmp}}/word --set-pxe-pattern {{tmp}}/more", "gdx-9.site"),
    Refusal(17, "uploads that nobody reads", f"{DEPLOY} -x {{tmp}}/image.tgz", "-w"),
    Refusal(17, "upload that is not there", f"{DEPLOY} -w {{tmp}}/plain -x {{tmp}}/vmlinuz", "{tmp}/vmlinuz"),
    Refusal(18, "whole disk from an archive", f"{DEPLOY} -b /dev/sda -c 0", "dd image"),
    Refusal(19, "script that is missing", "kaenv3 -a {tmp}/preinstall.dsc", "preinstall"),
    Refusal(20, "unknown macro-step", f"{DEPLOY} --breakpoint BroadcastEnvMagic", "BroadcastEnvChain"),
    Refusal(20, "unknown micro-step", f"{DEPLOY} --breakpoint BroadcastEnvChain:magic", "send_environment"),
    Refusal(20, "macro-step that is not used", f"{DEPLOY} --breakpoint BroadcastEnvTree:sync", "BroadcastEnvChain"),
    Refusal(21, "unknown micro-step", f"{DEPLOY} --set-custom-operations {{tmp}}/magic", "{tmp}/magic, line 1"),
    Refusal(21, "no operation", f"{DEPLOY} --set-custom-operations {{tmp}}/plain", "Macro,micro@exec%command%"),
    Refusal(21, "file to send that is not there", f"{DEPLOY} --set-custom-operations {{tmp}}/sends", "/nonexistent"),
    Refusal(22, "no retries", f"{FORCE} SetDeploymentEnv|SetDeploymentEnvProd", "Implementation:retries:timeout"),
    Refusal(22, "macro-step left out", f"{FORCE} SetDeploymentEnv|SetDeploymentEnvProd:2:100", "BootNewEnv"),
    Refusal(22, "never implemented", f"{FORCE} BootNewEnv|BootNewEnvPivotRoot:0:0", "never been implemented"),
    Refusal(23, "demolishing environment", f"{PRODUCTION} -p 2 -c -m gdx-3.site", "gdx-3.site", status=2),
    Refusal(23, "not the production partition", f"{PRODUCTION} -p 3 -c", "partition 2, not on 3"),
    Refusal(23, "-c of another kind", f"{REBOOT} -r simple_reboot -c", "-r env_recorded"),
    Refusal(23, "env_recorded without environment", f"{REBOOT} -r env_recorded -c", "-e NAME -p NUMBER"),
    *(
        Refusal(23, f"--no-wait with {option}", f"{REBOOT} -r {kind} --no-wait {option}", "--no-wait")
        for option, kind in (
            ("-c -e tiny -p 2", "env_recorded"),
            ("-k {tmp}/words", "deploy_env"),
        )
    ),
    Refusal(23, "unknown kind", f"{REBOOT} -r warm", "simple_reboot"),
    Refusal(23, "unknown level", f"{REBOOT} -r simple_reboot -l brutal", "very_hard"),
    Refusal(23, "set_pxe without profile", f"{REBOOT} -r set_pxe", "-w FILE"),
    Refusal(23, "profile for another kind", f"{REBOOT} -r simple_reboot -w {{tmp}}/plain", "-r set_pxe"),
    Refusal(23, "key for another kind", f"{REBOOT} -r simple_reboot -k {{tmp}}/words", "-r deploy_env"),
    Refusal(23, "private key", f"{REBOOT} -r deploy_env -k {{tmp}}/private", "private key"),
    Refusal(24, "unknown level", "kapower3 -m gdx-1.site --on -l brutal", "very_hard"),
    Refusal(24, "no operation", "kapower3 -m gdx-1.site", "--on"),
    Refusal(25, "unknown workflow", "kanodes3 -y -w D-none", "D-none"),
]
ELSEWHERE = {
    9: (
        "cli/test_use_cases.py::test_the_wiki_pages_first_deployment_goes_through_these_micro_steps",
        "cli/test_kadeploy3.py::test_success_is_told_and_written_in_the_files",
    ),
    10: (
        "test_workflow.py::test_ok_nodes_go_on_while_ko_nodes_are_still_being_retried",
        "test_workflow.py::test_each_fallback_has_its_own_retries_then_nodes_are_ko_for_good",
        "operations/test_faults.py::test_a_node_that_fails_in_a_micro_step_says_so_and_the_others_go_on",
    ),
    11: (
        "runner/test_player.py::test_a_time_out_ends_every_process",
        "microsteps/test_action.py::test_a_micro_steps_time_out_spares_the_nodes_that_are_done_and_ends_the_others_commands",
    ),
    12: (
        "cli/test_kadeploy3.py::test_nodes_that_are_held_are_left_out_and_in_the_ko_file",
        "state/test_nodes.py::test_claims_of_other_machines_expire_after_the_purge_timer",
    ),
    13: ("cli/test_kadeploy3.py::test_one_signal_ends_cleanly",),
    14: (
        "cli/test_kapower3.py::test_a_level_that_fails_or_is_missing_passes_the_node_to_the_next",
        "power/test_power.py::test_each_try_of_a_macro_step_reboots_harder_than_the_one_before",
        "power/test_power.py::test_operations_side_by_side_never_switch_more_nodes_than_the_window_holds",
    ),
    15: (
        "remote/test_reach.py::test_a_node_that_stays_in_the_deployment_system_is_not_there",
        "remote/test_reach.py::test_a_node_that_refuses_its_ssh_port_is_alive_but_not_there",
    ),
    16: (
        "boot/test_profile.py::test_a_profile_is_what_its_loader_asks_for",
        "boot/test_profile.py::test_files_are_named_after_the_address_as_each_loader_searches_them",
        "boot/test_profile.py::test_a_node_in_a_vlan_has_a_profile_for_either_address",
    ),
    18: (
        "runner/test_inventory.py::test_a_dd_image_is_not_formatted_and_is_mounted_after_the_broadcast",
        "runner/test_inventory.py::test_a_system_of_another_kind_is_only_copied_and_chainloaded",
    ),
    19: (
        "operations/test_plan.py::test_a_pre_install_replaces_all_ways_with_the_firsts_retries_and_time_out",
        "microsteps/test_action.py::test_a_breakpoint_of_an_archive_stops_after_its_script",
        "runner/test_inventory.py::test_scripts_get_the_variables_of_the_specification",
    ),
}
"""Cases, or what of them is no refusal: the tests that prove it."""


@pytest.fixture
def ready(site: Site, tmp_path: Path) -> Site:
    """A site with environments of the caller and of bob; the caller may use a disk of gdx and two of its partitions."""
    connect(site)
    me = caller()
    bob = Account("bob", me.uid, me.gid, me.home)
    rights.add(site, me.name, ["*"], ["/dev/sda", "/dev/sda2", "/dev/sda3"])
    for name, who, visibility in (
        ("tiny", me, "private"),
        ("changed", me, "private"),
        ("gone", me, "private"),
        ("secret", bob, "private"),
        ("common", bob, "shared"),
    ):
        image = tmp_path / ("image.tgz" if name == "tiny" else f"{name}.tgz")
        image.write_bytes(build.packed("image"))
        found = Environment(
            name=name,
            image=Image(file=str(image), kind="tgz"),
            kernel="/vmlinuz",
            filesystem="ext4",
            visibility=visibility,
        )
        environments.add(site, found, who)
    (tmp_path / "changed.tgz").write_bytes(b"another")
    (tmp_path / "gone.tgz").unlink()
    mine = environments.find(site, me.name, Reference("tiny"))
    nodes.set_state(["gdx-3.site"], "deployed", mine, me.name, 0)
    return site


FILES = {
    "unknown.dsc": "name : tiny\nversion : 1\ntarbal : {tmp}/image.tgz|tgz\n",
    "short.dsc": "name : short\nversion : 1\nenvironment_kind : linux\n",
    "linux.dsc": "name : l\ntarball : {tmp}/image.tgz|tgz\nfdisktype : 83\nfilesystem : ext4\n"
    "environment_kind : linux\n",
    "xen.dsc": "name : x\ntarball : {tmp}/image.tgz|tgz\nfdisktype : 83\nfilesystem : ext4\nenvironment_kind : xen\n"
    "kernel : /vmlinuz\ninitrd : /initrd\n",
    "preinstall.dsc": "name : p\ntarball : {tmp}/image.tgz|tgz\npreinstall : {tmp}/image.tgz|tgz\nfdisktype : 83\n"
    "filesystem : ext4\nenvironment_kind : linux\nkernel : /vmlinuz\n",
    "empty": "",
    "plain": "DEFAULT mine\n",
    "word": "APPEND node_id=NODE_SINGULARITY\n",
    "words": "gdx-1.site,1\n",
    "more": "gdx-1.site,1\ngdx-9.site,2\n",
    "magic": "SetDeploymentEnvUntrusted,magic@exec%true%\n",
    "sends": "SetDeploymentEnvUntrusted,reboot@send%/nonexistent/script%/dest\n",
    "private": "-----BEGIN OPENSSH PRIVATE KEY-----\n",
}


def everything(site: Site) -> object:
    """What a refusal must leave as it was."""
    roots = (Path(site.boot.tftp_root), Path(site.boot.http_root), site.state / "runs")
    files = sorted(path for root in roots if root.exists() for path in root.rglob("*"))
    states = [(row.hostname, row.state, row.date) for row in nodes.states(site)]
    return files, states, Claim.select().count(), Workflow.select().count()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.case}: {refusal.what}")
def test_what_the_numbered_cases_refuse(
    refusal: Refusal,
    ready: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.format(tmp=tmp_path), encoding="utf-8")
    if refusal.status == 2:
        environments.add_failure(ready, [environments.find(ready, caller().name, Reference("tiny"))])
    before = everything(ready)
    command = [word.format(tmp=tmp_path) for word in refusal.command.split()]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(refusal.stdin.encode())))
    status = importlib.import_module(f"kadeploy.cli.{command[0]}").main()
    told = capsys.readouterr()
    assert status == refusal.status, told.err
    assert told.out == ""
    assert told.err.startswith("ERROR: ")
    assert told.err.count("\n") == 1
    assert refusal.said.format(tmp=tmp_path, me=caller().name) in told.err
    assert everything(ready) == before


def test_every_numbered_case_is_here_or_in_the_test_named_here() -> None:
    assert {refusal.case for refusal in REFUSALS} | ELSEWHERE.keys() >= set(range(1, 26))
    for name in (name for names in ELSEWHERE.values() for name in names):
        path, _, function = name.partition("::")
        text = (ROOT / "tests" / "unit" / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {function}\(", text, re.MULTILINE), name
