"""Machines boot in every way that ``kadeploy-site dhcp`` answers, up to a kernel that runs its first program.

What is real: the firmware (SeaBIOS with a card's ROM, and OVMF), Debian's DHCP servers with the lines that the tool
prints, the loaders that it installs, the profiles that operations write, our boot server, a kernel of Debian. The
program that runs in the end is a few lines of shell in place of the deployment system, which others test.
OVMF's PXE and HTTP boot are TianoCore's own, as vendors have them. Under BIOS Debian has no ROM but iPXE: that one is
kept from saying so (see `PlainRom`), and is otherwise as it is.

Each DHCP server has a network of its own, and all nodes are in one site: a cluster for each way.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from kadeploy.boot import profile
from kadeploy.boot.profile import Sources
from kadeploy.config.folder import load_configuration
from kadeploy.images import build_deployment_system
from kadeploy.images.archive import pack_initrd
from kadeploy.images.deployment import make_key
from kadeploy.lab.lab import CACHE
from kadeploy.lab.machine import DIE_WITH_PARENT, EMULATED_CPU, OVMF_CODE, OVMF_VARS
from tests.dhcp_network import CONTROLLER, DAEMONS, PROXY_LINES, ROUTER_LINES, fed, ip, running, tool
from tests.vm.plain_rom import PlainRom

PATIENCE = 240.0
"""Seconds for a boot, of which one takes ten to twenty on a quiet machine."""
AT_A_TIME = 3
"""Machines that are on: half the time an emulated one waits for answers, else it fills a processor."""
ROUTER = "10.99.0.254"
KERNEL, INITRD = "deploy-vmlinuz", "deploy-initrd"

SITE = f"""\
name: paris
state_dir: {{folder}}/state
server_address: {CONTROLLER}
ssh:
  private_key: {{folder}}/key
  host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf
boot: {{{{tftp_root: "{{folder}}/tftp", http_root: "{{folder}}/http", http_url: "http://{CONTROLLER}/"}}}}
"""
CLUSTER = """\
nodes: [{{name: "{name}.site", address: {address}, mac: "{mac}"}}]
disk: {{device: /dev/sda, partitions: [{{number: 1, size: 4GiB, role: deploy}}]}}
loader: {{firmware: {firmware}, profiles: {profiles}, params: "console=ttyS0,115200 panic=-1 way={name}"}}
"""
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
efi=no
[ -d /sys/firmware/efi ] && efi=yes
for word in $(/bin/busybox cat /proc/cmdline); do
  case $word in way=*) echo "runs: $word efi=$efi" > /dev/ttyS0 ;; esac
done
/bin/busybox poweroff -f
"""
"""What runs in the end; it says by which profile it came, and by which firmware."""


class Way(NamedTuple):
    """How a node boots."""

    rank: int
    server: str
    """Who answers DHCP: a key of `DAEMONS`, or ``proxy``."""
    firmware: str
    profiles: str
    fetched: list[str]
    """What it asks the boot server for, in this order, among other things; ``{address}`` is the node's."""
    by_http: bool = False
    """Whether its firmware boots by HTTP alone."""

    @property
    def mac(self) -> str:
        return f"52:54:00:00:00:{self.rank:02x}"

    @property
    def address(self) -> str:
        return f"10.99.1.{self.rank}"


_BY_HTTP = [f"http GET /{KERNEL} 200", f"http GET /{INITRD} 200"]
_GRUB = "grub/x86_64-efi/core.efi"
WAYS = {
    "rom-isc": Way(
        *(1, "isc", "bios", "pxelinux"),
        ["tftp undionly.kpxe sent", "tftp pxelinux.0 sent", "tftp pxelinux.cfg/0A630101 sent", *_BY_HTTP],
    ),
    "rom-proxy": Way(
        *(2, "proxy", "bios", "ipxe"),
        ["tftp undionly.kpxe sent", "tftp ipxe/10.99.1.2.ipxe sent", *_BY_HTTP],
    ),
    "ipxe-kea": Way(*(3, "kea", "uefi", "ipxe"), ["tftp snponly.efi sent", "tftp ipxe/10.99.1.3.ipxe sent", *_BY_HTTP]),
    "grub-proxy": Way(
        *(4, "proxy", "uefi", "grub"), [f"tftp {_GRUB} sent", "tftp grub/grub.cfg-0A630104 sent", *_BY_HTTP]
    ),
    "grub-http": Way(
        *(5, "dnsmasq", "uefi", "grub"),
        [f"http GET /{_GRUB} 200", "tftp grub/grub.cfg-0A630105 sent", *_BY_HTTP],
        by_http=True,
    ),
}


# --- a site -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a cluster for each way, its loaders, and the profiles by which nodes boot to be deployed."""
    made = tmp_path_factory.mktemp("ways")
    for name in ("clusters", "tftp", "http"):
        (made / name).mkdir()
    (made / "site.yml").write_text(SITE.format(folder=made))
    for name, way in WAYS.items():
        text = CLUSTER.format(name=name, address=way.address, mac=way.mac, **way._asdict())
        (made / "clusters" / f"{name}.yml").write_text(text)
    tool(made, "loaders")
    key = make_key(CACHE / "id_ed25519", "kadeploy-lab").with_name("id_ed25519.pub").read_text()
    shutil.copyfile(build_deployment_system(CACHE, key).kernel, made / "http" / KERNEL)
    system(made / "http" / INITRD)
    configuration = load_configuration(made)
    for name in WAYS:
        cluster = configuration.clusters[name]
        sources = Sources(
            site=configuration.site, cluster=cluster, config_dir=made, user="root", device="/dev/sda", partition=1
        )
        profile.write(sources, "deploy", list(cluster.members.values()))
    return made


def system(initrd: Path) -> None:
    """An initrd that says on the serial line that it runs, and switches the machine off."""
    tree = initrd.with_name("tree")
    for name in ("bin", "dev", "proc", "sys"):
        (tree / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", tree / "bin" / "busybox")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    os.mknod(tree / "dev" / "console", 0o600 | 0o020000, os.makedev(5, 1))
    os.mknod(tree / "dev" / "ttyS0", 0o600 | 0o020000, os.makedev(4, 64))
    pack_initrd(tree, initrd, level=1)
    shutil.rmtree(tree)


# --- networks ---------------------------------------------------------------------------------------------------


@contextmanager
def network(name: str, folder: Path, place: Path) -> Iterator[str]:
    """A network whose DHCP server is *name*, with our boot server; the namespace in which both are."""
    place.mkdir()
    where = f"kad{os.getpid()}-{name}"
    members = {key: way for key, way in WAYS.items() if way.server == name}
    with ExitStack() as stack:
        ip("netns", "add", where)
        stack.callback(ip, "netns", "del", where)
        ip("-n", where, "link", "set", "lo", "up")
        ip("-n", where, "link", "add", "eth0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        ip("-n", where, "addr", "add", f"{CONTROLLER}/16", "dev", "eth0")
        ip("-n", where, "link", "set", "eth0", "up")
        ip("-n", where, "link", "add", "idle0", "type", "veth", "peer", "name", "idle1")
        for port in ("idle0", "idle1"):  # a bridge whose machines are off has no carrier, and Kea would not listen
            ip("-n", where, "link", "set", port, "up")
        ip("-n", where, "link", "set", "idle0", "master", "eth0")
        for way in members.values():
            ip("-n", where, "tuntap", "add", "dev", f"tap{way.rank}", "mode", "tap")
            ip("-n", where, "link", "set", f"tap{way.rank}", "master", "eth0", "up")
        clusters = [word for key in members for word in ("--cluster", key)]
        if name == "proxy":
            stack.enter_context(beside_a_router(where, folder, place, clusters))
        else:
            lines = tool(folder, "dhcp", "--server", name, *clusters)
            program, main, variables = fed(name, folder, lines, place)
            stack.enter_context(running(where, 67, DAEMONS[name].run(program, main), place / "dhcp.log", **variables))
        command = [sys.executable, "-m", "kadeploy.boot.server", "--address", CONTROLLER]
        command += ["--tftp-root", str(folder / "tftp"), "--http-root", str(folder / "http")]
        stack.enter_context(running(where, 69, command, place / "boot.log"))
        yield where


@contextmanager
def beside_a_router(where: str, folder: Path, place: Path, clusters: list[str]) -> Iterator[None]:
    """A DHCP server of somebody else's, which knows addresses alone, and dnsmasq beside it with the boot files."""
    router = f"{where}-router"
    with ExitStack() as stack:
        ip("netns", "add", router)
        stack.callback(ip, "netns", "del", router)
        ip("-n", where, "link", "add", "port", "type", "veth", "peer", "name", "eth0", "netns", router)
        ip("-n", where, "link", "set", "port", "master", "eth0", "up")
        ip("-n", router, "addr", "add", f"{ROUTER}/16", "dev", "eth0")
        ip("-n", router, "link", "set", "eth0", "up")
        known = "".join(f"dhcp-host={way.mac},{way.address}\n" for way in WAYS.values())
        (place / "router.conf").write_text(ROUTER_LINES + known)
        lines = tool(folder, "dhcp", "--server", "dnsmasq", "--proxy", *clusters)
        program, main, _ = fed("dnsmasq", folder, lines, place)
        main.write_text(f"{PROXY_LINES}conf-file={place / 'kadeploy.conf'}\n")
        run = DAEMONS["dnsmasq"].run
        stack.enter_context(running(router, 67, run(program, place / "router.conf"), place / "router.log"))
        stack.enter_context(running(where, 4011, run(program, main), place / "dhcp.log"))
        yield


# --- machines ---------------------------------------------------------------------------------------------------


class Boot(NamedTuple):
    """What became of a machine that was switched on."""

    serial: str
    """What it wrote to its serial line."""
    fetched: list[str]
    """What it asked the boot server for, as `Way.fetched` has it."""
    classes: list[str]
    """The user class of each of its DHCP requests; seen where its ROM is a plain one."""


def booted(name: str, where: str, place: Path) -> Boot:
    """Switch a machine on, and wait until it has switched itself off."""
    way, serial = WAYS[name], place / f"{name}.serial"
    rom = PlainRom(where, f"tap{way.rank}", 20000 + 2 * way.rank) if way.firmware == "bios" else nullcontext()
    with rom as card:
        net = card.netdev if card else f"tap,id=net,ifname=tap{way.rank},script=no,downscript=no"
        command = [*("ip", "netns", "exec", where), *DIE_WITH_PARENT, *machine(way, net, serial, place)]
        with (place / f"{name}.qemu").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            limit = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < limit:
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    log_lines = (place / "boot.log").read_text(errors="replace").splitlines()
    said = serial.read_text(errors="replace") if serial.exists() else (place / f"{name}.qemu").read_text()
    return Boot(said, [_told(line) for line in log_lines if f" {way.address} " in line], card.asked if card else [])


def _told(line: str) -> str:
    """A line of the boot server's log without addresses: ``tftp pxelinux.0 sent``, ``http GET /kernel 200``."""
    if found := re.search(r"http: \S+ \"(\w+ \S+) HTTP/1\.\d\" (\d+)", line):
        return f"http {found[1]} {found[2]}"
    found = re.search(r"tftp: \S+ '/?([^']*)' (.*)", line)
    return f"tftp {found[1]} {found[2]}" if found else line


def machine(way: Way, net: str, serial: Path, place: Path) -> list[str]:
    """QEMU's command line. Under BIOS the card has QEMU's ROM; under UEFI it has none, and OVMF drives it."""
    words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU, "-smp", "1", "-m", "512"]
    words += ["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{serial}"]
    words += ["-netdev", net, "-object", "rng-random,id=random,filename=/dev/urandom"]
    words += ["-device", "virtio-rng-pci,rng=random"]
    card = f"virtio-net-pci,netdev=net,mac={way.mac},bootindex=1"
    if way.firmware == "bios":
        return [*words, "-machine", "pc", "-device", card]
    variables = place / f"{way.rank}.efivars"
    shutil.copyfile(OVMF_VARS, variables)
    words += ["-machine", "q35", "-device", f"{card},romfile="]
    words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF_CODE}"]
    words += ["-drive", f"if=pflash,unit=1,format=raw,file={variables}"]
    if way.by_http:  # else OVMF tries PXE first
        words += [
            word for version in "46" for word in ("-fw_cfg", f"name=opt/org.tianocore/IPv{version}PXESupport,string=n")
        ]
    return words


@pytest.fixture(scope="module")
def boots(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Boot]]:
    """All machines, some at a time."""
    place = tmp_path_factory.mktemp("networks")
    with ExitStack() as stack:
        servers = dict.fromkeys(way.server for way in WAYS.values())
        networks = {name: stack.enter_context(network(name, folder, place / name)) for name in servers}
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            names = list(WAYS)
            wheres = [networks[WAYS[name].server] for name in names]
            found = pool.map(booted, names, wheres, [place / WAYS[name].server for name in names])
            yield dict(zip(names, found, strict=True))


@pytest.mark.parametrize("name", WAYS)
def test_a_machine_boots_the_way_that_dhcp_tells_it(name: str, boots: dict[str, Boot]) -> None:
    way, found = WAYS[name], boots[name]
    said = f"runs: way={name} efi={'yes' if way.firmware == 'uefi' else 'no'}"
    assert said in found.serial, "\n".join([*found.fetched, *found.serial.splitlines()[-60:]])
    rest = iter(found.fetched)
    assert all(each in rest for each in way.fetched), found.fetched


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.firmware == "bios"])
def test_a_rom_that_is_not_ipxe_is_given_it_and_asks_again(name: str, boots: dict[str, Boot]) -> None:
    """The ROM here is QEMU's, whose requests do not tell that it is iPXE: see `PlainRom`."""
    classes = boots[name].classes
    assert (classes[0], classes[-1]) == ("", "iPXE")
    assert sorted(classes) == classes, "once iPXE is there, it is iPXE that asks"
