"""Have every file of an operation on this machine, checked, before any node is touched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from kadeploy import files
from kadeploy.boot import kernels, uploads
from kadeploy.caller import Account
from kadeploy.config.cluster import AdminArchive
from kadeploy.config.site import Site
from kadeploy.environments import soundness
from kadeploy.environments.environment import Archive, Environment
from kadeploy.errors import ConfigError, FileError
from kadeploy.files import MEGA, LocalFile
from kadeploy.runner.request import Assignment, LocalArchive, LocalImage
from kadeploy.state.environments import require_unchanged

ROOT = Account("root", 0, 0, Path("/root"))
"""Whose rights count for the administrator's own archives."""


def stage(
    assignments: Mapping[str, Assignment],
    folder: Path,
    account: Account,
    uploaded: Sequence[str] = (),
    thorough: bool = False,
) -> dict[str, Assignment]:
    """*assignments* (by cluster) with the files that nodes will get; what comes over http goes under *folder*.

    *uploaded* are paths and URLs of files for the boot loader (``-x``). Archives are looked through, of images only the
    beginning, unless it is to be *thorough*.

    Raises:
        FileError: a file cannot be read or fetched, is too big, or is not what its kind says.
        EnvironmentRefusedError: a file is no longer what was recorded, or what nodes are to boot is not in the image.
        OptionError: uploaded files whose names do not suit boot loaders.
    """
    fetched = _FetchedFiles(account, folder / "files", thorough)
    staged = {
        cluster: _with_environment(assignment, fetched) if assignment.operation == "deploy" else assignment
        for cluster, assignment in assignments.items()
    }
    staged = {cluster: _with_boot_files(assignment, fetched) for cluster, assignment in staged.items()}
    for boot in {assignment.site.boot.http_root: assignment.site.boot for assignment in staged.values()}.values():
        uploads.store(uploaded, boot, account, fetched.into)
    return staged


def dry_run(
    assignments: Mapping[str, Assignment], account: Account, uploaded: Sequence[str] = ()
) -> dict[str, Assignment]:
    """What `stage` would answer, with all its checks; of the files nothing is kept.

    Raises:
        ConfigError: the site's folder cannot hold them meanwhile.
        KadeployError: as `stage`.
    """
    site = next(iter(assignments.values())).site
    with _folder_aside(site) as folder:
        boot = msgspec.structs.replace(site.boot, http_root=str(folder / "http"), tftp_root=str(folder / "tftp"))
        aside = msgspec.structs.replace(site, boot=boot)
        moved = {
            cluster: msgspec.structs.replace(assignment, site=aside) for cluster, assignment in assignments.items()
        }
        staged = stage(moved, folder, account, uploaded, thorough=True)
    return {cluster: msgspec.structs.replace(assignment, site=site) for cluster, assignment in staged.items()}


@contextmanager
def _folder_aside(site: Site) -> Iterator[Path]:
    """A folder that soon goes, where there is room for images."""
    try:
        site.state.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="dry-run-", dir=site.state)
    except OSError as error:
        raise ConfigError(f"{site.state}: {error.strerror}: check state_dir in site.yml.") from error
    with made as name:
        yield Path(name)


@dataclass
class _FetchedFiles:
    """Fetches each file once."""

    account: Account
    into: Path
    thorough: bool
    found: dict[str, LocalFile] = field(default_factory=dict)

    def get(self, source: str, assignment: Assignment, limit_mb: int = 0, account: Account | None = None) -> LocalFile:
        if source not in self.found:
            cache = assignment.site.state / "cache"
            who = account or self.account
            self.found[source] = files.fetch(source, self.into, who, limit_mb * MEGA, cache=cache)
        return self.found[source]

    def open(self, source: str, account: Account | None = None) -> BinaryIO:
        """Open what was fetched, with the rights of whom it belongs to."""
        who = ROOT if files.is_url(source) else account or self.account
        return files.open_as_user(self.found[source].path, who)

    def require_sound(
        self, source: str, kind: str, assignment: Assignment, whole: bool = True, account: Account | None = None
    ) -> None:
        """Refuse what nodes could not unpack."""
        opened = partial(self.open, source, account)
        if whole:
            cache = assignment.site.state / "cache"
            soundness.require_whole(self.found[source], opened, kind, source, account or self.account, cache)
            return
        with opened() as stream:
            soundness.require_kind(stream, kind, source)


def _with_environment(assignment: Assignment, fetched: _FetchedFiles) -> Assignment:
    environment, cluster = assignment.environment, assignment.cluster
    if environment is None:
        return assignment
    image = fetched.get(environment.image.file, assignment)
    require_unchanged(environment, environment.image, image)
    fetched.require_sound(environment.image.file, environment.image.kind, assignment, whole=fetched.thorough)
    return msgspec.structs.replace(
        assignment,
        image=LocalImage(path=str(image.path), size=image.size, sha256=image.sha256),
        preinstall=_preinstall(assignment, environment, fetched),
        postinstalls=tuple(_postinstall(assignment, environment, each, fetched) for each in environment.postinstalls),
        admin_preinstalls=tuple(_admin(assignment, archive, fetched) for archive in cluster.pre_installs),
        admin_postinstalls=tuple(_admin(assignment, archive, fetched) for archive in cluster.post_installs),
    )


def _with_boot_files(assignment: Assignment, fetched: _FetchedFiles) -> Assignment:
    """Have kernel and initrd where boot loaders find them, if the deployed system is booted over the network."""
    environment, method = assignment.environment, assignment.cluster.loader.method
    deployed = assignment.operation == "deploy" or assignment.boot.kind == "deployed"
    if environment is None or not deployed or assignment.options.pxe_profile:
        return assignment
    if not kernels.wanted(environment, method):
        return assignment

    def image() -> BinaryIO:
        local = fetched.get(environment.image.file, assignment)
        require_unchanged(environment, environment.image, local)
        return fetched.open(environment.image.file)

    sha256 = assignment.image.sha256 if assignment.image else environment.image.sha256
    found = kernels.provide(environment, sha256, method, assignment.site.boot, image)
    return msgspec.structs.replace(assignment, boot_files=found)


def _preinstall(assignment: Assignment, environment: Environment, fetched: _FetchedFiles) -> LocalArchive | None:
    archive = environment.preinstall
    if archive is None:
        return None
    local = fetched.get(archive.file, assignment, assignment.site.limits.preinstall)
    require_unchanged(environment, archive, local)
    fetched.require_sound(archive.file, archive.kind, assignment)
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)


def _postinstall(
    assignment: Assignment, environment: Environment, archive: Archive, fetched: _FetchedFiles
) -> LocalArchive:
    local = fetched.get(archive.file, assignment, assignment.site.limits.postinstall)
    require_unchanged(environment, archive, local)
    fetched.require_sound(archive.file, archive.kind, assignment)
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)


def _admin(assignment: Assignment, archive: AdminArchive, fetched: _FetchedFiles) -> LocalArchive:
    """An archive of the site; its path may be relative to the configuration folder."""
    source = str(Path(assignment.config_dir) / archive.file)
    try:
        local = fetched.get(source, assignment, account=ROOT)
        fetched.require_sound(source, archive.kind, assignment, account=ROOT)
    except FileError as error:
        raise FileError(f"clusters/{assignment.cluster.name}.yml: {error}") from error
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)
