"""Files that tell every key: nothing is missing in them, and what their comments show is what holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.admin import commented
from kadeploy.config.cluster import Cluster
from kadeploy.config.file import read_struct
from kadeploy.config.site import Site

SITE: dict[str, Any] = {
    "name": "paris",
    "state_dir": "/var/lib/kadeploy",
    "server_address": "10.0.0.1",
    "ssh": {
        "private_key": "/key",
        "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf",
    },
    "boot": {"tftp_root": "/tftp", "http_root": "/http", "http_url": "http://10.0.0.1/"},
}
CLUSTER: dict[str, Any] = {
    "nodes": [{"name": "gdx-[1-3]", "address": "10.0.1.[1-3]"}],
    "disk": {"partitions": [{"number": 1, "role": "deploy"}]},
}
FILES = [(Site, SITE), (Cluster, CLUSTER)]
COMMENTED_KEY = re.compile(r"^( *)#(?! \S)", re.MULTILINE)
"""The sign in front of what is no prose."""


def classes(kind: type) -> Iterator[type]:
    """*kind* and all classes of the sections and members in it."""
    yield kind
    for key in commented.keys(kind):
        for inner in (key.section, key.member):
            if inner is not None:
                yield from classes(inner)


def read(text: str, kind: type[Any], folder: Path) -> Any:
    """What a file says; with all of its comments taken it has both kinds of nodes, of which one is left out."""
    path, data = folder / "file.yml", yaml.safe_load(text)
    if {"nodes", "inventory"} <= data.keys():
        del data["nodes"]
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return read_struct(path, kind)


@pytest.mark.parametrize(("root", "_values"), FILES)
def test_every_key_has_a_meaning(root: type, _values: object) -> None:
    untold = {f"{kind.__name__}.{key.name}" for kind in classes(root) for key in commented.keys(kind) if not key.told}
    assert untold == set()


def test_a_meaning_that_is_a_docstring_is_told_nowhere_else() -> None:
    fields = {
        f"{kind.__name__}.{name}": kind for root, _ in FILES for kind in classes(root) for name in fields_of(kind)
    }
    twice = {name for name in commented.UNTOLD if name in fields and has_docstring(fields[name], name.split(".")[1])}
    assert set(commented.UNTOLD) - set(fields) == set(), "these fields are gone"
    assert twice == set(), "these have docstrings by now"


def fields_of(kind: type) -> tuple[str, ...]:
    return tuple(getattr(kind, "__struct_fields__", ()))


def has_docstring(kind: type, name: str) -> bool:
    source = Path(__import__("inspect").getsourcefile(kind) or "").read_text(encoding="utf-8")
    body = source.split(f"class {kind.__name__}(")[1].split("\nclass ")[0]
    return re.search(rf'^    {name}: .*\n    """', body, re.MULTILINE) is not None


@pytest.mark.parametrize(("kind", "values"), FILES)
def test_every_key_is_there_set_or_as_a_comment(kind: type, values: dict[str, Any]) -> None:
    text = commented.text(kind, values, "A file.")
    for each in classes(kind):
        for key in commented.keys(each):
            assert re.search(rf"^[ #]*(- )?(\{{|.*[ ,{{])?{key.name}: ", f"{text}\n", re.MULTILINE) or re.search(
                rf"^[ #]*{key.name}:$", text, re.MULTILINE
            ), f"{each.__name__}.{key.name}"


@pytest.mark.parametrize(("kind", "values"), FILES)
def test_what_the_comments_show_is_what_holds_without_them(kind: type, values: dict[str, Any], tmp_path: Path) -> None:
    text = commented.text(kind, values, "A file.")
    plain, uncommented = read(text, kind, tmp_path), read(COMMENTED_KEY.sub(r"\1", text), kind, tmp_path)
    examples = {name.split(".")[1] for name in commented.EXAMPLES} | {"vlan", "quarantine", "nodes", "inventory"}
    for name in fields_of(kind):
        if name not in examples:
            assert getattr(uncommented, name) == getattr(plain, name), name


@pytest.mark.parametrize(("kind", "values"), FILES)
def test_examples_are_sound_where_all_of_them_are_taken(kind: type, values: dict[str, Any], tmp_path: Path) -> None:
    text = commented.text(kind, values, "A file.")
    for _ in range(3):  # a section in a section that is a comment has a sign of its own
        text = COMMENTED_KEY.sub(r"\1", text)
    found = read(text, kind, tmp_path)
    if kind is Site:
        assert (found.vlan.hostname_suffix, found.service.https.port) == ("-kavlan-VLAN_ID", 25300)


def test_a_key_that_is_set_tells_its_default() -> None:
    text = commented.text(Cluster, CLUSTER | {"loader": {"firmware": "uefi"}}, "A file.")
    assert "# What nodes boot by. One of bios, uefi. Default: bios.\n  firmware: uefi\n" in text


def test_constants_and_nothing_are_told_as_administrators_know_them() -> None:
    meanings = {key.name: key.meaning for kind in classes(Site) for key in commented.keys(kind)}
    assert "/run/kadeploy/kadeploy3d.sock" in meanings["socket"]
    assert "null: 1 on a terminal" in meanings["verbosity"]
    assert not any("``" in text or "*" in text for text in meanings.values())


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufeff"), max_size=60)


@given(TEXTS, TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_any_text_that_is_set_is_read_back_as_it_was(header: str, user: str, options: dict[str, str]) -> None:
    values = CLUSTER | {"loader": {"header": header}, "power": {"user": user}, "console": user}
    found = msgspec.convert(yaml.safe_load(commented.text(Cluster, values, "A file.")), Cluster)
    assert (found.loader.header, found.power.user, found.console) == (header, user, user)
    site = msgspec.convert(yaml.safe_load(commented.text(Site, SITE | {"mkfs_options": options}, "A file.")), Site)
    assert site.mkfs_options == options


def test_a_value_is_one_line_however_long_it_is_and_whatever_is_in_it() -> None:
    plain = commented.text(Cluster, CLUSTER | {"console": "x", "loader": {"header": "x"}}, "A file.")
    values = CLUSTER | {"console": "word " * 100 + "end", "loader": {"header": "SERIAL 0\nPROMPT 1\n"}}
    text = commented.text(Cluster, values, "A file.")
    assert text.count("\n") == plain.count("\n")
    assert '  header: "SERIAL 0\\nPROMPT 1\\n"\n' in text
