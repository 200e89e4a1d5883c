"""docs/migrating.md: each command line of its tables goes through the parser and the checks, and ends as it says."""

from __future__ import annotations

import importlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.caller import Account, caller
from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.state import environments, rights
from kadeploy.state.database import connect
from kadeploy.state.tables import Claim, Workflow
from tests.unit import build

PAGE = Path(__file__).parents[3] / "docs" / "migrating.md"
TOUCHING = {"kadeploy3", "kareboot3", "kapower3", "kaconsole3"}
"""Tools that end at the check of rights, which the caller does not have."""
NO_RIGHT = "does not have the right to use"


@dataclass(frozen=True)
class Row:
    """A command line, and what the page says of it."""

    command: str
    here: str

    @property
    def words(self) -> list[str]:
        return [word.replace("\\|", "|") for word in self.command.split()]

    @property
    def refusal(self) -> str:
        """What has to be said when it is refused; empty when it is not."""
        match = re.match(r"refused: ([^;]*)", self.here)
        return match[1].strip() if match else ""


def rows() -> list[Row]:
    found = re.findall(r"^\| `(ka.+?)` \| [\w.]+ \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [Row(*each) for each in found]


FILES = {
    "nodes": "# mine\ngdx-1.site\ngdx-[2-3].site\n",
    "keys.pub": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq me@laptop\n",
    ".ssh/authorized_keys": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq me@laptop\n",
    "profile": "KERNEL KERNELS_DIR/FILES_PREFIX--kernel\n",
    "words": "gdx-1,one\n",
    "kernel": "a kernel",
    "initrd": "an initrd",
    "script.sh": "#!/bin/sh\n",
    "ops": "BroadcastEnvKascade,send_environment@exec%true%\n",
    "ops.yml": "BroadcastEnv:\n  sync:\n    post-ops: [{action: exec, command: 'true', name: mine}]\n",
    "my.dsc": "name : mine\ntarball : image.tgz|tgz\nkernel : /vmlinuz\nfdisktype : 83\nfilesystem : ext4\n"
    "environment_kind : linux\n",
    "old.dsc": "name = old\nfilebase = file:///images/old.tgz\nkernelpath = /vmlinuz\nfdisktype = 83\n"
    "filesystem = ext3\n",
}


@pytest.fixture
def home(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, on a site that knows the environments of the page and on which the user may deploy nowhere."""
    connect(site)
    folder = tmp_path / "home"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "script.sh").chmod(0o755)
    for place in (folder / "image.tgz", folder / "images" / "image.tgz", folder / "moved" / "image.tgz"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(build.packed())
    me = caller()
    image = Image(file=str(folder / "images" / "image.tgz"), kind="tgz")
    archive = Archive(file=str(folder / "image.tgz"), kind="tgz", script="run")
    plain = Environment(name="debian12", image=image, kernel="/vmlinuz", filesystem="ext4", version=1)
    for name, who, more in (
        ("debian12", me, {}),
        ("custom_env", Account("johnsmith", me.uid, me.gid, me.home), {"visibility": "shared"}),
        ("with_archives", me, {"preinstall": archive, "postinstalls": (archive,)}),
    ):
        columns = {field: getattr(plain, field) for field in plain.__struct_fields__} | {"name": name} | more
        environments.add(site, Environment(**columns), who)
    rights.add(site, "johnsmith", ["gdx-9.site"], ["/dev/sda3"])
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("OAR_NODE_FILE", str(folder / "nodes"))
    return folder


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.command)
def test_a_command_line_of_the_page_ends_as_the_page_says(
    row: Row, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = (word.replace("FOLDER", str(home)) for word in row.words)
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"gdx-1.site\n")))
    status = importlib.import_module(f"kadeploy.cli.{name}").main()
    told = capsys.readouterr()
    if row.refusal:
        assert status == 1
        assert row.refusal in told.err
    elif name in TOUCHING and words != ["-v"]:
        assert (status, NO_RIGHT in told.err) == (1, True), told.err
    else:
        assert (status, told.err) == (0, "")
    assert (Claim.select().count(), Workflow.select().count()) == (0, 0)


def test_the_page_has_a_hundred_command_lines_of_each_version() -> None:
    assert len(rows()) >= 100
    versions = set(re.findall(r"^\| `ka.+?` \| ([\w.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert versions == {"3.1", "3.1.7", "3.3", "newest"}
