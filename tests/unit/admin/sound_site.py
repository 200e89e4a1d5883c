"""A site in which nothing is wrong, in a folder, with a boot server that serves it: tests break one thing each."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.admin.check import unit_files
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.check.topics import Check
from kadeploy.admin.findings import Finding
from kadeploy.boot import loader_files
from kadeploy.boot.server import HttpServer, Patience
from kadeploy.boot.tftp import TftpServer
from kadeploy.config.folder import load_configuration
from kadeploy.images.archive import pack_initrd

KERNEL = bytes(0x202) + b"HdrS" + bytes(4096)
"""What tells a kernel of x86_64 (Linux, Documentation/arch/x86/boot.rst)."""

ADDRESS = f"127.{77 + os.getpid() % 100}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""Of this machine, and of this process alone: several may test at a time, and TFTP has one port."""


@dataclass(frozen=True)
class SoundSite:
    """The site."""

    folder: Path
    """Of the configuration; its state, keys and boot folders are in it too."""

    def subject(self, *nodes: str, **options: Any) -> Subject:
        """What is checked: the site as its files are now."""
        configuration = load_configuration(self.folder)
        chosen = nodes or tuple(configuration.cluster_of)
        given = {"socket": self.folder / "state" / "kadeploy3d.sock"} | options
        return Subject(configuration=configuration, nodes=chosen, **given)

    def found(self, check: Check, *nodes: str, **options: Any) -> list[Finding]:
        """What a topic finds."""
        return list(check(self.subject(*nodes, **options)))

    def levels(self, check: Check, *nodes: str, **options: Any) -> dict[str, str]:
        """The worst level by what was looked at."""
        rank = ("ok", "warn", "fail")
        levels: dict[str, str] = {}
        for each in self.found(check, *nodes, **options):
            levels[each.name] = max(levels.get(each.name, "ok"), each.level, key=rank.index)
        return levels

    def change(self, name: str, /, **values: Any) -> None:
        """Set keys of ``site`` or of a cluster; ``power__user="x"`` is in a part, and None takes a key out."""
        path = self.folder / ("site.yml" if name == "site" else f"clusters/{name}.yml")
        data = yaml.safe_load(path.read_text())
        for dotted, value in values.items():
            *above, last = dotted.split("__")
            part = data
            for key in above:
                part = part.setdefault(key, {})
            if value is None:
                part.pop(last, None)
            else:
                part[last] = value
        path.write_text(yaml.safe_dump(data))

    def one(self, check: Check, name: str, level: str, *nodes: str, **options: Any) -> Finding:
        """The only finding of this name that is as bad."""
        found = [each for each in self.found(check, *nodes, **options) if (each.name, each.level) == (name, level)]
        assert len(found) == 1, found
        assert found[0].advice
        return found[0]


def initrd(path: Path, authorized: str, host_key: str) -> None:
    """An initrd with keys, packed as that of the deployment system."""
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        (tree / "root/.ssh").mkdir(parents=True)
        (tree / "etc/ssh").mkdir(parents=True)
        (tree / "root/.ssh/authorized_keys").write_text(authorized)
        (tree / "etc/ssh/ssh_host_ed25519_key.pub").write_text(host_key)
        (tree / "filler").write_bytes(os.urandom(1 << 20))
        pack_initrd(tree, path, level=1)


def key(path: Path) -> str:
    """A new key and its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path.with_name(f"{path.name}.pub").read_text()


@pytest.fixture(scope="session")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is the same in all such sites, and takes longest to make: keys, an initrd that has them, boot loaders."""
    folder = tmp_path_factory.mktemp("sound")
    folder.chmod(0o755)
    for name in ("keys", "tftp", "http"):
        (folder / name).mkdir()
    site_key, host_key = key(folder / "keys/site"), key(folder / "keys/host")
    initrd(folder / "http/deploy-initrd", site_key, host_key)
    loader_files.install(folder / "tftp", [loader_files.UNDIONLY, loader_files.PXELINUX], ADDRESS)
    return folder


@pytest.fixture
def sound(sound_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoundSite:
    """The site, whose boot server does not run."""
    folder = tmp_path / "site"
    shutil.copytree(sound_files, folder, symlinks=True)
    (folder / "clusters").mkdir()
    (folder / "state").mkdir(mode=0o700)
    host_key = (folder / "keys/host.pub").read_text()
    (folder / "keys/bmc").write_text("secret\n")
    (folder / "keys/bmc").chmod(0o600)
    (folder / "boot.log").touch()
    (folder / "site.yml").write_text(yaml.safe_dump(_site(folder, " ".join(host_key.split()[:2]))))
    (folder / "clusters/gdx.yml").write_text(yaml.safe_dump(_cluster(folder)))
    (folder / "http/deploy-vmlinuz").write_bytes(KERNEL)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(folder))
    return SoundSite(folder)


def _site(folder: Path, host_key: str) -> dict[str, Any]:
    return {
        "name": "paris",
        "state_dir": f"{folder}/state",
        "server_address": ADDRESS,
        "ssh": {"private_key": f"{folder}/keys/site", "host_key": host_key},
        "boot": {
            "tftp_root": f"{folder}/tftp",
            "http_root": f"{folder}/http",
            "http_url": f"http://{ADDRESS}:1/",
            "log": f"{folder}/boot.log",
        },
        "almighty_users": ["root"],
        "runs": {"max_mb": 1, "events_max_mb": 1},
        "service": {"quota": {"files_mb": 1}},
    }


def _cluster(folder: Path) -> dict[str, Any]:
    return {
        "nodes": [
            {
                "name": f"gdx-{number}.site",
                "address": f"127.9.1.{number}",
                "bmc": f"127.9.8.{100 + number}",
                "mac": f"52:54:00:00:00:{number:02x}",
            }
            for number in range(1, 5)
        ],
        "arch": "x86_64",
        "disk": {
            "device": "/dev/sda",
            "partitions": [{"number": 1, "size": "1GiB", "role": "swap"}, {"number": 3, "role": "deploy"}],
        },
        "power": {"driver": "ipmi", "user": "admin", "password_file": f"{folder}/keys/bmc"},
    }


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the units of this machine, empty."""
    monkeypatch.setattr(unit_files, "FOLDERS", (tmp_path / "etc", tmp_path / "lib"))
    folder = tmp_path / "lib/systemd/system"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def served(sound: SoundSite) -> Iterator[SoundSite]:
    """The site with its boot server at `ADDRESS`."""
    log: Callable[[str], None] = lambda _line: None  # noqa: E731
    http = HttpServer(sound.folder / "http", ADDRESS, 0, log, patience=Patience(to_go_on=0.1))
    tftp = TftpServer(sound.folder / "tftp", log)
    threads = [threading.Thread(target=http.serve_forever), threading.Thread(target=tftp.serve, args=(ADDRESS, 69))]
    for thread in threads:
        thread.start()
    while tftp.port is None:
        threading.Event().wait(0.01)
    sound.change("site", boot__http_url=f"http://{ADDRESS}:{http.server_address[1]}/")
    yield sound
    http.shutdown()
    http.server_close()
    tftp.stop()
    for thread in threads:
        thread.join()
