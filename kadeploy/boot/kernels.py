"""Kernel, initrd and hypervisor out of an image, for nodes that boot them over the network (pure PXE, and Xen).

The archive is a user's: nothing is unpacked but these files, paths and symbolic links are followed as if the image
were ``/``, and what it makes us read, keep and wait for is bounded. One pass is enough as a rule: files that may be
meant are kept aside while links are learnt, and the pass ends as soon as all are found. A second pass fetches what a
link to an unusual place meant.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast

from kadeploy.boot import uploads
from kadeploy.boot.profile import FILES_FOLDER
from kadeploy.boot.signature import is_signed
from kadeploy.caller import powerless
from kadeploy.config.cluster import Loader
from kadeploy.config.site import BootFolders
from kadeploy.environments import soundness
from kadeploy.environments.environment import Environment
from kadeploy.environments.image import KINDS
from kadeploy.errors import EnvironmentRefusedError, FileError
from kadeploy.files import MEGA

What = Literal["kernel", "initrd", "hypervisor"]

PREFIX = "env-"
FILE_LIMIT = 512 * MEGA
"""Size of one boot file."""
ASIDE_LIMIT = 1024 * MEGA
"""Size of all files that are kept aside during a pass."""
IMAGE_LIMIT = 256 * 1024 * MEGA
"""Size of an unpacked image."""
TIME_LIMIT = 1800.0
"""Seconds that a pass may take."""
MEMBERS = 5_000_000
LINKS = 500_000
HOPS = 40
"""Symbolic links on the way to a file, as in Linux."""
KEPT = 86400.0
"""Seconds for which boot files that no profile mentions are kept."""
_HEADER_LIMIT = 4 * MEGA
_ASIDE = ".aside-"


def wanted(environment: Environment, method: Literal["chainload", "pure_pxe"]) -> dict[What, str]:
    """Which files of the image nodes boot over the network; none when they boot from their disk."""
    kind = environment.environment_kind
    if kind == "other" or (kind == "linux" and method == "chainload"):
        return {}
    paths: dict[What, str] = {"kernel": environment.kernel, "initrd": environment.initrd}
    if kind == "xen":
        paths["hypervisor"] = environment.hypervisor
    return {what: path for what, path in paths.items() if path}


def provide(environment: Environment, sha256: str, loader: Loader, boot: BootFolders, image: Image) -> dict[str, str]:
    """Paths under *http_root* of the files that are `wanted`; they are taken out of *image* unless they are there.

    *sha256* is the image's; *image* opens it, and is called only when it must be read. Under Secure Boot they are
    below *tftp_root* as well, and a kernel that is not signed is refused.

    What others will boot who have the same image comes out of that image: nothing is kept of a file whose owner has
    changed it since its checksum was taken.

    Raises:
        EnvironmentRefusedError: a file is not in the image or not signed, or this kind of image cannot be read.
        FileError: the image is no archive, exceeds a limit, or is not the one of *sha256*.
        ConfigError: the folder under *http_root* cannot be written.
    """
    paths = wanted(environment, loader.method)
    names = {what: _name(sha256, path) for what, path in paths.items()}
    with uploads.locked(boot) as folder:
        _forget_unused(boot, folder, set(names.values()))
        missing = {what: paths[what] for what, name in names.items() if not _is_there(folder / name)}
    if missing:
        with (
            uploads.writing(boot) as folder,
            _taken_out(environment, sha256, missing, folder, image) as found,
            uploads.locked(boot),
        ):
            for what, copy in found.items():
                copy.replace(folder / names[what])
    if loader.secure_boot:
        _for_tftp(environment, names, boot)
    return {what: f"{FILES_FOLDER}/{name}" for what, name in names.items()}


def _for_tftp(environment: Environment, names: Mapping[What, str], boot: BootFolders) -> None:
    with uploads.locked(boot) as folder:
        if "kernel" in names and not is_signed(folder / names["kernel"]):
            raise EnvironmentRefusedError(
                f"{environment.name}: its kernel {environment.kernel} is not signed, and the nodes boot by Secure Boot "
                "(loader.secure_boot): take a kernel of the distribution, or sign it and have the nodes know your key."
            )
        for name in names.values():
            uploads.link(folder / name, boot)


Image = Callable[[], BinaryIO]
"""Opens an image, with the rights of the user whose it is."""


def _name(sha256: str, path: str) -> str:
    """The same for the same file of the same image; fit for a boot profile."""
    key = hashlib.sha256(f"{sha256} {path}".encode()).hexdigest()[:20]
    return f"{PREFIX}{key}-{re.sub(r'[^A-Za-z0-9._+-]', '_', Path(path).name)[-80:]}"


def _is_there(path: Path) -> bool:
    """Whether the file is there; it then stays for a while, even if no profile mentions it yet."""
    if not path.is_file():
        return False
    os.utime(path)
    return True


@contextmanager
def _taken_out(
    environment: Environment, sha256: str, paths: Mapping[What, str], folder: Path, image: Image
) -> Iterator[dict[What, Path]]:
    """Copies of these files of the image, below *folder* and readable for all; what is not moved is gone at the end.

    It may take long: nobody waits for it.
    """
    if not environment.image.is_tar:
        raise EnvironmentRefusedError(
            f"{environment.name}: nodes of this cluster boot its kernel over the network, and none can be taken out of "
            f"an image of kind {environment.image.kind}. Make an archive of it (tgz), or have the cluster boot from "
            "its disks (loader.method)."
        )
    with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
        found = take(image, environment.image.kind, set(paths.values()), Path(aside), sha256)
        for what, path in paths.items():
            if path not in found:
                raise EnvironmentRefusedError(
                    f"{environment.name}: the image holds no file {path}. Correct `{what}` in its description."
                )
        yield {what: _apart(found[path], Path(aside) / what) for what, path in paths.items()}


def _apart(copy: Path, own: Path) -> Path:
    """*copy* under a name of its own: kernel and initrd may be one file."""
    os.link(copy, own)
    own.chmod(0o644)
    return own


def _forget_unused(boot: BootFolders, folder: Path, wanted_now: set[str]) -> None:
    """Remove boot files that no profile of any node mentions any more, and what killed processes left."""
    for path in folder.glob(f"{_ASIDE}*"):
        if time.time() - path.lstat().st_mtime > KEPT:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".new-*"):
        if time.time() - path.lstat().st_mtime > KEPT:
            path.unlink(missing_ok=True)
    for path in unused(boot, folder):
        if path.name not in wanted_now:
            uploads.remove(boot, path)


def unused(boot: BootFolders, folder: Path) -> list[Path]:
    """Boot files in *folder*, taken out of images, that no profile of any node mentions and that are a day old."""
    old = [path for path in folder.glob(f"{PREFIX}*") if time.time() - path.lstat().st_mtime > KEPT]
    mentioned = _mentioned(boot) if old else set()
    return [path for path in old if os.fsencode(path.name) not in mentioned]


def _mentioned(boot: BootFolders) -> set[bytes]:
    root = Path(boot.tftp_root)
    profiles = [each for name in uploads.PROFILES for each in (root / name).glob("*") if each.is_file()]
    return {name for each in profiles for name in _MENTIONED.findall(each.read_bytes())}


_MENTIONED = re.compile(rb"env-[0-9a-f]{20}-[A-Za-z0-9._+-]+")


# --- reading an image -------------------------------------------------------------------------------------------


def take(image: Image, kind: str, paths: set[str], aside: Path, sha256: str) -> dict[str, Path]:
    """Copies, in the folder *aside*, of those of *paths* that are regular files of the image.

    Raises:
        FileError: no archive, beyond a limit, or not the image that has this *sha256*.
    """
    folders = {"", "boot", *(_tidy(path).rpartition("/")[0] for path in paths)}
    first = _Pass(aside, sha256, lambda path: path.rpartition("/")[0] in folders)
    first.read(image, kind, lambda: all(first.find(path) for path in paths))
    meant = {path: target for path in paths if (target := first.meant(path)) is not None}
    absent = {target for target in meant.values() if target not in first.kept}
    if absent:
        second = _Pass(aside, sha256, lambda path: path in absent)
        second.read(image, kind, lambda: absent <= second.kept.keys())
        first.kept |= second.kept
    return {path: first.kept[target] for path, target in meant.items() if target in first.kept}


def _tidy(path: str) -> str:
    """A path of an archive, from its root: without ``/``, ``./`` and the like."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


@dataclass
class _Pass:
    """One reading of the archive."""

    aside: Path
    sha256: str
    keep: Callable[[str], bool]
    kept: dict[str, Path] = field(default_factory=dict)
    symlinks: dict[str, str] = field(default_factory=dict)
    hardlinks: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def read(self, image: Image, kind: str, enough: Callable[[], bool]) -> None:
        """Look at members until *enough*."""
        with _unpacked(image, kind, self.sha256) as stream:
            try:
                for member in _members(stream):
                    if self._take(stream, member) and enough():
                        return
            except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
                raise _unsound(kind, stream.complaint() or str(error)) from error
            if said := stream.complaint():
                raise _unsound(kind, said)

    def _take(self, stream: _Forward, member: tarfile.TarInfo) -> bool:
        """Whether the member tells something new."""
        path = _tidy(member.name)
        if member.issym() or member.islnk():
            links = self.symlinks if member.issym() else self.hardlinks
            links[path] = member.linkname if member.issym() else _tidy(member.linkname)
            if len(links) > LINKS:
                raise FileError(f"The image holds more than {LINKS} links.")
            return True
        if not member.isreg() or member.issparse() or not self.keep(path):
            return False
        if member.size > FILE_LIMIT or self.size + member.size > ASIDE_LIMIT:
            return False
        self.size += member.size
        copy = self.aside / str(sum(1 for _ in self.aside.iterdir()))
        with copy.open("xb") as target:
            stream.copy(member.offset_data, member.size, target)
        self.kept[path] = copy
        return True

    def find(self, path: str) -> Path | None:
        """The copy of the file that *path* means, as far as known."""
        target = self.meant(path)
        return self.kept.get(target) if target is not None else None

    def meant(self, path: str) -> str | None:
        """The path without links, as if the image were ``/``; None for a loop."""
        target = resolve(path, self.symlinks)
        for _ in range(HOPS):
            if target is None or target in self.kept or target not in self.hardlinks:
                return target
            target = self.hardlinks[target]
        return None


def resolve(path: str, symlinks: Mapping[str, str]) -> str | None:
    """*path* with every symbolic link followed, as in a root folder of its own; None when they are too many.

    >>> resolve("/vmlinuz", {"vmlinuz": "../boot/vmlinuz", "boot": "/usr/boot", "usr/boot/vmlinuz": "vmlinuz-6.1"})
    'usr/boot/vmlinuz-6.1'
    """
    rest = path.split("/")[::-1]
    done: list[str] = []
    hops = 0
    while rest:
        part = rest.pop()
        if part == "..":
            done = done[:-1]
        elif part not in ("", "."):
            done.append(part)
            link = symlinks.get("/".join(done))
            if link is not None:
                hops += 1
                if hops > HOPS:
                    return None
                done = [] if link.startswith("/") else done[:-1]
                rest += link.split("/")[::-1]
    return "/".join(done)


def _members(stream: _Forward) -> Iterator[tarfile.TarInfo]:
    with tarfile.TarFile(fileobj=cast("BinaryIO", stream), errorlevel=2) as archive:
        for _ in range(MEMBERS):
            stream.budget = _HEADER_LIMIT
            member = archive.next()
            if member is None:
                return
            archive.members.clear()  # type: ignore[attr-defined]  # or all of them stay in memory
            yield member
    raise FileError(f"The image holds more than {MEMBERS} files.")


def _unsound(kind: str, why: str) -> FileError:
    return FileError(f"The image is not a sound {kind} archive: {why.rstrip('.')}.")


@contextmanager
def _unpacked(image: Image, kind: str, sha256: str) -> Iterator[_Forward]:
    """What is in the image; at the end it is refused if the bytes that went in are not those of *sha256*."""
    with tempfile.TemporaryFile() as words, image() as packed:
        process = subprocess.Popen(
            KINDS[kind].compression.unpack_here,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            bufsize=0,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            process_group=0,  # what the terminal says to us is not for it
            **powerless(),
        )
        feeder = _Feeder(packed, cast("BinaryIO", process.stdin))
        pipe = io.BufferedReader(cast("io.RawIOBase", process.stdout))

        def complaint() -> str:
            """What the program says of an image that it cannot unpack to its end; empty when there is more."""
            if pipe.read(1) or process.wait() <= 0:
                return ""
            return soundness.words(words, KINDS[kind])

        feeder.start()
        try:
            yield _Forward(pipe, complaint)
        except BaseException:
            feeder.is_wanted = False
            feeder.require_read()  # what the program says of half an image is no reason
            raise
        finally:
            process.kill()
            pipe.close()
            process.wait()
            feeder.join()
    feeder.require_read()
    if feeder.digest.hexdigest() != sha256:
        raise FileError("The image has changed since its checksum was taken. Start again once it stays as it is.")


class _Feeder(threading.Thread):
    """Gives the image to the program that unpacks it, and takes the checksum of what it gives.

    The program has enough long before the image ends; the rest is read for the checksum alone.
    """

    def __init__(self, packed: BinaryIO, program: BinaryIO) -> None:
        super().__init__(daemon=True)
        self.packed, self.program = packed, program
        self.digest = hashlib.sha256()
        self.is_wanted = True
        """Whether anybody will look at the checksum."""
        self.error: OSError | None = None

    def require_read(self) -> None:
        """Raise FileError when the image could not be read as far as was tried."""
        if self.error:
            raise FileError(f"The image cannot be read: {self.error.strerror}.") from self.error

    def run(self) -> None:
        """Until the image ends."""
        deadline = time.monotonic() + TIME_LIMIT
        takes_more = True
        try:
            while self.is_wanted and time.monotonic() < deadline and (block := self.packed.read(MEGA)):
                self.digest.update(block)
                takes_more = takes_more and self._give(block)
        except OSError as error:
            self.error = error
        finally:
            self.program.close()

    def _give(self, block: bytes) -> bool:
        """Whether the program has taken all of it."""
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[self.program.write(rest) :]
        except BrokenPipeError:
            return False
        return True


class _Forward:
    """A pipe as `tarfile` likes files: it can be skipped forward, a step back, and is bounded in all it yields."""

    def __init__(self, pipe: BinaryIO, complaint: Callable[[], str]) -> None:
        self.pipe = pipe
        self.complaint = complaint
        """Why the program in front of the pipe gave up; empty when it did not."""
        self.position = 0
        self.ahead = b""
        self.last = b""
        self.budget = _HEADER_LIMIT
        self.deadline = time.monotonic() + TIME_LIMIT

    def tell(self) -> int:
        """Bytes read or skipped so far."""
        return self.position

    def seek(self, position: int) -> int:
        """Skip to *position*; back only by what was read last."""
        back = self.position - position
        if back > 0:
            if back > len(self.last):
                raise tarfile.ReadError("it wants to be read backwards")
            self.ahead = self.last[-back:] + self.ahead
            self.last = self.last[:-back]
            self.position = position
        while self.position < position:
            if not self._read(min(MEGA, position - self.position)):
                break
        return self.position

    def read(self, size: int) -> bytes:
        """Bytes of a header."""
        self.budget -= size
        if self.budget < 0 or size < 0:
            raise FileError("The image has a header that is too big.")
        return self._read(size)

    def copy(self, position: int, size: int, target: BinaryIO) -> None:
        """Copy a member's content to *target*."""
        self.seek(position)
        while size:
            piece = self._read(min(MEGA, size))
            if not piece:
                raise tarfile.ReadError("it ends in the middle of a file")
            target.write(piece)
            size -= len(piece)

    def _read(self, size: int) -> bytes:
        if self.position > IMAGE_LIMIT:
            raise FileError(f"The image is bigger than {IMAGE_LIMIT // MEGA} MB.")
        if time.monotonic() > self.deadline:
            raise FileError(f"Reading the image took longer than {TIME_LIMIT:g} s.")
        piece, self.ahead = self.ahead[:size], self.ahead[size:]
        if len(piece) < size:
            piece += self.pipe.read(size - len(piece))
        self.position += len(piece)
        self.last = piece[-tarfile.BLOCKSIZE :]
        return piece
