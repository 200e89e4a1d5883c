"""The later form of a description, as YAML or JSON, by the table `_Document`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import yaml

from kadeploy.environments import users_yaml
from kadeploy.environments.environment import Archive, Environment, FileSystem, Image
from kadeploy.environments.image import COMPRESSIONS, KINDS
from kadeploy.environments.rules import ALWAYS, check, converted, one_line, one_of, short
from kadeploy.errors import EnvironmentRefusedError
from kadeploy.hints import explained, nearest


def read(text: str, source: str, warn: Callable[[str], object]) -> list[Environment]:
    """The environments that *text* describes; relative paths start at the folder of *source*.

    Keys that we do not know are left out, which *warn* is told once, for all of them: later versions have new ones.

    Raises:
        EnvironmentRefusedError: malformed, or without any environment; the text names the key.
    """
    documents = _documents(text, source)
    if not documents:
        raise EnvironmentRefusedError(f"{source}: describes no environment.")
    if unknown := dict.fromkeys(key for document in documents for key in _unknown(document, _Document)):
        warn(f"{source}: unknown keys, left out: {', '.join(unknown)}.")
    return [_environment(document, source) for document in documents]


_COMPRESSIONS = {each.name: each.tar for each in COMPRESSIONS if each.archives}
_IMAGES: Mapping[tuple[str, str], str] = {(kind.form, kind.compression.name): name for name, kind in KINDS.items()}


class _Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Part of a document; unknown keys are left out."""


class _Image(_Struct, frozen=True, kw_only=True):
    file: str
    """Path, relative to the description, or URL."""
    kind: str
    """tar, dd or fsa."""
    compression: str | int = ""
    """gzip, bzip2, xz or zstd; of fsa its level, 0 to 9."""


class _Archive(_Struct, frozen=True, kw_only=True, omit_defaults=False):
    archive: str
    """Path, relative to the description, or URL."""
    compression: str
    """gzip, bzip2 or xz."""
    script: str = "none"
    """What is run of it, with its arguments; none: it is only unpacked; breakpoint: nodes stay where they are."""


class _Boot(_Struct, frozen=True, kw_only=True):
    kernel: str = ""
    """Path in the image."""
    initrd: str = ""
    """Path in the image."""
    kernel_params: str = ""
    """What the kernel is started with."""
    hypervisor: str = ""
    """Path of Xen in the image."""
    hypervisor_params: str = ""
    """What Xen is started with."""
    block_device: str = ""
    """With multipart: the disk that is booted."""
    partition: int | None = None
    """With multipart: number of the partition that is booted."""


class _Partition(_Struct, frozen=True, kw_only=True):
    id: int
    """Number of the file system in an archive of fsarchiver; else only a name."""
    device: str
    """Where it goes: /dev/sda3."""
    image: _Image | None = None
    """An image of its own, of tar or dd."""
    filesystem: str = ""
    """What is made for an archive of tar."""


class _Options(_Struct, frozen=True, kw_only=True):
    kexec: bool = True
    """False: nodes are rebooted into it, as with --no-kexec."""
    partitions: Sequence[_Partition] = ()
    """With multipart: the file systems."""


class _Document(_Struct, frozen=True, kw_only=True):
    """The later form, in the order in which it is printed; ``part`` and numbers in ``destructive`` are additions."""

    name: str
    """Its name."""
    alias: str = ""
    """A second name."""
    arch: str = ""
    """Architecture of the nodes it is for, such as x86_64; empty: any."""
    version: int = 1
    """A number of at most 18 digits, often a date."""
    description: str = ""
    """For people."""
    author: str = ""
    """For people."""
    visibility: Literal["private", "shared", "public"] = "private"
    """Who may use it: its owner, all with its owner's name, all."""
    destructive: bool | int = False
    """Whether it may destroy the production system; a number counts how often it did."""
    os: Literal["linux", "xen", "other"]
    """What it is."""
    image: _Image
    """The system."""
    preinstall: _Archive | None = None
    """Prepares the disk in place of the site's steps."""
    postinstalls: list[_Archive] | None = None
    """Adapt the unpacked system."""
    boot: _Boot = _Boot()
    """How it boots."""
    filesystem: str = ""
    """What the partition is formatted with; required for archives of tar."""
    partition_type: int = 0
    """Type of the partition: 131 is 0x83, Linux, which is meant by none."""
    multipart: bool = False
    """It is several file systems, and says itself where they go."""
    options: _Options = _Options()
    """What is rare."""
    custom_variables: dict[str, str | int | None] = {}
    """Texts for scripts, which find each as KADEPLOY_ and its name."""
    part: str = ""
    """Its partition, such as /dev/sda3; empty: the cluster's."""


FORM: type[msgspec.Struct] = _Document
"""Its fields are the keys of the form; their docstrings tell of them in the reference."""


# --- reading ------------------------------------------------------------------------------------------------------


def _documents(text: str, source: str) -> list[Any]:
    try:
        return [_without_nulls(document) for document in _decoded(text, source)]
    except RecursionError as error:
        raise EnvironmentRefusedError(f"{source}: it is nested too deeply for a description.") from error


def _decoded(text: str, source: str) -> list[Any]:
    if text.lstrip().startswith(("{", "[")):
        try:
            return _listed(msgspec.json.decode(text))
        except (msgspec.DecodeError, RecursionError) as error:
            json_error = error  # YAML may begin so, too
    else:
        json_error = None
    try:
        found = [part.content for part in users_yaml.read(text) if part.content is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        form, why = ("JSON", json_error) if json_error else ("YAML", error)
        raise EnvironmentRefusedError(f"{source}: not valid {form}: {one_line(why)}.") from error
    return [environment for part in found for environment in _listed(part)]


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _without_nulls(found: Any) -> Any:
    """A document without keys whose value is empty: they are as good as not there."""
    if not isinstance(found, dict):
        return found
    kept = {key: value if key == "custom_variables" else _without_nulls(value) for key, value in found.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


_PARTS: Mapping[str, type[msgspec.Struct]] = {
    "image": _Image,
    "preinstall": _Archive,
    "postinstalls": _Archive,
    "boot": _Boot,
    "options": _Options,
    "partitions": _Partition,
}
"""What the values of these keys are, or the members of their lists."""


def _unknown(found: Any, kind: type[msgspec.Struct], path: str = "") -> Iterator[str]:
    """Keys that a document has and *kind* has not, with the known one that may be meant."""
    known = kind.__struct_fields__
    for each in found if isinstance(found, list) else [found]:
        for key, value in each.items() if isinstance(each, dict) else ():
            if key in known and key in _PARTS:
                yield from _unknown(value, _PARTS[key], f"{path}{key}.")
            elif key not in known:
                meant = nearest(str(key), known)
                yield f"{path}{short(str(key))[1:-1]}" + (f" ({meant}?)" if meant else "")


def _environment(found: Any, source: str) -> Environment:
    try:
        document = msgspec.convert(found, _Document)
    except (msgspec.ValidationError, RecursionError) as error:
        raise EnvironmentRefusedError(
            f"{source}: {explained(error, _Document)} Correct this key of the description."
        ) from error
    destructive = document.destructive
    same = {name: getattr(document, name) for name in _SAME} | {name: getattr(document.boot, name) for name in _BOOT}
    fields: dict[str, Any] = same | {
        "description": " ".join(document.description.splitlines()),
        "author": " ".join(document.author.splitlines()),
        "image": _image_of(document.image, source, "image"),
        "preinstall": _archive_of(document.preinstall, source, "preinstall") if document.preinstall else None,
        "postinstalls": [
            _archive_of(archive, source, f"postinstalls[{rank}]")
            for rank, archive in enumerate(document.postinstalls or ())
        ],
        "fdisktype": f"{document.partition_type:02x}" if document.partition_type else "83",
        "environment_kind": document.os,
        "demolishing_env": int(destructive) * (ALWAYS if isinstance(destructive, bool) else 1),
        "boot_partition": document.boot.partition,
        "kexec": document.options.kexec,
        "partitions": [
            {"id": each.id, "device": each.device, "filesystem": each.filesystem}
            | ({"image": _image_of(each.image, source, f"options.partitions[{rank}].image")} if each.image else {})
            for rank, each in enumerate(document.options.partitions)
        ],
        "custom_variables": {
            name: "" if value is None else str(value) for name, value in document.custom_variables.items()
        },
    }
    return check(converted(fields, source), source)


_SAME = ("name", "alias", "arch", "version", "visibility", "filesystem", "multipart", "part")
_BOOT = ("kernel", "initrd", "kernel_params", "hypervisor", "hypervisor_params", "block_device")
"""Fields that an environment has under the same name as a document, and as its ``boot``."""


def _image_of(image: _Image, source: str, key: str) -> dict[str, str]:
    compression = "0" if (image.kind, image.compression) == ("fsa", "") else str(image.compression)
    kind = _IMAGES.get((image.kind, compression))
    if kind is None:
        known = (
            ", ".join(f"{kind}/{compression}" for kind, compression in _IMAGES if kind != "fsa") + ", fsa/0 to fsa/9"
        )
        raise EnvironmentRefusedError(
            f"{source}: {key}: unknown kind and compression {short(f'{image.kind}/{image.compression}')}; "
            f"expected one of {known}."
        )
    return {"file": image.file, "kind": kind}


def _archive_of(archive: _Archive, source: str, key: str) -> dict[str, str]:
    try:
        compression = one_of(archive.compression, _COMPRESSIONS, "compression")
    except ValueError as error:
        raise EnvironmentRefusedError(f"{source}: {key}.compression: {error}.") from error
    return {"file": archive.archive, "kind": _COMPRESSIONS[compression], "script": archive.script}


# --- writing ------------------------------------------------------------------------------------------------------


def _document(environment: Environment) -> dict[str, Any]:
    counter = environment.demolishing_env
    boot = {name: getattr(environment, name) for name in _BOOT}
    document = _Document(
        **{name: getattr(environment, name) for name in (*_SAME, "description", "author")},
        destructive=bool(counter) if counter in (0, ALWAYS) else counter,
        os=environment.environment_kind,
        image=_document_image(environment.image),
        preinstall=_document_archive(environment.preinstall) if environment.preinstall else None,
        postinstalls=[_document_archive(archive) for archive in environment.postinstalls] or None,
        boot=_Boot(**boot, partition=environment.boot_partition),
        partition_type=int(environment.fdisktype, 16),
        options=_Options(
            kexec=environment.kexec,
            partitions=tuple(map(_document_partition, environment.partitions)),
        ),
        custom_variables=dict(environment.custom_variables),
    )
    built: dict[str, Any] = msgspec.to_builtins(document)
    always = {name: getattr(document, name) for name in ("version", "visibility", "destructive", "multipart")}
    order = {name: rank for rank, name in enumerate(_Document.__struct_fields__)}
    full = {name: value for name, value in (built | always).items() if value != {}}
    return dict(sorted(full.items(), key=lambda item: order[item[0]]))


def _document_image(image: Image) -> _Image:
    kind = KINDS[image.kind]
    compression = kind.compression.name
    return _Image(file=image.file, kind=kind.form, compression=int(compression) if image.is_fsa else compression)


def _document_partition(partition: FileSystem) -> _Partition:
    return _Partition(
        id=partition.id,
        device=partition.device,
        image=_document_image(partition.image) if partition.image else None,
        filesystem=partition.filesystem,
    )


def _document_archive(archive: Archive) -> _Archive:
    return _Archive(archive=archive.file, compression=KINDS[archive.kind].compression.name, script=archive.script)


def to_yaml(environments: list[Environment]) -> str:
    """A YAML document for each environment."""
    return yaml.safe_dump_all(
        map(_document, environments), explicit_start=True, sort_keys=False, allow_unicode=True, width=10_000
    )


def to_json(environments: list[Environment]) -> str:
    """One environment is an object, several are a list."""
    documents = [_document(environment) for environment in environments]
    text = msgspec.json.encode(documents[0] if len(documents) == 1 else documents)
    return msgspec.json.format(text, indent=2).decode() + "\n"
