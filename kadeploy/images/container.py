"""An environment from a container image of a registry (OCI, Docker), which gets what a machine needs besides."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kadeploy.commands import last_line
from kadeploy.errors import ConfigError
from kadeploy.images import layers
from kadeploy.images.archive import COMPRESSION
from kadeploy.images.bootstrap import RELEASE, Say, acquire_settings, apt_sources, require_programs
from kadeploy.images.debian import SOURCES, Wanted, configure, recipe, require_inside
from kadeploy.images.environment import BuiltEnvironment, check_kind, finish, found
from kadeploy.images.store import HERE, built, fingerprint, words

SCHEME = "oci://"
_REFERENCE = re.compile(
    rf"{SCHEME}(?P<name>[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d+)?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_ARCHITECTURE = "amd64"
_UNPACKERS: Mapping[bytes, Sequence[str]] = {b"\x1f\x8b": ("gzip", "-dc"), b"\x28\xb5\x2f\xfd": ("zstd", "-dcq")}
"""What a compressed layer begins with, and what unpacks it; another one is not compressed."""
_PIECE = 1 << 20
_ROOM = 64 << 20
"""Bytes that stay free on the disk."""


def build_container(
    cache: Path, reference: str, wanted: Wanted, *, kind: str = "tar.zst", insecure: bool = False, say: Say = print
) -> BuiltEnvironment:
    """Build an environment from the image at *reference*, ``oci://registry/name:tag``, or find it in *cache*.

    An image that has no kernel is given one, with an initrd, systemd, an ssh server and a network, by its own apt; so
    are the packages of *wanted*.
    *insecure*: the registry speaks HTTP, or shows a certificate that nobody vouches for. Takes root: the image's own
    programs install these packages.

    Raises:
        ConfigError: there is no such image, it is not for amd64, damaged, or nothing that can be given a kernel.
    """
    require_programs()
    check_kind(kind)
    image = Image.at(reference, insecure)
    proved = replace(wanted, description=f"{wanted.description}, from {SCHEME}{image.name}@{image.digest}")
    sources = (*SOURCES, "container.py", "layers.py", "files/container")
    name = f"{wanted.name}-{fingerprint(sources, proved, kind, COMPRESSION[kind])}"

    def build(work: Path) -> None:
        tree = work / "tree"
        say(f"{wanted.name}: fetching {SCHEME}{image.name}, {image.digest}")
        _unpack(image, work / "pulled", tree, say)
        if packages := _lacking(tree, wanted):
            say(f"{wanted.name}: installing {len(packages)} packages and what they need")
            _add_packages(tree, wanted.name, packages)
        configure(tree, wanted.password)
        say(f"{wanted.name}: packing {kind}")
        finish(recipe(tree, proved), tree, work, cache / name, kind)
        shutil.rmtree(tree)

    return found(built(cache, name, build))


# --- the registry ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """An image of a registry."""

    name: str
    """Registry and name, without a tag."""
    digest: str
    """SHA-256 of its manifest for amd64, which names everything else by its own."""
    insecure: bool

    @classmethod
    def at(cls, reference: str, insecure: bool) -> Image:
        """The image that a reference leads to now.

        Raises:
            ConfigError: there is none.
        """
        parts = _REFERENCE.fullmatch(reference)
        if not parts:
            raise ConfigError(
                f"{reference}: expected {SCHEME}REGISTRY/NAME:TAG, such as {SCHEME}registry.example/debian:12"
            )
        if shutil.which("skopeo") is None:
            raise ConfigError("images of registries are fetched by skopeo: apt-get install skopeo")
        name = parts["name"]
        place = f"{name}@{parts['digest']}" if parts["digest"] else f"{name}:{parts['tag'] or 'latest'}"
        raw = _skopeo(reference, "inspect", *_tls("", insecure), "--raw", f"docker://{place}")
        return cls(name, _for_us(reference, raw), insecure)

    def pull(self, folder: Path) -> None:
        """Fetch it into *folder*; whatever comes is compared with its SHA-256 by skopeo."""
        source = f"{self.name}@{self.digest}"
        _skopeo(f"{SCHEME}{source}", "copy", *_tls("src-", self.insecure), f"docker://{source}", f"dir:{folder}")


def _tls(side: str, insecure: bool) -> Sequence[str]:
    return (f"--{side}tls-verify=false",) if insecure else ()


def _skopeo(reference: str, verb: str, *words: str) -> bytes:
    command = ["skopeo", "--override-os", "linux", "--override-arch", _ARCHITECTURE, verb, *words]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ConfigError(f"{reference}: {_reason(done.stderr.decode(errors='replace'))}")
    return done.stdout


def _reason(stderr: str) -> str:
    """What skopeo says at last, without its frame and what is known already."""
    line = last_line(stderr) or "skopeo does not say why"
    framed = re.search(r'msg="(.*)"?', line)
    text = (framed[1] if framed else line).replace('\\"', '"')
    reason = re.sub(r'^Error parsing image name "[^"]*": ', "", text.rstrip('"')).rstrip(".")
    hint = " Say --insecure if its registry speaks HTTP." if "HTTP response to HTTPS client" in reason else ""
    return f"{reason}.{hint}"


def _for_us(reference: str, raw: bytes) -> str:
    """Digest of the manifest for amd64: of this one, or of one in the list that this is."""
    manifest = _json(reference, raw)
    if "manifests" not in manifest:
        return f"sha256:{hashlib.sha256(raw).hexdigest()}"
    known = {
        (each.get("platform") or {}).get("architecture"): each.get("digest")
        for each in manifest["manifests"]
        if (each.get("platform") or {}).get("os", "linux") == "linux"
    }
    if _ARCHITECTURE not in known:
        there = ", ".join(sorted(filter(None, known))) or "none that is named"
        raise ConfigError(f"{reference} is not for {_ARCHITECTURE}: there is {there}.")
    return str(known[_ARCHITECTURE])


def _json(what: str, raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise ConfigError(f"{what} is no image: its manifest is no JSON") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{what} is no image: its manifest is none")
    return found


# --- its content ----------------------------------------------------------------------------------------------------


def _unpack(image: Image, pulled: Path, tree: Path, say: Say) -> None:
    """Fetch *image* and make its layers a tree."""
    pulled.mkdir()
    image.pull(pulled)
    manifest = _json(image.name, (pulled / "manifest.json").read_bytes())
    try:
        config = _json(image.name, (pulled / _hex(manifest["config"]["digest"])).read_bytes())
        blobs = [pulled / _hex(each["digest"]) for each in manifest["layers"]]
        proofs = [_hex(each) for each in config["rootfs"]["diff_ids"]]
        architecture = config.get("architecture", _ARCHITECTURE)
    except (KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{image.name} is no image of a system: {error!r} of its manifest") from error
    if architecture != _ARCHITECTURE:
        raise ConfigError(f"{image.name} is for {architecture}, and not for {_ARCHITECTURE}")
    if len(blobs) != len(proofs):
        raise ConfigError(f"{image.name} is damaged: it has {len(blobs)} layers and the sums of {len(proofs)}")
    say(f"{image.name}: {len(blobs)} layers")
    plain = [_plain(blob, proof) for blob, proof in zip(blobs, proofs, strict=True)]
    merged = pulled / "merged.tar"
    layers.flatten(plain, merged)
    for each in plain:
        each.unlink()
    tree.mkdir(mode=0o755)
    command = ["tar", "--extract", "--file", str(merged), "--directory", str(tree), "--numeric-owner", "--xattrs"]
    _run("tar", [*command, "--xattrs-include=*", "--same-permissions", "--delay-directory-restore"])
    shutil.rmtree(pulled)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _plain(blob: Path, proof: str) -> Path:
    """*blob* uncompressed, whose SHA-256 is *proof*; it takes its place."""
    with blob.open("rb") as stream:
        begin = stream.read(4)
    unpack = next((words for magic, words in _UNPACKERS.items() if begin.startswith(magic)), ("cat",))
    target = blob.with_name(f"{blob.name}.tar")
    digest = hashlib.sha256()
    with (
        blob.open("rb") as stream,
        target.open("wb") as into,
        subprocess.Popen(unpack, stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - asked for above; tells mypy
        while piece := process.stdout.read(_PIECE):
            digest.update(piece)
            into.write(piece)
            if shutil.disk_usage(target.parent).free < _ROOM:
                process.kill()
                raise ConfigError(f"{target.parent.parent} is full: an image needs three times its size there")
    if digest.hexdigest() != proof:
        raise ConfigError("a layer of the image is damaged: it has not the SHA-256 that its configuration names")
    blob.unlink()
    return target


def _run(what: str, command: Sequence[str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"{what} failed:\n" + "\n".join(done.stdout.splitlines()[-15:]))


# --- what a machine needs besides -----------------------------------------------------------------------------------


def _lacking(tree: Path, wanted: Wanted) -> tuple[str, ...]:
    """Packages to install: those that were asked for, and where there is no kernel what makes a machine of it."""
    require_inside(tree)
    if any((tree / "boot").glob("vmlinuz-*")):
        return wanted.packages
    return (*words("debian/packages"), wanted.kernel, *wanted.packages)


def _add_packages(tree: Path, name: str, packages: Sequence[str]) -> None:
    """Install *packages* by the image's own apt."""
    if not (tree / "usr/bin/apt-get").exists():
        raise ConfigError(
            f"{name}: the image has no apt, by which it would be given what it lacks, a kernel or what was asked for: "
            "take one of Debian or Ubuntu, or one that is meant for machines as it is"
        )
    with tempfile.TemporaryDirectory(prefix="kadeploy-apt-") as folder:
        apt = Path(folder)
        apt.chmod(0o755)
        (apt / "apt.conf").write_text(acquire_settings() + _own_sources(tree, apt))
        script = HERE / "files/container/install-packages"
        alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
        _run("Installing packages in the image", [*alone, "bash", str(script), str(tree), str(apt), *packages])


def _own_sources(tree: Path, apt: Path) -> str:
    """Lines of apt.conf for this machine's sources, where the image is of the same release; they are put into *apt*."""
    release = tree / "etc/os-release"
    facts = release.read_text(errors="replace").splitlines() if release.exists() else []
    if not {"ID=debian", f"VERSION_CODENAME={RELEASE}"} <= set(facts) or not apt_sources():
        return ""
    (apt / "parts").mkdir()
    for path in apt_sources():
        shutil.copyfile(path, apt / "parts" / path.name)
    return 'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "/run/apt/parts";\n'
