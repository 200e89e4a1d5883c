"""The site's key and the deployment system's host key are those of the image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kadeploy.admin.check import keys
from tests.unit.admin.sound_site import SoundSite, initrd, key

ALL = ("private", "host-key", "authorized", "host-key-of-image")


def test_keys_that_fit_are_found_in_the_initrd(sound: SoundSite) -> None:
    assert sound.levels(keys.check) == dict.fromkeys(ALL, "ok")


def test_a_site_key_that_the_image_does_not_know_is_told(sound: SoundSite) -> None:
    for name in ("site", "site.pub"):
        (sound.folder / "keys" / name).unlink()
    key(sound.folder / "keys/site")
    assert sound.levels(keys.check) == dict.fromkeys(ALL, "ok") | {"authorized": "fail"}


def test_a_host_key_that_is_not_the_images_is_told_with_the_one_to_set(sound: SoundSite, tmp_path: Path) -> None:
    other = key(tmp_path / "other")
    sound.change("site", ssh__host_key=" ".join(other.split()[:2]))
    right = (sound.folder / "keys/host.pub").read_text().split()
    assert sound.one(keys.check, "host-key-of-image", "fail").advice.endswith(" ".join(right[:2]))


@pytest.mark.parametrize(
    ("name", "said"),
    [("noise", "is no private key"), ("nothing", "there is no file"), ("locked", "has a passphrase")],
)
def test_what_is_no_usable_private_key_is_told(sound: SoundSite, name: str, said: str) -> None:
    path = sound.folder / "keys" / name
    if name == "locked":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "words", "-f", path], check=True)
    if name == "noise":
        path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    if path.exists():
        path.chmod(0o600)
    sound.change("site", ssh__private_key=str(path))
    assert said in sound.one(keys.check, "private", "fail").text


def test_a_public_half_of_another_key_is_told(sound: SoundSite, tmp_path: Path) -> None:
    (sound.folder / "keys/site.pub").write_text(key(tmp_path / "other"))
    assert sound.levels(keys.check)["public"] == "fail"


@pytest.mark.parametrize("packer", ["gzip -c", "xz -c", "bzip2 -c", "cat"])
def test_initrds_that_are_packed_otherwise_are_read_too(sound: SoundSite, packer: str) -> None:
    path = sound.folder / "http/deploy-initrd"
    packed = subprocess.run(f"zstd -dcq {path} | {packer}", shell=True, capture_output=True, check=True).stdout
    path.write_bytes(packed)
    assert sound.levels(keys.check) == dict.fromkeys(ALL, "ok")


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x28\xb5\x2f\xfd and then nothing"])
def test_an_initrd_that_cannot_be_looked_into_is_told_and_harms_nothing(sound: SoundSite, content: bytes) -> None:
    (sound.folder / "http/deploy-initrd").write_bytes(content)
    levels = sound.levels(keys.check)
    assert levels["initrd"] == "warn"
    assert "authorized" not in levels


def test_an_initrd_without_the_file_of_keys_is_told(sound: SoundSite) -> None:
    initrd(sound.folder / "http/deploy-initrd", "", "")
    assert keys.AUTHORIZED in sound.one(keys.check, "initrd", "warn").text


def test_a_comment_and_options_in_front_of_a_key_do_not_matter(sound: SoundSite) -> None:
    site_key = (sound.folder / "keys/site.pub").read_text()
    host_key = (sound.folder / "keys/host.pub").read_text()
    initrd(sound.folder / "http/deploy-initrd", f'# ours\nrestrict,from="10.0.0.0/8" {site_key}', host_key)
    assert sound.levels(keys.check)["authorized"] == "ok"


def test_without_ssh_keygen_keys_are_told_as_not_looked_at(sound: SoundSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    levels = sound.levels(keys.check)
    assert (levels["private"], levels["initrd"]) == ("warn", "warn")
