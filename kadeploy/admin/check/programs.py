"""Programs and libraries that this site needs on the controller."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.environments.image import COMPRESSIONS
from kadeploy.state import database

NEEDED = Look("programs", "needed")
USEFUL = Look("programs", "useful")
LIBRARIES = Look("programs", "libraries")

_USEFUL = {
    "ssh-keygen": ("openssh-client", "keys cannot be checked"),
    "ssh-keyscan": ("openssh-client", "kadeploy3 --known-hosts cannot collect host keys"),
    "cpio": ("cpio", "keys in the deployment system cannot be checked"),
}
"""Program → its package of Debian, and what goes wrong without it."""
_PACKAGES = {"gzip": "gzip", "bzip2": "bzip2", "xz": "xz-utils", "zstd": "zstd"}


def check(subject: Subject) -> Iterator[Finding]:
    """What is not installed."""
    yield from _ansible()
    missing = [each.unpack[0] for each in COMPRESSIONS if shutil.which(each.unpack[0]) is None]
    for program in missing:
        yield NEEDED.fail(
            f"{program} is not installed: images that it packs cannot be looked at, nor their kernels taken out",
            f"apt install {_PACKAGES[program]}",
        )
    useful = [name for name in _USEFUL if shutil.which(name) is None]
    for name in useful:
        package, why = _USEFUL[name]
        yield USEFUL.warn(f"{name} is not installed: {why}", f"apt install {package}")
    yield from _libraries(subject)
    if not missing and not useful:
        yield NEEDED.ok(f"{', '.join([*(each.unpack[0] for each in COMPRESSIONS), *_USEFUL])} are there")


def _ansible() -> Iterator[Finding]:
    """The tools take the one beside their own interpreter."""
    path = Path(sys.executable).parent / "ansible-playbook"
    if os.access(path, os.X_OK):
        yield NEEDED.ok(f"{path} is there")
    elif found := shutil.which("ansible-playbook"):
        yield NEEDED.warn(
            f"ansible-playbook is not beside Kadeploy's own Python, but {found}: its version may be another",
            f"{sys.executable} -m pip install ansible-core",
        )
    else:
        yield NEEDED.fail("ansible-playbook is not installed", f"{sys.executable} -m pip install ansible-core")


def _libraries(subject: Subject) -> Iterator[Finding]:
    wanted = list(_wanted(subject))
    for library, extra, why in wanted:
        if find_spec(library) is None:
            yield LIBRARIES.fail(f"{library} is not installed, which {why} needs", f"pip install 'kadeploy[{extra}]'")
    there = [library for library, _, _ in wanted if find_spec(library) is not None]
    if there:
        yield LIBRARIES.ok(f"{', '.join(there)}: there, as this site needs")


def _wanted(subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Libraries of extras that the configuration calls for: the library, the extra, and what calls for it."""
    scheme = database.url_of(subject.site).partition("://")[0]
    if scheme in ("postgresql", "postgres"):
        yield "psycopg", "postgresql", "the database of site.yml"
    if scheme == "mysql":
        yield "pymysql", "mysql", "the database of site.yml"
    clusters = subject.configuration.clusters.values()
    if file := next((each.file for each in clusters if each.power.driver == "redfish"), ""):
        yield "sushy", "redfish", f"power.driver of {file}"
    ways = {way.name: each.file for each in clusters for tried in each.macro_steps.values() for way in tried}
    if "BroadcastEnvBittorrent" in ways:
        yield "libtorrent", "bittorrent", f"BroadcastEnvBittorrent in {ways['BroadcastEnvBittorrent']}"
    service = subject.site.service
    if service.https or service.htpasswd or service.front_ends or service.socket:
        for library in ("litestar", "uvicorn"):
            yield library, "server", "the service"
    if service.htpasswd:
        yield "argon2", "server", "service.htpasswd"
