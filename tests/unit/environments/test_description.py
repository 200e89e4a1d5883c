"""Written forms of environments: what is accepted, what is refused and how, and that print and parse are inverse."""

from __future__ import annotations

import string
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.caller import caller
from kadeploy.environments import description, lines, rules
from kadeploy.environments.description import parse, parse_all, write
from kadeploy.environments.environment import MAX_VERSION, Archive, Environment, FileSystem, Image
from kadeploy.errors import EnvironmentRefusedError, FileError

WIKI = """\
name : xen
version : 1
description : https://www.grid5000.fr/index.php/Etch-x64-xen-1.0
author : John Smith
tarball : /grid5000/etch-x64-xen-1.0.tgz|tgz
preinstall : /home/john/test/pre_install.tgz|tgz|launch.sh
postinstall : /home/john/test/post_install.tgz|tgz|traitement.sh
kernel : /boot/vmlinuz-2.6.18-6-xen-amd64
kernel_params : console=tty0 console=ttyS1,38400n8
initrd : /boot/initrd.img-2.6.18-6-xen-amd64
hypervisor : /boot/xen-3.0.3-1-amd64.gz
hypervisor_params : dom0_mem=1000000
fdisktype : 83
filesystem : ext2
environment_kind : xen
visibility : shared
demolishing_env : 0
"""
"""The example of the wiki page."""

LINUX = """\
name : min
tarball : /images/min.tgz|tgz
kernel : /vmlinuz
fdisktype : 83
filesystem : ext4
environment_kind : linux
"""

YAML = """\
---
name: debian12-min
version: 2024
description: debian 12 (bookworm) for x64 - min
author: support@example.org
visibility: shared
destructive: false
os: linux
image:
  file: server:///images/debian12.tar.zst
  kind: tar
  compression: zstd
postinstalls:
- archive: server:///post/g5k.tgz
  compression: gzip
  script: g5k-postinstall --net debian
boot:
  kernel: /vmlinuz
  initrd: /initrd.img
  kernel_params: ''
filesystem: ext4
partition_type: 131
multipart: false
"""


def refusal(text: str, source: str = "/home/john/env.dsc") -> str:
    with pytest.raises(EnvironmentRefusedError) as refused:
        parse(text, source=source)
    return str(refused.value)


# --- key : value lines --------------------------------------------------------------------------------------------


def test_the_wiki_pages_example_is_read_and_printed_to_the_letter() -> None:
    environment = parse(WIKI, source="env.dsc")
    assert environment.name == "xen"
    assert environment.image == Image(file="/grid5000/etch-x64-xen-1.0.tgz", kind="tgz")
    assert environment.preinstall == Archive(file="/home/john/test/pre_install.tgz", kind="tgz", script="launch.sh")
    assert environment.kernel_params == "console=tty0 console=ttyS1,38400n8"
    assert write([environment], "wiki") == f"###\n{WIKI}"


def test_what_is_not_given_has_the_documented_defaults() -> None:
    environment = parse(LINUX, source="env.dsc")
    assert (environment.version, environment.visibility, environment.demolishing_env) == (1, "private", 0)
    assert (environment.preinstall, environment.postinstalls, environment.part) == (None, (), "")


def test_blanks_around_the_colon_empty_lines_comments_and_windows_line_ends_change_nothing() -> None:
    loose = "\ufeff# mine\r\n\r\n" + LINUX.replace(" : ", ":\t").replace("\n", "  \r\n") + "initrd :\r\n"
    assert parse(loose, source="env.dsc") == parse(LINUX, source="env.dsc")


def test_a_postinstall_may_be_a_list_whose_scripts_have_parameters() -> None:
    text = LINUX + "postinstall : /a.tgz|tgz|s1 -v /rambin,/b.tbz2|tbz2|none, /c.txz|txz|breakpoint\n"
    archives = parse(text, source="env.dsc").postinstalls
    assert [(each.file, each.kind, each.script) for each in archives] == [
        ("/a.tgz", "tgz", "s1 -v /rambin"),
        ("/b.tbz2", "tbz2", "none"),
        ("/c.txz", "txz", "breakpoint"),
    ]


@pytest.mark.parametrize(
    ("text", "counter"), [("0", 0), ("10000", 10000), ("3", 3), ("true", 10000), ("False", 0), ("yes", 10000)]
)
def test_demolishing_is_a_counter_or_a_boolean(text: str, counter: int) -> None:
    assert parse(f"{LINUX}demolishing_env : {text}\n", source="e").demolishing_env == counter


@pytest.mark.parametrize("file", ["/i.tgz", "file:///i.tgz", "local:///i.tgz"])
def test_a_file_of_this_machine_has_several_spellings(file: str) -> None:
    assert parse(LINUX.replace("/images/min.tgz", file), source="e").image.file == "/i.tgz"


def test_a_file_that_the_administrator_offers_keeps_its_name_in_every_written_form() -> None:
    text = LINUX.replace("/images/min.tgz", "server:///srv/a%20b.tgz") + "postinstall : server:///srv/p.tgz|tgz|none\n"
    environment = parse(text, source="e")
    assert environment.image.file == "server:///srv/a%20b.tgz"
    assert environment.postinstalls[0].file == "server:///srv/p.tgz"
    for form in ("wiki", "yaml", "json"):
        assert parse(write([environment], form), source="http://host/e") == environment


@pytest.mark.parametrize("file", ["server://host/i.tgz", "server://", "server:///a%0Ab", "server:///" + 2100 * "a"])
def test_a_malformed_name_of_a_file_that_the_administrator_offers_is_refused(file: str) -> None:
    assert "tarball" in refusal(LINUX.replace("/images/min.tgz", file))


def test_a_relative_path_starts_at_the_descriptions_folder() -> None:
    text = LINUX.replace("/images/min.tgz", "images/min.tgz") + "postinstall : ./post.tgz|tgz|none\n"
    environment = parse(text, source="/home/john/envs/min.dsc")
    assert environment.image.file == "/home/john/envs/images/min.tgz"
    assert environment.postinstalls[0].file == "/home/john/envs/post.tgz"


def test_a_relative_path_in_a_description_from_the_web_is_refused() -> None:
    assert "relative" in refusal(LINUX.replace("/images/min.tgz", "min.tgz"), "http://host/env.dsc")


def test_kinds_of_disk_images_need_neither_kernel_nor_file_system() -> None:
    text = "name : bsd\ntarball : /b.dd.gz|ddgz\nfdisktype : a5\nenvironment_kind : other\n"
    assert parse(text, source="e").image.is_dd
    assert parse(text.replace("other", "linux").replace("ddgz", "dd.zst"), source="e").image.kind == "dd.zst"


def test_environments_of_kind_other_may_say_anything_about_their_kernel() -> None:
    text = "name : bsd\ntarball : /b.dd.gz|ddgz\nfdisktype : a5\nenvironment_kind : other\nkernel : none\n"
    assert parse(text, source="e").kernel == "none"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("kernel : /vmlinuz", "kernal : /vmlinuz"), ["line 3", "'kernal'", "kernel_params"]),
        (("kernel : /vmlinuz", "kernel /vmlinuz"), ["line 3", "key : value"]),
        (("kernel : /vmlinuz", "name : again"), ["line 3", "name", "twice", "line 1"]),
        (("name : min\n", ""), ["name is missing"]),
        (("tarball : /images/min.tgz|tgz\n", ""), ["tarball is missing"]),
        (("environment_kind : linux\n", ""), ["environment_kind is missing"]),
        (("fdisktype : 83\n", ""), ["fdisktype is missing"]),
        (("kernel : /vmlinuz\n", ""), ["kernel is missing", "linux"]),
        (("filesystem : ext4\n", ""), ["filesystem is missing"]),
        (("linux", "xen"), ["hypervisor is missing"]),
        (("linux", "windows"), ["line 6", "windows", "linux, xen, other"]),
        (("fdisktype : 83", "fdisktype : 0x83"), ["fdisktype", "hexadecimal"]),
        (("fdisktype : 83", "fdisktype : 8"), ["fdisktype", "hexadecimal"]),
        (("|tgz", "|zip"), ["line 2", "zip", "tbz2"]),
        (("|tgz", "|ddddbz2"), ["ddbz2"]),
        (("|tgz", ""), ["line 2", "file|kind"]),
        (("/images/min.tgz", "ftp://host/min.tgz"), ["tarball", "http(s)"]),
        (("/images/min.tgz", "http://john:secret@host/min.tgz"), ["tarball", "password"]),
        (("/images/min.tgz", "file://host/min.tgz"), ["three slashes"]),
        (("/images/min.tgz", "~/min.tgz"), ["whole path"]),
        (("kernel : /vmlinuz", "kernel : boot/vmlinuz"), ["kernel", "absolute"]),
        (("kernel : /vmlinuz", "kernel : /boot/../../etc/shadow"), ["kernel", ".."]),
        (("kernel : /vmlinuz", "kernel : /vm\x07linuz"), ["kernel", "control"]),
        (("kernel : /vmlinuz", "kernel : /" + "k" * 2000), ["kernel", "1024"]),
        (("name : min", "name : " + "n" * 256), ["name", "255"]),
        (("filesystem : ext4", "filesystem : ext4 -O ^64bit"), ["filesystem"]),
        (("filesystem : ext4", "filesystem : ../../x"), ["filesystem"]),
    ],
)
def test_a_mistake_is_refused_and_the_message_says_where_and_what_is_expected(
    changed: tuple[str, str], said: list[str]
) -> None:
    assert changed[0] in LINUX
    message = refusal(LINUX.replace(*changed))
    assert message.startswith("/home/john/env.dsc")
    assert "\n" not in message
    assert not [word for word in said if word not in message], message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("version : -1", "version"),
        ("version : 1.5", "version"),
        ("version : " + "9" * 30, "version"),
        ("version : ²", "version"),
        ("demolishing_env : maybe", "demolishing_env"),
        ("visibility : secret", "private, shared, public"),
        ("preinstall : /a.tgz|tgz", "file|kind|script"),
        ("preinstall : /a.tgz|tgz|a|b", "file|kind|script"),
        ("preinstall : /a.tgz|tgz|a,/b.tgz|tgz|b", "file|kind|script"),
        ("postinstall : /a.tgz|tgz|s 1,2", "file|kind|script"),
        ("postinstall : /a.tgz|ddgz|s", "tgz, tbz2, txz"),
        ("part : sda3", "/dev/sda3"),
        ("part : /dev/../etc/passwd", "/dev/sda3"),
        ("initrd : initrd.img", "absolute"),
    ],
)
def test_an_optional_field_is_held_to_its_rule_too(line: str, said: str) -> None:
    assert said in refusal(f"{LINUX}{line}\n")


def test_an_archive_of_kind_other_needs_a_file_system_unless_its_preinstall_makes_one() -> None:
    text = "name : o\ntarball : /b.tgz|tgz\nfdisktype : 83\nenvironment_kind : other\n"
    assert "filesystem is missing" in refusal(text)
    assert parse(f"{text}preinstall : /p.tgz|tgz|run\n", source="e").filesystem == ""


def test_an_empty_file_says_what_is_missing() -> None:
    assert "name, tarball, environment_kind, fdisktype are missing: add `name : …`, `tarball" in refusal("")


def test_several_printed_environments_are_read_back_as_several() -> None:
    both = [parse(LINUX, source="e"), parse(LINUX + "version : 2\n", source="e")]
    assert parse_all(write(both, "wiki"), source="e") == both
    assert "2 environments" in refusal(write(both, "wiki"))


# --- YAML and JSON ------------------------------------------------------------------------------------------------


def test_the_later_yaml_form_is_read() -> None:
    environment = parse(YAML, source="env.yaml")
    assert environment.image == Image(file="server:///images/debian12.tar.zst", kind="tar.zst")
    assert environment.postinstalls == (
        Archive(file="server:///post/g5k.tgz", kind="tgz", script="g5k-postinstall --net debian"),
    )
    assert (environment.fdisktype, environment.environment_kind, environment.version) == ("83", "linux", 2024)


def test_yaml_needs_no_marker_at_its_start() -> None:
    assert parse(YAML.removeprefix("---\n"), source="e") == parse(YAML, source="e")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("filesystem:", "filesytem:"), "filesystem is missing"),
        (("  kernel: /", "  kernle: /"), "kernel is missing"),
        (("version: 2024", "version: new"), "$.version"),
        (("name: debian12-min\n", ""), "name"),
        (("kind: tar", "kind: fsa"), "fsa/zstd"),
        (("compression: gzip", "compression: lzma"), "postinstalls[0].compression"),
        (("multipart: false", "multipart: true"), "options.partitions, boot.block_device, boot.partition: missing"),
        (("os: linux", "os: bsd"), "os: unknown word bsd; expected one of linux, other, xen."),
        (("  kernel: /vmlinuz", "  kernel: vmlinuz"), "absolute"),
        (("kernel_params: ''", 'kernel_params: "a\\nb"'), "control"),
        (("partition_type: 131", "partition_type: 4096"), "fdisktype"),
        (("partition_type: 131", "partition_type: -1"), "fdisktype"),
        (("image:", "image: !!python/object/apply:os.system [true]\nimagine:"), "not valid YAML"),
        (("---", "--- {"), "not valid YAML"),
    ],
)
def test_a_mistake_in_yaml_is_refused_by_path(changed: tuple[str, str], said: str) -> None:
    assert changed[0] in YAML
    message = refusal(YAML.replace(*changed))
    assert said in message
    assert "\n" not in message


def test_the_destructive_flag_is_the_demolishing_counter() -> None:
    environment = parse(YAML.replace("destructive: false", "destructive: true"), source="e")
    assert environment.demolishing_env == rules.ALWAYS
    assert "destructive: true" in write([environment], "yaml")


def test_several_documents_are_several_environments_in_yaml_and_in_json() -> None:
    both = [parse(YAML, source="e"), parse(LINUX, source="e")]
    assert parse_all(write(both, "yaml"), source="e") == both
    assert parse_all(write(both, "json"), source="e") == both


# --- whatever is written ------------------------------------------------------------------------------------------

_WORDS = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")) | st.sampled_from(":#'\"{}[]|,-%é"), max_size=30
).map(str.strip)
_NAMES = st.text(string.ascii_letters + string.digits + "._- é:#", min_size=1, max_size=20).map(
    lambda name: f"/d/{name.strip()}x"
)
_SCRIPTS = st.sampled_from(["none", "breakpoint", "run.sh", "run.sh -a 'b c' $X", "run.sh a,b", "run.sh a|b"])
_ARCHIVES = st.builds(Archive, file=_NAMES, kind=st.sampled_from(["tgz", "tbz2", "txz"]), script=_SCRIPTS)
_KINDS = st.sampled_from(["tgz", "tbz2", "txz", "tar.zst", "ddgz", "ddbz2", "ddxz", "dd.zst"])
ENVIRONMENTS = st.builds(
    Environment,
    name=_WORDS.filter(bool),
    alias=_WORDS,
    arch=st.sampled_from(["", "x86_64", "ppc64le"]),
    version=st.integers(0, MAX_VERSION),
    description=_WORDS,
    author=_WORDS,
    image=st.builds(Image, file=_NAMES | st.just("https://host.site/i.tgz"), kind=_KINDS),
    preinstall=st.none() | _ARCHIVES,
    postinstalls=st.lists(_ARCHIVES, max_size=3).map(tuple),
    kernel=_NAMES,
    kernel_params=_WORDS,
    initrd=st.just("") | _NAMES,
    hypervisor=_NAMES,
    hypervisor_params=_WORDS,
    fdisktype=st.integers(1, 255).map(lambda number: f"{number:02x}"),
    filesystem=st.sampled_from(["ext4", "xfs", "btrfs"]),
    environment_kind=st.sampled_from(["linux", "xen", "other"]),
    visibility=st.sampled_from(["private", "shared", "public"]),
    demolishing_env=st.sampled_from([0, 1, 5, 10000]),
    part=st.sampled_from(["", "/dev/sda3", "/dev/nvme0n1p2"]),
    kexec=st.booleans(),
    partitions=st.just(())
    | st.just((FileSystem(id=0, device="/dev/sda1"), FileSystem(id=2, device="/dev/sdb")))
    | st.builds(Image, file=_NAMES, kind=_KINDS.filter(lambda kind: kind.startswith("t"))).map(
        lambda image: (FileSystem(id=0, device="/dev/sda1", filesystem="ext4", image=image),)
    ),
    block_device=st.sampled_from(["", "/dev/sda"]),
    boot_partition=st.none() | st.integers(0, 9),
    custom_variables=st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True).filter(lambda name: name not in rules.RESERVED),
        st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=30),
        max_size=3,
    ),
)


@given(ENVIRONMENTS, st.sampled_from(["wiki", "yaml", "json"]))
def test_what_is_printed_is_read_back_as_it_was(environment: Environment, form: description.Form) -> None:
    if form == "wiki" and lines.lost([environment]):
        with pytest.raises(EnvironmentRefusedError, match="use YAML"):
            write([environment], form)
        return
    assert parse(write([environment], form), source="/e") == environment


@given(st.lists(ENVIRONMENTS, min_size=2, max_size=3), st.sampled_from(["yaml", "json"]))
def test_so_are_several(environments: list[Environment], form: description.Form) -> None:
    assert parse_all(write(environments, form), source="/e") == environments


@pytest.mark.parametrize("text", ["---", "---\n---\n", "[]", "- []\n"])
def test_a_text_without_any_environment_is_refused(text: str) -> None:
    assert refusal(text)


@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from([*WIKI.splitlines(), *YAML.splitlines(), "{", "[", "}", "---", "- &a [*a]", "a: *a", "? :"])
        | st.text(max_size=20),
        max_size=25,
    ).map("\n".join)
)
def test_no_text_ends_in_anything_but_environments_or_a_refusal_on_one_line(text: str) -> None:
    try:
        environments = parse_all(text, source="/e")
    except EnvironmentRefusedError as error:
        message = str(error)
        return_line = "\n" in message
    else:
        return_line = not environments
    assert not return_line


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "---\n" + "[" * 5_000, "a: &a [*a]\nimage: *a\n"])
def test_deep_nesting_is_refused_like_any_other_nonsense(text: str) -> None:
    assert refusal(text)


# --- reading ------------------------------------------------------------------------------------------------------


def test_a_description_is_read_from_a_file_and_paths_start_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "min.dsc"
    path.write_text(LINUX.replace("/images/", ""))
    assert description.load(str(path), caller(), print)[0].image.file == f"{tmp_path}/min.tgz"


def test_a_description_that_is_no_text_or_too_big_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tgz"
    path.write_bytes(b"\x1f\x8b\xff")
    with pytest.raises(FileError, match="not a text file"):
        description.load(str(path), caller(), print)
    path.write_bytes(b"#" * (description.MAX_BYTES + 1))
    with pytest.raises(FileError, match="too big"):
        description.load(str(path), caller(), print)


def test_owner_and_checksums_are_no_part_of_a_description() -> None:
    environment = parse(LINUX, source="e")
    image = msgspec.structs.replace(environment.image, md5="m" * 32, sha256="s" * 64)
    recorded = msgspec.structs.replace(environment, image=image, user="john")
    for form in ("wiki", "yaml", "json"):
        assert parse(write([recorded], form), source="e") == environment  # type: ignore[arg-type]
