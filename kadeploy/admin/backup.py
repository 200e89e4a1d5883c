"""A backup of a site: what cannot be made anew, in one file, taken while everything runs.

It holds the configuration, the database, keys, password files and what else the configuration names, and the audit log;
run folders, and the events of those that are gone, where they are asked for. Images, caches and what packages or
`build` make again are not in it. Boot profiles are written anew by each operation.

All of it first goes to a file without a name, then behind zstd to a file with a temporary one, which takes its place
when it is whole and on the disk: whatever ends this process, no half of a backup is ever found under a backup's name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec

from kadeploy.admin import archive, keeper
from kadeploy.admin.archive import Folder, Manifest, Member, Source
from kadeploy.caller import Account, as_user
from kadeploy.config import installs
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import FileError, OptionError
from kadeploy.files import MEGA
from kadeploy.operations import kept_events
from kadeploy.state import database, dump, journal

SUFFIX = ".tar.zst"
FOLDER = "backups"
"""In *state_dir*: where backups go that are made before something is changed."""
KEYS = "keys"
"""In *state_dir*: folder of keys and password files, all of which are kept."""
AUDIT = ("audit.jsonl", "audit.jsonl.1")
TEMPORARY = ".kadeploy-"
"""How names of files of ours begin that are not complete."""
_DAY = 86_400.0


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made."""

    path: str
    size: int
    """Bytes."""
    manifest: Manifest
    removed: tuple[str, ...] = ()
    """Older ones that went."""


# --- what a site has --------------------------------------------------------------------------------------------


def named_files(configuration: Configuration) -> list[Path]:
    """Files that the configuration names and without which a site does not work as before, whether there or not."""
    site, service = configuration.site, configuration.site.service
    found = [site.ssh.private_key, f"{site.ssh.private_key}.pub", service.htpasswd]
    if site.notifications.mail:
        found.append(site.notifications.mail.password_file)
    if service.https:
        found += [service.https.certificate, service.https.private_key, service.https.client_ca]
    for cluster in configuration.clusters.values():
        archives = (*cluster.pre_installs, *installs.archives(cluster.post_installs))
        found += [cluster.power.password_file, *(each.file for each in archives)]
    paths = [configuration.folder.absolute() / each for each in found if each and "://" not in each]
    return list(dict.fromkeys(Path(os.path.normpath(each)) for each in paths))


def _keys(site: Site) -> list[Path]:
    with suppress(OSError):
        return sorted((site.state.absolute() / KEYS).iterdir())
    return []


def configuration_files(folder: Path, site: Site) -> tuple[list[Path], list[str]]:
    """All regular files below the configuration *folder*, those that links lead to among them; and what is none.

    What *site* serves and remembers is none of its configuration, though it may have been put there.
    """
    found: list[Path] = []
    left_out: list[str] = []
    others = {Path(each).absolute() for each in (site.state_dir, site.boot.tftp_root, site.boot.http_root)}
    for where, folders, names in os.walk(folder, onerror=_refuse):
        top = Path(where)
        folders[:] = [name for name in folders if top / name not in others]
        left_out += [f"{top / name}: a link to a folder" for name in sorted(folders) if (top / name).is_symlink()]
        for path in (top / name for name in sorted(names) if not name.startswith(TEMPORARY)):
            if path.is_file():
                found.append(path)
            else:
                left_out.append(f"{path}: no regular file")
    return sorted(found), left_out


def _refuse(error: OSError) -> None:
    raise FileError(f"{error.filename}: {error.strerror}.") from error


# --- collecting -------------------------------------------------------------------------------------------------


class _Collection:
    """The members so far, and a file without a name that holds their content one behind the other."""

    def __init__(self, spool: BinaryIO, state: Path, who: Account) -> None:
        self._spool, self._state, self._who = spool, state, who
        self.members: list[Member] = []
        self.sources: list[Source] = []
        self.left_out: list[str] = []
        self._seen: set[str] = set()
        self._folders: dict[str, Folder] = {}

    @property
    def folders(self) -> tuple[Folder, ...]:
        """Those in which they are, and those of the site."""
        return tuple(self._folders.values())

    def add_folder(self, path: Path) -> None:
        """Note whose it is."""
        status = path.stat()
        owner, group = keeper.names(status)
        mode = stat.S_IMODE(status.st_mode) & 0o777
        self._folders.setdefault(str(path), Folder(path=str(path), mode=mode, owner=owner, group=group))

    def add(self, kind: archive.Kind, path: Path, inside: str) -> None:
        """The file *path*, which is called *inside* below its kind's folder; one that is there already stays one."""
        if str(path) in self._seen:
            return
        try:
            with self._opened(path) as stream:
                self._seen.add(str(path))
                self._add_open(kind, path, inside, stream)
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.left_out.append(f"{path}: no regular file")
                return
            raise FileError(f"{path}: {error.strerror or error}.") from error

    def _opened(self, path: Path) -> BinaryIO:
        """What is in the state folder with the rights of whose that is: they could lead root astray."""
        if not path.is_relative_to(self._state):
            return _open_regular(path)
        with as_user(self._who):
            return _open_regular(path)

    def _add_open(self, kind: archive.Kind, path: Path, inside: str, stream: BinaryIO) -> None:
        """The same, of what is open."""
        offset, digest = self._spool.tell(), hashlib.sha256()
        while piece := stream.read(MEGA):
            digest.update(piece)
            self._spool.write(piece)
        status = os.fstat(stream.fileno())
        owner, group = keeper.names(status)
        mode, size = stat.S_IMODE(status.st_mode) & 0o777, self._spool.tell() - offset
        source = Source(self._spool, offset)
        self._note(
            kind, path, inside, source, size=size, sha256=digest.hexdigest(), mode=mode, owner=owner, group=group
        )

    def add_dump(self, path: Path, taken: dump.Dump, who: tuple[str, str]) -> None:
        """The database, which stays where it is: it may be big."""
        digest, size = hashlib.sha256(), 0
        while piece := taken.file.read(MEGA):
            digest.update(piece)
            size += len(piece)
        source, inside = Source(taken.file, 0), "sqlite" if taken.kind == "sqlite" else f"{taken.kind}.sql"
        owner, group = who
        self._note(
            "database", path, inside, source, size=size, sha256=digest.hexdigest(), mode=0o600, owner=owner, group=group
        )

    def _note(self, kind: archive.Kind, path: Path, inside: str, source: Source, **known: Any) -> None:
        try:
            name = archive.member_name(kind, inside, len(self.members))
        except UnicodeEncodeError as error:
            raise FileError(f"{str(path)!r}: its name is no text (UTF-8): rename it.") from error
        self.members.append(Member(name=name, kind=kind, path=str(path), **known))
        self.sources.append(source)


def _open_regular(path: Path) -> BinaryIO:
    """Where links lead counts, and nothing but a regular file: no pipe that somebody has put there holds us up."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "no regular file")
    return os.fdopen(descriptor, "rb")


class _File(NamedTuple):
    kind: archive.Kind
    path: Path
    inside: str
    """Its name below its kind's folder in the archive."""


def _files(configuration: Configuration, runs: Iterable[str], kept: Iterable[Path]) -> tuple[list[_File], list[str]]:
    """All files of the site but its database, with the run folders *runs*, events *kept*; and what is left out."""
    site, folder = configuration.site, configuration.folder.absolute()
    state = site.state.absolute()
    named = [path for path in (*named_files(configuration), *_keys(site)) if path.exists()]
    found, left_out = configuration_files(folder, site)
    files = [_File("file", path, str(path).lstrip("/")) for path in named]
    files += [_File("configuration", path, str(path.relative_to(folder))) for path in found]
    files += [_File("audit", path, name) for name in AUDIT if (path := state / name).exists()]
    top = site.run_folders.absolute()
    files += [_File("run", path, str(path.relative_to(top))) for wid in runs for path in _below(top / wid)]
    files += [_File("events", path.absolute(), path.name) for path in kept]
    return files, left_out


def _below(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (path for name in sorted(names) if (path := Path(where, name)).is_file())


def _ended_runs(site: Site, who: Account) -> list[str]:
    """Workflows that have ended: nothing is written to their run folders any more."""
    with as_user(who), database.as_it_is(site):
        return [wid for wid, has_ended in journal.ended(site).items() if has_ended]


# --- making it --------------------------------------------------------------------------------------------------


def make(folder: Path, target: Path, with_runs: bool = False, keep: int = 0) -> Made:
    """Make a backup of the site whose configuration is in *folder*: the file *target*, or one in the folder *target*.

    With *keep*, older ones of this site in the folder go until so many are left.

    Raises:
        RightsError: the caller does not keep the site.
        KadeployError: it cannot be made; nothing is left of it.
    """
    configuration = load_configuration(folder)
    site = configuration.site
    who = keeper.of(site)
    if keep and not target.is_dir():
        raise OptionError(f"--keep is for a folder of backups, and {target} is none.")
    place = _place(target, site, folder)
    try:
        with _folder(place.parent) as where:
            _sweep(where)
            size, manifest = _made(configuration, who, place, where, with_runs)
    except OSError as error:
        raise FileError(f"{error.filename or place}: {error.strerror or error}. There is no backup.") from error
    return Made(path=str(place), size=size, manifest=manifest, removed=tuple(_remove_old(place, site, keep)))


def _place(target: Path, site: Site, folder: Path) -> Path:
    """The path of the backup to be made.

    Raises:
        OptionError: something else is there, or it would be in the next backup.
    """
    real = Path(os.path.realpath(target))
    if real.is_dir():
        now = int(time.time())
        while (real / (name := _name(site, now))).exists():
            now += 1
        real = real / name
    elif not real.parent.is_dir():
        raise FileError(f"{real.parent}: there is no such folder: create it, or name another.")
    elif real.exists() and not _is_backup(real):
        raise FileError(f"{target} is there and is no backup: name another file.")
    if real.is_relative_to(folder.resolve()) and not real.is_relative_to(site.state.resolve()):
        raise OptionError(f"{target} is in the configuration folder, and would be in every later backup: name another.")
    return real


def _name(site: Site, moment: int) -> str:
    when = time.strftime("%Y%m%d-%H%M%S", time.gmtime(moment))
    return f"{_stem(site)}-{when}{SUFFIX}"


def _stem(site: Site) -> str:
    return urllib.parse.quote(site.name, safe=" ")[:100].lstrip(".") or "site"


def _is_backup(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(len(archive.MAGIC)) == archive.MAGIC
    return False


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder: whoever may change its name or what leads to it changes nothing for us."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sweep(where: int) -> None:
    """Remove what backups that were killed have left, where a file cannot be without a name."""
    for name in os.listdir(where):
        if name.startswith(TEMPORARY):
            with suppress(OSError):
                if time.time() - os.stat(name, dir_fd=where, follow_symlinks=False).st_mtime > _DAY:
                    os.unlink(name, dir_fd=where)


def _made(configuration: Configuration, who: Account, place: Path, where: int, with_runs: bool) -> tuple[int, Manifest]:
    site, room = configuration.site, Path(f"/proc/self/fd/{where}")
    _have_database(site, who)
    runs, kept = (_ended_runs(site, who), kept_events.all_of(site)) if with_runs else ((), ())
    files, left_out = _files(configuration, runs, kept)
    _require_room(place.parent, site, files)
    with tempfile.TemporaryFile(prefix=TEMPORARY, dir=room) as spool, dump.taken(site, who, room) as taken:
        collection = _Collection(cast("BinaryIO", spool), site.state.absolute(), who)
        collection.left_out += left_out
        for folder in (configuration.folder.absolute(), site.state.absolute()):
            collection.add_folder(folder)
        group = keeper.names(site.state.stat())[1]
        collection.add_dump(database.file_of(site) or Path(taken.kind), taken, (who.name, group))
        for file in files:
            collection.add(*file)
            if file.kind == "file":
                collection.add_folder(file.path.parent)
        manifest = Manifest(
            schema=taken.version,
            site=site.name,
            time=int(time.time()),
            host=socket.gethostname(),
            configuration=str(configuration.folder.absolute()),
            state=str(site.state.absolute()),
            database=taken.kind,
            database_schema=taken.schema,
            folders=collection.folders,
            members=tuple(collection.members),
            left_out=tuple(collection.left_out),
        )
        return _written(manifest, collection.sources, place, where, _owner(place, site, who)), manifest


def _have_database(site: Site, who: Account) -> None:
    """A site that nobody has used yet gets its database; one that was lost is refused."""
    with as_user(who):
        with database.as_it_is(site) as version:
            is_there = version is not None
        if not is_there:
            database.connect(site)
            database.disconnect()


def _require_room(folder: Path, site: Site, files: Iterable[_File]) -> None:
    """Refuse what would certainly fill the disk: everything is there twice for a while, and may be hard to compress."""
    base = database.file_of(site)
    big = sum(_size(path) for path in (base, base.with_name(f"{base.name}-wal"))) if base else 0
    wanted: dict[int, tuple[Path, int]] = {folder.stat().st_dev: (folder, 2 * sum(_size(f.path) for f in files) + big)}
    if base:
        device = base.parent.stat().st_dev
        place, size = wanted.get(device, (base.parent, 0))
        wanted[device] = (place, size + big)
    for place, size in wanted.values():
        require_room(place, size, "A backup")


def require_room(place: Path, size: int, what: str) -> None:
    """Refuse unless *size* bytes fit below *place*.

    Raises:
        FileError: says how much there is.
    """
    status = os.statvfs(place)
    room = status.f_bavail * status.f_frsize
    if size > room:
        raise FileError(
            f"{what} takes up to {size / MEGA:.1f} MB for a while, and {place} has {room / MEGA:.1f} MB left: make "
            "room there, or name another place."
        )


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _owner(place: Path, site: Site, who: Account) -> Account | None:
    """To whom root gives the backup: what is in the state folder is its keeper's."""
    is_inside = place.is_relative_to(site.state.resolve())
    return who if os.geteuid() == 0 and is_inside else None


def _written(manifest: Manifest, sources: Sequence[Source], place: Path, where: int, owner: Account | None) -> int:
    """Write the backup under a temporary name in the folder *where*, and call it *place*; its size in bytes."""
    temporary = f"{TEMPORARY}{secrets.token_hex(8)}{SUFFIX}"
    descriptor, has_name = _opened(temporary, where)
    try:
        with os.fdopen(descriptor, "wb") as target:
            archive.write(target, manifest, sources)
            if owner:
                os.fchown(descriptor, owner.uid, owner.gid)
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
            if not has_name:
                os.link(f"/proc/self/fd/{descriptor}", temporary, dst_dir_fd=where)
        os.rename(temporary, place.name, src_dir_fd=where, dst_dir_fd=where)
        os.fsync(where)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=where)
        raise
    return size


def _opened(temporary: str, where: int) -> tuple[int, bool]:
    """A new file for whoever runs this alone, in the folder *where*; without a name where its file system can do so."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    with suppress(OSError):
        return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=where), False
    return os.open(temporary, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=where), True


# --- older ones -------------------------------------------------------------------------------------------------


def _remove_old(made: Path, site: Site, keep: int) -> Iterator[str]:
    """Remove the oldest backups of *site* beside the one that was *made*, until *keep* are left."""
    if keep < 1:
        return
    wanted = re.compile(rf"{re.escape(_stem(site))}-\d{{8}}-\d{{6}}{re.escape(SUFFIX)}")
    found = sorted(path.name for path in made.parent.iterdir() if wanted.fullmatch(path.name) and _is_backup(path))
    for name in found[:-keep]:
        with suppress(FileNotFoundError):
            (made.parent / name).unlink()
            yield str(made.parent / name)


def state_folder(site: Site, who: Account) -> Path:
    """Where backups go that are made before something is changed.

    Raises:
        FileError: there can be none.
    """
    try:
        return keeper.folder(site, who, FOLDER)
    except OSError as error:
        raise FileError(f"{error.filename}: {error.strerror}.") from error
