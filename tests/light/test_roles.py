"""The roles that work on disks do what they say on real block devices, and a failure is the failing node's alone."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy.config.installs import PostInstall
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.runner.request import CustomOperation, LocalArchive, LocalImage, NextBoot, Options
from kadeploy.workflow import Outcome, Verdict
from tests.light.conftest import DISK_PLAY, Cluster, all_ok, verdicts
from tests.unit.plays import write_role

FILES = {
    "boot/vmlinuz": b"a kernel",
    "boot/initrd.img": b"an initrd",
    "etc/hostname": b"deployed\n",
    "root/note": b"\0\1\2" * 5000,
}
COMPRESSORS = {"gz": ["gzip", "-c"], "bz2": ["bzip2", "-c"], "xz": ["xz", "-c"], "zst": ["zstd", "-qc"]}
NO_BOOTLOADER = Options(disable_bootloader_install=True)
TAR_KINDS = {"tgz": "gz", "tbz2": "bz2", "txz": "xz", "tar.zst": "zst"}
DD_KINDS = {"ddgz": "gz", "ddbz2": "bz2", "ddxz": "xz", "dd.zst": "zst"}


def archive(path: Path, files: dict[str, bytes], compressor: str) -> Path:
    """A compressed tar archive of *files*."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    done = subprocess.run(COMPRESSORS[compressor], input=plain.getvalue(), capture_output=True, check=True)
    path.write_bytes(done.stdout)
    return path


def partition_image(path: Path, files: dict[str, bytes], compressor: str) -> Path:
    """A compressed image of a small ext4 partition that holds *files*."""
    tree, raw = path.with_suffix(".tree"), path.with_suffix(".raw")
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(raw), "16M"], check=True)
    with path.open("wb") as compressed:
        subprocess.run([*COMPRESSORS[compressor], str(raw)], stdout=compressed, check=True)
    return path


def described(path: Path, kind: str, filesystem: str = "ext4") -> tuple[Environment, LocalImage]:
    """An environment, and its image as the controller serves it."""
    environment = Environment(
        name="test",
        image=Image(file=str(path), kind=kind),  # type: ignore[arg-type]
        kernel="/boot/vmlinuz",
        initrd="/boot/initrd.img",
        filesystem=filesystem,
    )
    content = path.read_bytes()
    return environment, LocalImage(path=str(path), size=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def tgz(tmp_path: Path) -> tuple[Environment, LocalImage]:
    """A small environment."""
    return described(archive(tmp_path / "image.tgz", FILES, "gz"), "tgz")


@pytest.fixture
def broken_node(light: Cluster) -> Iterator[str]:
    """A node that a test may spoil: it is booted anew afterwards."""
    yield "node-2"
    light.reset("node-2")


def only(node: str, outcomes: dict[str, Outcome], step: str, reason: str) -> None:
    """*node* alone is KO, for this reason in this micro-step."""
    expected = {name: Verdict.KO if name == node else Verdict.OK for name in outcomes}
    assert verdicts(outcomes) == expected
    assert f"-{step}: " in outcomes[node].message
    assert reason in outcomes[node].message


def holds(light: Cluster, files: dict[str, bytes]) -> None:
    """Every node has *files* on its deployment partition, which is mounted."""
    assert light.everywhere("findmnt -no SOURCE /mnt/dest") == {"/dev/sda3\n"}
    names = " ".join(f"/mnt/dest/{name}" for name in files)
    sums = "".join(f"{hashlib.sha256(text).hexdigest()}  /mnt/dest/{name}\n" for name, text in files.items())
    assert light.everywhere(f"sha256sum {names}") == {sums}


def prepared(light: Cluster, environment: Environment, **asked: object) -> None:
    assert all_ok(light.play(DISK_PLAY, environment=environment, options=NO_BOOTLOADER, **asked))


# --- images and file systems ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "filesystem"),
    [("tgz", "ext2"), ("tbz2", "ext3"), ("txz", "ext4"), ("tar.zst", "xfs"), ("tgz", "btrfs")],
)
def test_an_archive_of_each_kind_is_unpacked_on_each_file_system(
    light: Cluster, tmp_path: Path, kind: str, filesystem: str
) -> None:
    environment, image = described(archive(tmp_path / "image", FILES, TAR_KINDS[kind]), kind, filesystem)
    cluster = light.with_cluster(supported_filesystems=("ext2", "ext3", "ext4", "xfs", "btrfs"))
    prepared(light, environment, cluster=cluster)
    assert light.everywhere("blkid -o value -s TYPE /dev/sda3; blkid -o value -s TYPE /dev/sda1") == {
        f"{filesystem}\nswap\n"
    }
    outcomes = light.play(
        "BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER, cluster=cluster
    )
    assert all_ok(outcomes)
    holds(light, FILES)


@pytest.mark.parametrize("kind", DD_KINDS)
def test_an_image_of_each_kind_becomes_the_partition(light: Cluster, tmp_path: Path, kind: str) -> None:
    environment, image = described(partition_image(tmp_path / "image", FILES, DD_KINDS[kind]), kind)
    prepared(light, environment)
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER))
    holds(light, FILES)


def test_a_partition_is_formatted_as_vfat(light: Cluster, tgz: tuple[Environment, LocalImage]) -> None:
    """Mounting it is another matter: the deployment system mounts what its kernel supports."""
    environment = Environment(name="other", image=tgz[0].image, filesystem="vfat", environment_kind="other")
    prepared(light, environment, cluster=light.with_cluster(supported_filesystems=("ext4",)))
    assert light.everywhere("blkid -o value -s TYPE /dev/sda3") == {"vfat\n"}


def test_a_second_deployment_leaves_other_partitions_as_they_are(
    light: Cluster, tgz: tuple[Environment, LocalImage]
) -> None:
    prepared(light, tgz[0])
    script = "mkfs.ext4 -qF /dev/sda5; mount /dev/sda5 /rambin; echo precious > /rambin/file; umount /rambin"
    light.everywhere(script)
    prepared(light, tgz[0])
    assert light.everywhere("mount /dev/sda5 /rambin; cat /rambin/file; umount /rambin") == {"precious\n"}


def test_the_tmp_partition_is_formatted_when_asked(light: Cluster, tgz: tuple[Environment, LocalImage]) -> None:
    options = Options(disable_bootloader_install=True, reformat_tmp="ext2")
    assert all_ok(light.play(DISK_PLAY, environment=tgz[0], options=options))
    assert light.everywhere("blkid -o value -s TYPE /dev/sda5") == {"ext2\n"}


def test_a_gpt_layout_is_written(light: Cluster, tgz: tuple[Environment, LocalImage]) -> None:
    disk = light.configuration.clusters["lab"].disk
    gpt = light.with_cluster(disk=disk.__class__(device=disk.device, table="gpt", partitions=disk.partitions))
    try:
        prepared(light, tgz[0], cluster=gpt)
        assert light.everywhere("blkid -o value -s PTTYPE -p /dev/sda") == {"gpt\n"}
    finally:
        light.everywhere("umount -R /mnt/dest || true; wipefs -qaf /dev/sda")


def test_grub_lies_on_the_partition_and_names_the_kernel(light: Cluster, tgz: tuple[Environment, LocalImage]) -> None:
    environment, image = tgz
    prepared(light, environment)
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image))
    assert light.everywhere("od -An -tx1 -j510 -N2 /dev/sda3") == {" 55 aa\n"}
    assert light.everywhere(
        "test -s /mnt/dest/boot/grub/i386-pc/core.img; grep -c vmlinuz /mnt/dest/boot/grub/grub.cfg"
    )


def test_grub_finds_a_kernel_whose_name_has_blanks_with_parameters_in_quotes(light: Cluster, tmp_path: Path) -> None:
    files = FILES | {"boot/my kernel": b"a kernel"}
    environment, image = described(archive(tmp_path / "image", files, "gz"), "tgz")
    environment = msgspec.structs.replace(environment, kernel="/boot/my kernel", kernel_params='foo="a b" c={$d;}')
    prepared(light, environment)
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image))
    (text,) = light.everywhere("sed /^search/d /mnt/dest/boot/grub/grub.cfg")
    assert "  linux '/boot/my kernel' 'root=/dev/sda3' 'ro' 'console=ttyS0,115200' 'foo=a b' 'c={$d;}'\n" in text
    assert subprocess.run(["grub-script-check"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize(("filesystem", "reason"), [("btrfs", "btrfs"), ("xfs", "xfs")])
def test_where_grub_cannot_be_installed_its_own_reason_is_told(
    light: Cluster, tmp_path: Path, filesystem: str, reason: str
) -> None:
    environment, image = described(archive(tmp_path / "image", FILES, "gz"), "tgz", filesystem)
    prepared(light, environment)
    outcomes = light.play("BroadcastEnvChain", environment=environment, image=image)
    assert set(verdicts(outcomes).values()) == {Verdict.KO}
    assert all("grub-install: error: " in each.message and reason in each.message for each in outcomes.values())


def tree(path: Path, *members: tarfile.TarInfo) -> tuple[Environment, LocalImage]:
    """An environment with `FILES` and some links or attributes beside them."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member)
        for name, content in FILES.items():
            file = tarfile.TarInfo(name.replace("boot/", "usr/lib/boot/"))
            file.size = len(content)
            tar.addfile(file, io.BytesIO(content))
    path.write_bytes(subprocess.run(["gzip", "-c"], input=plain.getvalue(), capture_output=True, check=True).stdout)
    return described(path, "tgz")


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def test_boot_loader_files_stay_in_the_image_wherever_its_links_lead(light: Cluster, tmp_path: Path) -> None:
    links = [
        link("boot", "/usr/lib/boot"),
        link("usr/lib/boot/grub/grub.cfg", "/root/outside"),
        link("usr/lib/boot/grub/i386-pc", "/root/outside"),
    ]
    environment, image = tree(tmp_path / "image", *links)
    prepared(light, environment)
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image))
    inside = "/mnt/dest/usr/lib/boot/grub"
    assert light.everywhere(f"grep -c vmlinuz {inside}/grub.cfg; test -s {inside}/i386-pc/core.img") == {"1\n"}
    assert light.everywhere("ls -d /usr/lib/boot /root/outside 2>/dev/null || true") == {""}


def test_access_lists_and_labels_of_an_image_arrive(light: Cluster, tmp_path: Path) -> None:
    """As tar stores them with --acls and --selinux alone."""
    member = tarfile.TarInfo("etc/listed")
    member.pax_headers = {
        "SCHILY.acl.access": "user::rw-\nuser:1234:r--\ngroup::r--\nmask::r--\nother::---\n",
        "RHT.security.selinux": "system_u:object_r:etc_t:s0",
    }
    environment, image = tree(tmp_path / "image", member, link("boot", "usr/lib/boot"))
    prepared(light, environment)
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER))
    read = "import os; f = '/mnt/dest/etc/listed'; print({name: os.getxattr(f, name) for name in os.listxattr(f)})"
    (found,) = light.everywhere(f'python3 -c "{read}"')
    assert "system_u:object_r:etc_t:s0" in found
    assert "'system.posix_acl_access'" in found
    assert repr((1234).to_bytes(4, "little"))[2:-1] in found


# --- pre- and post-installs, custom operations ------------------------------------------------------------------------


def local(path: Path, files: dict[str, bytes], script: str) -> LocalArchive:
    return LocalArchive(path=str(archive(path, files, "gz")), kind="tgz", script=script)


def test_a_preinstall_runs_before_the_disk_is_cut(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    script = b'#!/bin/sh\necho "$1 $KADEPLOY_DEPLOY_PART $(basename $PWD)" > /tmp/preinstall\n'
    prepared(light, tgz[0], preinstall=local(tmp_path / "pre.tgz", {"run.sh": script}, "run.sh now"))
    assert light.everywhere("cat /tmp/preinstall") == {"now /dev/sda3 rambin\n"}


def test_postinstalls_run_on_the_deployed_files(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    environment, image = tgz
    script = b"#!/bin/sh\ncp $KADEPLOY_PREPOST_EXTRACTION_DIR/extra $KADEPLOY_ENV_EXTRACTION_DIR/etc/extra\n"
    admin = local(tmp_path / "admin.tgz", {"extra": b"from the site\n"}, "none")
    user = local(tmp_path / "user.tgz", {"go": script}, "./go")
    prepared(light, environment)
    outcomes = light.play(
        "BroadcastEnvChain",
        environment=environment,
        image=image,
        options=NO_BOOTLOADER,
        admin_postinstalls=(admin,),
        postinstalls=(user,),
    )
    assert all_ok(outcomes)
    assert light.everywhere("cat /mnt/dest/etc/extra") == {"from the site\n"}


def test_pre_and_post_installs_find_custom_variables_as_they_were_written(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    text = 'it\'s {{ x }} "q" $HOME `id` a,b é'
    environment = msgspec.structs.replace(tgz[0], custom_variables={"ROLE": "compute", "TEXT": text})
    script = b'#!/bin/sh\nprintf "%s\\n" "$1" "$KADEPLOY_ROLE" "$KADEPLOY_TEXT" > "$2"\n'
    pre = local(tmp_path / "pre.tgz", {"go": script}, "go 1,2 /tmp/custom-pre")
    post = local(tmp_path / "post.tgz", {"go": script}, "go 'a|b' /tmp/custom-post")
    prepared(light, environment, preinstall=pre)
    image = {"environment": environment, "image": tgz[1], "options": NO_BOOTLOADER}
    assert all_ok(light.play("BroadcastEnvChain", postinstalls=(post,), **image))
    assert light.everywhere("cat /tmp/custom-pre") == {f"1,2\ncompute\n{text}\n"}
    assert light.everywhere("cat /tmp/custom-post") == {f"a|b\ncompute\n{text}\n"}


def test_a_breakpoint_archive_is_unpacked_and_stops_the_nodes(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    pre = local(tmp_path / "pre.tgz", {"tool": b"for the user\n"}, "breakpoint")
    light.everywhere("umount -R /mnt/dest 2>/dev/null || true; rm -f /rambin/tool")
    outcomes = light.play(DISK_PLAY, environment=tgz[0], preinstall=pre)
    assert set(verdicts(outcomes).values()) == {Verdict.BRK}
    assert light.everywhere("cat /rambin/tool; mountpoint -q /mnt/dest || echo not mounted") == {
        "for the user\nnot mounted\n"
    }


def test_a_failing_preinstall_is_that_nodes_failure(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    script = b'#!/bin/sh\n[ "$(hostname)" = node-1 ] || { echo "no such card" >&2; exit 4; }\n'
    pre = local(tmp_path / "pre.tgz", {"run.sh": script}, "run.sh")
    outcomes = light.play(DISK_PLAY, environment=tgz[0], preinstall=pre)
    only("node-2", outcomes, "manage_admin_pre_install", "no such card")
    assert outcomes["node-2"].rc == 4


def test_a_postinstall_has_ended_though_a_daemon_of_its_holds_its_output(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    environment, image = tgz
    script = b"#!/bin/sh\nsleep 900 &\necho $! > /tmp/daemon\n"
    prepared(light, environment)
    began = time.monotonic()
    outcomes = light.play(
        "BroadcastEnvChain",
        environment=environment,
        image=image,
        options=NO_BOOTLOADER,
        postinstalls=(local(tmp_path / "post.tgz", {"run.sh": script}, "run.sh"),),
    )
    assert all_ok(outcomes)
    assert time.monotonic() - began < 60
    light.everywhere("kill $(cat /tmp/daemon)")


def test_a_script_with_the_line_ends_of_windows_is_told(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    pre = local(tmp_path / "pre.tgz", {"run.sh": b"#!/bin/sh\r\ntrue\r\n"}, "run.sh now")
    outcomes = light.play(DISK_PLAY, environment=tgz[0], preinstall=pre)
    assert set(verdicts(outcomes).values()) == {Verdict.KO}
    assert all("run.sh has the line ends of Windows" in outcome.message for outcome in outcomes.values())


def test_custom_operations_run_before_after_and_instead(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    sent, script = tmp_path / "sent", tmp_path / "script"
    sent.write_text("sent\n")
    script.write_text('#!/bin/sh\necho "ran $1" >> /tmp/custom\n')

    def operation(**fields: object) -> CustomOperation:
        return CustomOperation(implementation="SetDeploymentEnv", **fields)  # type: ignore[arg-type]

    operations = (
        operation(micro_step="create_partition_table", action="send", file=str(sent), destination="/tmp/custom"),
        operation(micro_step="format_deploy_part", action="run", file=str(script), params="'a b'", when="post"),
        operation(
            micro_step="format_swap_part", action="exec", command="echo instead >> /tmp/custom", when="substitute"
        ),
    )
    light.everywhere("rm -f /tmp/custom; swapoff -a; wipefs -qaf /dev/sda1 2>/dev/null || true")
    options = Options(disable_bootloader_install=True, custom_operations=operations)
    assert all_ok(light.play(DISK_PLAY, environment=tgz[0], options=options))
    assert light.everywhere("cat /tmp/custom") == {"sent\nran a b\ninstead\n"}
    assert light.everywhere("blkid /dev/sda1 -o value -s TYPE || echo nothing") == {"nothing\n"}


@contextmanager
def hooks(light: Cluster, tasks: dict[str, str]) -> Iterator[None]:
    """Tasks of the site, by ``MACRO/MICRO.WHEN.d/NAME``."""
    folder = light.lab.config / "hooks"
    try:
        for name, text in tasks.items():
            path = folder / f"{name}.yml"
            path.parent.mkdir(parents=True)
            path.write_text(text)
        yield
    finally:
        shutil.rmtree(folder)


def test_hooks_of_the_site_are_ordinary_tasks_of_each_node_that_goes_on(
    light: Cluster, broken_node: str, tgz: tuple[Environment, LocalImage]
) -> None:
    """By ssh, with Python on the node; a node that a micro-step has left behind takes no part."""
    tasks = {
        f"{DISK_PLAY}/create_partition_table.pre.d/begin": """
- ansible.builtin.copy: {content: "{{ inventory_hostname }}\\n", dest: /tmp/hooks, mode: '0600'}
""",
        f"{DISK_PLAY}/format_deploy_part.instead.d/own": """
- ansible.builtin.command: mkfs.ext4 -qF -L ours {{ kadeploy_env.KADEPLOY_DEPLOY_PART }}
""",
        "SetDeploymentEnv/mount_deploy_part.post.d/end": """
- ansible.builtin.lineinfile: {path: /tmp/hooks, line: "{{ kadeploy_env.KADEPLOY_ENV_EXTRACTION_DIR }}"}
""",
    }
    with hooks(light, tasks):
        assert all_ok(light.play(DISK_PLAY, environment=tgz[0], options=NO_BOOTLOADER))
        assert light.on("node-1", "cat /tmp/hooks") == "node-1\n/mnt/dest\n"
        assert light.everywhere("blkid -s LABEL -o value /dev/sda3") == {"ours\n"}

        light.everywhere("rm /tmp/hooks; umount /mnt/dest")
        light.on(broken_node, "rm -f /dev/sda*")
        outcomes = light.play(DISK_PLAY, environment=tgz[0], options=NO_BOOTLOADER)
        assert verdicts(outcomes)[broken_node] is Verdict.KO
        assert "-create_partition_table: " in outcomes[broken_node].message
        assert light.on(broken_node, "cat /tmp/hooks") == f"{broken_node}\n"
        assert light.on("node-1", "cat /tmp/hooks") == "node-1\n/mnt/dest\n"


def test_tasks_and_post_installs_run_in_the_new_system_before_it_is_booted_and_behind_its_boot(
    light: Cluster, tmp_path: Path, tgz: tuple[Environment, LocalImage]
) -> None:
    """Wherever the site mounts it. It has the programs of the deployment system here, and links of its own."""
    site = msgspec.structs.replace(light.configuration.site, extraction_dir="/mnt/new")
    borrowed = "for each in usr bin sbin lib lib64; do mkdir -p $each; mount --bind /$each $each; done"
    tasks = f"""
- ansible.builtin.raw: cd /mnt/new && mkdir -p proc sys dev tmp etc home/root && ln -s /home/root root && {borrowed}
- connection: new_root
  block:
    - ansible.builtin.copy: {{content: "{{{{ inventory_hostname }}}}", dest: /etc/team, mode: '0600'}}
    - ansible.builtin.command: cat /etc/team /proc/1/comm
      register: said
    - ansible.builtin.assert: {{that: "said.stdout.startswith(inventory_hostname)"}}
    - ansible.builtin.fetch: {{src: /etc/team, dest: '{light.folder}/fetched'}}
"""
    try:
        with hooks(light, {f"{DISK_PLAY}/mount_deploy_part.post.d/10": tasks}):
            assert all_ok(light.play(DISK_PLAY, environment=tgz[0], options=NO_BOOTLOADER, site=site))
        for node in light.nodes:
            assert light.on(node, "cat /mnt/new/etc/team") == node
            assert (light.folder / "fetched" / node / "etc" / "team").read_text() == node
        assert light.everywhere("grep -c ' /mnt/new/proc ' /proc/mounts || true") == {"0\n"}
        post_installs(light, tmp_path, tgz[0], site)
    finally:
        light.everywhere("umount -R /mnt/new")


def post_installs(light: Cluster, folder: Path, environment: Environment, site: Site) -> None:
    """A role of the cluster file, twice: in the new system, but not on a node whose archive has failed, and booted."""
    write_role(
        light.lab.config,
        "motd",
        """
- name: Greet
  ansible.builtin.copy: {content: "{{ motd }} {{ inventory_hostname }}", dest: /etc/motd, mode: '0644'}
""",
    )
    for name, roles in (("BroadcastEnvOwn", "manage_admin_post_install"), ("BootNewEnvOwn", "wait_reboot")):
        begin = f"- hosts: kadeploy_nodes\n  gather_facts: false\n  run_once: true\n  roles: [{roles}, finish]\n"
        (light.lab.config / "playbooks" / f"{name}.yml").write_text(begin)
    installs = (
        PostInstall(role="motd", vars={"motd": "new"}, facts=False),  # the Python here is not all of it
        PostInstall(role="motd", vars={"motd": "{{ kadeploy_env.KADEPLOY_ENV }}"}, where="booted", facts=False),
    )
    script = b'#!/bin/sh\n[ "$(hostname)" = node-1 ] || { echo "no such card" >&2; exit 4; }\n'
    asked: dict[str, Any] = {
        "environment": environment,
        "site": site,
        "cluster": light.with_cluster(post_installs=installs),
    }
    light.everywhere("rm -f /etc/motd")
    outcomes = light.play(
        "BroadcastEnvOwn", admin_postinstalls=(local(folder / "admin.tgz", {"go": script}, "go"),), **asked
    )
    only("node-2", outcomes, "manage_admin_post_install", "no such card")
    assert light.on("node-1", "cat /mnt/new/etc/motd") == "new node-1"
    assert light.everywhere("ls /etc/motd || echo nothing") == {"nothing\n"}
    assert light.on("node-2", "ls /mnt/new/etc/motd || echo nothing") == "nothing\n"

    boot = NextBoot(kind="deployed", target="any")
    assert all_ok(light.play("BootNewEnvOwn", boot=boot, **asked))
    for node in light.nodes:
        assert light.on(node, "cat /etc/motd") == f"test {node}"


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_missing_disk_is_named(light: Cluster, broken_node: str, tgz: tuple[Environment, LocalImage]) -> None:
    light.on(broken_node, "umount -R /mnt/dest 2>/dev/null || true; rm -f /dev/sda*")
    outcomes = light.play(DISK_PLAY, environment=tgz[0], options=NO_BOOTLOADER)
    only(broken_node, outcomes, "create_partition_table", "no disk /dev/sda on this node")


def test_a_failing_mkfs_says_why(light: Cluster, broken_node: str, tgz: tuple[Environment, LocalImage]) -> None:
    spoil = "rm /usr/sbin/mkfs.ext4; printf '#!/bin/sh\\necho \"bad block 7\" >&2; exit 1\\n' > /usr/sbin/mkfs.ext4"
    light.on(broken_node, f"{spoil}; chmod 755 /usr/sbin/mkfs.ext4")
    outcomes = light.play(DISK_PLAY, environment=tgz[0], options=NO_BOOTLOADER)
    only(broken_node, outcomes, "format_deploy_part", "bad block 7")


def test_a_disk_with_big_sectors_is_refused_under_bios_and_taken_where_it_boots(
    light: Cluster, broken_node: str, tgz: tuple[Environment, LocalImage]
) -> None:
    light.on(
        broken_node,
        "umount -R /mnt/dest 2>/dev/null || true; swapoff -a; wipefs -qaf /dev/sda; partx -d /dev/sda || true",
    )
    disk = light.device(broken_node)
    subprocess.run(["losetup", "--sector-size", "4096", disk], check=True)
    try:
        outcomes = light.play(DISK_PLAY, environment=tgz[0], options=NO_BOOTLOADER)
        only(broken_node, outcomes, "create_partition_table", "sectors have 4096 bytes: have cluster lab boot by UEFI")
        assert light.on(broken_node, "wipefs --noheadings /dev/sda") == ""
        loader = msgspec.structs.replace(light.configuration.clusters["lab"].loader, firmware="uefi", profiles="grub")
        prepared(light, tgz[0], cluster=light.with_cluster(loader=loader))
    finally:
        light.on(
            broken_node, "umount -R /mnt/dest 2>/dev/null || true; wipefs -qaf /dev/sda; partx -d /dev/sda || true"
        )
        subprocess.run(["losetup", "--sector-size", "512", disk], check=True)


def test_what_keeps_a_partition_from_being_mounted_is_told_and_not_where_to_look_for_more(
    light: Cluster, broken_node: str, tgz: tuple[Environment, LocalImage]
) -> None:
    spoil = "rm /usr/sbin/mkfs.ext4; printf '#!/bin/sh\\nmkswap $KADEPLOY_FORMAT_PART\\n' > /usr/sbin/mkfs.ext4"
    light.on(broken_node, f"{spoil}; chmod 755 /usr/sbin/mkfs.ext4")
    outcomes = light.play(DISK_PLAY, environment=tgz[0], options=NO_BOOTLOADER)
    only(broken_node, outcomes, "mount_deploy_part", "unknown filesystem type 'swap'")


def test_a_full_partition_is_that_nodes_failure(light: Cluster, broken_node: str, tmp_path: Path) -> None:
    files = FILES | {"big": bytes(4 << 20)}
    environment, image = described(archive(tmp_path / "image", files, "gz"), "tgz")
    prepared(light, environment)
    light.on(broken_node, "umount /mnt/dest; mount -t tmpfs -o size=1m small /mnt/dest")
    outcomes = light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER)
    only(broken_node, outcomes, "send_environment", "No space left on device: the image is bigger than the partition")


def test_a_kernel_that_the_image_lacks_is_named(light: Cluster, tmp_path: Path) -> None:
    environment, image = described(archive(tmp_path / "image", {"etc/hostname": b"x"}, "gz"), "tgz")
    prepared(light, environment)
    outcomes = light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER)
    assert set(verdicts(outcomes).values()) == {Verdict.KO}
    assert all("/boot/vmlinuz is not in the image" in outcome.message for outcome in outcomes.values())


def test_a_truncated_image_is_no_deployment(light: Cluster, tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole", FILES, "gz")
    whole.write_bytes(whole.read_bytes()[:-100])
    environment, image = described(whole, "tgz")
    prepared(light, environment)
    outcomes = light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER)
    assert set(verdicts(outcomes).values()) == {Verdict.KO}
    assert all("unexpected end of file" in outcome.message for outcome in outcomes.values())


def test_an_image_with_another_checksum_is_no_deployment(light: Cluster, tgz: tuple[Environment, LocalImage]) -> None:
    environment, image = tgz
    prepared(light, environment)
    wrong = LocalImage(path=image.path, size=image.size, sha256="0" * 64)
    outcomes = light.play("BroadcastEnvChain", environment=environment, image=wrong, options=NO_BOOTLOADER)
    assert set(verdicts(outcomes).values()) == {Verdict.KO}
    assert all("sha256" in outcome.message.lower() for outcome in outcomes.values())
