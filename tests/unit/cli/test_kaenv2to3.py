"""kaenv2to3: both ways to choose an environment of Kadeploy 2, the three kinds, and what is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kadeploy.cli import kaenv2to3, shell
from kadeploy.config.site import Site
from kadeploy.environments import description
from kadeploy.state.database import connect
from kadeploy.state.tables import EnvironmentRow
from tests.unit import build

LINUX = """\
# recorded in 2008
name = debian4all
version = 3
description = https://www.grid5000.fr/index.php/Debian?a=b
author = John Smith
filebase = file:///grid5000/images/debian4all.tar.gz
filesite = file:///grid5000/postinstalls/debian4all-post.tgz
kernelpath = /boot/vmlinuz
kernelparam = console=tty0 console=ttyS1,38400n8
initrdpath = /boot/initrd.img
fdisktype = 83
filesystem = ext3
"""
XEN = """\
name = etch-xen
filebase = file:///grid5000/etch-xen.tbz2
kernelpath = /boot/mboot.c32
kernelparam = console=tty0
initrdpath = /boot/xen-3.0.3-1-amd64.gz dom0_mem=1000000 noreboot --- \
/boot/vmlinuz-2.6.18-6-xen-amd64 root=/dev/sda3 --- /boot/initrd.img-2.6.18-6-xen-amd64
fdisktype = 83
filesystem = ext2
"""
PROGRAM = """\
#!/bin/sh
[ "$#" = 2 ] && [ "$1" = -e ] && [ "$2" = 'old; name' ] || { echo "no such environment" >&2; exit 4; }
cat <<'END'
name = old; name
filebase = old.dd.gz
fdisktype = a5
siteid = 1
END
"""


@pytest.fixture
def old(tmp_path: Path) -> Callable[[str], str]:
    """Writes an old description; its path."""

    def write(text: str) -> str:
        (tmp_path / "old.dsc").write_text(text, encoding="utf-8")
        return str(tmp_path / "old.dsc")

    return write


@pytest.fixture
def kadeploy_2(tmp_path: Path) -> dict[str, str]:
    """The environment variables under which a program named kaenvironments is found."""
    program = tmp_path / "bin" / "kaenvironments"
    program.parent.mkdir()
    program.write_text(PROGRAM, encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def run(*argv: str) -> int:
    return shell.run(kaenv2to3.app, "kaenv2to3", argv)


@pytest.mark.parametrize(("text", "kind"), [(LINUX, "linux"), (XEN, "xen")])
def test_a_file_is_translated(
    tool: Any, old: Callable[[str], str], text: str, kind: str, golden: Callable[[str], str]
) -> None:
    done = tool("kaenv2to3", "-f", old(text), "-k", kind)
    assert (done.returncode, done.stdout, done.stderr) == (0, golden(f"kaenv2to3-{kind}.txt"), "")


def test_a_recorded_environment_is_translated(tool: Any, tmp_path: Path, kadeploy_2: dict[str, str]) -> None:
    """By its name as it is: nothing in it is a command."""
    done = tool("kaenv2to3", "-e", "old; name", "-k", "other", **kadeploy_2)
    assert (done.returncode, done.stderr) == (0, "Left out, without a successor: siteid.\n")
    environment = description.parse(done.stdout, source="-")
    assert environment.name == "old; name"
    assert (environment.image.file, environment.image.kind) == (str(Path.cwd() / "old.dd.gz"), "ddgz")
    assert (environment.environment_kind, environment.fdisktype) == ("other", "a5")


def test_what_kaenvironments_says_is_told(tool: Any, kadeploy_2: dict[str, str]) -> None:
    done = tool("kaenv2to3", "-e", "unknown", "-k", "linux", **kadeploy_2)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ERROR: kaenvironments -e 'unknown' ends with status 4: no such environment.\n"


def test_without_kadeploy_2_the_way_by_a_file_is_shown(tool: Any) -> None:
    done = tool("kaenv2to3", "-e", "debian", "-k", "linux", PATH="/nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be run here: save what it prints about 'debian'" in done.stderr


def test_the_translation_can_be_added(site: Site, tool: Any, tmp_path: Path, old: Callable[[str], str]) -> None:
    """Wiki page: its output is an input for kaenv."""
    for name in ("image.tgz", "post.tgz"):
        (tmp_path / name).write_bytes(build.packed(name))
    text = LINUX.replace("/grid5000/images/debian4all.tar.gz", str(tmp_path / "image.tgz"))
    text = text.replace("file:///grid5000/postinstalls/debian4all-post.tgz", "post.tgz")
    translated = tool("kaenv2to3", "-f", old(text), "-k", "linux")
    assert tool("kaenv3", "-a", "-", stdin=translated.stdout).returncode == 0
    connect(site)
    [row] = EnvironmentRow.select()
    assert row.environment.postinstalls[0].file == str(tmp_path / "post.tgz")


def test_what_has_no_successor_is_named(old: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-f", old(f"+--- banner ---+\n{LINUX}size = 1000\nsiteid = 1\n"), "-k", "linux") == 0
    assert capsys.readouterr().err == "Left out, without a successor: size, siteid, line 1.\n"


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("tgz", "tgz"),
        ("tar.gz", "tgz"),
        ("tbz2", "tbz2"),
        ("tar.bz2", "tbz2"),
        ("dd.gz", "ddgz"),
        ("dd.bz2", "ddbz2"),
        ("1.0.tar.xz", "txz"),
    ],
)
def test_the_kind_of_an_image_is_in_its_name(
    old: Callable[[str], str], suffix: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-f", old(LINUX.replace("debian4all.tar.gz", f"x.{suffix}")), "-k", "linux") == 0
    assert description.parse(capsys.readouterr().out, source="-").image.kind == kind


@pytest.mark.parametrize(
    ("changed", "kind", "reason"),
    [
        (("debian4all.tar.gz", "debian4all.zip"), "linux", "filebase: the kind of 'debian4all.zip' is not in its name"),
        (("-post.tgz", "-post.dd.gz"), "linux", "filesite: the kind of 'debian4all-post.dd.gz'"),
        (("filebase =", "base ="), "linux", "filebase is missing"),
        (("name = debian4all\n", ""), "linux", "name is missing"),
        (("kernelpath", "kernel"), "linux", "kernel is missing"),
        (("version = 3", "version = three"), "linux", "version 'three'"),
        (("author = ", "name = "), "linux", "line 5: name is given twice"),
        (("file:///grid5000/images", "ftp://host"), "linux", "tarball"),
        (("3", "3"), "xen", "initrdpath: expected `hypervisor parameters --- kernel --- initrd`"),
        (("/boot/initrd.img", "a --- b"), "xen", "initrdpath: expected"),
        (("/boot/initrd.img", "a --- --- b"), "xen", "initrdpath: expected"),
    ],
)
def test_what_cannot_be_translated_is_refused_with_the_reason(
    old: Callable[[str], str], changed: tuple[str, str], kind: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert changed[0] in LINUX
    assert run("-f", old(LINUX.replace(*changed)), "-k", kind) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert reason in err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "which kind of environment"),
        (["-f", "x"], "-k linux, -k xen or -k other"),
        (["-f", "x", "-k", "bsd"], "-k linux, -k xen or -k other"),
        (["-k", "linux"], "-e NAME, or by a file, -f FILE"),
        (["-e", "x", "-f", "y", "-k", "linux"], "one of them"),
        (["-f", "/nowhere/x", "-k", "linux"], "/nowhere/x: No such file"),
    ],
)
def test_senseless_requests_are_refused(argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert reason in err
