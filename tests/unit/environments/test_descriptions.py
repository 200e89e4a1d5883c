"""Descriptions like those that people bring, of every form and year: read, printed and read again without loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kadeploy.caller import caller
from kadeploy.environments import description, lines
from kadeploy.environments.description import Form, load, parse_all, write
from kadeploy.environments.environment import Environment, FileSystem, Image
from kadeploy.errors import EnvironmentRefusedError

FOLDER = Path(__file__).with_name("descriptions")
FILES = sorted(path.name for path in FOLDER.iterdir())
BEYOND_LINES = {
    "3.1.7-fsa-one-partition.dsc": ["options.partitions"],
    "3.1.7-multipart-fsa.dsc": ["options.partitions", "multipart", "boot.block_device", "boot.partition"],
    "3.3-comma-in-script.dsc": ["a comma or | in a post-install"],
    "4-custom-variables.dsc": ["custom_variables"],
    "4-multipart.json": [
        "custom_variables",
        "options.kexec",
        "options.partitions",
        "multipart",
        "boot.block_device",
        "boot.partition",
    ],
    "4-no-kexec.dsc": ["options.kexec"],
    "4-partitions-with-images.dsc": ["options.partitions", "multipart", "boot.block_device", "boot.partition"],
}
"""What the wiki's form cannot hold of these files."""


def read(name: str, warnings: list[str] | None = None) -> Sequence[Environment]:
    return load(str(FOLDER / name), caller(), ([] if warnings is None else warnings).append)


def one(name: str) -> Environment:
    (environment,) = read(name)
    return environment


def test_there_are_descriptions_of_every_form() -> None:
    assert len(FILES) >= 30
    assert {name.split("-")[0] for name in FILES} == {"3.1", "3.1.7", "3.3", "4"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_is_read_is_printed_and_read_back_without_loss(name: str, form: Form) -> None:
    found = read(name)
    assert found
    assert parse_all(write(found, form), source="/elsewhere/e") == found


@pytest.mark.parametrize("name", FILES)
def test_lines_hold_it_too_or_say_what_they_cannot_hold(name: str) -> None:
    found = read(name)
    assert lines.lost(found) == BEYOND_LINES.get(name, [])
    if name not in BEYOND_LINES:
        assert parse_all(write(found, "wiki"), source="/elsewhere/e") == found
        return
    with pytest.raises(EnvironmentRefusedError, match=r"^Lines of `key : value` cannot hold [^\n]*: use YAML.$"):
        write(found, "wiki")


@pytest.mark.parametrize("name", FILES)
def test_only_the_file_with_keys_of_tomorrow_is_warned_about(name: str) -> None:
    warnings: list[str] = []
    read(name, warnings)
    assert len(warnings) == (name == "4-from-tomorrow.dsc")


def test_unknown_keys_are_told_once_all_together_and_the_rest_is_taken() -> None:
    warnings: list[str] = []
    (environment,) = read("4-from-tomorrow.dsc", warnings)
    (warning,) = warnings
    assert warning.endswith(
        "4-from-tomorrow.dsc: unknown keys, left out: secure_boot, image.signature, boot.kernel_parms (kernel_params?)."
    )
    assert (environment.name, environment.kernel, environment.kernel_params) == ("tomorrow", "/vmlinuz", "")


def test_unknown_keys_are_left_out_wherever_they_stand() -> None:
    text = (FOLDER / "3.1.7-multipart-fsa.dsc").read_text(encoding="utf-8")
    text += "    label: data\n  future: 1\npreinstall: {archive: /a.tgz, compression: gzip, scrpt: x}\n"
    text += (
        "postinstalls: [{archive: /a.tgz, compression: gzip, mode: 1}, {archive: /b.tgz, compression: gzip, mode: 2}]\n"
    )
    warnings: list[str] = []
    (environment,) = parse_all(text, source="/e", warn=warnings.append)
    assert warnings == [
        "/e: unknown keys, left out: options.partitions.label, options.future, preinstall.scrpt (script?), "
        "postinstalls.mode."
    ]
    assert [each.device for each in environment.partitions] == ["/dev/sda1", "/dev/sda2"]


def test_a_warning_comes_before_the_refusal_that_a_misspelt_key_leads_to() -> None:
    text = (FOLDER / "3.3-least.dsc").read_text(encoding="utf-8").replace("filesystem", "filesytem")
    warnings: list[str] = []
    with pytest.raises(EnvironmentRefusedError, match="filesystem is missing"):
        parse_all(text, source="/e", warn=warnings.append)
    assert warnings == ["/e: unknown keys, left out: filesytem (filesystem?)."]


def test_names_and_architectures_of_the_newest_form_are_kept() -> None:
    environment = one("4-arch-and-alias.dsc")
    assert (environment.name, environment.alias) == ("debian11-min", "debian11-x64-min")
    assert (environment.arch, environment.version) == ("x86_64", 2022010511)
    assert [each.arch for each in read("4-list.dsc")] == ["x86_64", "ppc64le"]
    printed = write([environment], "yaml").splitlines()
    assert printed[1:5] == ["name: debian11-min", "alias: debian11-x64-min", "arch: x86_64", "version: 2022010511"]
    assert "alias : debian11-x64-min\narch : x86_64\n" in write([environment], "wiki")


def test_custom_variables_are_texts() -> None:
    assert one("4-custom-variables.dsc").custom_variables == {
        "BOOTLOADER_NO_GRUB_FROM_DEST": "1",
        "GREETING": 'it\'s {{ me }} & "you"; $HOME',
        "COUNT": "3",
        "NOTHING": "",
    }


def test_an_image_on_several_partitions_is_kept_whole() -> None:
    environment = one("3.1.7-multipart-fsa.dsc")
    assert environment.image == Image(file="server:///srv/images/windows7.fsa", kind="fsa3")
    assert environment.partitions == (FileSystem(id=0, device="/dev/sda1"), FileSystem(id=1, device="/dev/sda2"))
    assert (environment.multipart, environment.block_device, environment.boot_partition) == (True, "/dev/sda", 1)
    assert one("3.1.7-fsa.dsc").image.kind == "fsa3"
    assert one("3.1.7-fsa-one-partition.dsc").image.kind == "fsa0"
    assert "compression: 3\n" in write([environment], "yaml")


def test_each_partition_may_have_an_image_of_its_own() -> None:
    environment = one("4-partitions-with-images.dsc")
    assert [image.file for image in environment.images] == [
        "server:///srv/root.tar.zst",
        str(FOLDER / "home.txz"),
        "/srv/data.gz",
    ]
    home, data = environment.partitions[1:]
    assert (home.filesystem, home.image and home.image.kind, data.image and data.image.kind) == ("xfs", "txz", "ddgz")
    assert environment.devices == ("/dev/sda3", "/dev/sda5", "/dev/sda6")


def test_kexec_can_be_ruled_out() -> None:
    assert not one("4-no-kexec.dsc").kexec
    assert write(read("4-no-kexec.dsc"), "yaml").endswith("options:\n  kexec: false\n")
    assert one("4-aarch64.dsc").kexec


def test_relative_files_start_beside_the_description() -> None:
    environment = one("3.3-preinstall.dsc")
    assert environment.preinstall is not None
    assert environment.preinstall.file == str(FOLDER / "raid-pre.tar.bz2")
    assert environment.description == "Makes a RAID of the disks before it is unpacked"


YAML = (FOLDER / "4-no-kexec.dsc").read_text(encoding="utf-8")
MULTIPART = (FOLDER / "3.1.7-multipart-fsa.dsc").read_text(encoding="utf-8")
PARTED = (FOLDER / "4-partitions-with-images.dsc").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (YAML.replace("kexec: false", "kexec: maybe"), "$.options.kexec"),
        (f"{YAML}custom_variables: {{1A: x}}", "custom_variables: '1A': a name is letters, digits and _"),
        (f"{YAML}custom_variables: {{A B: x}}", "custom_variables: 'A B'"),
        (f"{YAML}custom_variables: {{'A=1;reboot': x}}", "custom_variables"),
        (f"{YAML}custom_variables: {{DEPLOY_PART: /dev/sdb}}", "KADEPLOY_DEPLOY_PART is Kadeploy's own"),
        (f'{YAML}custom_variables: {{A: "x\\ny"}}', "custom_variables.A: line ends"),
        (f"{YAML}custom_variables: {{A: yes}}", "$.custom_variables"),
        (f"{YAML}custom_variables: {{A: [1]}}", "$.custom_variables"),
        (f"{YAML}custom_variables: A", "$.custom_variables"),
        (YAML.replace("arch: x86_64", "arch: x86 64"), "arch: expected an architecture"),
        (YAML.replace("version: 12", f"version: {10**18}"), "version: expected a number from 0 to"),
        (MULTIPART.replace("  partition: 1\n", ""), "boot.partition: missing"),
        (MULTIPART.replace("/dev/sda2", "/dev/sda1"), "options.partitions[1]: id 1 or /dev/sda1 is given twice"),
        (MULTIPART.replace("id: 1", "id: 0"), "given twice"),
        (MULTIPART.replace("/dev/sda2", "sda2"), "options.partitions[1]: expected an id"),
        (MULTIPART.replace("    device: /dev/sda2\n", ""), "$.options.partitions[1]"),
        (MULTIPART.replace("compression: 3", "compression: 10"), "fsa/0 to fsa/9"),
        (MULTIPART.replace("kind: fsa\n  compression: 3", "kind: dd\n  compression: xz"), "2 of them have no image"),
        (PARTED.replace("filesystem: xfs", ""), "options.partitions[1].filesystem: missing"),
        (PARTED.replace("filesystem: xfs", "filesystem: 'x; reboot'"), "options.partitions[1].filesystem: expected"),
        (PARTED.replace("id: 2", "id: 2\n    filesystem: xfs"), "options.partitions[2].filesystem: only an archive"),
        (
            PARTED.replace("kind: dd\n      compression: gzip", "kind: fsa"),
            "options.partitions[2].image: an archive of",
        ),
        (PARTED.replace("kind: dd\n", "kind: iso\n"), "options.partitions[2].image: unknown kind"),
        (PARTED.replace("/srv/data.gz", "~bob/data.gz"), "image of a partition"),
        (MULTIPART.replace("block_device: /dev/sda", "block_device: ../sda"), "block_device: expected a disk"),
    ],
)
def test_a_mistake_in_a_newer_key_is_refused_in_one_line_that_names_it(text: str, said: str) -> None:
    with pytest.raises(EnvironmentRefusedError) as refusal:
        parse_all(text, source="/e")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("3.1-") and name != "3.3-several.dsc"])
@pytest.mark.parametrize("blanks", ["  ", "      "])
def test_a_text_that_is_indented_as_a_whole_means_the_same(name: str, blanks: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8").removeprefix("---\n").replace("%YAML 1.1\n---\n", "")
    indented = "".join(f"{blanks}{line}" for line in text.splitlines(keepends=True))
    assert parse_all(f"# cut out\n{indented}", source=str(FOLDER / name)) == read(name)


def test_a_broken_json_is_called_json() -> None:
    with pytest.raises(EnvironmentRefusedError, match="not valid JSON"):
        description.parse('{"name": "x", }}', source="/e")
