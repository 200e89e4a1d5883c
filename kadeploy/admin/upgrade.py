"""A site brought to the schema and the configuration of this version of Kadeploy, with a backup before."""

from __future__ import annotations

from pathlib import Path

import msgspec

from kadeploy.admin import backup, keeper, standstill
from kadeploy.caller import as_user
from kadeploy.config.cluster import Cluster
from kadeploy.config.file import read_struct
from kadeploy.config.folder import load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, DatabaseError, KadeployError
from kadeploy.state import database, dump
from kadeploy.state.database import SCHEMA_VERSION


class Stand(msgspec.Struct, frozen=True, kw_only=True):
    """How far a site is."""

    schema: int | None
    """Of its database; None: there is none yet, it is made at its first use."""
    known: int = SCHEMA_VERSION
    """The schema of this program."""
    database: str
    backup: str = ""
    """What was made before the database was changed."""

    @property
    def is_current(self) -> bool:
        """Whether there is nothing to do."""
        return self.schema in (None, self.known)


def stand(folder: Path) -> tuple[Site, Stand]:
    """The site whose configuration is in *folder*, and how far it is. Nothing is changed.

    Raises:
        ConfigError: the configuration is none for this version; all that is wrong with it is told.
        DatabaseError: the database cannot be used, or is of a later Kadeploy.
        RightsError: the caller does not keep the site.
    """
    site = _require_configuration(folder)
    with as_user(keeper.of(site)), database.as_it_is(site) as version:
        if version is None and database.has_tables():
            raise DatabaseError(
                f"The database {dump.shown(site)} is damaged: it tells no schema version. Put it back from a backup."
            )
    if version is not None and version > SCHEMA_VERSION:
        raise DatabaseError(
            f"The database has schema version {version}, and this Kadeploy knows {SCHEMA_VERSION}: install the later "
            "Kadeploy again, or restore the backup that its upgrade made (kadeploy-site restore)."
        )
    return site, Stand(schema=version, database=dump.shown(site))


def _require_configuration(folder: Path) -> Site:
    """The site, when all files of the configuration are sound."""
    try:
        found = load_configuration(folder)
        found.require_sound()
    except ConfigError as error:
        wrong = [str(error), *_wrong(folder)]
        raise ConfigError(
            f"The configuration is none for this version, and nothing was changed: {' '.join(dict.fromkeys(wrong))} "
            "What keys mean, and which there are, is in docs/configuration.md."
        ) from error
    return found.site


def _wrong(folder: Path) -> list[str]:
    """What is wrong with each file: people correct all of them at once."""
    kinds: dict[Path, type[Site] | type[Cluster]] = {folder / "site.yml": Site}
    kinds |= dict.fromkeys(_clusters(folder), Cluster)
    found = []
    for path, kind in kinds.items():
        try:
            read_struct(path, kind)
        except KadeployError as error:
            found.append(str(error))
    return found


def _clusters(folder: Path) -> list[Path]:
    return sorted((folder / "clusters").glob("*.yml"))


def upgrade(folder: Path, to: Path | None = None) -> Stand:
    """Bring the database to the schema of this program, once it is backed up, *to* a file or folder.

    Raises:
        KadeployError: nothing was changed; the text says why.
    """
    site, found = stand(folder)
    if found.is_current:
        return found
    standstill.require(site, "an upgrade")
    who = keeper.of(site)
    made = backup.make(folder, to or backup.state_folder(site, who))
    try:
        with as_user(who):
            database.connect(site)
    except DatabaseError as error:
        raise DatabaseError(f"{error} Its backup is {made.path}.") from error
    finally:
        database.disconnect()
    return msgspec.structs.replace(found, backup=made.path)
