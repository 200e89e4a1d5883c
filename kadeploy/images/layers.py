"""The layers of a container image, laid over each other into one tree, as one tar archive.

As the OCI image specification has it ("Image Layer Filesystem Changeset"): a layer adds and replaces, ``.wh.NAME``
removes what lower layers have under NAME, and ``.wh..wh..opq`` all that they have in a folder. Nothing is unpacked
here: layers are data of strangers, and their links lead nowhere but within the image.
"""

from __future__ import annotations

import copy
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kadeploy.errors import ConfigError

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_HOPS = 40
"""Links on the way to a file, as the kernel follows them at most."""
MOST = 2_000_000
"""Files of an image."""


@dataclass(eq=False)
class _Inode:
    """A file, whatever names it has."""

    layer: int
    member: tarfile.TarInfo


@dataclass(eq=False)
class _Entry:
    """A name in a folder."""

    inode: _Inode
    layer: int
    """The layer that gave it this name."""
    inside: dict[str, _Entry] = field(default_factory=dict)
    """What is in it, if it is a folder."""

    @property
    def is_folder(self) -> bool:
        return self.inode.member.isdir()


def flatten(layers: Sequence[Path], target: Path) -> int:
    """Write the tree of *layers*, uncompressed archives from the lowest to the topmost, to *target*: bytes of content.

    Folders come before what is in them, and links after everything else.

    Raises:
        ConfigError: an archive is damaged, a link of one leads to nothing, or a name is none.
    """
    root = _folder("", 0)
    archives: list[tarfile.TarFile] = []
    try:
        for rank, path in enumerate(layers):
            archives.append(tarfile.open(path, "r:"))  # noqa: SIM115 - closed below, all of them together
            _lay(root, archives[-1], rank)
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
            return _write(root, archives, archive)
    except (tarfile.TarError, UnicodeError, ValueError, EOFError) as error:
        raise ConfigError(f"a layer of the image is damaged: {error}") from error
    finally:
        for each in archives:
            each.close()


# --- reading --------------------------------------------------------------------------------------------------------


def _lay(root: _Entry, archive: tarfile.TarFile, layer: int) -> None:
    """Lay one layer over what is there."""
    for count, member in enumerate(archive):
        if count > MOST:
            raise ConfigError(f"a layer of the image has more than {MOST} files")
        words = _words(member.name)
        if not words:
            continue  # the root itself
        folder = _resolved(root, words[:-1], layer)
        name = words[-1]
        if name == _OPAQUE:
            folder.inside = {word: entry for word, entry in folder.inside.items() if entry.layer == layer}
        elif name.startswith(_WHITEOUT):
            gone = folder.inside.get(name.removeprefix(_WHITEOUT))
            if gone is not None and gone.layer < layer:
                del folder.inside[name.removeprefix(_WHITEOUT)]
        else:
            _add(root, folder, name, member, layer)


def _add(root: _Entry, folder: _Entry, name: str, member: tarfile.TarInfo, layer: int) -> None:
    before = folder.inside.get(name)
    if member.islnk():
        target = _found(root, _words(member.linkname))
        if target is None or target.is_folder:
            raise ConfigError(f"a layer of the image has a link to nothing: {member.name!r} to {member.linkname!r}")
        folder.inside[name] = _Entry(target.inode, layer)
    elif before is not None and before.is_folder and member.isdir():
        before.inode, before.layer = _Inode(layer, member), layer
    else:
        folder.inside[name] = _Entry(_Inode(layer, member), layer)


def _words(name: str) -> list[str]:
    """The parts of a member's name.

    Raises:
        ConfigError: it leads out of the image.
    """
    words = [word for word in name.split("/") if word not in ("", ".")]
    if ".." in words or "\0" in name:
        raise ConfigError(f"a layer of the image has a name that leads out of it: {name!r}")
    return words


def _resolved(root: _Entry, words: Sequence[str], layer: int) -> _Entry:
    """The folder that *words* lead to, through links; made where it is not there, as whoever unpacks layers does."""
    found = _found(root, words, layer)
    if found is None or not found.is_folder:
        raise ConfigError(f"a layer of the image has files in {'/'.join(words)!r}, which is no folder")
    return found


def _found(root: _Entry, words: Sequence[str], make: int | None = None) -> _Entry | None:
    """What *words* lead to within *root*; folders that are not there are made by the layer *make*."""
    trail, todo, hops = [root], list(reversed(words)), 0
    while todo:
        word = todo.pop()
        if word == "..":
            trail = trail[:-1] or [root]
            continue
        here = trail[-1]
        entry = here.inside.get(word)
        if entry is None:
            if make is None or not here.is_folder:
                return None
            entry = here.inside[word] = _folder(word, make)
        if entry.inode.member.issym() and (todo or make is not None):
            hops += 1
            if hops > _HOPS:
                return None
            target = entry.inode.member.linkname
            if target.startswith("/"):
                trail = [root]
            todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
            continue
        trail.append(entry)
    return trail[-1]


def _folder(name: str, layer: int) -> _Entry:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    return _Entry(_Inode(layer, member), layer)


# --- writing --------------------------------------------------------------------------------------------------------


def _write(root: _Entry, archives: Sequence[tarfile.TarFile], target: tarfile.TarFile) -> int:
    names: dict[_Inode, str] = {}
    links: list[tarfile.TarInfo] = []
    size = 0
    for name, inode in _walked(root):
        member = _member(name, inode.member)
        if inode in names:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, names[inode], 0
            links.append(member)
        elif member.issym():
            names[inode] = name
            links.append(member)
        elif member.isreg():
            names[inode] = name
            target.addfile(member, archives[inode.layer].extractfile(inode.member))
            size += member.size
        else:
            names[inode] = name
            target.addfile(member)
    for each in sorted(links, key=lambda link: link.islnk()):
        target.addfile(each)
    return size


def _walked(folder: _Entry, path: str = "") -> Iterator[tuple[str, _Inode]]:
    for name, entry in sorted(folder.inside.items()):
        yield f"{path}{name}", entry.inode
        if entry.is_folder:
            yield from _walked(entry, f"{path}{name}/")


def _member(name: str, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """*member* by the name that it has in the end, with its attributes and nothing that tells how it was stored."""
    found = copy.copy(member)
    found.name = name
    found.pax_headers = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    if found.isreg():
        found.type = tarfile.REGTYPE
    return found
