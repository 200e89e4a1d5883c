"""The use cases of the wiki page in which the boot matters, on machines that boot: kadeploy3 and kareboot3."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from kadeploy.server import daemon
from tests import fsarchiver
from tests.accounts import Installation
from tests.vm.conftest import Cluster, started
from tests.vm.test_deployment import PATIENCE, request

UNTRUSTED = "SetDeploymentEnv|SetDeploymentEnvUntrusted:0:900"
CHAIN = "BroadcastEnv|BroadcastEnvChain:0:900"
CMDLINE = "cat /proc/cmdline"
SECTOR = "cat /sys/block/sda/queue/logical_block_size"
SECONDS = ["--reboot-classical-timeout", str(PATIENCE), "--reboot-kexec-timeout", str(PATIENCE)]


@pytest.fixture(scope="module", autouse=True)
def _quiet(cluster: Cluster) -> None:
    """Machines of other tests are off; ``tiny`` is recorded, for all users."""
    cluster.power_off_all()
    cluster.admin("kaenv3", "-a", str(cluster.environment("tiny")))


def succeeds(cluster: Cluster, *command: str) -> str:
    done = cluster.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(boot: str, prepare: str = UNTRUSTED) -> list[str]:
    return ["--force-steps", f"{prepare}&{CHAIN}&BootNewEnv|{boot}:0:900", *SECONDS]


def description(cluster: Cluster) -> dict[str, str]:
    lines = cluster.environment("tiny").read_text().splitlines()
    return dict(line.split(" : ", 1) for line in lines)


def described(cluster: Cluster, path: Path, **changed: str) -> Path:
    """``tiny``, described otherwise."""
    fields = description(cluster) | changed
    path.write_text("".join(f"{key} : {value}\n" for key, value in fields.items()))
    return path


def deploy_at_once(cluster: Cluster, environments: dict[str, Path]) -> None:
    """Deploy each node's own environment, one request for each."""

    def deploy(node: str, environment: Path) -> None:
        words = request(cluster)
        words[words.index("-a") + 1] = str(environment)
        succeeds(cluster, "kadeploy3", "-m", node, *words)

    with ThreadPoolExecutor() as requests:
        list(requests.map(deploy, environments, environments.values()))


def unpacked(cluster: Cluster, folder: Path) -> Path:
    """The files of ``tiny``."""
    folder.mkdir()
    image = description(cluster)["tarball"].partition("|")[0]
    subprocess.run(["tar", "-xf", image, "-C", str(folder)], check=True)
    return folder


# --- kareboot3, into the deployment system and back; kexec and several partitions ------------------------------


def test_kareboot3_deploy_env_lets_the_users_key_in(cluster: Cluster) -> None:
    out = succeeds(
        cluster, "kareboot3", "-m", "node-3", "-r", "deploy_env", "-k", str(cluster.public_key), *SECONDS[:2]
    )
    assert "Nodes correctly rebooted on cluster lab:\nnode-3" in out
    assert cluster.ssh("node-3", "test -d /rambin", pinned=True).returncode == 0


def file_system(tree: Path, path: Path, size: str) -> Path:
    """An ext4 file system with the files of *tree*."""
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path), size], check=True)
    return path


def test_kexec_both_ways_with_images_for_two_partitions(cluster: Cluster, own_path: Path) -> None:
    """From the deployment system into itself, and from there into the new system: the firmware is never passed.

    The system is an archive of fsarchiver, and beside it goes a copy of a partition.
    """
    root = file_system(unpacked(cluster, own_path / "tree"), own_path / "tiny.raw", "256M")
    (own_path / "home").mkdir()
    (own_path / "home" / "note").write_text("at home")
    home = file_system(own_path / "home", own_path / "home.raw", "16M")
    subprocess.run(["gzip", "-1", str(home)], check=True)
    fields = description(cluster)
    places = [
        {"id": 0, "device": "/dev/sda3"},
        {"id": 1, "device": "/dev/sda2", "image": {"file": f"{home}.gz", "kind": "dd", "compression": "gzip"}},
    ]
    parted = {
        "name": "parted",
        "os": "linux",
        "image": {"file": str(fsarchiver.save(own_path / "tiny.fsa", root)), "kind": "fsa", "compression": 1},
        "boot": {key: fields[key] for key in ("kernel", "initrd", "kernel_params") if key in fields}
        | {"block_device": "/dev/sda", "partition": 3},
        "filesystem": "ext4",
        "multipart": True,
        "options": {"partitions": places},
    }
    (own_path / "parted.yml").write_text(yaml.safe_dump(parted))
    loads = cluster.serial("node-3").count("PXELINUX")
    kexec = "SetDeploymentEnv|SetDeploymentEnvKexec:0:900"
    succeeds(
        cluster, "kadeploy3", "-m", "node-3", "-a", str(own_path / "parted.yml"), "-k", str(cluster.public_key),
        *steps("BootNewEnvKexec", kexec),
    )  # fmt: skip
    look = "mount -r /dev/sda2 /mnt; cat /mnt/note; umount /mnt"
    said = cluster.wait_ssh("node-3", command=f"{CMDLINE}; mount | grep ' on / '; {look}")
    assert "BOOT_IMAGE=" not in said
    assert "at home" in said
    assert "/dev/sda3 on / type ext4" in said
    assert cluster.serial("node-3").count("PXELINUX") == loads


def test_kareboot3_env_recorded_boots_what_is_on_the_partition(cluster: Cluster) -> None:
    succeeds(cluster, "kareboot3", "-m", "node-3", "-r", "env_recorded", "-e", "tiny", "-p", "3", *SECONDS[:2])
    assert "BOOT_IMAGE=" in cluster.wait_ssh("node-3", command=CMDLINE)  # GRUB's word, from the image's own partition


# --- another partition, and a boot by the power button ---------------------------------------------------------------


def test_hard_reboot_from_another_partition(cluster: Cluster) -> None:
    succeeds(
        cluster, "kadeploy3", "-m", "node-4", "-e", "tiny", "-p", "2", "-k", str(cluster.public_key),
        *steps("BootNewEnvHardReboot"),
    )  # fmt: skip
    said = cluster.wait_ssh("node-4", command=f"{CMDLINE}; mount | grep ' on / '")
    assert "BOOT_IMAGE=" in said
    assert "/dev/sda2 on / type ext4" in said


# --- pure PXE ---------------------------------------------------------------------------------------------------------


@contextmanager
def pure_pxe(cluster: Cluster) -> Iterator[None]:
    """Meanwhile, nodes boot the deployed system over the network."""
    path = cluster.config_dir / "clusters" / "lab.yml"
    before = path.read_text()
    settings = yaml.safe_load(before)
    settings["loader"]["method"] = "pure_pxe"
    try:
        change(path, yaml.safe_dump(settings))
        yield
    finally:
        change(path, before)


def change(path: Path, text: str) -> None:
    """Write a file of the configuration, and wait for as long as the service may need to see it."""
    path.write_text(text)
    time.sleep(2 * daemon.AGE)


@pytest.fixture(scope="module")
def by_network(cluster: Cluster) -> dict[str, str]:
    """Nodes that were deployed while they boot over the network, ``tiny`` on /dev/sda3; each by its file system."""
    filesystems = {"node-3": "btrfs", "node-4": "xfs"}
    environments = {
        node: described(cluster, cluster.user.home / f"{kind}.env", filesystem=kind)
        for node, kind in filesystems.items()
    }
    with pure_pxe(cluster):
        deploy_at_once(cluster, environments)
    return filesystems


def test_pure_pxe_takes_kernel_and_initrd_out_of_the_image_whatever_the_file_system(
    cluster: Cluster, by_network: dict[str, str]
) -> None:
    for node, filesystem in by_network.items():
        said = cluster.wait_ssh(node, command=f"{CMDLINE}; mount | grep ' on / '")
        assert "initrd=http://10.177.0.1/kernels/env-" in said  # the network loader's words
        assert "root=/dev/sda3" in said
        assert f"/dev/sda3 on / type {filesystem}" in said
        assert cluster.ssh(node, "ls /boot/grub").returncode != 0


# --- the user's own profile -------------------------------------------------------------------------------------------

PROFILE = """\
DEFAULT mine
LABEL mine
KERNEL http://10.177.0.1/kernels/pxe-USER--mykernel
APPEND initrd=http://10.177.0.1/kernels/pxe-USER--myinitrd root=/dev/sda3 mark=NODE_SINGULARITY
"""


def test_set_pxe_with_the_users_kernel_and_a_value_for_each_node(
    cluster: Cluster, by_network: dict[str, str], own_path: Path
) -> None:
    """Kareboot with ``set_pxe``, and use case 6 of Kadeploy: ``-w``, ``-x`` and ``--set-pxe-pattern``."""
    words = [word for node in by_network for word in ("-m", node)]
    tree = unpacked(cluster, own_path / "tree")
    fields = description(cluster)
    for path, name in ((fields["kernel"], "mykernel"), (fields["initrd"], "myinitrd")):
        shutil.copyfile(tree / path.lstrip("/"), own_path / name)
    (own_path / "profile").write_text(PROFILE.replace("USER", cluster.user.name))
    (own_path / "pattern").write_text("node-3,alpha\nnode-4,beta gamma=1\n")
    succeeds(
        cluster, "kareboot3", *words, "-r", "set_pxe", "-w", str(own_path / "profile"),
        "-x", f"{own_path / 'mykernel'},{own_path / 'myinitrd'}", "--set-pxe-pattern", str(own_path / "pattern"),
        *SECONDS[:2],
    )  # fmt: skip
    assert "mark=alpha" in cluster.wait_ssh("node-3", command=CMDLINE)
    assert "mark=beta gamma=1" in cluster.wait_ssh("node-4", command=CMDLINE)


# --- UEFI -------------------------------------------------------------------------------------------------------------

UEFI = "kadeploy-test-uefi"
SECTORS = {"node-1": "512", "node-2": "4096"}
"""Bytes of a sector of each UEFI machine's disk."""


@pytest.fixture(scope="module")
def uefi(cluster: Cluster, installation: Installation) -> Iterator[Cluster]:
    """A lab of two UEFI machines with different disks; those of the other lab are off meanwhile."""
    cluster.power_off_all()
    disks = ["--nodes", "2", "--big-sectors", "node-2"]
    with started(installation, UEFI, *disks, "--firmware", "uefi", "--environments", "tiny") as found:
        yield found


def test_uefi_machines_are_deployed_from_gpt_disks_whatever_their_sectors(uefi: Cluster) -> None:
    succeeds(uefi, "kadeploy3", "-m", "node-[1-2]", *request(uefi))
    for node, sector in SECTORS.items():
        said = uefi.wait_ssh(node, command=f"{CMDLINE}; mount | grep ' on / '; ls -d /sys/firmware/efi; {SECTOR}")
        assert "BOOT_IMAGE=" in said
        assert "/dev/sda3 on / type ext4" in said
        assert "/sys/firmware/efi" in said
        assert said.splitlines()[-1] == sector


def test_grub_fetches_no_modules_in_small_blocks_but_brings_them(uefi: Cluster) -> None:
    """After a boot of the deployment system and one from the disk."""
    fetched = uefi.lab.log("boot server").read_text()
    assert "/deploy-initrd" in fetched
    assert set(re.findall(r"\w+\.mod", fetched)) == set()


def test_a_uefi_machine_boots_from_xfs_and_btrfs_with_the_parameters_of_the_description(
    uefi: Cluster, own_path: Path
) -> None:
    """GRUB, from the network, reads both; BIOS has no place for a boot sector there."""
    filesystems = {"node-1": "xfs", "node-2": "btrfs"}
    params = 'probe="a b" plain="c" x={$y;}'
    environments = {
        node: described(uefi, own_path / f"{kind}.env", filesystem=kind, kernel_params=params)
        for node, kind in filesystems.items()
    }
    deploy_at_once(uefi, environments)
    for node, filesystem in filesystems.items():
        said = uefi.wait_ssh(node, command=f"{CMDLINE}; mount | grep ' on / '")
        assert f"/dev/sda3 on / type {filesystem}" in said
        assert said.splitlines()[0].endswith('"probe=a b" plain=c x={$y;}')


def test_a_uefi_machine_boots_by_pure_pxe_the_kernel_of_its_image(uefi: Cluster, own_path: Path) -> None:
    environment = described(uefi, own_path / "btrfs.env", filesystem="btrfs")
    with pure_pxe(uefi):
        deploy_at_once(uefi, {"node-1": environment})
    said = uefi.wait_ssh("node-1", command=f"{CMDLINE}; mount | grep ' on / '")
    assert "/kernels/env-" in said.splitlines()[0]  # the file that GRUB took from the boot server
    assert "/dev/sda3 on / type btrfs" in said
