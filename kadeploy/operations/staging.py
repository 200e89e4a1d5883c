"""Have every file of an operation on this machine, checked, before any node is touched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from kadeploy import files
from kadeploy.boot import kernels, uploads
from kadeploy.caller import Account
from kadeploy.config.cluster import AdminArchive
from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Environment
from kadeploy.errors import ConfigError, FileError
from kadeploy.files import MEGA, LocalFile
from kadeploy.runner.request import Assignment, LocalArchive, LocalImage
from kadeploy.state.environments import require_unchanged

ROOT = Account("root", 0, 0, Path("/root"))
"""Whose rights count for the administrator's own archives."""


def stage(
    requests: Mapping[str, Assignment], folder: Path, caller: Account, uploaded: Sequence[str] = ()
) -> dict[str, Assignment]:
    """*requests* (by cluster) with the files that nodes will get; what comes over http goes under *folder*.

    *uploaded* are paths and URLs of files that the boot loader shall find (``-x``).

    Raises:
        FileError: a file cannot be read or fetched, or is too big.
        EnvironmentRefused: a file is no longer what was recorded, or what nodes shall boot is not in the image.
        OptionError: uploaded files whose names do not suit boot loaders.
    """
    shelf = _Shelf(caller, folder / "files")
    staged = {
        cluster: _with_environment(request, shelf) if request.operation == "deploy" else request
        for cluster, request in requests.items()
    }
    staged = {cluster: _with_boot_files(request, shelf) for cluster, request in staged.items()}
    for boot in {request.site.boot.http_root: request.site.boot for request in staged.values()}.values():
        uploads.store(uploaded, boot, caller, shelf.into)
    return staged


def rehearse(
    requests: Mapping[str, Assignment], caller: Account, uploaded: Sequence[str] = ()
) -> dict[str, Assignment]:
    """What `stage` would answer, with all its checks; of the files nothing is kept.

    Raises:
        ConfigError: the site's folder cannot hold them meanwhile.
        KadeployError: as `stage`.
    """
    site = next(iter(requests.values())).site
    with _folder_aside(site) as folder:
        boot = msgspec.structs.replace(site.boot, http_root=str(folder / "http"), tftp_root=str(folder / "tftp"))
        aside = msgspec.structs.replace(site, boot=boot)
        moved = {cluster: msgspec.structs.replace(request, site=aside) for cluster, request in requests.items()}
        staged = stage(moved, folder, caller, uploaded)
    return {cluster: msgspec.structs.replace(request, site=site) for cluster, request in staged.items()}


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
class _Shelf:
    """Fetches each file once."""

    caller: Account
    into: Path
    fetched: dict[str, LocalFile] = field(default_factory=dict)

    def get(self, source: str, request: Assignment, limit_mb: int = 0, caller: Account | None = None) -> LocalFile:
        if source not in self.fetched:
            cache = request.site.state / "cache"
            who = caller or self.caller
            self.fetched[source] = files.fetch(source, self.into, who, limit_mb * MEGA, cache=cache)
        return self.fetched[source]


def _with_environment(request: Assignment, shelf: _Shelf) -> Assignment:
    environment, cluster = request.environment, request.cluster
    if environment is None:
        return request
    image = shelf.get(environment.image.file, request)
    require_unchanged(environment, environment.image, image)
    return msgspec.structs.replace(
        request,
        image=LocalImage(path=str(image.path), size=image.size, sha256=image.sha256),
        preinstall=_preinstall(request, environment, shelf),
        postinstalls=tuple(_postinstall(request, environment, each, shelf) for each in environment.postinstalls),
        admin_preinstalls=tuple(_admin(request, archive, shelf) for archive in cluster.pre_installs),
        admin_postinstalls=tuple(_admin(request, archive, shelf) for archive in cluster.post_installs),
    )


def _with_boot_files(request: Assignment, shelf: _Shelf) -> Assignment:
    """Have kernel and initrd where boot loaders find them, if the deployed system is booted over the network."""
    environment, method = request.environment, request.cluster.loader.method
    deployed = request.operation == "deploy" or request.boot.kind == "deployed"
    if environment is None or not deployed or request.options.pxe_profile:
        return request
    if not kernels.wanted(environment, method):
        return request

    def image() -> BinaryIO:
        local = shelf.get(environment.image.file, request)
        require_unchanged(environment, environment.image, local)
        return files.open_as_user(local.path, ROOT if files.is_url(environment.image.file) else shelf.caller)

    sha256 = request.image.sha256 if request.image else environment.image.sha256
    found = kernels.provide(environment, sha256, method, request.site.boot, image)
    return msgspec.structs.replace(request, boot_files=found)


def _preinstall(request: Assignment, environment: Environment, shelf: _Shelf) -> LocalArchive | None:
    archive = environment.preinstall
    if archive is None:
        return None
    local = shelf.get(archive.file, request, request.site.limits.preinstall)
    require_unchanged(environment, archive, local)
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)


def _postinstall(request: Assignment, environment: Environment, archive: Archive, shelf: _Shelf) -> LocalArchive:
    local = shelf.get(archive.file, request, request.site.limits.postinstall)
    require_unchanged(environment, archive, local)
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)


def _admin(request: Assignment, archive: AdminArchive, shelf: _Shelf) -> LocalArchive:
    """An archive of the site; its path may be relative to the configuration folder."""
    source = str(Path(request.config_dir) / archive.file)
    try:
        local = shelf.get(source, request, caller=ROOT)
    except FileError as error:
        raise FileError(f"clusters/{request.cluster.name}.yml: {error}") from error
    return LocalArchive(path=str(local.path), kind=archive.kind, script=archive.script)
