"""The deployment system of a site: built for its hardware, and put where its nodes fetch it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from kadeploy.admin.edit import Edit, Place, apply, edit
from kadeploy.admin.replacement import replaced
from kadeploy.boot import served
from kadeploy.boot.signature import is_signed
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError
from kadeploy.images import DeploymentSystem, build_deployment_system
from kadeploy.images.modules import kernel_version

CACHE = Path("/var/cache/kadeploy")
"""Where what was built is found again."""
HOST_KEY = "deployment_host_ed25519"
"""Name of the deployment system's private host key, beside the site's own key."""
_PAGE = 4096
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_COMMAND = re.compile(r"[\w.+-]+", re.ASCII)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What the hardware needs."""

    kernel: str = "linux-image-amd64"
    """Debian package of the kernel."""
    modules: tuple[str, ...] = ()
    """Kernel modules besides the usual ones: names, or patterns below ``/lib/modules/VERSION``."""
    packages: tuple[str, ...] = ()
    """Debian packages besides the usual ones, such as firmware."""
    commands: tuple[str, ...] = ()
    """Commands of these packages that stay."""
    keyboard: str = ""
    """Layout of the console's keyboard; empty: ``us``."""


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What was built, and where it is."""

    linux: str
    """Version of the kernel."""
    files: dict[str, int]
    """Bytes by path."""
    memory: int
    """Bytes that it takes of a node's memory, unpacked."""
    host_key: str
    """Its public host key."""
    notes: tuple[str, ...] = ()
    """What is left to the administrator."""


def build(
    configuration: Configuration,
    recipe: Recipe,
    cache: Path,
    host_key: Path | None,
    say: Callable[[str], object],
) -> DeploymentSystem:
    """Build the deployment system with the keys of the site, or find it in *cache*; takes root.

    *host_key* is its private host key; None: `HOST_KEY` beside the site's key.

    Raises:
        ConfigError: the recipe cannot work, a key is not there, or the build fails.
    """
    require_packages("--kernel", [recipe.kernel])
    require_packages("--package", recipe.packages)
    _require_names("--command", _COMMAND, recipe.commands)
    key = Path(configuration.site.ssh.private_key)
    return build_deployment_system(
        cache,
        public_half(key),
        kernel_package=recipe.kernel,
        extra_modules=recipe.modules,
        extra_packages=recipe.packages,
        extra_commands=recipe.commands,
        keyboard=recipe.keyboard,
        host_key=_there(host_key or key.with_name(HOST_KEY)),
        say=say,
    )


def install(
    system: DeploymentSystem, configuration: Configuration, clusters: Sequence[Cluster], changes: Sequence[Edit] = ()
) -> Installed:
    """Put *system* where the nodes of *clusters* fetch it, and make *changes* to the configuration: all or nothing.

    Files belong to whom the folder belongs. Initrd and kernel of a cluster change one right after the other.

    Raises:
        ConfigError: the folder is not there, the nodes boot by Secure Boot and the kernel is not signed, a file cannot
            be written, or the configuration would be a bad one.
    """
    site = configuration.site
    _require_bootable(system, site, clusters)
    places: dict[Path, tuple[Path, Path]] = {}
    notes: list[str] = []
    wanted = [
        pair
        for each in clusters
        for pair in ((each.loader.initrd, system.initrd, each), (each.loader.kernel, system.kernel, each))
    ]
    for name, source, cluster in wanted:
        path = served.path(site, cluster.loader, name)
        if path is None:
            notes.append(f"{cluster.file} names {name}, which is elsewhere: copy {source} there.")
        else:
            places.setdefault(path, (source, served.root(site, cluster.loader)))
    with replaced(places):
        if changes:
            apply(configuration.folder, changes)
    return Installed(
        linux=kernel_version(system.tree),
        files={str(path): path.stat().st_size for path in places},
        memory=memory(system.tree),
        host_key=system.host_key_public,
        notes=tuple(notes),
    )


def _require_bootable(system: DeploymentSystem, site: Site, clusters: Sequence[Cluster]) -> None:
    for cluster in clusters:
        root = served.root(site, cluster.loader)
        if not root.is_dir():
            key = served.setting(cluster.loader)
            raise ConfigError(f"{root} ({key} in site.yml) is not there: kadeploy-site init makes it.")
        if cluster.loader.secure_boot and not is_signed(system.kernel):
            raise ConfigError(
                f"{cluster.file} has loader.secure_boot, and this kernel is not signed: nothing is "
                "installed. Take a kernel that Debian has signed: --kernel linux-image-amd64."
            )


def edits(configuration: Configuration, system: DeploymentSystem, consoles: Mapping[str, str]) -> list[Edit]:
    """What the files of the site are to say of *system*: its host key, and *consoles*, ``ttyS1,115200`` by cluster.

    Raises:
        ConfigError: a file cannot be changed by a program.
    """
    found: list[Edit] = []
    if configuration.site.ssh.host_key.split()[:2] != system.host_key_public.split()[:2]:
        found.append(edit(configuration.folder / "site.yml", {("ssh", "host_key"): system.host_key_public}))
    for name, console in consoles.items():
        before = configuration.clusters[name].loader.params
        values: dict[Place, str] = {("loader", "params"): with_console(before, console)}
        if values["loader", "params"] != before:
            found.append(edit(configuration.folder / configuration.clusters[name].file, values))
    return found


def with_console(params: str, console: str) -> str:
    """Kernel parameters whose messages go to the screen and to the serial line *console*.

    >>> with_console("quiet console=ttyS0", "ttyS1,115200")
    'quiet console=tty0 console=ttyS1,115200'
    """
    words = [word for word in params.split() if not word.startswith("console=")]
    return " ".join([*words, "console=tty0", f"console={console}"])


def public_half(private_key: Path) -> str:
    """The public half of a private key, as a line.

    Raises:
        ConfigError: it cannot be read, or is no key.
    """
    command = ["ssh-keygen", "-y", "-P", "", "-f", str(private_key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["ssh-keygen does not say why"]
        raise ConfigError(
            f"{private_key} (ssh.private_key in site.yml): {why[0].rstrip('.')}. kadeploy-site init makes a key where "
            "there is none."
        )
    return done.stdout.strip()


def memory(tree: Path) -> int:
    """Bytes of memory that the files of *tree* take as the root of a running system."""
    found: dict[int, int] = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - twice as fast for tens of thousands
            found[status.st_ino] = -(-status.st_size // _PAGE) * _PAGE
    return sum(found.values())


def _there(host_key: Path) -> Path:
    for path in (host_key, host_key.with_name(f"{host_key.name}.pub")):
        if not path.exists():
            raise ConfigError(f"{path}, the deployment system's host key, is not there: kadeploy-site init makes it.")
    return host_key


def require_packages(option: str, names: Iterable[str]) -> None:
    """Refuse what cannot be the name of a Debian package.

    Raises:
        ConfigError: names it, and the *option* that it was given to.
    """
    _require_names(option, _PACKAGE, names)


def _require_names(option: str, pattern: re.Pattern[str], words: Iterable[str]) -> None:
    for word in words:
        if not pattern.fullmatch(word):
            raise ConfigError(f"{option} {word}: this is no name of a {option.lstrip('-')}.")
