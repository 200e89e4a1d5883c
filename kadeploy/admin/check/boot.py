"""What nodes fetch while they boot: there, for their architecture, and served as they ask for it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import structs

from kadeploy.admin import probe
from kadeploy.admin.check.files import can_write_in
from kadeploy.admin.check.subject import Subject, is_local
from kadeploy.admin.dhcp import wanted
from kadeploy.admin.findings import Finding, Look
from kadeploy.boot import loader_files, profile, served
from kadeploy.boot.loader_files import SNPONLY, UNDIONLY
from kadeploy.boot.signature import is_signed
from kadeploy.config.cluster import ARM64, Cluster, NodeRange
from kadeploy.environments.image import COMPRESSIONS
from kadeploy.errors import KadeployError
from kadeploy.remote import namespace

LOADER = Look("boot", "loader")
MODULES = Look("boot", "modules")
DEFAULT = Look("boot", "default-profile")
MACHINE = Look("boot", "architecture")
KERNEL = Look("boot", "kernel")
INITRD = Look("boot", "initrd")
SIGNED = Look("boot", "signature")
URL = Look("boot", "http-url")
HTTP = Look("boot", "http")
TFTP = Look("boot", "tftp")
PROFILES = Look("boot", "profiles")

_LIMIT = 3.0
"""Seconds in which something of a file has to come."""
_BEGINNING = 1 << 16
"""Bytes of a large file that tell whether it is the right one."""


# --- what each loader needs ---------------------------------------------------------------------------------------

_OPTIONAL = {"reboot.c32", "poweroff.c32"}
"""Modules that none of our profiles needs."""
_OF_CARDS = {UNDIONLY, SNPONLY}
"""What is there already where a card's own ROM is iPXE."""


def loaders_of(subject: Subject, cluster: Cluster) -> Sequence[str]:
    """Loaders of a cluster, as DHCP names them, in the order in which nodes load them.

    Raises:
        KadeployError: none boots these nodes with these profiles.
    """
    nodes = (NodeRange(name="node"),)  # whoever they are: no name is resolved for it
    alone = structs.replace(cluster, nodes=nodes, inventory=None)
    configuration = structs.replace(subject.configuration, clusters={cluster.name: alone})
    return wanted.of(configuration).tftp_loaders


# --- headers ------------------------------------------------------------------------------------------------------

_PE = {0x8664: "x86_64", 0xAA64: "aarch64", 0x014C: "i386"}
"""Machines of UEFI programs (PE/COFF specification, "Machine Types")."""
_ELF = {62: "x86_64", 183: "aarch64", 3: "i386"}
"""Machines of ELF files (elf.h)."""


def machine(head: bytes) -> str:
    """For which machine a program or kernel is, by its first bytes; empty: nobody can tell."""
    if head[:4] == b"\x7fELF":
        return _ELF.get(struct.unpack_from("<H", head, 18)[0], "")
    if head[:2] == b"MZ" and len(head) > 64:
        (at,) = struct.unpack_from("<I", head, 60)
        if head[at : at + 4] == b"PE\0\0" and len(head) >= at + 6:
            return _PE.get(struct.unpack_from("<H", head, at + 4)[0], "")
    if head[0x38:0x3C] == b"ARM\x64":
        return "aarch64"
    return "x86_64" if head[0x202:0x206] == b"HdrS" else ""


def _is_kernel(head: bytes) -> bool:
    return head[0x202:0x206] == b"HdrS" or head[0x38:0x3C] == b"ARM\x64" or head[:2] == b"MZ" or head[:2] == b"\x1f\x8b"


_PACKED = (b"07070", b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18", b"\x89LZO")
"""How initrds begin, besides the kinds of images: cpio, lz4 and lzo (Linux, lib/decompress.c)."""


def _is_initrd(head: bytes) -> bool:
    return head.startswith(_PACKED) or any(head.startswith(each.magic) for each in COMPRESSIONS)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_BEGINNING)


# --- the check ----------------------------------------------------------------------------------------------------


def check(subject: Subject) -> Iterator[Finding]:
    """What of it is missing, wrong or not served."""
    site = subject.site
    with namespace.inside(site.network_namespace):
        yield from _once(_files(subject))
        yield from _profiles(subject)
        yield from _url(site.boot.http_url)
        yield from _fetched(subject)


def _once(found: Iterator[Finding]) -> Iterator[Finding]:
    """The same for several clusters is told once."""
    yield from dict.fromkeys(found)


def _files(subject: Subject) -> Iterator[Finding]:
    for cluster, _ in subject.members:
        yield from _loaders(subject, cluster)
        for key, look in _KEYS.items():
            name: str = getattr(cluster.loader, key)
            path = served.path(subject.site, cluster.loader, name) if name else None
            if path is not None:
                yield from _system_file(look, f"loader.{key}", path, cluster)


_KEYS = {"kernel": KERNEL, "initrd": INITRD, "nfsroot_kernel": KERNEL, "nfsroot_initrd": INITRD}
"""Keys of ``loader`` that name files."""


def _loaders(subject: Subject, cluster: Cluster) -> Iterator[Finding]:
    """Whether the loaders of a cluster are there, with all that they load."""
    root, firmware = Path(subject.site.boot.tftp_root), cluster.loader.firmware
    try:
        names = loaders_of(subject, cluster)
    except KadeployError as error:
        yield LOADER.fail(str(error), "correct what the text names")
        return
    for name in names:
        if not (root / name).is_file():
            yield _missing(root / name, cluster)
            continue
        there, default = loader_files.LOADERS[name].copied, loader_files.LOADERS[name].profile
        missing = [each for each in there if each not in _OPTIONAL and not (root / each).is_file()]
        if missing:
            yield MODULES.fail(
                f"{root}: {', '.join(missing)} is missing, which {name} loads", "kadeploy-site loaders installs it"
            )
        files = dict.fromkeys([name, *there])
        wrong = [finding for each in files if (root / each).is_file() for finding in _machines(root / each, cluster)]
        wrong += _unsigned([root / each for each in files if (root / each).is_file()], cluster)
        yield from wrong
        if not missing and not wrong:
            yield LOADER.ok(f"{root / name}{' with its modules' if len(files) > 1 else ''} for {firmware} nodes")
        if default and not (root / default).is_file():
            yield DEFAULT.warn(
                f"{root / default} is not there: a node without a profile of its own stops at its loader",
                "kadeploy-site loaders writes one that goes on to the disk",
            )


def _missing(loader: Path, cluster: Cluster) -> Finding:
    firmware, profiles = cluster.loader.firmware, cluster.loader.profiles
    if loader.name in _OF_CARDS:
        return LOADER.warn(
            f"{loader} is not there, which {firmware} nodes of {cluster.name} boot, unless their cards are iPXE",
            "kadeploy-site loaders installs it",
        )
    return LOADER.fail(
        f"{loader} is not there, which {firmware} nodes with {profiles} profiles boot",
        "kadeploy-site loaders installs it",
    )


def _machines(path: Path, cluster: Cluster) -> Iterator[Finding]:
    """Whether a loader or module is for the firmware of the cluster."""
    try:
        found = machine(_head(path))
    except OSError as error:
        yield LOADER.warn(f"{path}: {error.strerror}", "let the account of the boot server read it (chmod 644)")
        return
    wanted = "i386" if cluster.loader.firmware == "bios" else cluster.arch or "x86_64"
    wanted = "aarch64" if wanted in ARM64 else wanted
    if found and found != wanted:
        yield MACHINE.fail(
            f"{path} is for {found}, and {cluster.loader.firmware} nodes of {cluster.name} run {wanted} at that stage",
            "take the file of the other folder of the package (bios, efi64), or correct loader.firmware or arch",
        )


def _unsigned(paths: Sequence[Path], cluster: Cluster) -> list[Finding]:
    """Those of *paths* that Secure Boot would refuse for want of a signature; none where it is not used.

    Files that cannot be read are told of elsewhere.
    """
    if not cluster.loader.secure_boot:
        return []
    return [
        SIGNED.fail(
            f"{path} is not signed, and {cluster.name} has loader.secure_boot: its nodes would refuse it",
            "kadeploy-site loaders installs signed loaders, and kadeploy-site build a kernel that Debian has signed",
        )
        for path in paths
        if os.access(path, os.R_OK) and not is_signed(path)
    ]


def _system_file(look: Look, setting: str, path: Path, cluster: Cluster) -> Iterator[Finding]:
    try:
        head = _head(path)
    except FileNotFoundError:
        yield look.fail(
            f"{setting}: there is no file {path}", "kadeploy-site build makes it, or correct the cluster file"
        )
        return
    except OSError as error:
        yield look.fail(f"{setting}: {path}: {error.strerror}", f"chmod 644 {path}")
        return
    is_it = _is_kernel if look is KERNEL else _is_initrd
    if not is_it(head):
        kind = "kernel of Linux" if look is KERNEL else "initrd"
        yield look.fail(f"{setting}: {path} does not begin as a {kind} does", "kadeploy-site build makes it anew")
        return
    found = machine(head) if look is KERNEL else ""
    wanted = "aarch64" if cluster.arch in ARM64 else cluster.arch
    if found and wanted and found != wanted:
        yield MACHINE.fail(
            f"{setting}: {path} is for {found}, and {cluster.name} is {wanted}", "name a kernel for it, or correct arch"
        )
    elif unsigned := _unsigned([path] if look is KERNEL else [], cluster):
        yield from unsigned
    else:
        yield look.ok(f"{setting}: {path}, {path.stat().st_size / 1e6:.1f} MB")


# --- profiles -----------------------------------------------------------------------------------------------------


def _profiles(subject: Subject) -> Iterator[Finding]:
    """Folders in which a deployment writes the profiles of its nodes."""
    owner, root = subject.owner, Path(subject.site.boot.tftp_root)
    if owner is None or not root.is_dir():
        return
    names = {profile.file_name(cluster.loader.profiles, "10.0.0.1") for cluster, _ in subject.members}
    folders = {root / Path(name).parent for name in names}
    shut = [folder for folder in sorted(folders) if folder.is_dir() and not can_write_in(owner, folder)]
    for folder in shut:
        yield PROFILES.fail(f"{owner.name} cannot write profiles in {folder}", f"chown -R {owner.name}: {folder}")
    if not shut:
        yield PROFILES.ok(
            f"profiles can be written by {owner.name}: {', '.join(str(each) for each in sorted(folders))}"
        )


# --- as a node would ----------------------------------------------------------------------------------------------


def _url(url: str) -> Iterator[Finding]:
    host = urlsplit(url).hostname or ""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        yield URL.fail(f"boot.http_url: {host or url!r} does not resolve", "write the boot server's address")
        return
    where = "this machine's" if is_local(address) else "another machine's"
    yield URL.ok(f"boot.http_url: {address} is {where} address")


def _fetched(subject: Subject) -> Iterator[Finding]:
    silent: set[str] = set()
    for url, path in _systems(subject).items():
        if (path and not os.access(path, os.R_OK)) or urlsplit(url).netloc in silent:
            continue  # told already
        if url.startswith("tftp://"):
            continue  # with the loaders
        try:
            fetched = probe.http(url, _LIMIT)
        except KadeployError as error:
            yield HTTP.fail(str(error), "start the boot server, or correct boot.http_url and boot.http_root")
            if isinstance(error.__cause__, OSError):  # there is nobody, for the next file as little
                silent.add(urlsplit(url).netloc)
        else:
            yield _compared(url, fetched, path)
    yield from _by_tftp(subject)


def _systems(subject: Subject) -> dict[str, Path | None]:
    """Files of the deployment systems by the URL at which nodes fetch them; None: it is another machine's."""
    loaders = [cluster.loader for cluster, _ in subject.members]
    names = [(each, name) for each in loaders for name in (each.kernel, each.initrd) if name]
    return {served.url(subject.site, each, name): served.path(subject.site, each, name) for each, name in names}


def _compared(url: str, fetched: probe.Fetched, path: Path | None) -> Finding:
    """Whether what came is the file *path*; None: it is another machine's."""
    if path is not None:
        head = _head(path)
        length = min(len(head), len(fetched.content))
        if fetched.size != path.stat().st_size or fetched.content[:length] != head[:length]:
            return HTTP.fail(
                f"{url} has {fetched.size} bytes, and {path} has {path.stat().st_size}: another file is served",
                "have the web server serve boot.http_root",
            )
    return HTTP.ok(f"{url}: fetched, {fetched.size / 1e6:.1f} MB")


def _by_tftp(subject: Subject) -> Iterator[Finding]:
    root, server = Path(subject.site.boot.tftp_root), subject.site.server_address
    for name in [*_loader_names(subject), *_one_profile(subject)]:
        finding = _one_by_tftp(server, name, root / name)
        yield finding
        if finding.level != "ok":
            return
    for url, path in _systems(subject).items():
        if url.startswith("tftp://") and not (path and not os.access(path, os.R_OK)):
            yield _beginning_by_tftp(url, path)


def _loader_names(subject: Subject) -> list[str]:
    root = Path(subject.site.boot.tftp_root)
    found: dict[str, None] = {}
    for cluster, _ in subject.members:
        with suppress(KadeployError):  # told already
            found |= dict.fromkeys(loaders_of(subject, cluster))
    return [name for name in found if (root / name).is_file()]


def _one_profile(subject: Subject) -> Sequence[str]:
    """The profile of a node, if any was ever written."""
    root = Path(subject.site.boot.tftp_root)
    for cluster, nodes in subject.members:
        name_of = partial(profile.file_name, cluster.loader.profiles)
        for node in nodes:
            if node.address and "." in node.address and (root / (name := name_of(node.address))).is_file():
                return [name]
    return []


def _one_by_tftp(server: str, name: str, path: Path) -> Finding:
    try:
        fetched = probe.tftp(server, name, _LIMIT)
    except KadeployError as error:
        return TFTP.fail(str(error), "start the boot server; see the firewall, and that it serves boot.tftp_root")
    if fetched.content != path.read_bytes():
        return TFTP.fail(
            f"tftp://{server}/{name} is another file than {path}", "have the TFTP server serve boot.tftp_root"
        )
    return TFTP.ok(f"tftp://{server}/{name}: fetched, {fetched.size / 1e3:.0f} KB")


def _beginning_by_tftp(url: str, path: Path | None) -> Finding:
    """Of a kernel or initrd, whose whole would take long in small blocks."""
    parts = urlsplit(url)
    try:
        fetched = probe.tftp(parts.hostname or "", parts.path.lstrip("/"), _LIMIT, _BEGINNING)
    except KadeployError as error:
        return TFTP.fail(str(error), "start the boot server; see the firewall, and that it serves boot.tftp_root")
    if path is not None and fetched.content != _head(path):
        return TFTP.fail(f"{url} is another file than {path}", "have the TFTP server serve boot.tftp_root")
    return TFTP.ok(f"{url}: its beginning fetched")
