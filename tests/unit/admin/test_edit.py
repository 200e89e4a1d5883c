"""Values in YAML files are changed where they stand, and nothing else is."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.admin.edit import Place, apply, edit, edited
from kadeploy.caller import Account, as_user
from kadeploy.config.folder import load_configuration
from kadeploy.errors import ConfigError

FILE = """\
# A cluster.
nodes:
  - name: "gdx-[1-2]"      # both
    address: 10.0.0.[1-2]

# The disk.
disk: {device: /dev/sda, partitions: [{number: 1, role: deploy}]}
loader:
  firmware: bios  # or uefi
  header: |
    SERIAL 0
    more
  # params: ""
  kernel: vmlinuz

timeouts:
# arch: ""
# The end.
"""


@pytest.mark.parametrize(
    ("place", "value", "old", "new"),
    [
        (("loader", "firmware"), "uefi", "firmware: bios  #", "firmware: uefi  #"),
        (("loader", "params"), "a: b", '  # params: ""\n', "  params: 'a: b'\n"),
        (("loader", "user_params"), "quiet", "vmlinuz\n", "vmlinuz\n  user_params: quiet\n"),
        (("loader", "header"), "", "header: |\n    SERIAL 0\n    more\n", "header: ''\n"),
        (("arch",), "x86_64", '# arch: ""\n', "arch: x86_64\n"),
        (("timeouts", "reboot"), "200", "timeouts:\n", "timeouts:\n  reboot: '200'\n"),
        (("disk", "device"), "/dev/nvme0n1", "/dev/sda", "/dev/nvme0n1"),
        (("disk", "table"), "gpt", "role: deploy}]}", "role: deploy}], table: gpt}"),
        (("nodes", 0, "mac"), "52:54:00:00:00:01", "[1-2]\n\n", "[1-2]\n    mac: '52:54:00:00:00:01'\n\n"),
        (("nodes", 0, "name"), "gdx-9", '"gdx-[1-2]"', "gdx-9"),
        (("power", "driver"), "ipmi", "timeouts:\n", "timeouts:\npower:\n  driver: ipmi\n"),
        (
            ("nodes",),
            [{"name": "a"}, {"name": "b"}],
            'name: "gdx-[1-2]"      # both\n    address: 10.0.0.[1-2]\n',
            "name: a\n  - name: b\n",
        ),
        (("loader", "kernel"), ["a"], "kernel: vmlinuz\n", "kernel:\n    - a\n"),
    ],
)
def test_a_value_is_set_and_all_else_stays(place: Place, value: Any, old: str, new: str) -> None:
    found = edited(FILE, {place: value})
    assert FILE.count(old) == 1
    assert found == FILE.replace(old, new)


def test_several_values_are_set_one_after_the_other() -> None:
    places: dict[Place, Any] = {("nodes", 0, "mac"): "m", ("nodes", 0, "bmc"): "b", ("arch",): "arm64"}
    found = yaml.safe_load(edited(FILE, places))
    assert (found["nodes"][0]["mac"], found["nodes"][0]["bmc"], found["arch"]) == ("m", "b", "arm64")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: &x {b: 1}\nc: *x\n", ("c", "b")),
        ("a: [1]\n", ("a", 3)),
        ("a: [1]\n", ("a", "name")),
        ("- 1\n", ("a",)),
    ],
)
def test_what_cannot_be_changed_by_a_program_is_refused_and_says_what_to_write(
    text: str, place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "gdx.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"gdx\.yml cannot be changed by a program .*: write into it .*: new\."):
        edit(path, {place: "new"})


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | WORDS
DATA = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))


@given(st.dictionaries(WORDS, DATA, max_size=4), st.lists(WORDS, min_size=1, max_size=3), DATA, st.booleans())
def test_whatever_is_set_is_read_back_or_refused(
    data: dict[str, Any], place: list[str], value: Any, flow: bool
) -> None:
    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True)
    try:
        found = edited(text, {tuple(place): value})
    except (ValueError, yaml.YAMLError):
        return
    read = yaml.safe_load(found)
    for key in place:
        read = read[key]
    assert read == value


def test_files_are_written_only_as_a_good_configuration(site_folder: Path) -> None:
    path = site_folder / "clusters" / "gdx.yml"
    path.chmod(0o640)
    before = path.read_text()
    wrong = edit(path, {("disk", "table"): "gtp"})
    with pytest.raises(ConfigError, match=f"{path}.*disk.table: unknown word gtp.*Did you mean gpt"):
        apply(site_folder, [wrong])
    assert path.read_text() == before
    right = edit(path, {("arch",): "x86_64"})
    assert right.diff.endswith("+arch: x86_64\n")
    apply(site_folder, [right])
    assert load_configuration(site_folder).clusters["gdx"].arch == "x86_64"
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(ConfigError, match="changed by somebody else"):
        apply(site_folder, [right])


def test_a_mistake_in_another_file_stops_no_change_and_one_in_this_file_does(site_folder: Path) -> None:
    gdx, nvm = (site_folder / "clusters" / f"{name}.yml" for name in ("gdx", "nvm"))
    nvm.write_text(f"{nvm.read_text()}micro_timeouts: {{no_such_step: 1}}\n")
    apply(site_folder, [edit(gdx, {("arch",): "x86_64"})])
    found = load_configuration(site_folder)
    assert (found.clusters["gdx"].arch, list(found.faults)) == ("x86_64", ["nvm"])
    before = nvm.read_text()
    with pytest.raises(ConfigError, match=f"{nvm}:\\d+: micro_timeouts.no_such_step: unknown micro-step"):
        apply(site_folder, [edit(nvm, {("arch",): "x86_64"})])
    assert nvm.read_text() == before


def test_what_an_editor_and_operations_keep_beside_the_files_for_a_moment_is_in_nobodys_way(site_folder: Path) -> None:
    gdx = site_folder / "clusters" / "gdx.yml"
    (site_folder / "clusters" / ".#gdx.yml").symlink_to("admin@controller.1234:1700000000")
    left = threading.Event()

    def come_and_go() -> None:
        for number in itertools.takewhile(lambda _: not left.is_set(), itertools.count()):
            (site_folder / f"R-{number}" / "artifacts").mkdir(parents=True)
            shutil.rmtree(site_folder / f"R-{number}")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for number in range(40):
            apply(site_folder, [edit(gdx, {("arch",): f"arch{number}"})])
    finally:
        left.set()
        other.join()
    assert "arch: arch39\n" in gdx.read_text()


def test_a_file_that_cannot_be_copied_is_named(site_folder: Path) -> None:
    gdx = site_folder / "clusters" / "gdx.yml"
    before = gdx.read_text()
    os.mkfifo(site_folder / "pipe")
    with pytest.raises(ConfigError, match=rf"^{site_folder}/pipe cannot be read to try the change: .*is a named pipe"):
        apply(site_folder, [edit(gdx, {("arch",): "x86_64"})])
    assert gdx.read_text() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_of_several_files_all_are_written_or_none(site_folder: Path, open_folder: Path) -> None:
    entry = pwd.getpwnam("nobody")
    nobody = Account("nobody", entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
    folder = open_folder / "etc"
    shutil.copytree(site_folder, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    mine, roots = folder / "clusters" / "gdx.yml", folder / "site.yml"
    for path in (mine, mine.parent):
        os.chown(path, nobody.uid, nobody.gid)
    before = mine.read_text(), roots.read_text()
    edits = [edit(mine, {("arch",): "x86_64"}), edit(roots, {("verbosity",): 1})]
    with as_user(nobody), pytest.raises(PermissionError):
        apply(folder, edits)
    assert (mine.read_text(), roots.read_text()) == before
