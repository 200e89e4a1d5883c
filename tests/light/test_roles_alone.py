"""Roles in somebody's play, without a request: their options are all that they need, and `changed` is true per host.

The lab's nodes are hosts of an estate here, whose Ansible knows the collection and nothing else of ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from kadeploy.config.folder import collection
from kadeploy.lab import bmc, network
from kadeploy.lab.light import profile
from tests.light.conftest import TOOLS, Cluster
from tests.light.test_roles import FILES, archive

LAYOUT = "label: gpt\nsize=512MiB, type=swap\nsize=1GiB, type=linux\ntype=linux\n"
DISK = """
- role: kadeploy.core.create_partition_table
  create_partition_table_device: /dev/sda
  create_partition_table_layout: "{{ layout }}"
- role: kadeploy.core.format_deploy_part
  format_deploy_part_device: /dev/sda2
  format_deploy_part_fstype: ext4
  format_deploy_part_options: -L estate
- role: kadeploy.core.format_tmp_part
  format_tmp_part_device: /dev/sda3
  format_tmp_part_fstype: ext4
  format_tmp_part_options: ""
- role: kadeploy.core.format_swap_part
  format_swap_part_device: /dev/sda1
- role: kadeploy.core.mount_deploy_part
  mount_deploy_part_device: /dev/sda2
  mount_deploy_part_folder: /mnt/estate
- role: kadeploy.core.send_key
  send_key_folder: /mnt/estate
  send_key_keys: ssh-ed25519 AAAA somebody
- role: kadeploy.core.install_bootloader
  install_bootloader_device: /dev/sda2
  install_bootloader_folder: /mnt/estate
  install_bootloader_firmware: uefi
  install_bootloader_menu: "linux /vmlinuz root=/dev/sda2\\n"
"""
FORMER = """
for part in /dev/sda[0-9]*; do
  [ -b $part ] || continue
  umount --all-targets --recursive $part 2>/dev/null || true
  ! grep -q "^$part " /proc/swaps || swapoff $part
  wipefs --quiet --all --force $part
done
partx -d /dev/sda || true
printf 'label: dos\\nsize=256MiB\\nsize=1GiB\\nsize=3GiB\\ntype=83\\n' | sfdisk --quiet --force --wipe always /dev/sda
partx -a /dev/sda || true
mkfs.ext4 -q -F /dev/sda3
mkdir -p /mnt/former
mount /dev/sda3 /mnt/former
"""
KEPT = "head -c 1M /dev/sda | sha256sum; blkid -s UUID -o value /dev/sda[123]; grep estate /proc/mounts"


@dataclass
class Estate:
    """A folder with an inventory."""

    light: Cluster
    folder: Path

    def play(self, roles: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a play of *roles* on all hosts."""
        play = {"hosts": "machines", "gather_facts": False, "roles": yaml.safe_load(roles), "vars": {"layout": LAYOUT}}
        (self.folder / "play.yml").write_text(yaml.safe_dump([play]))
        command = [str(TOOLS / "ansible-playbook"), "-i", "hosts.yml", "play.yml", *words]
        own = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE", "KADEPLOY"))}
        own |= {"ANSIBLE_COLLECTIONS_PATH": str(self.folder), "ANSIBLE_HOME": str(self.folder / "home")}
        words = network.inside(self.light.lab.name, command)
        return subprocess.run(
            words, cwd=self.folder, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )


@pytest.fixture
def estate(light: Cluster, tmp_path: Path) -> Estate:
    (tmp_path / "ansible_collections/kadeploy").mkdir(parents=True)
    (tmp_path / "ansible_collections/kadeploy/core").symlink_to(collection())
    hosts = {name: {"ansible_host": node.address, "bmc": node.bmc} for name, node in light.lab.members.items()}
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(light.lab.private_key),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
        "ansible_python_interpreter": "/usr/bin/python3",
        "bmc_user": bmc.USER,
        "bmc_password": light.lab.bmc_password.read_text().strip(),
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"machines": {"hosts": hosts, "vars": common}}))
    return Estate(light, tmp_path)


def changed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How many tasks have changed each host, as the recap says."""
    found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=0", done.stdout, re.M)
    assert len(found) == 2, done.stdout + done.stderr
    return {host: int(number) for host, number in found}


def test_disks_are_made_as_the_options_say_once_and_check_mode_tells_beforehand(estate: Estate) -> None:
    """Their disks had partitions in other places before."""
    light = estate.light
    light.everywhere(FORMER)
    before = light.everywhere("wipefs /dev/sda")
    looked = estate.play(DISK, "--check", "--diff", "--tags", "all")
    assert "+2: start=" in looked.stdout, looked.stdout + looked.stderr
    assert "-label: dos\n" in looked.stdout
    assert light.everywhere("wipefs /dev/sda") == before

    assert changed(estate.play(DISK)) == dict.fromkeys(light.nodes, 7)
    assert light.everywhere("blkid -s LABEL -o value /dev/sda2; blkid -s TYPE -o value /dev/sda1") == {"estate\nswap\n"}
    assert light.everywhere("tail -n 1 /mnt/estate/boot/grub/grub.cfg") == {"linux /vmlinuz root=/dev/sda2\n"}
    assert light.everywhere("cat /mnt/estate/root/.ssh/authorized_keys") == {"ssh-ed25519 AAAA somebody\n"}
    before = {node: light.on(node, KEPT) for node in light.nodes}
    assert changed(estate.play(DISK)) == dict.fromkeys(light.nodes, 0)
    assert {node: light.on(node, KEPT) for node in light.nodes} == before

    light.on("node-1", "wipefs -qa /dev/sda3; rm /mnt/estate/root/.ssh/authorized_keys")
    said = estate.play(DISK, "--check", "--diff")
    assert changed(said) == {"node-1": 2, "node-2": 0}
    assert "-/dev/sda3: no file system\n+/dev/sda3: ext4\n" in said.stdout
    assert "+ssh-ed25519 AAAA somebody\n" in said.stdout
    assert light.on("node-1", "wipefs /dev/sda3") == ""
    assert changed(estate.play(DISK)) == {"node-1": 2, "node-2": 0}
    assert changed(estate.play(DISK, "-e", "format_tmp_part_force=true")) == dict.fromkeys(light.nodes, 1)
    unmount = "- {role: kadeploy.core.umount_deploy_part, umount_deploy_part_folder: /mnt/estate}\n"
    assert changed(estate.play(unmount)) == dict.fromkeys(light.nodes, 1)
    assert changed(estate.play(unmount)) == dict.fromkeys(light.nodes, 0)


def test_a_host_that_is_otherwise_fails_alone_and_says_why(estate: Estate) -> None:
    estate.light.on("node-2", "mkdir -p /run/away; mv /dev/sda /run/away/")
    try:
        done = estate.play(DISK)
    finally:
        estate.light.on("node-2", "mv /run/away/sda /dev/")
    assert done.returncode != 0
    assert re.search(r"^node-1\s.*failed=0", done.stdout, re.M), done.stdout
    assert re.search(r"^node-2\s.*failed=1", done.stdout, re.M), done.stdout
    assert "no disk /dev/sda on this node" in done.stdout + done.stderr

    before = estate.light.everywhere("wipefs /dev/sda")
    (table, *_) = DISK.split("- role: kadeploy.core.format_deploy_part")
    big = estate.play(table, "-e", json.dumps({"layout": "label: gpt\nsize=1GiB\nsize=1TiB\ntype=linux\n"}))
    assert "/dev/loop" not in big.stdout
    assert "has 8192 MiB, and the partitions of the layout need 1049600" in big.stdout + big.stderr
    assert estate.light.everywhere("wipefs /dev/sda") == before


BOOT = """
- role: kadeploy.core.switch_pxe
  switch_pxe_boot: "{{ booted }}"
  switch_pxe_folder: "{{ tftp }}"
  switch_pxe_kernel: http://10.177.0.1/deploy-vmlinuz
  switch_pxe_initrd: http://10.177.0.1/deploy-initrd
  switch_pxe_params: console=ttyS0
  switch_pxe_device: /dev/sda2
"""
REBOOT = """
- role: kadeploy.core.reboot_from_deploy_env
- {role: kadeploy.core.wait_reboot, wait_reboot_target: deploy}
- {role: kadeploy.core.wait_reboot}
"""
SEND = """
- role: kadeploy.core.send_environment
  send_environment_image: "{{ image }}"
  send_environment_kind: tgz
  send_environment_folder: /mnt/estate
  send_environment_known_hosts: "{{ known_hosts }}"
"""


def test_machines_boot_by_roles_alone_from_a_profile_that_is_written_where_it_changes(estate: Estate) -> None:
    light = estate.light
    profiles = {node: profile.file(light.lab, light.lab.members[node]) for node in light.nodes}
    before = {node: path.read_text() for node, path in profiles.items()}
    options = ["-e", f"tftp={light.lab.tftp}"]
    try:
        disk = [*options, "-e", "booted=deployed"]
        looked = estate.play(BOOT, *disk, "--check", "--diff")
        assert changed(looked) == dict.fromkeys(light.nodes, 1)
        assert "+APPEND hd0 2" in re.sub(r"^([+-])\s+", r"\1", looked.stdout, flags=re.M)
        assert {node: path.read_text() for node, path in profiles.items()} == before
        profiles["node-2"].unlink()
        assert changed(estate.play(BOOT, *disk)) == dict.fromkeys(light.nodes, 1)
        assert changed(estate.play(BOOT, *disk)) == dict.fromkeys(light.nodes, 0)
        assert {profile.system(path.read_text()) for path in profiles.values()} == {"2"}

        boots = {node: light.on(node, "cut -d' ' -f22 /proc/1/stat") for node in light.nodes}
        done = estate.play(BOOT + REBOOT, *options, "-e", "booted=deploy")
        assert changed(done) == dict.fromkeys(light.nodes, 2)
        assert {node for node in light.nodes if light.on(node, "cut -d' ' -f22 /proc/1/stat") == boots[node]} == set()
        stale = estate.play(REBOOT.splitlines()[-1] + "\n", "-e", "wait_reboot_timeout=3")
        assert stale.returncode != 0
        assert "Not rebooted: it still runs the system from before the reboot" in stale.stdout, stale.stdout
    finally:
        for node, path in profiles.items():
            path.write_text(before[node])


def test_an_image_goes_from_host_to_host_and_one_that_does_not_get_it_fails_alone(
    estate: Estate, tmp_path: Path
) -> None:
    light = estate.light
    light.everywhere("umount -R /mnt/estate 2>/dev/null || true; mkdir -p /mnt/estate")
    key = light.configuration.site.ssh.host_key.split()[:2]
    known = [" ".join([node.address, *key]) for node in light.lab.members.values()]
    (tmp_path / "known_hosts").write_text("\n".join(known))
    image = archive(tmp_path / "image.tgz", FILES, "gz")
    options = ["-e", f"image={image}", "-e", f"known_hosts={tmp_path / 'known_hosts'}"]
    assert changed(estate.play(SEND, *options, "--check")) == dict.fromkeys(light.nodes, 1)
    light.on("node-2", "rmdir /mnt/estate")
    done = estate.play(SEND, *options)
    assert done.returncode != 0
    assert re.search(r"^node-1\s.*changed=1\s.*failed=0", done.stdout, re.M), done.stdout
    assert re.search(r"^node-2\s.*failed=1", done.stdout, re.M), done.stdout
    assert "/mnt/estate" in done.stdout
    assert light.on("node-1", "cat /mnt/estate/etc/hostname") == FILES["etc/hostname"].decode()

    light.on("node-2", "mkdir /mnt/estate")
    (tmp_path / "known_hosts").write_text(f"{known[1]}\n")
    done = estate.play(SEND, *options)
    assert re.search(r"^node-2\s.*changed=1\s.*failed=0", done.stdout, re.M), done.stdout
    assert "node-1 (10.177.1.1:22): its host key is not the known one" in done.stdout
    assert "site.yml" not in done.stdout
    other = estate.play(SEND, *options, "-e", f"send_environment_sha256={'0' * 64}")
    assert "its SHA-256 is" in other.stdout + other.stderr


def test_what_is_missing_is_named(estate: Estate) -> None:
    missing = estate.play("- {role: kadeploy.core.format_swap_part}\n")
    assert missing.returncode != 0
    assert "missing required arguments: format_swap_part_device" in missing.stdout, missing.stdout
    alone = estate.play("- {role: kadeploy.core.set_vlan}\n")
    assert "missing required arguments: kadeploy_request_file" in alone.stdout, alone.stdout
    at_once = "- {role: kadeploy.core.format_swap_part, format_swap_part_device: /dev/sda1, run_once: true}\n"
    refused = estate.play(at_once)
    assert "leave run_once out" in refused.stdout + refused.stderr
