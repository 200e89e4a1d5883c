"""Images of a registry become environments; the registry and what asks it are Debian's. tests/vm boots one."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kadeploy.errors import ConfigError
from kadeploy.images.container import build_container
from kadeploy.images.debian import Wanted
from tests import oci
from tests.oci import Layer, push

MACHINE: Layer = {
    "boot/vmlinuz-6.1.0-1-amd64": "kernel",
    "boot/initrd.img-6.1.0-1-amd64": "initrd",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/ssh/ssh_host_rsa_key": "secret",
    "etc/machine-id": "0123\n",
    "etc/ssh/sshd_config.d/": "",
    "etc/systemd/system/": "",
    "usr/share/old/file": "old",
}
WANTED = Wanted(name="team", description="Of a team", version=4, author="ada")


@pytest.fixture(scope="module", name="registry")
def running_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a registry without TLS."""
    with oci.registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


def content(image: Path) -> dict[str, str]:
    """Text of the files of an image that was built."""
    plain = subprocess.run(["zstd", "-dcq", str(image)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        streams = ((member.name, archive.extractfile(member)) for member in archive if member.isreg())
        return {name.removeprefix("./"): stream.read().decode() for name, stream in streams if stream}


def test_an_image_of_a_machine_becomes_an_environment_without_an_identity(registry: str, tmp_path: Path) -> None:
    upper: Layer = {"etc/motd": "hello", "usr/share/.wh.old": ""}
    reference = push(tmp_path / "image", registry, "team/machine:1", MACHINE, upper)
    made = build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=lambda _: None)
    found = content(made.image)
    assert (found["etc/motd"], found["etc/machine-id"]) == ("hello", "")
    assert not {"usr/share/old/file", "etc/ssh/ssh_host_rsa_key"} & set(found)
    assert found["etc/shadow"].startswith("root:!:"), "nobody enters with a password"
    digest = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", "--format={{.Digest}}", reference.replace("oci:", "docker:")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    lines = made.description_file.read_text().splitlines()
    assert f"description : Of a team, from oci://{registry}/team/machine@{digest}" in lines
    assert {"name : team", "version : 4", "author : ada", "kernel : /boot/vmlinuz-6.1.0-1-amd64"} <= set(lines)


def test_the_same_digest_is_found_in_the_cache_and_another_is_built(registry: str, tmp_path: Path) -> None:
    said: list[str] = []
    reference = push(tmp_path / "one", registry, "team/again:1", MACHINE)
    first = build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=said.append)
    count = len(said)
    assert build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=said.append) == first
    assert len(said) == count, "nothing was fetched"
    push(tmp_path / "two", registry, "team/again:1", MACHINE, {"etc/motd": "new"})
    second = build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=said.append)
    assert content(second.image)["etc/motd"] == "new"


def test_an_image_without_kernel_and_apt_is_refused(registry: str, tmp_path: Path) -> None:
    reference = push(tmp_path / "image", registry, "team/scratch:1", {"bin/app": "x"})
    with pytest.raises(ConfigError, match="team: the image has no apt, by which it would be given what it lacks"):
        build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=lambda _: None)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_packages_for_an_image_of_a_machine_are_installed_or_refused_and_never_forgotten(
    registry: str, tmp_path: Path
) -> None:
    reference = push(tmp_path / "image", registry, "team/more:1", MACHINE)
    more = replace(WANTED, packages=("nano",))
    with pytest.raises(ConfigError, match="team: the image has no apt"):
        build_container(tmp_path / "cache", reference, more, insecure=True, say=lambda _: None)


@pytest.mark.parametrize("name", ["etc", "var/log", "usr/share/doc", "boot", "usr", "etc/ssh"])
def test_a_link_out_of_the_image_has_nothing_written_or_deleted_on_this_machine(
    name: str, registry: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    (outside / "hosts").write_text("this machine's")
    rest: Layer = {path: text for path, text in MACHINE.items() if not path.startswith(f"{name}/")}
    links: Layer = {name: f"->{outside}"}
    reference = push(tmp_path / "image", registry, f"team/{name.replace('/', '-')}:1", rest, links)
    with pytest.raises(ConfigError, match=f"/{name} of the system is a link that leads out of it"):
        build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=lambda _: None)
    assert sorted(path.name for path in outside.iterdir()) == ["hosts", "kept"]


def test_a_file_that_is_a_link_is_replaced_and_not_followed(registry: str, tmp_path: Path) -> None:
    outside = tmp_path / "hosts"
    outside.write_text("this machine's")
    links: Layer = {"etc/hosts": f"->{outside}", "etc/fstab": "->/nowhere", "etc/resolv.conf": "->../run/resolv.conf"}
    reference = push(tmp_path / "image", registry, "team/links:1", MACHINE, links)
    made = build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=lambda _: None)
    assert content(made.image)["etc/hosts"].startswith("127.0.0.1 localhost")
    assert outside.read_text() == "this machine's"


def test_an_image_for_other_machines_is_refused(registry: str, tmp_path: Path) -> None:
    reference = push(tmp_path / "image", registry, "team/arm:1", MACHINE, architecture="arm64")
    with pytest.raises(ConfigError, match=rf"{registry}/team/arm is for arm64, and not for amd64"):
        build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=lambda _: None)


def test_what_is_not_there_is_told_in_a_line(registry: str, tmp_path: Path) -> None:
    for reference, insecure, said in [
        (f"oci://{registry}/team/nothing:1", True, "nothing:1: .*manifest unknown|nothing:1: .*name unknown"),
        ("oci://127.0.0.1:1/team/x:1", True, "x:1: .*connection refused"),
        (f"oci://{registry}/team/nothing:1", False, "Say --insecure if its registry speaks HTTP"),
        ("docker://debian:12", False, "expected oci://REGISTRY/NAME:TAG"),
        ("oci://--help/x", False, "expected oci://REGISTRY/NAME:TAG"),
        ("oci://host/../x", False, "expected oci://REGISTRY/NAME:TAG"),
        ("oci://host/x\n", False, "expected oci://REGISTRY/NAME:TAG"),
    ]:
        with pytest.raises(ConfigError, match=said) as refused:
            build_container(tmp_path / "cache", reference, WANTED, insecure=insecure)
        assert "\\" not in str(refused.value)


def test_layers_that_are_not_what_the_image_says_are_refused(registry: str, tmp_path: Path) -> None:
    """A registry can lie within the digests that it gives: the sums of the unpacked layers are checked as well."""
    sums = ["sha256:" + hashlib.sha256(b"other").hexdigest()]
    reference = push(tmp_path / "image", registry, "team/lie:1", MACHINE, diff_ids=sums)
    with pytest.raises(ConfigError, match="a layer of the image is damaged: it has not the SHA-256"):
        build_container(tmp_path / "cache", reference, WANTED, insecure=True, say=lambda _: None)
