"""Layers of container images: what they add, replace and remove, and what hostile ones try."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.errors import ConfigError
from kadeploy.images.layers import flatten

Layer = list[tuple[str, Any]]
"""Names and what they are: text of a file, None for a folder, ``->`` or ``=>`` and a target for links."""


def archive(path: Path, layer: Layer) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as target:
        for name, what in layer:
            member = tarfile.TarInfo(name)
            content = b""
            if what is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o750
            elif what.startswith("->"):
                member.type, member.linkname = tarfile.SYMTYPE, what[2:]
            elif what.startswith("=>"):
                member.type, member.linkname = tarfile.LNKTYPE, what[2:]
            else:
                content = what.encode()
                member.size, member.mode, member.uid = len(content), 0o4755, 12
                member.pax_headers = {"SCHILY.xattr.security.capability": "cap"}
            target.addfile(member, io.BytesIO(content))
    return path


def flat(tmp_path: Path, *layers: Layer) -> dict[str, str | None]:
    """The tree of *layers*: text of files, None of folders, targets of links."""
    paths = [archive(tmp_path / f"layer-{rank}", layer) for rank, layer in enumerate(layers)]
    flatten(paths, tmp_path / "flat")
    with tarfile.open(tmp_path / "flat") as found:
        return {member.name: said(found, member) for member in found}


def said(found: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    if member.issym():
        return f"->{member.linkname}"
    stream = found.extractfile(member)
    return stream.read().decode() if stream else None


def test_a_layer_adds_and_replaces(tmp_path: Path) -> None:
    found = flat(tmp_path, [("etc", None), ("etc/a", "1"), ("etc/b", "1")], [("./etc/b", "2"), ("etc/c", "2")])
    assert found == {"etc": None, "etc/a": "1", "etc/b": "2", "etc/c": "2"}


def test_whiteouts_remove_what_lower_layers_have_and_nothing_else(tmp_path: Path) -> None:
    lower: Layer = [("a", None), ("a/x", "1"), ("a/y", None), ("a/y/z", "1"), ("b", None), ("b/x", "1")]
    upper: Layer = [
        ("a/.wh.y", ""),
        ("a/.wh.nothing", ""),
        ("b/new", "2"),
        ("b/.wh..wh..opq", ""),
        ("c", "2"),
        (".wh.c", ""),
    ]
    assert flat(tmp_path, lower, upper) == {"a": None, "a/x": "1", "b": None, "b/new": "2", "c": "2"}


def test_what_was_removed_may_come_again(tmp_path: Path) -> None:
    assert flat(tmp_path, [("a", "1")], [(".wh.a", "")], [("a", "3")]) == {"a": "3"}


def test_a_file_takes_the_place_of_a_folder_and_a_folder_that_of_a_file(tmp_path: Path) -> None:
    found = flat(tmp_path, [("a/x", "1"), ("b", "1")], [("a", "2"), ("b", None), ("b/y", "2")])
    assert found == {"a": "2", "b": None, "b/y": "2"}


def test_files_behind_links_to_folders_go_where_the_links_lead_within_the_image(tmp_path: Path) -> None:
    lower: Layer = [("usr/bin", None), ("bin", "->usr/bin"), ("abs", "->/usr/bin"), ("up", "->../../../usr/bin")]
    found = flat(tmp_path, lower, [("bin/a", "2"), ("abs/b", "2"), ("up/c", "2")])
    assert {name: text for name, text in found.items() if text == "2"} == {f"usr/bin/{name}": "2" for name in "abc"}


def test_hard_links_share_their_file_over_layers_and_names(tmp_path: Path) -> None:
    paths = [
        archive(tmp_path / "0", [("a", "text"), ("b", "=>a")]),
        archive(tmp_path / "1", [("c", "=>./b"), (".wh.a", "")]),
    ]
    assert flatten(paths, tmp_path / "flat") == 4
    with tarfile.open(tmp_path / "flat") as found:
        members = {member.name: member for member in found}
        assert sorted(members) == ["b", "c"]
        assert members["c"].islnk()
        assert members["c"].linkname == "b"
        assert said(found, members["c"]) == "text"


def test_owners_modes_and_attributes_stay(tmp_path: Path) -> None:
    flatten([archive(tmp_path / "0", [("ping", "x"), ("var", None)])], tmp_path / "flat")
    with tarfile.open(tmp_path / "flat") as found:
        ping = found.getmember("ping")
        assert (ping.uid, ping.mode, found.getmember("var").mode) == (12, 0o4755, 0o750)
        assert ping.pax_headers["SCHILY.xattr.security.capability"] == "cap"


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([[("../etc/passwd", "x")]], "leads out of it"),
        ([[("a/../../b", "x")]], "leads out of it"),
        ([[("a", "=>../../etc/shadow")]], "leads out of it"),
        ([[("a", "=>b")]], "a link to nothing"),
        ([[("a", "->a"), ("a/b", "x")]], "which is no folder"),
        ([[("a", "->b"), ("b", "->a")], [("a/c", "x")]], "which is no folder"),
        ([[("a", "x")], [("a/b", "x")]], "which is no folder"),
        ([[("a", None), ("b", "=>a")]], "a link to nothing"),
    ],
)
def test_hostile_layers_are_refused(layers: list[Layer], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        flat(tmp_path, *layers)


def test_a_link_out_of_the_image_never_leads_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    found = flat(tmp_path, [("evil", f"->{outside}")], [("evil/file", "x")])
    assert list(outside.iterdir()) == []
    assert found[f"{str(outside)[1:]}/file"] == "x", "within the image, as in a chroot"


@pytest.mark.parametrize("content", [b"", b"nonsense" * 1000])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        flatten([tmp_path / "layer"], tmp_path / "flat")


NAMES = st.sampled_from(["a", "b", "a/a", "a/b", "a/a/a", "b/a", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", "b/.wh.a"])
WHAT = st.sampled_from(["1", "2", None, "->a", "->/b", "->../b/a"])


@given(st.lists(st.lists(st.tuples(NAMES, WHAT), max_size=6), max_size=3))
def test_what_is_written_can_be_unpacked_and_no_name_leads_through_a_link(
    tmp_path_factory: pytest.TempPathFactory, layers: list[Layer]
) -> None:
    folder = tmp_path_factory.mktemp("layers")
    try:
        found = flat(folder, *layers)
        links = {name for name, text in found.items() if text and text.startswith("->")}
        assert not any(name.startswith(f"{link}/") for name in found for link in links)
        (folder / "tree").mkdir()
        subprocess.run(
            ["tar", "-xf", str(folder / "flat"), "-C", str(folder / "tree")], check=True, capture_output=True
        )
    except ConfigError:
        pass
    finally:
        shutil.rmtree(folder)
