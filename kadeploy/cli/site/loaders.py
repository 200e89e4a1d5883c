"""``kadeploy-site loaders``: the boot loaders that DHCP names, put where the boot servers find them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kadeploy.admin.dhcp import wanted
from kadeploy.boot import loader_files
from kadeploy.boot.loader_files import Installed
from kadeploy.cli import shell
from kadeploy.cli.site.dhcp import Clusters
from kadeploy.config.folder import load_configuration


def loaders(*, cluster: Clusters = None, form: shell.Format = "text") -> int:
    """Install the boot loaders that DHCP names, from Debian's packages."""
    configuration = load_configuration()
    found = wanted.of(configuration, cluster or ())
    boot = configuration.site.boot
    loader_files.require_packages((*found.tftp_loaders, *found.http_loaders))
    folders = {"boot.tftp_root": (boot.tftp_root, found.tftp_loaders)}
    if found.http_loaders:
        folders["boot.http_root"] = (boot.http_root, found.http_loaders)
    placed = {key: loader_files.install(Path(root), names, found.server) for key, (root, names) in folders.items()}
    if form == "text":
        for key, (root, names) in folders.items():
            print(f"{root}: {', '.join(names)}: {_told(placed[key])}.")
        for each in (each for some in placed.values() for each in some if each.how == "kept"):
            print(f"{each.path}: is your own, and stays.")
    else:
        shell.emit(
            {key: [{"path": str(each.path), "how": each.how} for each in some] for key, some in placed.items()}, form
        )
    return 0


def _told(installed: Sequence[Installed]) -> str:
    count = Counter(each.how for each in installed)
    return ", ".join(f"{count[how]} files {how}" for how in ("new", "renewed", "unchanged") if count[how])
