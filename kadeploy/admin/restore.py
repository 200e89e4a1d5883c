"""A site put back from a backup: all of it, or nothing.

The whole backup is verified before anything is touched, and nothing of it goes anywhere but where its configuration
says. What is put in place is an exchange (`exchange`), which is finished or undone if it is interrupted.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import msgspec

from kadeploy.admin import archive, backup, exchange, keeper, standstill
from kadeploy.admin.archive import Manifest, Member
from kadeploy.admin.exchange import Note, Step
from kadeploy.admin.findings import Finding, Look
from kadeploy.caller import Account, as_user, numbered
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, DatabaseError, FileError, KadeployError, OptionError
from kadeploy.state import database, dump, watch
from kadeploy.state.database import SCHEMA_VERSION

What = Literal["new", "changed", "same", "removed"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one file, or to the database."""

    what: What
    path: str
    kind: archive.Kind


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore has done, or would do."""

    manifest: Manifest
    changes: tuple[Change, ...]
    dry_run: bool
    before: str = ""
    """The backup of what was there."""
    aborted: dict[str, list[str]] = {}
    """Nodes of the operations that ran when the backup was made, by workflow."""
    warnings: tuple[str, ...] = ()


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """How a site is to be put back."""

    replace: bool = False
    """Also where there is one."""
    dry_run: bool = False
    to: Path | None = None
    """Where the backup of what is there goes; None: into its state folder."""
    without_backup: bool = False
    """What is there may be lost."""


# --- the plan ---------------------------------------------------------------------------------------------------


class _Plan:
    """Where everything of a verified backup goes on this machine."""

    def __init__(self, manifest: Manifest, configuration: Configuration) -> None:
        self.manifest, self.configuration = manifest, configuration
        self.site, self.folder = configuration.site, configuration.folder
        self.keeper = self._keeper()
        self.warnings: set[str] = set()
        self.targets: dict[str, Path] = {each.name: self._target(each) for each in manifest.members}
        twice = [path for path, number in Counter(self.targets.values()).items() if number > 1]
        if twice:
            raise FileError(f"two of its files would be {twice[0]}")

    def _keeper(self) -> Account:
        if self.site.state.exists():
            return keeper.of(self.site)
        recorded = [each.owner for each in self.manifest.folders if each.path == self.manifest.state]
        found = next(filter(None, map(keeper.named, recorded)), None) or keeper.expected()
        return found if os.geteuid() == 0 else keeper.own()

    def _target(self, member: Member) -> Path:
        """Where a file goes.

        Raises:
            FileError: nowhere.
        """
        targets = {
            "configuration": self._of_configuration,
            "file": self._of_file,
            "database": lambda _: database.file_of(self.site) or Path(database.url_of(self.site)),
            "audit": self._of_audit,
            "run": self._of_run,
            "events": self._of_events,
        }
        found = targets[member.kind](Path(member.path))
        if found is None or any(part.startswith(backup.TEMPORARY) for part in found.parts[1:]):
            raise FileError(f"{member.path} has no place in the site of its configuration")
        if member.kind != "database" and found.is_dir():
            raise FileError(f"{found} is a folder here, and a file there")
        return found

    def _of_configuration(self, path: Path) -> Path | None:
        return _moved(path, Path(self.manifest.configuration), self.folder)

    def _of_file(self, path: Path) -> Path | None:
        named = backup.named_files(self.configuration)
        inside = _moved(path, Path(self.manifest.configuration), self.folder)
        if path in named or (_is_plain(path) and path.parent == self.site.state.absolute() / backup.KEYS):
            return path
        return inside

    def _of_audit(self, path: Path) -> Path | None:
        return self.site.state.absolute() / path.name if path.name in backup.AUDIT else None

    def _of_run(self, path: Path) -> Path | None:
        return _moved(path, Path(self.manifest.state) / "runs", self.site.run_folders.absolute())

    def _of_events(self, path: Path) -> Path | None:
        return _moved(path, Path(self.manifest.state) / "events", self.site.kept_events.absolute())

    def owner(self, member: Member) -> tuple[int, int]:
        """To whom the file will belong: whoever is called so here."""
        path = self.targets[member.name]
        if exchange.is_state(path, self.site) or os.geteuid() != 0:
            return self.keeper.uid, self.keeper.gid
        found, group = keeper.named(member.owner), keeper.group_named(member.group)
        if found is None:
            self.warnings.add(f"{path}: there is no account {member.owner} here, it is {self.keeper.name}'s")
            return self.keeper.uid, self.keeper.gid
        return found.uid, found.gid if group is None else group

    def changes(self) -> Iterator[Change]:
        """What would be done, file by file."""
        for member in self.manifest.members:
            path = self.targets[member.name]
            if member.kind == "database":
                what: What = "changed" if self.has_database else "new"
                place = str(database.file_of(self.site) or dump.shown(self.site))
                yield Change(what=what, path=place, kind="database")
            else:
                yield Change(what=self._what(member, path), path=str(path), kind=member.kind)
        for path in self.removed():
            yield Change(what="removed", path=str(path), kind="configuration")

    def _what(self, member: Member, path: Path) -> What:
        owner = self.owner(member)
        if not os.path.lexists(path):
            return "new"
        if path.is_symlink() or not path.is_file() or path.stat().st_size != member.size:
            return "changed"
        with path.open("rb") as file:
            is_same = archive.sha256(file) == member.sha256
        status = path.stat()
        kept = (status.st_mode & 0o777, status.st_uid, status.st_gid) == (member.mode, *owner)
        return "same" if is_same and kept else "changed"

    def removed(self) -> list[Path]:
        """Files of the configuration that is there, and not in the backup."""
        if not self.folder.is_dir():
            return []
        found, _ = backup.configuration_files(self.folder, self.site)
        return [path for path in found if path not in self.targets.values()]

    @property
    def has_database(self) -> bool:
        """Whether there is anything in the database that will be replaced."""
        path = database.file_of(self.site)
        if path is not None:
            return path.exists() and path.stat().st_size > 0
        with as_user(self.keeper), database.as_it_is(self.site):
            return database.has_tables()


def _is_plain(path: Path) -> bool:
    return path.is_absolute() and str(path) == os.path.normpath(path) and ".." not in path.parts


def _moved(path: Path, before: Path, now: Path) -> Path | None:
    """The same place below another folder; None: it was not below *before*."""
    return now / path.relative_to(before) if _is_plain(path) and path.is_relative_to(before) else None


# --- restoring --------------------------------------------------------------------------------------------------


def restore(file: Path, folder: Path, wish: Wish) -> Done:
    """Put the site in the backup *file* in place, its configuration in *folder*.

    Raises:
        KadeployError: it is not done, and everything is as it was; or it is half-way, and the text says so.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay
    with _opened(file) as stream, tempfile.TemporaryDirectory(prefix="kadeploy-restore-") as aside:
        configuration, manifest = _verified(stream, file, Path(aside), folder)
        try:
            plan = _Plan(manifest, configuration)
        except FileError as error:
            raise FileError(f"{file} is no sound backup of a site, so nothing was changed: {error}.") from error
        keeper.require(plan.keeper)
        with _kept_still(plan, wish):
            return _restored(stream, file, plan, wish)


def resume(folder: Path) -> str:
    """End a restore that was interrupted, one way or the other: what was done, in words; empty when there was none.

    Raises:
        KadeployError: it cannot be ended now; or the caller does not keep the site.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay
    if not any(folder.glob(f"{backup.TEMPORARY}*")):
        return ""
    with exchange.alone(folder):
        if note := exchange.noted(folder):
            keeper.require(numbered(note.keeper_uid))
        return exchange.resume(folder)


HALF_WAY = Look("configuration", "half-way-restore")


def half_way(folder: Path) -> list[Finding]:
    """What a check tells of a restore that was interrupted; nothing when there was none."""
    try:
        note = exchange.noted(folder)
    except FileError as error:
        return [HALF_WAY.fail(str(error), "put the site in order by hand, and remove this file")]
    if note is None:
        return []
    ends = "finishes" if note.phase == "changing" else "undoes or finishes"
    return [HALF_WAY.fail(f"a restore of {note.what} was interrupted half-way", f"kadeploy-site restore {ends} it")]


def _opened(file: Path) -> BinaryIO:
    if file.is_dir():
        newest = max(map(str, file.glob(f"*{backup.SUFFIX}")), default="")
        such = f", such as {newest}" if newest else ""
        raise FileError(f"{file} is a folder: name one of the backups in it{such}.")
    try:
        return cast("BinaryIO", file.open("rb"))
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}.") from error


def _verified(stream: BinaryIO, file: Path, aside: Path, folder: Path) -> tuple[Configuration, Manifest]:
    """The configuration in a backup, of which every byte was verified, and what it says of itself."""

    def take(manifest: Manifest, member: Member) -> BinaryIO | None:
        if member.kind != "configuration":
            return None
        place = _moved(Path(member.path), Path(manifest.configuration), aside)
        if place is None:
            raise FileError(f"{member.path} is not in {manifest.configuration}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            return cast("BinaryIO", place.open("xb"))
        except OSError as error:
            raise FileError(f"{member.path}: {error.strerror}") from error

    manifest = archive.read(stream, str(file), take)
    if len(manifest.of_kind("database")) != 1:
        raise FileError(f"{file} holds {len(manifest.of_kind('database'))} databases: one is needed.")
    if manifest.schema > SCHEMA_VERSION:
        raise DatabaseError(
            f"{file} was made by Kadeploy {manifest.kadeploy}, and its database has schema version {manifest.schema}; "
            f"this Kadeploy knows {SCHEMA_VERSION}: install that one."
        )
    try:
        found = load_configuration(aside)
    except ConfigError as error:
        said = str(error).replace(f"{aside}/", "")
        raise ConfigError(
            f"The configuration in {file}, of Kadeploy {manifest.kadeploy}, is none for this one: {said} "
            "Restore it with that version, and upgrade then."
        ) from error
    if dump.kind_of(found.site) != manifest.database:
        raise FileError(f"{file} holds a database of {manifest.database}, and its site.yml names another kind.")
    return msgspec.structs.replace(found, folder=folder), manifest


@contextmanager
def _kept_still(plan: _Plan, wish: Wish) -> Iterator[None]:
    """Neither the service nor another restore begins meanwhile.

    Raises:
        KadeployError: something works for the site.
    """
    with ExitStack() as stack:
        for site in () if wish.dry_run else _sites_there(plan):
            try:
                standstill.require(site, "a restore")
            except DatabaseError as error:
                _require_loss(wish, error)
            with as_user(keeper.of(site)):
                stack.enter_context(watch.watching(site))
        if plan.folder.is_dir() and not wish.dry_run:
            stack.enter_context(exchange.alone(plan.folder))
        yield


def _sites_there(plan: _Plan) -> list[Site]:
    """The site that is there, and the one that will be where they are not the same."""
    found = [plan.site]
    with suppress(KadeployError):  # there is none, or it is what the backup is for
        found.append(load_configuration(plan.folder).site)
    return list({each.state.absolute(): each for each in found if each.state.is_dir()}.values())


def _require_loss(wish: Wish, error: KadeployError) -> None:
    if not (wish.without_backup or wish.dry_run):
        raise DatabaseError(
            f"What is there cannot be read: {error} To replace it all the same, and lose what it holds, give "
            "--replace --without-backup."
        ) from error


def _restored(stream: BinaryIO, file: Path, plan: _Plan, wish: Wish) -> Done:
    changes = tuple(plan.changes())
    done = Done(manifest=plan.manifest, changes=changes, dry_run=wish.dry_run, warnings=tuple(sorted(plan.warnings)))
    if wish.dry_run:
        return done
    if there := [each for each in changes if each.what in ("changed", "removed")]:
        if not wish.replace:
            raise OptionError(
                f"There is a site already: {_named(there)} would be replaced. --dry-run shows what would change, and "
                "--replace does it; what is there is backed up first."
            )
        dump.require_room(plan.site, plan.keeper)
        done = msgspec.structs.replace(done, before=_backed_up(plan, wish))
    same = {each.path for each in changes if each.what == "same"}
    aborted = _exchanged(stream, file, plan, same, replace=wish.replace)
    return msgspec.structs.replace(done, aborted=aborted)


def _named(changes: list[Change]) -> str:
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return ", ".join(each.path for each in changes[:3]) + more


def _backed_up(plan: _Plan, wish: Wish) -> str:
    """Path of the backup of what is there."""
    if wish.without_backup:
        return ""
    try:
        there = load_configuration(plan.folder).site
        return backup.make(plan.folder, wish.to or backup.state_folder(there, keeper.of(there))).path
    except KadeployError as error:
        raise type(error)(
            f"What is there cannot be backed up first, so nothing was changed: {error} To lose it, give "
            "--without-backup."
        ) from error


# --- the exchange -----------------------------------------------------------------------------------------------


def _exchanged(stream: BinaryIO, file: Path, plan: _Plan, same: set[str], replace: bool) -> dict[str, list[str]]:
    """Put everything but what is the *same* in place: nodes of the operations that were ended, by workflow."""
    note = _note(file, plan, same)
    folder = plan.folder
    _require_room(plan, note)
    try:
        _make_folders(plan, note)
        with ExitStack() as held:
            note = exchange.begin(folder, note)
            database_file = _fill(stream, file, plan, note, held)
            aborted = _settled(plan, note)
            exchange.stop_tools(folder, note)
            if database_file is not None:
                note = exchange.enter(folder, note, "loading")
                aborted = _loaded(plan, note, database_file, replace)
            note = exchange.enter(folder, note, "changing")
    except BaseException as error:
        exchange.undo(folder, note) if folder.is_dir() else None
        if isinstance(error, OSError):
            raise FileError(
                f"{error.filename or folder}: {error.strerror or error}. Everything is as it was before."
            ) from error
        raise
    try:
        exchange.finish(folder, note)
    except OSError as error:
        raise FileError(
            f"{error.filename or folder}: {error.strerror or error}. The restore is half-way: mend that, and run "
            "kadeploy-site restore, without a file, to finish it."
        ) from error
    return aborted


def _reason(plan: _Plan) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(plan.manifest.time))
    return f"the site was put back from its backup of {when}"


def _note(file: Path, plan: _Plan, same: set[str]) -> Note:
    mark = exchange.new_mark()
    steps = []
    for number, member in enumerate(plan.manifest.members):
        target = plan.targets[member.name]
        is_database = member.kind == "database"
        if str(target) in same or (is_database and plan.manifest.database != "sqlite"):
            continue
        waiting = target.with_name(exchange.waiting_name(mark, number))
        steps.append(Step(waiting=str(waiting), target=str(target), is_database=is_database))
    top = str(plan.folder / "site.yml")
    steps.sort(key=lambda each: each.target == top)
    has_site = (plan.folder / "site.yml").is_file()
    if has_site and top in same:  # it has to come back, whoever puts the stopper there
        same.discard(top)
        return _note(file, plan, same)
    missing = _missing_folders(plan, [Path(each.target) for each in steps])
    made = [str(each) for each in missing]
    if plan.site.state.absolute() in missing:
        made.append(str(plan.site.state.absolute() / watch.FILE_NAME))
    return Note(
        mark=mark,
        what=file.name,
        site=plan.site,
        keeper_uid=plan.keeper.uid,
        steps=tuple(steps),
        removed=tuple(map(str, plan.removed())),
        made=tuple(made),
        saved=str(plan.folder / exchange.waiting_name(mark, len(plan.manifest.members))) if has_site else "",
    )


def _missing_folders(plan: _Plan, targets: Iterable[Path]) -> list[Path]:
    """Outermost first."""
    wanted = [plan.folder, plan.site.state.absolute(), *(each.parent for each in targets)]
    every = dict.fromkeys(each for path in wanted for each in (*reversed(path.parents), path))
    return [each for each in every if not each.exists()]


def _make_folders(plan: _Plan, note: Note) -> None:
    recorded = {each.path: each for each in plan.manifest.folders}
    recorded |= {str(plan.folder): recorded[plan.manifest.configuration]}
    for path in (Path(each) for each in note.made if Path(each).name != watch.FILE_NAME):
        known = recorded.get(str(path))
        is_inside = exchange.is_state(path, plan.site)
        with as_user(plan.keeper if is_inside else keeper.own()):
            path.mkdir(mode=known.mode if known else 0o700 if is_inside else 0o755)
            path.chmod(known.mode if known else 0o700 if is_inside else 0o755)
        if os.geteuid() == 0 and not is_inside:
            owner = (
                plan.keeper if path == plan.site.state.absolute() else keeper.named(known.owner if known else "root")
            )
            if owner:
                os.chown(path, owner.uid, owner.gid)


def _fill(stream: BinaryIO, file: Path, plan: _Plan, note: Note, held: ExitStack) -> BinaryIO | None:
    """Have all new files where they wait; a dump for a server of databases is told, open and without a name."""
    waiting = {each.target: Path(each.waiting) for each in note.steps}
    found: list[BinaryIO] = []

    def take(_: Manifest, member: Member) -> BinaryIO | None:
        target = plan.targets[member.name]
        if member.kind == "database" and plan.manifest.database != "sqlite":
            with as_user(plan.keeper):
                found.append(cast("BinaryIO", held.enter_context(_nameless(plan.site.state))))
            kept = found[-1]
            return cast("BinaryIO", os.fdopen(os.dup(kept.fileno()), "wb"))
        place = waiting.get(str(target))
        return None if place is None else _new_file(place, member, plan)

    if archive.read(stream, str(file), take) != plan.manifest:
        raise FileError(f"{file} has changed while it was read. Everything is as it was before.")
    for path in waiting.values():
        _sync(path, plan)
    for each in found:
        each.seek(0)
    return found[0] if found else None


def _nameless(folder: Path) -> AbstractContextManager[Any]:
    return tempfile.TemporaryFile(prefix=backup.TEMPORARY, dir=folder)


def _new_file(path: Path, member: Member, plan: _Plan) -> BinaryIO:
    is_inside = exchange.is_state(path, plan.site)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with as_user(plan.keeper if is_inside else keeper.own()):
        descriptor = os.open(path, flags, 0o600)
    file = cast("BinaryIO", os.fdopen(descriptor, "wb"))
    os.fchmod(descriptor, member.mode)
    if os.geteuid() == 0:
        os.fchown(descriptor, *plan.owner(member))
    return file


def _sync(path: Path, plan: _Plan) -> None:
    with as_user(plan.keeper if exchange.is_state(path, plan.site) else keeper.own()):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settled(plan: _Plan, note: Note) -> dict[str, list[str]]:
    """Have the file of SQLite's database fit to be used."""
    ended: dict[str, list[str]] = {}
    for step in note.steps:
        if step.is_database:
            with as_user(plan.keeper):
                ended = dump.settle_file(plan.site, Path(step.waiting), _reason(plan))
            _sync(Path(step.waiting), plan)
    return ended


def _loaded(plan: _Plan, note: Note, file: BinaryIO, replace: bool) -> dict[str, list[str]]:
    manifest = plan.manifest
    found = dump.Dump(manifest.database, manifest.schema, manifest.database_schema, file)
    return dump.load(plan.site, found, plan.keeper, replace, note.mark, _reason(plan))


def _require_room(plan: _Plan, note: Note) -> None:
    waiting = {each.target for each in note.steps}
    wanted: dict[int, tuple[Path, int]] = {}
    for member in plan.manifest.members:
        target = plan.targets[member.name]
        is_file = str(target) in waiting
        if not is_file and member.kind != "database":
            continue
        place = target.parent if is_file else plan.site.state.absolute()
        place = next(each for each in (place, *place.parents) if each.exists())
        device = place.stat().st_dev
        first, size = wanted.get(device, (place, 0))
        wanted[device] = (first, size + member.size)
    for place, size in wanted.values():
        backup.require_room(place, size, "The restore")
