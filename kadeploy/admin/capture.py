"""A node's system as a new environment: fetched over ssh while it runs, or from its disk, without its identity.

What is there is asked first, then packed by GNU tar on the node with all attributes, and compressed here. What makes a
machine this one machine stays behind: host keys, machine id, leases, random seed, root's keys. In their places come
files with which the system finds an identity of its own at its first boot.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
import yaml

from kadeploy.errors import KadeployError
from kadeploy.files import replace_file, replacing
from kadeploy.images.store import HERE
from kadeploy.printable import printable

IDENTITY = (
    *("etc/ssh/ssh_host_*", "etc/dropbear/*host_key", "etc/machine-id", "var/lib/dbus/machine-id"),
    *("etc/fstab", "etc/hostname", "etc/iscsi/initiatorname.iscsi", "etc/nvme/hostid", "etc/nvme/hostnqn"),
    *("etc/udev/rules.d/70-persistent-net.rules", "etc/NetworkManager/system-connections/*"),
    *("var/lib/dhcp/*", "var/lib/dhclient/*", "var/lib/NetworkManager/*", "var/lib/systemd/random-seed"),
    *("var/lib/systemd/credential.secret", "var/lib/cloud/instance*", "var/lib/cloud/data/*"),
    *("root/.ssh", "root/.bash_history", "root/.viminfo", "root/.lesshst"),
)
"""Files by which a machine, or who has worked on it, could be told or entered."""
OF_NO_USE = (
    *("tmp/*", "var/tmp/*", "var/cache/apt/archives/*.deb", "var/cache/dnf/*", "var/log/journal/*", "lost+found"),
    *("swapfile", "swap.img"),
)
PARTS = ("/boot", "/boot/efi", "/usr", "/var", "/opt")
"""File systems besides the root that belong to a system; others hold data of people."""
_OWN_PARAMETERS = re.compile(r"(root|BOOT_IMAGE|initrd|BOOTIF|ip|hostname|nfsroot|kadeploy\.\w+)=.*")
_PARAMETER = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
"""As the kernel splits them: spaces between quotation marks are part of one."""
_LOCAL = re.compile(r"(/dev/|UUID=|PARTUUID=|LABEL=|PARTLABEL=)")
_UNIT = "etc/systemd/system/ssh-host-key.service"
_PIECE = 1 << 20
_SHOWN = 5
"""Lines of what a node says that are told."""


@dataclass(frozen=True)
class Facts:
    """What a node says of a system."""

    kernel: str
    initrd: str
    params: str
    arch: str
    system: str
    """Its name for people."""
    filesystem: str
    size: int
    """Bytes that its root takes."""
    makes_keys: bool
    """Whether it makes host keys by itself where there are none."""
    has_systemd: bool
    fstab: tuple[str, ...] = ()
    mounts: dict[str, str] = field(default_factory=dict)
    """Kind of each file system of a disk besides the root, by its place."""

    @property
    def parts(self) -> list[str]:
        """Those that are captured."""
        return [place for place in PARTS if place in self.mounts]

    @property
    def left_out(self) -> list[str]:
        """Those that are not."""
        return [place for place in self.mounts if place not in PARTS]


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """An environment that has been made."""

    name: str
    version: int
    image: str
    image_bytes: int
    description: str
    """File that ``kaenv3 -a`` reads."""
    system: str
    left_out: tuple[str, ...]
    """File systems of the node that are not in it."""


@dataclass(frozen=True)
class Reach:
    """How a node is entered."""

    node: str
    """As it is told in messages."""
    command: tuple[str, ...]
    """ssh, its options, and where to."""
    root: str = ""
    """Where the system is there, without a slash at the end; empty: it is the one that runs."""

    def run(self, script: str, **variables: str) -> list[str]:
        """The command that runs a script of ours there."""
        text = (HERE / "files" / "capture" / script).read_text()
        given = "".join(f"{name}={shlex.quote(value)}\n" for name, value in {"root": self.root, **variables}.items())
        return [*self.command, f"sh -c {shlex.quote(given + text)}"]


@contextlib.contextmanager
def mounted(node: str, command: tuple[str, ...], partition: str) -> Iterator[Reach]:
    """The system on *partition* of a node that *command* enters, mounted to be read while it is needed.

    Raises:
        KadeployError: the node cannot be entered, or the partition not be mounted.
    """
    place = "/run/kadeploy-capture-root"
    mount = f"mkdir -p {place} && mount -o ro {shlex.quote(partition)} {place}"
    done = subprocess.run([*command, mount], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise KadeployError(
            f"{node}: {partition} cannot be read: {_said(done.stderr)} The node has to be in the deployment system: "
            f"kareboot3 -m {node} -r deploy_env."
        )
    try:
        yield Reach(node, command, place)
    finally:
        subprocess.run([*command, f"umount {place}"], stdin=subprocess.DEVNULL, capture_output=True, check=False)


# --- asking ---------------------------------------------------------------------------------------------------------


def facts(reach: Reach) -> Facts:
    """What there is to be captured.

    Raises:
        KadeployError: the node cannot be entered, or there is nothing that could be deployed again.
    """
    try:
        done = subprocess.run(reach.run("facts"), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise KadeployError(f"{reach.command[0]} cannot be started: {error.strerror}.") from error
    told = [line.split("=", 1) for line in done.stdout.decode(errors="replace").splitlines() if "=" in line]
    known = {key: printable(value) for key, value in told}
    if "refused" in known:
        raise KadeployError(f"{reach.node}: {known['refused']}.")
    if "end" not in known:
        raise KadeployError(f"{reach.node} cannot be entered: {_said(done.stderr)}")
    if "kernel" not in known or "initrd" not in known:
        missing = "kernel (/boot/vmlinuz-…)" if "kernel" not in known else "initrd for its kernel in /boot"
        raise KadeployError(f"{reach.node}: its system has no {missing}, and could not boot as an environment.")
    return Facts(
        kernel=known["kernel"],
        initrd=known["initrd"],
        params=_lasting(known.get("params", "")),
        arch=known.get("arch", ""),
        system=known.get("system", ""),
        filesystem=known.get("filesystem", "ext4"),
        size=int(known.get("bytes", "0")) if known.get("bytes", "").isdecimal() else 0,
        makes_keys="keys" in known,
        has_systemd="init" in known,
        fstab=tuple(value for key, value in told if key == "fstab"),
        mounts=dict(_pair(printable(value)) for key, value in told if key == "mount"),
    )


def _lasting(params: str) -> str:
    """Kernel parameters without what each deployment says anew, and each once, in its last place.

    The cluster's own ones are added at each deployment: else they would be more with every capture.

    >>> _lasting('root=/dev/sda3 quiet console=ttyS0 quiet console=tty0 dyndbg="file a.c +p"')
    'console=ttyS0 quiet console=tty0 dyndbg="file a.c +p"'
    """
    words = [word for word in _PARAMETER.findall(params) if not _OWN_PARAMETERS.fullmatch(word)]
    return " ".join(reversed(dict.fromkeys(reversed(words))))


def _pair(mount: str) -> tuple[str, str]:
    place, _, kind = mount.rpartition(" ")
    return place, kind


def _said(stderr: bytes) -> str:
    lines = [printable(line) for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return " ".join(" ".join(lines[-_SHOWN:]).split()) or "ssh does not say why."


# --- packing --------------------------------------------------------------------------------------------------------


def capture(
    reach: Reach,
    found: Facts,
    name: str,
    version: int,
    folder: Path,
    *,
    excluded: Sequence[str] = (),
    description: str = "",
    author: str = "",
    say: Callable[[int], object] = lambda _: None,
) -> Captured:
    """Make the image and its description in *folder*; *say* hears how many bytes have come.

    *excluded* are patterns of paths that stay behind as well. Nothing is left when it fails.

    Raises:
        KadeployError: the node fails on the way, or the disk here is full.
    """
    image = folder / f"{name}-{version}.tar.zst"
    if not os.access(folder, os.W_OK):
        raise KadeployError(f"{folder} cannot be written to: name another folder with --output.")
    with replacing(image, 0o644 & ~_mask()) as target:
        _fetch(reach, found, target, excluded, say)
    path = folder / f"{name}-{version}.dsc"
    document = {
        "name": name,
        "version": version,
        "description": description or f"{found.system or 'a system'}, captured from {reach.node}",
        "author": author,
        "arch": found.arch,
        "visibility": "private",
        "os": "linux",
        "image": {"file": str(image.resolve()), "kind": "tar", "compression": "zstd"},
        "boot": {"kernel": found.kernel, "initrd": found.initrd, "kernel_params": found.params},
        "filesystem": found.filesystem,
        "partition_type": 0x83,
    }
    replace_file(path, yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode(), 0o644 & ~_mask())
    return Captured(
        name=name,
        version=version,
        image=str(image),
        image_bytes=image.stat().st_size,
        description=str(path),
        system=found.system,
        left_out=tuple(found.left_out),
    )


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _fetch(reach: Reach, found: Facts, target: BinaryIO, excluded: Sequence[str], say: Callable[[int], object]) -> None:
    own = (path.removeprefix("./").lstrip("/") for path in excluded)
    patterns = [f"./{path}" for path in (*IDENTITY, *OF_NO_USE, *own)]
    others = " ".join(f".{place}" for place in found.parts)
    command = reach.run("pack", others=others, excluded="\n".join(patterns))
    with tempfile.TemporaryFile() as errors:
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as node,
            subprocess.Popen(["zstd", "-q", "-T0", "-9"], stdin=subprocess.PIPE, stdout=target) as packer,
        ):
            try:
                with contextlib.suppress(BrokenPipeError):  # the exit status tells
                    assert node.stdin is not None  # noqa: S101 - asked for above
                    with node.stdin as stream:
                        stream.write(replacements(found))
                _pass_on(node, packer, say)
            except BaseException:
                node.kill()
                packer.kill()
                raise
        errors.seek(0)
        said = _said(errors.read())
    if packer.returncode:
        raise KadeployError("The image could not be written: is the disk full?")
    if node.returncode:
        raise KadeployError(f"{reach.node} broke off: {said}")


def _pass_on(node: subprocess.Popen[bytes], packer: subprocess.Popen[bytes], say: Callable[[int], object]) -> None:
    assert node.stdout is not None and packer.stdin is not None  # noqa: S101, PT018 - asked for above
    come = 0
    with contextlib.suppress(BrokenPipeError), packer.stdin as into:
        while piece := node.stdout.read1(_PIECE):  # type: ignore[attr-defined]
            into.write(piece)
            come += len(piece)
            say(come)


def replacements(found: Facts) -> bytes:
    """An archive of what comes in the place of the identity."""
    files = {
        "etc/machine-id": "",  # empty, not absent: systemd then makes one, and no first installation of it
        "etc/hostname": "localhost\n",
        "etc/fstab": "".join(f"{line}\n" for line in found.fstab if not _is_local(line)),
    }
    links: dict[str, str] = {}
    if found.has_systemd and not found.makes_keys:
        files[_UNIT] = (HERE / "files" / "debian" / "ssh-host-key.service").read_text()
        for service in ("ssh.service", "sshd.service"):
            links[f"etc/systemd/system/{service}.wants/ssh-host-key.service"] = "../ssh-host-key.service"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
        for name, there in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, there
            archive.addfile(member)
    return stream.getvalue()


def _is_local(line: str) -> bool:
    """Whether a line of fstab is about a disk of this machine, which no other one has."""
    words = line.split()
    return bool(words) and (bool(_LOCAL.match(words[0])) or words[2:3] == ["swap"])
