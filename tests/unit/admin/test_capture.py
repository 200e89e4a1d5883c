"""A system is captured whole, without its identity; scripts run here for the node, on a tree of its own."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from kadeploy.admin import capture
from kadeploy.admin.capture import Facts, Reach, facts
from kadeploy.caller import caller
from kadeploy.environments import description
from kadeploy.errors import KadeployError

FSTAB = """\
# the system's
UUID=12-34 / ext4 defaults 0 1
/dev/sda5 /tmp ext4 defaults 0 2
LABEL=swap none swap sw 0 0
home:/export /home nfs defaults 0 0
tmpfs /scratch tmpfs size=1g 0 0
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    files = {
        "boot/vmlinuz-6.1.0-1-amd64": "older",
        "boot/vmlinuz-6.1.0-10-amd64": "kernel",
        "boot/initrd.img-6.1.0-1-amd64": "older",
        "boot/initrd.img-6.1.0-10-amd64": "initrd",
        "etc/os-release": f'PRETTY_NAME="Debian $(touch {tmp_path}/pwned) 12"\n',
        "etc/fstab": FSTAB,
        "etc/hostname": "gdx-1\n",
        "etc/machine-id": "0123456789abcdef\n",
        "etc/ssh/ssh_host_ed25519_key": "secret",
        "etc/ssh/sshd_config": "kept",
        "lib/systemd/systemd": "",
        "root/.ssh/id_ed25519": "secret",
        "root/.bash_history": "secret",
        "root/work.txt": "kept",
        "tmp/rubbish": "",
        "var/log/journal/x/system.journal": "",
        "var/log/syslog": "kept",
        "home/ada/.ssh/authorized_keys": "kept",
        "opt/a b/it's": "kept",
        "opt/left/out": "",
        ".cache/out": "",
        "cache/kept": "kept",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    os.link(root / "root/work.txt", root / "root/same.txt")
    (root / "sbin").symlink_to("usr/sbin")
    os.chown(root / "root/work.txt", 1234, 4321)
    (root / "root/work.txt").chmod(0o4751)
    os.setxattr(root / "root/work.txt", "user.kind", b"mine")
    return root


def reach(tree: Path) -> Reach:
    return Reach("gdx-1", ("sh", "-c"), str(tree))


@pytest.fixture
def unpacked(tree: Path, tmp_path: Path) -> Path:
    """What was captured of *tree*, without ``/opt/left`` and ``.cache``."""
    found = facts(reach(tree))
    made = capture.capture(reach(tree), found, "mine", 3, tmp_path, excluded=["/opt/left", ".cache"], author="ada")
    target = tmp_path / "unpacked"
    target.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--same-owner", "-p"]
    subprocess.run(["tar", "-xf", made.image, "-C", str(target), *options], check=True)
    return target


def test_what_a_system_is_is_asked_and_not_run(tree: Path, tmp_path: Path) -> None:
    found = facts(reach(tree))
    assert found.system == f"Debian $(touch {tmp_path}/pwned) 12"
    assert not (tmp_path / "pwned").exists()
    assert (found.kernel, found.initrd) == ("/boot/vmlinuz-6.1.0-10-amd64", "/boot/initrd.img-6.1.0-10-amd64")
    assert found.arch == os.uname().machine
    assert (found.has_systemd, found.makes_keys) == (True, False)
    assert found.fstab == tuple(FSTAB.splitlines())


def test_all_is_captured_with_owners_modes_links_and_attributes(unpacked: Path) -> None:
    work = unpacked / "root/work.txt"
    status = work.stat()
    assert (work.read_text(), status.st_mode & 0o7777, status.st_uid, status.st_gid) == ("kept", 0o4751, 1234, 4321)
    assert status.st_ino == (unpacked / "root/same.txt").stat().st_ino
    assert os.getxattr(work, "user.kind") == b"mine"
    assert (unpacked / "sbin").readlink() == Path("usr/sbin")
    assert (unpacked / "opt/a b/it's").read_text() == "kept"
    assert (unpacked / "home/ada/.ssh/authorized_keys").read_text() == "kept"
    assert (unpacked / "var/log/syslog").read_text() == "kept"


def test_no_identity_and_nobodys_secret_is_in_it(unpacked: Path) -> None:
    assert "secret" not in "".join(path.read_text() for path in unpacked.rglob("*") if path.is_file())
    assert (unpacked / "etc/machine-id").read_text() == ""
    assert (unpacked / "etc/hostname").read_text() == "localhost\n"
    assert list((unpacked / "tmp").iterdir()) == []
    assert list((unpacked / "var/log/journal").iterdir()) == []
    assert not (unpacked / "opt/left").exists()
    assert not (unpacked / ".cache").exists()
    assert (unpacked / "cache/kept").exists()
    assert not list(unpacked.rglob(".kadeploy*"))


def test_disks_of_the_node_leave_fstab_and_all_else_stays(unpacked: Path) -> None:
    kept = [line for line in FSTAB.splitlines() if line.startswith(("#", "home:", "tmpfs"))]
    assert (unpacked / "etc/fstab").read_text().splitlines() == kept


def test_a_system_that_would_have_no_host_key_is_given_the_unit_that_makes_one(unpacked: Path) -> None:
    unit = unpacked / "etc/systemd/system/ssh.service.wants/ssh-host-key.service"
    assert "ssh-keygen" in unit.read_text()


def test_one_that_makes_its_keys_is_left_alone(tree: Path) -> None:
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/cloud-init").touch()
    found = facts(reach(tree))
    assert found.makes_keys
    assert b"ssh-host-key" not in capture.replacements(found)


def test_the_description_can_be_recorded_as_it_is(tree: Path, tmp_path: Path) -> None:
    found = facts(reach(tree))
    made = capture.capture(reach(tree), found, "mine", 3, tmp_path, author="ada", description="a: test")
    (read,) = description.load(made.description, caller(), print)
    assert (read.name, read.version, read.author, read.description) == ("mine", 3, "ada", "a: test")
    assert read.image is not None
    assert (read.image.file, read.image.kind) == (str(tmp_path / "mine-3.tar.zst"), "tar.zst")
    assert (read.kernel, read.initrd, read.visibility) == (found.kernel, found.initrd, "private")
    assert made.image_bytes == (tmp_path / "mine-3.tar.zst").stat().st_size


def test_parameters_of_the_one_machine_are_left_out() -> None:
    line = "BOOT_IMAGE=/vmlinuz root=UUID=1 ro console=ttyS0 BOOTIF=01-52 kadeploy.attempt=x ip=dhcp quiet"
    script = f"#!/bin/sh\nprintf 'kernel=k\\ninitrd=i\\nparams=%s\\nend=here\\n' '{line}'\n"
    assert facts(Reach("gdx-1", ("sh", "-c", script))).params == "ro console=ttyS0 quiet"


def test_parameters_that_a_deployment_has_added_are_not_more_with_every_capture() -> None:
    cluster, captured = "console=ttyS0 quiet", "rw console=ttyS1 console=tty0"
    for _ in range(3):  # as `boot.profile` puts them together
        line = f"root=/dev/sda3 {cluster} {captured}"
        script = f"#!/bin/sh\nprintf 'kernel=k\\ninitrd=i\\nparams=%s\\nend=here\\n' '{line}'\n"
        captured = facts(Reach("gdx-1", ("sh", "-c", script))).params
    assert captured == "console=ttyS0 quiet rw console=ttyS1 console=tty0"


def test_what_a_node_tells_of_itself_moves_no_cursor() -> None:
    script = "#!/bin/sh\nprintf 'kernel=k\\ninitrd=i\\nmount=/data\\033[2J ext4\\nend=here\\n'\n"
    (place,) = facts(Reach("gdx-1", ("sh", "-c", script))).left_out
    assert place.isprintable()


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["boot"], r"gdx-1: its system has no kernel \(/boot/vmlinuz-…\)"),
        (["boot/initrd.img-6.1.0-10-amd64"], "gdx-1: its system has no initrd for its kernel in /boot"),
        (["."], "gdx-1: there is no system in .*/root/"),
    ],
)
def test_what_could_not_boot_is_refused_before_it_is_fetched(missing: list[str], said: str, tree: Path) -> None:
    for name in missing:
        subprocess.run(["rm", "-rf", str((tree / name).resolve())], check=True)
    with pytest.raises(KadeployError, match=said):
        facts(reach(tree))


def test_a_node_that_cannot_be_entered_says_why() -> None:
    with pytest.raises(KadeployError, match=r"gdx-1 cannot be entered: Permission denied \(publickey\)"):
        facts(Reach("gdx-1", ("sh", "-c", "echo 'Permission denied (publickey).' >&2; exit 255")))


def test_a_command_that_is_not_there_is_told() -> None:
    with pytest.raises(KadeployError, match="/nowhere/ssh cannot be started: No such file or directory"):
        facts(Reach("gdx-1", ("/nowhere/ssh",)))


def test_whoever_is_not_root_there_is_told(tree: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    other = Reach("gdx-1", ("setpriv", "--reuid=65534", "--clear-groups", "sh", "-c"), str(tree))
    with pytest.raises(
        KadeployError, match=r"gdx-1: the account nobody may not read everything there: enter .* as root"
    ):
        facts(other)


def test_nothing_is_left_when_the_node_breaks_off(tree: Path, tmp_path: Path) -> None:
    found = facts(reach(tree))
    broken = Reach("gdx-1", ("sh", "-c", "head -c 3000000 /dev/urandom; echo 'Connection reset' >&2; exit 255"))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(KadeployError, match="gdx-1 broke off: Connection reset"):
        capture.capture(broken, found, "mine", 1, folder)
    assert list(folder.iterdir()) == []


def test_nothing_is_left_when_the_disk_is_full(tree: Path, tmp_path: Path) -> None:
    found = facts(reach(tree))
    big = Reach("gdx-1", ("sh", "-c", "head -c 30000000 /dev/urandom"))
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        with pytest.raises(KadeployError, match="could not be written: is the disk full"):
            capture.capture(big, found, "mine", 1, folder)
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_progress_is_told(tree: Path, tmp_path: Path) -> None:
    told: list[int] = []
    capture.capture(reach(tree), facts(reach(tree)), "mine", 1, tmp_path, say=told.append)
    assert told == sorted(told)
    assert told[-1] > 10_000


def test_a_disk_is_mounted_to_be_read_and_released(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.ext4"
    subprocess.run(["truncate", "-s", "64M", str(image)], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image)], check=True)
    alone = ("unshare", "--mount", "sh", "-c")
    loop = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
    device = loop.stdout.strip()
    try:
        with capture.mounted("gdx-1", ("sh", "-c"), device) as found:
            known = facts(found)
            assert (known.kernel, known.filesystem) == ("/boot/vmlinuz-6.1.0-10-amd64", "ext4")
            assert "ro" in Path("/proc/mounts").read_text().split(f"{device} ")[1].split()[2].split(",")
        assert device not in Path("/proc/mounts").read_text()
        with (
            pytest.raises(KadeployError, match=r"gdx-1: /dev/nothing cannot be read: .*kareboot3 -m gdx-1"),
            capture.mounted("gdx-1", alone, "/dev/nothing"),
        ):
            pass
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_ctrl_c_ends_the_node_side_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    endless = Reach("gdx-1", ("sh", "-c", "cat /dev/zero"))
    folder = tmp_path / "out"
    folder.mkdir()

    def stop(come: int) -> None:
        if come > 3_000_000:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        capture.capture(endless, facts(reach(tree)), "mine", 1, folder, say=stop)
    assert list(folder.iterdir()) == []
    assert threading.active_count() == before


def test_file_systems_of_the_system_come_along_and_data_does_not() -> None:
    found = Facts("k", "i", "", "", "", "ext4", 0, False, True, mounts={"/boot": "ext4", "/tmp": "xfs", "/srv": "xfs"})
    assert (found.parts, found.left_out) == (["/boot"], ["/tmp", "/srv"])
