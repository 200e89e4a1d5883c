"""The table of image kinds is the only one: every use of kinds is compared with it."""

from __future__ import annotations

import doctest
import hashlib
import io
import re
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import msgspec
import pytest

from kadeploy.boot import kernels
from kadeploy.broadcast import sink
from kadeploy.config.folder import collection
from kadeploy.config.installs import AdminArchive
from kadeploy.environments import image
from kadeploy.environments.description import Form, parse, write
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.environments.image import ARCHIVE_KINDS, COMPRESSIONS, IMAGE_KINDS, KINDS
from kadeploy.images import archive

FSARCHIVER = [name for name, kind in KINDS.items() if kind.form == "fsa"]
SOURCES = Path(image.__file__).parents[1]


def test_the_kinds_of_the_wiki_page_are_there() -> None:
    assert set(IMAGE_KINDS) >= {"tgz", "tbz2", "txz", "ddgz", "ddbz2", "ddxz"}
    assert ARCHIVE_KINDS == ("tgz", "tbz2", "txz")


def test_each_kind_is_called_by_one_name() -> None:
    assert len(KINDS) == 2 * len(COMPRESSIONS) + len(FSARCHIVER)
    assert len({(kind.form, kind.compression.name) for kind in KINDS.values()}) == len(KINDS)


# --- every use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("where", ["here", "on a node"])
def test_what_we_pack_is_unpacked_here_and_on_nodes(compression: image.Compression, where: str) -> None:
    packed = subprocess.run(compression.pack.split(), input=b"the image", capture_output=True, check=True).stdout
    unpack = compression.unpack_here if where == "here" else ["bash", "-c", compression.unpack_on_node]
    assert subprocess.run(unpack, input=packed, capture_output=True, check=True).stdout == b"the image"


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_KINDS if kind not in FSARCHIVER])
def test_nodes_unpack_each_kind_into_its_place(kind: str) -> None:
    taken = sink.of_kind(kind).splitlines()
    (pipe,) = [line for line in taken if line.startswith(f"{KINDS[kind].compression.unpack_on_node} |")]
    assert ("dd of=" in pipe) == (KINDS[kind].form == "dd")
    assert ("tar -x" in pipe) == (KINDS[kind].form == "tar")


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda each: each.name)
def test_boot_files_are_taken_out_of_every_kind_of_archive(compression: image.Compression, tmp_path: Path) -> None:
    kernel, plain = b"a kernel", io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        member = tarfile.TarInfo("./boot/vmlinuz")
        member.size = len(kernel)
        tar.addfile(member, io.BytesIO(kernel))
    with (tmp_path / "image").open("wb") as packed:
        subprocess.run(compression.pack.split(), input=plain.getvalue(), stdout=packed, check=True)
    (tmp_path / "aside").mkdir()
    opened = partial((tmp_path / "image").open, "rb")
    sha256 = hashlib.sha256((tmp_path / "image").read_bytes()).hexdigest()
    found = kernels.take(opened, compression.tar, {"/boot/vmlinuz"}, tmp_path / "aside", sha256)
    assert found["/boot/vmlinuz"].read_bytes() == kernel


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("form", ["wiki", "yaml", "json"])
def test_every_form_of_a_description_holds_every_kind(kind: str, form: Form) -> None:
    environment = Environment(
        name="debian", image=Image(file="/i", kind=kind), kernel="/vmlinuz", filesystem="ext4", environment_kind="linux"
    )
    assert parse(write([environment], form), source="x") == environment
    assert environment.image.is_dd == (KINDS[kind].form == "dd")


@pytest.mark.parametrize("type_", [Archive, AdminArchive])
def test_archives_of_installs_have_the_kinds_that_say_so(type_: type[Archive | AdminArchive]) -> None:
    taken = [kind for kind in IMAGE_KINDS if _taken({"file": "/a", "kind": kind}, type_)]
    assert tuple(taken) == ARCHIVE_KINDS


def _taken(fields: dict[str, str], type_: type[Archive | AdminArchive]) -> bool:
    try:
        msgspec.convert(fields, type_)
    except msgspec.ValidationError:
        return False
    return True


def test_an_unknown_kind_is_no_image() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'zip'"):
        msgspec.convert({"file": "/i", "kind": "zip"}, Image)


def test_nodes_install_the_archives_that_descriptions_may_have() -> None:
    scripts = list((collection() / "roles").glob("*/files/install_archive.sh"))
    assert scripts
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert tuple(re.findall(r"^ *(\w+)\) unpack=", text, re.MULTILINE)) == ARCHIVE_KINDS


def test_names_of_files_lead_to_kinds_of_the_table() -> None:
    assert set(image.suffixes().values()) == {kind for kind in KINDS if KINDS[kind].compression.archives}


def test_the_deployment_system_has_every_program() -> None:
    commands = (SOURCES / "images" / "files" / "deployment" / "commands").read_text(encoding="utf-8").split()
    assert {each.unpack[0] for each in COMPRESSIONS} <= set(commands)


def test_we_build_images_of_every_kind_of_archive() -> None:
    assert list(archive.COMPRESSION) == [each.tar for each in COMPRESSIONS]


# --- one home ---------------------------------------------------------------------------------------------------

ONE_MORE = """\
import sys, types
from pathlib import Path

import kadeploy.environments as package
path = Path(package.__file__).with_name("image.py")
row = "Compression(name='lz4', tar='tar.lz4', dd='dd.lz4', suffix='lz4', unpack=('lz4', '-dc'), pack='lz4 -1'),"
text = path.read_text().replace("COMPRESSIONS = (", "COMPRESSIONS = (" + row, 1)
module = sys.modules["kadeploy.environments.image"] = types.ModuleType("kadeploy.environments.image")
exec(compile(text, path, "exec"), module.__dict__)

from kadeploy.environments.description import parse, write
from kadeploy.images.archive import COMPRESSION
from kadeploy.broadcast import sink
lines = "name : a\\ntarball : /i|{}\\nenvironment_kind : other\\nfdisktype : 83\\nfilesystem : ext4\\n"
for kind in ("tar.lz4", "dd.lz4"):
    environment = parse(lines.format(kind), source="x")
    assert parse(write([environment], "yaml"), source="x") == environment
    assert environment.image.is_dd == (kind == "dd.lz4")
    assert "lz4 -dc |" in sink.of_kind(kind)
assert COMPRESSION["tar.lz4"] == "lz4 -1"
"""


def test_a_new_compression_is_one_row() -> None:
    subprocess.run([sys.executable, "-c", ONE_MORE], check=True)


def test_nobody_else_names_the_kinds() -> None:
    kinds = re.compile(r"""["'](tbz2|dd(bz2|gz|xz))["']""")
    elsewhere = [path for path in SOURCES.rglob("*.py") if kinds.search(path.read_text())]
    assert elsewhere == [Path(image.__file__)]


def test_the_example_holds() -> None:
    assert doctest.testmod(image).failed == 0
