"""Have every file of an operation on this machine, checked, before any node is touched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from kadeploy import caller, files
from kadeploy.boot import kernels, uploads
from kadeploy.caller import Account
from kadeploy.config.installs import AdminArchive, archives
from kadeploy.config.site import Site
from kadeploy.environments import soundness
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.errors import ConfigError, EnvironmentRefusedError, FileError, OptionError
from kadeploy.files import MEGA, LocalFile
from kadeploy.operations.sources import OfAccount, Sources
from kadeploy.runner.request import Assignment, LocalArchive, LocalImage
from kadeploy.state import sent
from kadeploy.state.environments import require_unchanged

ROOT = Account("root", 0, 0, Path("/root"))
"""Whose rights count for the administrator's own archives."""


@dataclass(frozen=True)
class Staged:
    """What nodes will get: files of ours, and images that are open."""

    assignments: dict[str, Assignment]
    """By cluster."""
    images: Mapping[str, BinaryIO]
    """By path; open for as long as the operation lasts, and lent to its tasks (`kadeploy.remote.lending`)."""

    folder: Path
    """Where the files of ours are."""

    def close(self) -> None:
        """Close the images; those that came over http, which are ours and big, are removed."""
        for path, stream in self.images.items():
            stream.close()
            if Path(path).is_relative_to(self.folder):
                Path(path).unlink(missing_ok=True)


def stage(
    assignments: Mapping[str, Assignment],
    folder: Path,
    sources: Sources,
    uploaded: Sequence[str] = (),
    thorough: bool = False,
) -> Staged:
    """*assignments* (by cluster) with the files that nodes will get.

    Each file is opened once, by *sources*. An image stays open, everything else is copied
    to *folder*, and so is what comes over http: nothing that follows opens a file by the name that the user gave it.

    *uploaded* are paths and URLs of files for the boot loader (``-x``). Archives are looked through, of images only the
    beginning, unless it is to be *thorough*.

    Raises:
        FileError: a file cannot be read or fetched, is too big, or is not what its kind says.
        EnvironmentRefusedError: a file is no longer what was recorded, or what nodes are to boot is not in the image.
        OptionError: uploaded files whose names do not suit boot loaders.
    """
    files_of = _Files(sources, folder / "files", thorough)
    try:
        staged = {cluster: _with_files(assignment, files_of) for cluster, assignment in assignments.items()}
        user = next(iter(staged.values())).user
        for boot in {assignment.site.boot.http_root: assignment.site.boot for assignment in staged.values()}.values():
            uploads.store(uploaded, boot, user, partial(sources.opened, into=files_of.into))
    except BaseException:
        files_of.close()
        raise
    return Staged(staged, files_of.open_images(), files_of.into)


def reopen(assignments: Mapping[str, Assignment], folder: Path, account: Account | None) -> Staged:
    """What `stage` answered once with *assignments*, in another process: the images are open again.

    Raises:
        FileError: the user cannot read an image any more.
        EnvironmentRefusedError: an image is no longer what it was.
        OptionError: the user has no account any more, or it is another's.
    """
    cache = next(iter(assignments.values())).site.state / "cache"
    images: dict[str, BinaryIO] = {}
    try:
        for image in _images(assignments):
            if image.path not in images:
                images[image.path] = _reopened(image, folder, account, cache)
    except BaseException:
        for stream in images.values():
            stream.close()
        raise
    return Staged(dict(assignments), images, folder / "files")


def _images(assignments: Mapping[str, Assignment]) -> Iterator[LocalImage]:
    for assignment in assignments.values():
        yield from (image for image in (assignment.image, *assignment.partition_images) if image)


def _reopened(image: LocalImage, folder: Path, account: Account | None, cache: Path) -> BinaryIO:
    """A user's image with the rights that they had; one that came over http, or that a client has sent, is ours."""
    if not image.lent:
        try:
            return sent.held(Path(image.path))
        except OSError as error:
            raise FileError(f"{image.path}: {error.strerror}.") from error
    who = account or caller.own()
    if caller.account(who.name).uid != who.uid:
        raise OptionError(f"The account {who.name} is not the one any more that it was: deploy again.")
    stream, found = files.hold(image.path, folder, who, cache)
    if found.sha256 != image.sha256:
        stream.close()
        raise EnvironmentRefusedError(f"{image.path} has changed since the deployment began: deploy again.")
    return stream


def dry_run(
    assignments: Mapping[str, Assignment], sources: Sources, uploaded: Sequence[str] = ()
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
        with closing(stage(moved, folder, sources, uploaded, thorough=True)) as staged:
            found = staged.assignments
    return {cluster: msgspec.structs.replace(assignment, site=site) for cluster, assignment in found.items()}


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
class _Files:
    """Opens each file once."""

    sources: Sources
    into: Path
    thorough: bool
    images: dict[str, tuple[BinaryIO, LocalFile]] = field(default_factory=dict)
    copies: dict[tuple[str, int, bool], LocalFile] = field(default_factory=dict)
    """By source, limit of size, and whether it is the site's own: what one may read is not another's."""

    def image(self, source: str) -> tuple[BinaryIO, LocalFile]:
        if source not in self.images:
            self.images[source] = self.sources.hold(source, self.into)
        return self.images[source]

    def open_image(self, source: str) -> BinaryIO:
        """The image once more, from its beginning; to be closed before it is asked for again."""
        stream, _ = self.image(source)
        stream.seek(0)
        return os.fdopen(os.dup(stream.fileno()), "rb")

    def open_images(self) -> dict[str, BinaryIO]:
        """All that are open, by the path under which nodes get them."""
        return {_place(source, local): stream for source, (stream, local) in self.images.items()}

    def require_sound_image(self, image: Image, site: Site) -> None:
        """Refuse an image that nodes could not unpack; unless this is to be thorough, its beginning is looked at."""
        stream, found = self.image(image.file)
        if self.thorough:
            soundness.require_whole(found, stream, image.kind, image.file, site.state / "cache")
        else:
            soundness.require_kind(stream, image.kind, image.file)

    def copy(self, source: str, limit_mb: int = 0, of_site: bool = False) -> LocalFile:
        key = (source, limit_mb, of_site)
        if key not in self.copies:
            from_where = OfAccount(self.sources.site, ROOT) if of_site else self.sources
            self.copies[key] = from_where.copy(source, self.into, limit_mb * MEGA)
        return self.copies[key]

    def close(self) -> None:
        for stream, _ in self.images.values():
            stream.close()


def _with_files(assignment: Assignment, files_of: _Files) -> Assignment:
    if assignment.operation == "deploy":
        assignment = _with_environment(assignment, files_of)
    return _with_operations(_with_boot_files(assignment, files_of), files_of)


def _with_environment(assignment: Assignment, files_of: _Files) -> Assignment:
    environment, cluster = assignment.environment, assignment.cluster
    if environment is None:
        return assignment
    image, *others = [_image(assignment, environment, each, files_of) for each in environment.images]
    return msgspec.structs.replace(
        assignment,
        image=image,
        partition_images=tuple(others),
        preinstall=_preinstall(assignment, environment, files_of),
        postinstalls=tuple(_postinstall(assignment, environment, each, files_of) for each in environment.postinstalls),
        admin_preinstalls=tuple(_admin(assignment, archive, files_of) for archive in cluster.pre_installs),
        admin_postinstalls=tuple(_admin(assignment, each, files_of) for each in archives(cluster.post_installs)),
    )


def _image(assignment: Assignment, environment: Environment, image: Image, files_of: _Files) -> LocalImage:
    _, local = files_of.image(image.file)
    require_unchanged(environment, image, local)
    files_of.require_sound_image(image, assignment.site)
    lent = files_of.sources.lends(image.file)
    return LocalImage(path=_place(image.file, local), size=local.size, sha256=local.sha256, lent=lent)


def _place(source: str, local: LocalFile) -> str:
    """Where an image is; a file that the administrator offers is never opened by its path alone."""
    return source if files.is_server(source) else str(local.path)


def _with_operations(assignment: Assignment, files_of: _Files) -> Assignment:
    """Have the files that custom operations send and run."""
    limit = assignment.site.limits.custom_operation
    operations = tuple(
        msgspec.structs.replace(each, file=str(files_of.copy(each.file, limit).path)) if each.file else each
        for each in assignment.options.custom_operations
    )
    options = msgspec.structs.replace(assignment.options, custom_operations=operations)
    return msgspec.structs.replace(assignment, options=options)


def _with_boot_files(assignment: Assignment, files_of: _Files) -> Assignment:
    """Have kernel and initrd where boot loaders find them, if the deployed system is booted over the network."""
    environment, loader = assignment.environment, assignment.cluster.loader
    deployed = assignment.operation == "deploy" or assignment.boot.kind == "deployed"
    if environment is None or not deployed or assignment.options.pxe_profile:
        return assignment
    if not kernels.wanted(environment, loader.method):
        return assignment

    def image() -> BinaryIO:
        _, local = files_of.image(environment.image.file)
        require_unchanged(environment, environment.image, local)
        return files_of.open_image(environment.image.file)

    sha256 = assignment.image.sha256 if assignment.image else environment.image.sha256
    found = kernels.provide(environment, sha256, loader, assignment.site.boot, image)
    return msgspec.structs.replace(assignment, boot_files=found)


def _require_sound(found: LocalFile, kind: str, name: str, assignment: Assignment) -> None:
    """Refuse a copied archive that nodes could not unpack."""
    with found.path.open("rb") as stream:
        soundness.require_whole(found, stream, kind, name, assignment.site.state / "cache")


def _preinstall(assignment: Assignment, environment: Environment, files_of: _Files) -> LocalArchive | None:
    archive = environment.preinstall
    if archive is None:
        return None
    local = files_of.copy(archive.file, assignment.site.limits.preinstall)
    require_unchanged(environment, archive, local)
    _require_sound(local, archive.kind, archive.file, assignment)
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)


def _postinstall(assignment: Assignment, environment: Environment, archive: Archive, files_of: _Files) -> LocalArchive:
    local = files_of.copy(archive.file, assignment.site.limits.postinstall)
    require_unchanged(environment, archive, local)
    _require_sound(local, archive.kind, archive.file, assignment)
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)


def _admin(assignment: Assignment, archive: AdminArchive, files_of: _Files) -> LocalArchive:
    """An archive of the site; its path may be relative to the configuration folder."""
    source = str(Path(assignment.config_dir) / archive.file)
    try:
        local = files_of.copy(source, of_site=True)
        _require_sound(local, archive.kind, source, assignment)
    except FileError as error:
        raise FileError(f"{assignment.cluster.file}: {error}") from error
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)
