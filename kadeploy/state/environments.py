"""Recorded environments: who sees which, and how they are added, changed and taken away.

An environment is known by name, version and owner. Private ones exist for their owner alone; shared ones for whoever
names the owner; public ones for everybody. Only administrators publish, and they may change what others own.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import peewee

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.environments.reference import Reference
from kadeploy.errors import DatabaseError, EnvironmentRefusedError, OptionError, RecordedAlreadyError, RightsError
from kadeploy.files import MEGA, LocalFile
from kadeploy.hints import did_you_mean
from kadeploy.state import damage, fingerprints
from kadeploy.state.database import connect, fetch, transaction
from kadeploy.state.fingerprints import RemoteUser
from kadeploy.state.tables import EnvironmentRow, environment_columns, environment_of

EVERYBODY = "*"
Part = Literal["tarball", "preinstall", "postinstalls"]
Visibility = Literal["private", "shared", "public"]


class Measured(msgspec.Struct, frozen=True):
    """A file of an environment, and its checksums."""

    file: str
    md5: str
    sha256: str


class Change(msgspec.Struct, frozen=True):
    """A file of an environment as it was recorded, and as it is now."""

    environment: Environment
    before: Measured
    after: Measured


# --- seeing -------------------------------------------------------------------------------------------------------


def find(site: Site, user: str, wanted: Reference, archs: Collection[str] = ()) -> Environment:
    """The environment as *user* sees it: the highest version, unless one is given.

    The name may be written ``name@user:version%arch`` (see `Reference`), or be an alias. Without an owner the user's
    own ones are looked at first, then those that others have made public. *archs* are the architectures that will do
    when none is asked for; empty: any.

    Raises:
        EnvironmentRefusedError: there is none that *user* may see, or one for each of several architectures.
        OptionError: the name says something else than an option does.
    """
    found = versions(site, user, wanted)
    suitable = [each for each in found if each.arch in ("", *archs)] if archs else found
    return _highest(suitable or found)


def versions(site: Site, user: str, wanted: Reference) -> list[Environment]:
    """All versions of the environment that `find` would choose from, lowest first; of one owner.

    Raises:
        EnvironmentRefusedError: there is none that *user* may see.
        OptionError: the name says something else than an option does.
    """
    connect(site)
    known: list[Environment] = []
    for reading in wanted.readings():
        for column in (EnvironmentRow.name, EnvironmentRow.second_name):
            found = _select(column == reading.name, _seen(user, reading.owner))
            known += found
            if fitting := _of_one(found, user, reading):
                return sorted(fitting, key=_age)
    raise _unknown(site, user, reading, known)


def _seen(user: str, owner: str | None) -> Any:
    """What *user* sees of one owner; without one, the user's own and those public."""
    row = EnvironmentRow
    if owner is None:
        return (row.user == user) | (row.visibility == "public")
    return (row.user == owner) & _visible_by_name(user)


def _of_one(found: Sequence[Environment], user: str, wanted: Reference) -> list[Environment]:
    """Those that fit, of one name and owner: the user's own, else the first recorded.

    A later one of the same name takes nobody by surprise.
    """
    fitting = _fitting(found, wanted)
    mine = [each for each in fitting if each.user == user] or fitting
    return [each for each in mine if (each.name, each.user) == (mine[0].name, mine[0].user)]


def _age(environment: Environment) -> tuple[int, str]:
    return environment.version, environment.arch


def listed(site: Site, user: str, owner: str | None = None, all_versions: bool = False) -> list[Environment]:
    """What ``kaenv3 -l`` shows *user*, by name, owner and version; of each environment the highest version alone.

    Environments for several architectures count as several. Without *owner*: the user's own and the public ones of
    others. With one: what that user lets others see; ``*`` stands for all users.
    """
    connect(site)
    row = EnvironmentRow
    if owner is None:
        found = _select((row.user == user) | (row.visibility == "public"))
    elif owner == EVERYBODY:
        found = _select(row.visibility != "private")
    else:
        found = _select(row.user == owner, _visible_by_name(user))
    ordered = sorted(found, key=lambda each: (each.name, each.user, each.version, each.arch))
    newest = {(each.name, each.user, each.arch): each for each in ordered}
    return ordered if all_versions else list(newest.values())


def recorded(site: Site, exact: Reference) -> Environment | None:
    """Exactly this environment whoever asks, None when it is not recorded (any more); nothing of *exact* is open."""
    connect(site)
    row = EnvironmentRow
    named = (row.name == exact.name) & (row.version == exact.version)
    named &= (row.user == exact.owner) & (row.arch == exact.arch)
    return next(iter(_select(named)), None)


def every(site: Site) -> list[Environment]:
    """All that are recorded, of whoever, in the order in which they were: for the administrator's own checks."""
    connect(site)
    return _select()


def _select(*where: Any) -> list[Environment]:
    """In the order in which they were recorded."""
    rows = EnvironmentRow.select().order_by(EnvironmentRow.id)
    found = []
    for row in fetch(rows.where(*where) if where else rows):
        try:
            found.append(environment_of(row))
        except DatabaseError as error:
            damage.leave_out(error)
    return found


def _visible_by_name(user: str) -> Any:
    return (EnvironmentRow.user == user) | (EnvironmentRow.visibility != "private")


def _fitting(found: Sequence[Environment], wanted: Reference) -> list[Environment]:
    versioned = [each for each in found if wanted.version in (None, each.version)]
    return [each for each in versioned if wanted.arch in (None, each.arch)]


def _highest(found: Sequence[Environment]) -> Environment:
    """The highest version; refused where there is one for each of several architectures."""
    *_, last = sorted(found, key=_age)
    same = [each for each in found if each.version == last.version]
    if len(same) > 1:
        choices = " or ".join(map(_with_arch, sorted(same, key=_age)))
        raise EnvironmentRefusedError(
            f"There is a version {last.version} of environment {last.name!r} for each of several architectures: name "
            f"{choices}."
        )
    return last


def _unknown(site: Site, user: str, wanted: Reference, others: Sequence[Environment]) -> EnvironmentRefusedError:
    """Why *user* does not get what is *wanted*; *others* of that name are there for this user."""
    name, version, owner, arch = wanted
    whose = f" of {owner}" if owner else ""
    if version is not None and others and version not in {each.version for each in others}:
        known = ", ".join(str(number) for number in sorted({each.version for each in others}))
        return EnvironmentRefusedError(
            f"There is no version {version} of environment {name!r}{whose}; there is {known}."
        )
    if arch is not None and others:
        known = ", ".join(sorted({each.arch or "any" for each in others}))
        return EnvironmentRefusedError(f"Environment {name!r}{whose} is not for {arch}, but for {known}.")
    where = f"`kaenv3 -l -u {shlex.quote(owner)}`" if owner else "`kaenv3 -l`"
    hint = "" if owner else " One that is shared needs its owner: -u USER."
    meant = _meant(site, user, wanted)
    return EnvironmentRefusedError(
        f"There is no environment {name!r}{whose} for you; {where} lists what there is.{meant}{hint}"
    )


def _meant(site: Site, user: str, wanted: Reference) -> str:
    """What was meant, among what ``kaenv3 -l`` lists for *user*, or among the owners of what it lists."""
    seen = listed(site, user, wanted.owner)
    if wanted.owner is not None and not seen:
        return did_you_mean(wanted.owner, {each.user for each in (*listed(site, user, EVERYBODY), *listed(site, user))})
    return did_you_mean(wanted.name, [name for each in seen for name in (each.name, each.alias) if name])


# --- adding and taking away ---------------------------------------------------------------------------------------


def add(site: Site, environment: Environment, who: Account | RemoteUser) -> Environment:
    """Record one environment; see `add_all`."""
    return add_all(site, [environment], who)[0]


def add_all(site: Site, described: Sequence[Environment], who: Account | RemoteUser) -> list[Environment]:
    """Record environments for *who*, with the checksums of their files as they are now: all of them, or none.

    Raises:
        RightsError: one is to be public, and *who* is no administrator.
        EnvironmentRefusedError: a name and version is recorded (or public) already, or described twice.
        FileError: one of the files cannot be read, is too big, or is not what its kind says.
    """
    mine = [msgspec.structs.replace(each, user=who.name) for each in described]
    connect(site)
    for number, each in enumerate(mine):
        _require_may_publish(site, who.name, each.visibility)
        _require_new(each)
        if _identity(each) in map(_identity, mine[:number]):
            raise EnvironmentRefusedError(f"{each.name!r} version {each.version} is described twice: keep one of them.")
    measured = [_measured(site, each, who, ("tarball", "preinstall", "postinstalls"), whole=True) for each in mine]
    with transaction():
        for each in measured:
            _require_new(each)
            _insert(each)
    return measured


def _insert(environment: Environment) -> None:
    try:
        EnvironmentRow.insert(**environment_columns(environment)).execute()
    except peewee.IntegrityError as error:  # recorded by another process meanwhile
        raise _known(environment) from error


def delete(site: Site, user: str, wanted: Reference) -> list[Environment]:
    """Delete all versions of an environment, or the one given; returns what is gone.

    Raises:
        RightsError: it belongs to somebody else, and *user* is no administrator.
        EnvironmentRefusedError: there is none.
    """
    with _writing(site):
        found = _owned(site, user, wanted)
        for each in found:
            EnvironmentRow.delete().where(_is(each)).execute()
    return found


def _require_may_publish(site: Site, user: str, visibility: Visibility) -> None:
    if visibility == "public" and user not in site.almighty_users:
        raise RightsError(
            f"Only administrators make environments public, and you are {user}. Make it private or shared, or ask one "
            f"of them: {', '.join(site.almighty_users) or 'nobody'} (almighty_users in site.yml)."
        )


def _require_new(environment: Environment) -> None:
    if EnvironmentRow.select().where(_is(environment)).exists():
        raise _known(environment)
    _require_sole_public(environment)


def _require_sole_public(environment: Environment) -> None:
    """Two public environments of one name and version would leave it to chance which one users get."""
    row = EnvironmentRow
    named = (row.name == environment.name) & (row.version == environment.version) & (row.arch == environment.arch)
    others = _select(named, row.visibility == "public", row.user != environment.user)
    if environment.visibility == "public" and others:
        raise RecordedAlreadyError(
            f"{others[0].user} has a public environment {environment.name!r} version {environment.version} already: "
            "choose another name or version."
        )


def _with_arch(environment: Environment) -> str:
    return str(Reference(environment.name, arch=environment.arch))


def _known(environment: Environment) -> RecordedAlreadyError:
    number = str(environment.version)
    command = shlex.join(["kaenv3", "-d", _with_arch(environment), "--env-version", number])
    return RecordedAlreadyError(
        f"You have recorded version {number} of environment {environment.name!r} already: give this one another "
        f"version, or delete the old one first with: {command}"
    )


def _owned(site: Site, user: str, wanted: Reference) -> list[Environment]:
    """The versions that *user* may change, lowest first; raises RightsError or EnvironmentRefusedError."""
    known: list[Environment] = []
    for reading in wanted.readings():
        if reading.owner not in (None, user) and user not in site.almighty_users:
            raise RightsError(
                f"The environments of {reading.owner} are changed by {reading.owner} and administrators, and you are "
                f"{user}."
            )
        row = EnvironmentRow
        found = _select(row.name == reading.name, row.user == (reading.owner or user))
        known += found
        if fitting := _fitting(found, reading):
            return sorted(fitting, key=_age)
    public = "" if reading.owner else _owners(reading.name)
    raise RightsError(public) if public else _unknown(site, user, reading._replace(owner=reading.owner or user), known)


def _owners(name: str) -> str:
    """Why a public environment of that name is not yours to change; empty when there is none."""
    row = EnvironmentRow
    users = sorted({each.user for each in _select(row.name == name, row.visibility == "public")})
    return f"Environment {name!r} belongs to {', '.join(users)}; administrators add -u {users[0]}." if users else ""


def _is(environment: Environment) -> Any:
    row = EnvironmentRow
    same_name = (row.name == environment.name) & (row.version == environment.version)
    return same_name & (row.user == environment.user) & (row.arch == environment.arch)


def _identity(environment: Environment) -> tuple[object, ...]:
    return environment.name, environment.version, environment.user, environment.arch


def _writing(site: Site) -> Any:
    connect(site)
    return transaction()


# --- changing -----------------------------------------------------------------------------------------------------


def update_checksums(site: Site, who: Account | RemoteUser, wanted: Reference, part: Part) -> list[Change]:
    """Record the checksums of one kind of files as they are now; returns those files, changed or not.

    Without *version* the highest is meant.

    Raises:
        RightsError, EnvironmentRefusedError: not yours, or none, or it has no such file.
        FileError: a file cannot be read, is too big, or is not what its kind says.
    """
    connect(site)
    environment = _highest(_owned(site, who.name, wanted))
    if not _files(environment, (part,)):
        raise EnvironmentRefusedError(
            f"Environment {wanted.name!r} version {environment.version} has no {part} to update."
        )
    measured = _measured(site, environment, who, (part,), whole=True)
    with transaction():
        _update(environment, _columns(measured, (part,)))
    return _changes(environment, measured, (part,))


def set_visibility(site: Site, user: str, wanted: Reference, visibility: Visibility) -> Environment:
    """Say who sees a version of an environment (the highest, unless given); returns it as it is now.

    Raises:
        RightsError: not yours, or public, which administrators only may make it.
        EnvironmentRefusedError: there is none, or another public one of this name and version.
    """
    _require_may_publish(site, user, visibility)
    with _writing(site):
        environment = _highest(_owned(site, user, wanted))
        changed = msgspec.structs.replace(environment, visibility=visibility)
        _require_sole_public(changed)
        _update(environment, {"visibility": visibility})
    return changed


def reset_demolishing(site: Site, user: str, wanted: Reference) -> Environment:
    """Set the demolishing counter of a version (the highest, unless given) to 0; returns it as it is now.

    Raises:
        RightsError, EnvironmentRefusedError: not yours, or none.
    """
    with _writing(site):
        environment = _highest(_owned(site, user, wanted))
        _update(environment, {"demolishing_env": 0})
    return msgspec.structs.replace(environment, demolishing_env=0)


def add_failure(site: Site, environments: Iterable[Environment]) -> None:
    """Count a failed check of the production system after each of *environments* that still exists."""
    with _writing(site):
        for environment in {_identity(each): each for each in environments}.values():
            one_more = EnvironmentRow.demolishing_env + 1
            EnvironmentRow.update(demolishing_env=one_more).where(_is(environment)).execute()


def is_demolishing(site: Site, environment: Environment) -> bool:
    """Whether it may have destroyed the production system: more failures than the site's threshold."""
    return environment.demolishing_env > site.demolishing.threshold


def move_files(site: Site, who: Account | RemoteUser, moves: Sequence[tuple[str, str]]) -> list[Change]:
    """In all environments of all users, replace files and folders (*moves*: from, to), and measure the new files.

    The first move that fits a file counts. Nothing is changed when one of the new files cannot be read.

    Raises:
        RightsError: *who* is no administrator.
        OptionError: a move is malformed.
        FileError: a new file cannot be read.
    """
    changes: list[Change] = []
    moved: list[tuple[Environment, Environment]] = []
    for environment, elsewhere, parts in _moving(site, who.name, moves):
        measured = _measured(site, elsewhere, who, parts, whole=False)
        moved.append((environment, measured))
        changes += [each for each in _changes(environment, measured, parts) if each.before.file != each.after.file]
    with transaction():
        for environment, measured in moved:
            _update(environment, _columns(measured, tuple(_COLUMNS)))
    return changes


def files_to_measure(site: Site, user: str, moves: Sequence[tuple[str, str]]) -> list[str]:
    """The names of all files that `move_files` would measure, each once; raises as it does."""
    moving = _moving(site, user, moves)
    return list(dict.fromkeys(file.file for _, elsewhere, parts in moving for file in _files(elsewhere, parts)))


def _moving(
    site: Site, user: str, moves: Sequence[tuple[str, str]]
) -> Iterator[tuple[Environment, Environment, tuple[Part, ...]]]:
    """Environments as they are and with their files elsewhere, and which kinds of files that concerns."""
    if user not in site.almighty_users:
        raise RightsError(f"Only administrators move the files of environments, and you are {user}.")
    rules = [_move(source, target) for source, target in moves]
    connect(site)
    for environment in _select():
        elsewhere = _map_files(environment, lambda file: msgspec.structs.replace(file, file=_moved(file.file, rules)))
        parts = tuple(part for part in _COLUMNS if _files(environment, (part,)) != _files(elsewhere, (part,)))
        if parts:
            yield environment, elsewhere, parts


def _move(source: str, target: str) -> tuple[str, str]:
    for place in (source, target):
        if not (place.startswith("/") or files.is_url(place) or files.is_server(place)):
            raise OptionError(f"{place!r}: expected an absolute path, an http(s) URL or server:///PATH.")
    return source.rstrip("/"), target.rstrip("/")


def _moved(file: str, rules: Sequence[tuple[str, str]]) -> str:
    """*file* where it is after the first rule for it or for a folder above it."""
    for source, target in rules:
        if file == source or file.startswith(f"{source}/"):
            return target + file[len(source) :]
    return file


def _update(environment: Environment, columns: dict[str, Any]) -> None:
    name, version = environment.name, environment.version
    if not EnvironmentRow.select().where(_is(environment)).exists():
        raise EnvironmentRefusedError(
            f"Environment {name!r} version {version} has just been deleted: nothing to change."
        )
    EnvironmentRow.update(**columns).where(_is(environment)).execute()


# --- files --------------------------------------------------------------------------------------------------------

_COLUMNS: dict[Part, tuple[str, ...]] = {
    "tarball": ("image", "options"),
    "preinstall": ("preinstall",),
    "postinstalls": ("postinstalls",),
}
"""Where the files of each kind are; images that partitions have of their own are among the options."""
_OPTIONS: dict[Part, str] = {
    "tarball": "--update-tarball-md5",
    "preinstall": "--update-preinstall-md5",
    "postinstalls": "--update-postinstalls-md5",
}


def _columns(environment: Environment, parts: Iterable[Part]) -> dict[str, Any]:
    """The columns in which the files of *parts* are, with their values."""
    columns = environment_columns(environment)
    return {name: columns[name] for part in parts for name in _COLUMNS[part]}


def require_unchanged(environment: Environment, file: Image | Archive, found: LocalFile) -> None:
    """Refuse *found* unless it is what was recorded as *file* of *environment*; without checksums all is well.

    Raises:
        EnvironmentRefusedError: it has changed; the text holds the command that records it anew.
    """
    if all(known in ("", now) for known, now in ((file.md5, found.md5), (file.sha256, found.sha256))):
        return
    part = next(part for part in _COLUMNS if file in _files(environment, (part,)))
    command = ["kaenv3", _OPTIONS[part], _with_arch(environment), "--env-version", str(environment.version)]
    raise EnvironmentRefusedError(
        f"{file.file} has changed since {environment.user or 'its owner'} recorded environment {environment.name!r} "
        f"version {environment.version} (MD5 {file.md5} then, {found.md5} now). If that was intended: "
        f"{shlex.join(command)}"
    )


def _files(environment: Environment, parts: Iterable[Part]) -> list[Image | Archive]:
    return [file for part in parts for file in environment.files_by_part[part]]


def _map_files(environment: Environment, change: Any) -> Environment:
    return msgspec.structs.replace(
        environment,
        image=change(environment.image),
        preinstall=change(environment.preinstall) if environment.preinstall else None,
        postinstalls=tuple(map(change, environment.postinstalls)),
        partitions=tuple(
            msgspec.structs.replace(each, image=change(each.image)) if each.image else each
            for each in environment.partitions
        ),
    )


def _measured(
    site: Site, environment: Environment, who: Account | RemoteUser, parts: Sequence[Part], whole: bool
) -> Environment:
    """*environment* with the checksums of *parts* as they are now; see `fingerprints.of`."""
    limits = {"tarball": 0, "preinstall": site.limits.preinstall, "postinstalls": site.limits.postinstall}
    wanted = {id(file): limits[part] * MEGA for part in parts for file in _files(environment, (part,))}

    def measure(file: Image | Archive) -> Image | Archive:
        if id(file) not in wanted:
            return file
        found = fingerprints.of(site, file, who, wanted[id(file)], whole)
        return msgspec.structs.replace(file, md5=found.md5, sha256=found.sha256)

    return _map_files(environment, measure)


def _changes(before: Environment, after: Environment, parts: Sequence[Part]) -> list[Change]:
    pairs = zip(_files(before, parts), _files(after, parts), strict=True)
    return [Change(before, _checksums(old), _checksums(new)) for old, new in pairs]


def _checksums(file: Image | Archive) -> Measured:
    return Measured(file.file, file.md5, file.sha256)
