"""What playbooks and scripts see of a request."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from kadeploy.config.cluster import Disk, Loader, NodeRange
from kadeploy.config.partition import Partition
from kadeploy.environments.environment import Environment, Image
from kadeploy.environments.rules import RESERVED
from kadeploy.runner.inventory import host_variables, partition_table, script_variables, variables, wants
from kadeploy.runner.request import LocalArchive, NextBoot, Options, Request
from kadeploy.workflow import Attempt
from tests.unit import build

LAYOUT = (
    Partition(number=1, size="256MiB", role="swap"),
    Partition(number=2, size="1GiB", role="prod"),
    Partition(number=3, size="3GiB", role="deploy"),
    Partition(number=4, role="tmp"),
)


def request(**changes: object) -> Request:
    base = build.request(
        "/run",
        run_dir="/run/a b",
        attempt=Attempt(macro_step="SetDeploymentEnv", implementation="SetDeploymentEnvUntrusted"),
        site=build.site("/var/lib/kadeploy", mkfs_options={"ext4": "-O ^64bit"}),
        cluster=build.cluster(
            nodes=(NodeRange(name="gdx-[1-2]", address="10.0.1.[1-2]"),),
            disk=Disk(device="/dev/sda", partitions=LAYOUT),
            loader=Loader(user_params="quiet"),
        ),
        environment=build.environment(kernel="/boot/vmlinuz", initrd="/boot/initrd.img", kernel_params="console=ttyS0"),
    )
    return msgspec.structs.replace(base, **changes)


def wanted(**changes: object) -> set[str]:
    return {name for name, value in wants(request(**changes)).items() if value}


def environment(**changes: object) -> Environment:
    found = request().environment
    assert found is not None
    return msgspec.structs.replace(found, **changes)


def test_a_plain_linux_archive_is_partitioned_formatted_mounted_and_made_bootable() -> None:
    assert wanted() == {
        "create_partition_table",
        "format_deploy_part",
        "mount_deploy_part",
        "format_swap_part",
        "check_kernel_files",
        "install_bootloader",
        "umount_deploy_part",
        "wait_reboot",
    }


def test_keys_go_to_the_deployment_system_and_to_the_deployed_one() -> None:
    assert wanted(options=Options(authorized_keys="ssh-ed25519 A")) - wanted() == {"send_key_in_deploy_env", "send_key"}


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (Options(disable_disk_partitioning=True), "create_partition_table"),
        (Options(disable_bootloader_install=True), "install_bootloader"),
        (Options(partition=1), "format_swap_part"),
    ],
)
def test_an_option_takes_its_micro_step_away(options: Options, missing: str) -> None:
    assert wanted() - wanted(options=options) == {missing}


def test_the_tmp_partition_is_formatted_only_when_asked_and_not_when_it_is_deployed_to() -> None:
    assert wanted(options=Options(reformat_tmp="ext4")) - wanted() == {"format_tmp_part"}
    assert "format_tmp_part" not in wanted(options=Options(reformat_tmp="ext4", partition=4))


def test_a_dd_image_is_not_formatted_and_is_mounted_after_the_broadcast() -> None:
    steps = wanted(environment=environment(image=Image(file="/x.dd.gz", kind="ddgz")))
    assert not steps & {"format_deploy_part", "mount_deploy_part"}
    assert "mount_after_broadcast" in steps


def test_a_system_of_another_kind_is_only_copied_and_chainloaded() -> None:
    other = environment(image=Image(file="/x.dd.gz", kind="ddgz"), environment_kind="other", filesystem="")
    steps = wanted(environment=other, options=Options(authorized_keys="k"), postinstalls=(archive(),))
    assert steps == {"create_partition_table", "send_key_in_deploy_env", "wait_reboot"}


def test_a_whole_device_is_neither_cut_nor_mounted() -> None:
    image = environment(image=Image(file="/x.dd.gz", kind="ddgz"))
    steps = wanted(environment=image, options=Options(whole_device=True))
    assert steps == {"wait_reboot"}


def test_a_xen_environment_gets_no_boot_loader() -> None:
    assert "install_bootloader" not in wanted(environment=environment(environment_kind="xen", hypervisor="/boot/xen"))


def archive() -> LocalArchive:
    return LocalArchive(path="/post.tgz", kind="tgz", script="run.sh --fast")


def test_the_environments_preinstall_takes_the_place_of_the_administrators() -> None:
    admin = LocalArchive(path="/admin.tgz", kind="tgz", script="none")
    found = variables(request(preinstall=archive(), admin_preinstalls=(admin,)))["kadeploy_preinstalls"]
    assert [entry["path"] for entry in found] == ["/post.tgz"]


@pytest.mark.parametrize("first", ["soft", "hard", "very_hard"])
def test_a_site_may_begin_with_a_reboot_that_no_system_on_the_node_can_ignore(tmp_path: Path, first: str) -> None:
    site = build.site(tmp_path, first_reboot=first)
    assert variables(request(site=site))["kadeploy_boot"]["level"] == first
    reboot = request(site=site, operation="reboot", boot=NextBoot(level="soft"))
    assert variables(reboot)["kadeploy_boot"]["level"] == "soft", "whoever reboots says how"


def test_scripts_get_the_variables_of_the_specification() -> None:
    values = script_variables(request())
    assert values["KADEPLOY_CLUSTER"] == "gdx"
    assert values["KADEPLOY_ENV"] == "tiny"
    assert values["KADEPLOY_DEPLOY_PART"] == "/dev/sda3"
    assert values["KADEPLOY_ENV_EXTRACTION_DIR"] == "/mnt/dest"
    assert values["KADEPLOY_PREPOST_EXTRACTION_DIR"] == "/rambin"
    assert values["KADEPLOY_SWAP_PART"] == "/dev/sda1"
    assert values["KADEPLOY_ENV_KERNEL_PARAMS"] == "quiet console=ttyS0"
    assert values["KADEPLOY_MKFS_OPTIONS"] == "-O ^64bit"


def test_scripts_find_the_environments_custom_variables_behind_our_prefix_and_ours_win() -> None:
    chosen = environment(custom_variables={"NO_GRUB": "1", "TEXT": "{{ x }} 'y' $(z)", "DEPLOY_PART": "/dev/sdz"})
    values = script_variables(request(environment=chosen))
    assert (values["KADEPLOY_NO_GRUB"], values["KADEPLOY_TEXT"]) == ("1", "{{ x }} 'y' $(z)")
    assert values["KADEPLOY_DEPLOY_PART"] == "/dev/sda3"


def test_no_custom_variable_can_be_what_a_script_of_ours_reads() -> None:
    ours = {name.removeprefix("KADEPLOY_") for name in script_variables(request())}
    root = Path(__file__).parents[3]
    for folder in ("roles", "playbooks", "kadeploy/remote", "kadeploy/microsteps"):
        for path in (path for path in (root / folder).rglob("*") if path.suffix in (".sh", ".yml", ".py")):
            ours |= set(re.findall(r"KADEPLOY_([A-Z0-9_]+)", path.read_text(encoding="utf-8")))
    assert ours <= RESERVED


def test_nvme_partitions_are_named_as_linux_names_them() -> None:
    assert (
        script_variables(request(options=Options(block_device="/dev/nvme0n1")))["KADEPLOY_TMP_PART"] == "/dev/nvme0n1p4"
    )


def test_the_connection_to_the_new_system_enters_it_where_the_site_mounts_it(tmp_path: Path) -> None:
    site = build.site(tmp_path, extraction_dir="/mnt/new")
    assert variables(request(site=site))["kadeploy_new_root"] == "/mnt/new"


def test_the_partition_table_gives_the_deployment_partition_the_environments_type() -> None:
    lines = partition_table(request(environment=environment(fdisktype="A5"))).splitlines()
    assert lines == [
        "label: dos",
        "1 : size=256MiB, type=82",
        "2 : size=1GiB, type=83",
        "3 : size=3GiB, type=a5",
        "4 : type=83",
    ]


def test_logical_partitions_get_an_extended_one_around_them() -> None:
    layout = (*LAYOUT[:3], Partition(number=5, role="tmp"))
    cluster = msgspec.structs.replace(request().cluster, disk=Disk(partitions=layout))
    assert partition_table(request(cluster=cluster)).splitlines()[-2:] == ["4 : type=5", "5 : type=83"]


def test_a_gpt_layout_uses_gpt_types() -> None:
    layout = (Partition(number=1, size="100MiB", role="efi"), Partition(number=3, role="deploy"))
    cluster = msgspec.structs.replace(request().cluster, disk=Disk(table="gpt", partitions=layout))
    assert partition_table(request(cluster=cluster)).splitlines() == [
        "label: gpt",
        "1 : size=100MiB, type=U",
        "3 : type=L",
    ]


def test_plain_ansible_tasks_know_where_host_keys_are_and_take_none_of_another_type() -> None:
    found = host_variables(request(), request().nodes[0])
    assert found["ansible_host"] == "10.0.1.1"
    assert "-o HostKeyAlgorithms=ssh-ed25519" in found["ansible_ssh_common_args"]
    assert "'UserKnownHostsFile=\"/run/a b/known_hosts\"'" in found["ansible_ssh_common_args"]
