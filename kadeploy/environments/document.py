"""The later form of a description, as YAML or JSON, by the table `_Document`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import yaml

from kadeploy.environments.environment import Archive, Environment, Struct
from kadeploy.environments.image import COMPRESSIONS, KINDS
from kadeploy.environments.rules import ALWAYS, check, converted, one_line, one_of, short
from kadeploy.errors import EnvironmentRefusedError

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]


def read(text: str, form: Literal["yaml", "json"], source: str) -> list[Environment]:
    """The environments that *text* describes; relative paths start at the folder of *source*.

    Raises:
        EnvironmentRefusedError: malformed, or without any environment; the text names the key.
    """
    documents = _documents(text, form, source)
    if not documents:
        raise EnvironmentRefusedError(f"{source}: describes no environment.")
    return [_environment(document, source) for document in documents]


_COMPRESSIONS = {each.name: each.tar for each in COMPRESSIONS if each.archives}
_IMAGES: Mapping[tuple[str, str], str] = {(kind.form, kind.compression.name): name for name, kind in KINDS.items()}


class _Image(Struct, frozen=True, kw_only=True):
    file: str
    kind: str
    compression: str | int


class _Archive(Struct, frozen=True, kw_only=True):
    archive: str
    compression: str
    script: str = "none"


class _Boot(Struct, frozen=True, kw_only=True):
    kernel: str = ""
    initrd: str = ""
    kernel_params: str = ""
    hypervisor: str = ""
    hypervisor_params: str = ""


class _Document(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The later form, in the order in which it is printed; ``part`` and numbers in ``destructive`` are additions."""

    name: str
    version: int = 1
    description: str = ""
    author: str = ""
    visibility: Literal["private", "shared", "public"] = "private"
    destructive: bool | int = False
    os: Literal["linux", "xen", "other"]
    image: _Image
    preinstall: _Archive | None = None
    postinstalls: list[_Archive] | None = None
    boot: _Boot | None = None
    filesystem: str = ""
    partition_type: int = 0
    multipart: Literal[False] = False
    part: str = ""


def _documents(text: str, form: Literal["yaml", "json"], source: str) -> list[Any]:
    try:
        if form == "json":
            return _listed(msgspec.json.decode(text))
        found = [part for part in yaml.load_all(text, Loader=SafeLoader) if part is not None]
    except (yaml.YAMLError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise EnvironmentRefusedError(f"{source}: not valid {form.upper()}: {one_line(error)}.") from error
    return [environment for part in found for environment in _listed(part)]


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _environment(found: Any, source: str) -> Environment:
    if isinstance(found, dict) and found.get("multipart"):
        raise EnvironmentRefusedError(f"{source}: multipart: environments on several partitions are not supported.")
    try:
        document = msgspec.convert(found, _Document)
    except (msgspec.ValidationError, RecursionError) as error:
        raise EnvironmentRefusedError(f"{source}: {one_line(error)}. Correct this key of the description.") from error
    boot = document.boot or _Boot()
    destructive = document.destructive
    fields: dict[str, Any] = {
        "name": document.name,
        "version": document.version,
        "description": " ".join(document.description.splitlines()),
        "author": " ".join(document.author.splitlines()),
        "image": _image_of(document.image, source),
        "preinstall": _archive_of(document.preinstall, source, "preinstall") if document.preinstall else None,
        "postinstalls": [
            _archive_of(archive, source, f"postinstalls[{rank}]")
            for rank, archive in enumerate(document.postinstalls or ())
        ],
        "fdisktype": f"{document.partition_type:02x}" if document.partition_type else "83",
        "filesystem": document.filesystem,
        "environment_kind": document.os,
        "visibility": document.visibility,
        "demolishing_env": int(destructive) * (ALWAYS if isinstance(destructive, bool) else 1),
        "part": document.part,
    } | msgspec.structs.asdict(boot)
    return check(converted(fields, source), source)


def _image_of(image: _Image, source: str) -> dict[str, str]:
    kind = _IMAGES.get((image.kind, str(image.compression)))
    if kind is None:
        known = ", ".join(f"{kind}/{compression}" for kind, compression in _IMAGES)
        raise EnvironmentRefusedError(
            f"{source}: image: unknown kind and compression {short(f'{image.kind}/{image.compression}')}; "
            f"expected one of {known}."
        )
    return {"file": image.file, "kind": kind}


def _archive_of(archive: _Archive, source: str, key: str) -> dict[str, str]:
    try:
        compression = one_of(archive.compression, _COMPRESSIONS, "compression")
    except ValueError as error:
        raise EnvironmentRefusedError(f"{source}: {key}.compression: {error}.") from error
    return {"file": archive.archive, "kind": _COMPRESSIONS[compression], "script": archive.script}


def _document(environment: Environment) -> dict[str, Any]:
    kind = KINDS[environment.image.kind]
    counter = environment.demolishing_env
    boot = {name: getattr(environment, name) for name in _Boot.__struct_fields__}
    document = _Document(
        name=environment.name,
        version=environment.version,
        description=environment.description,
        author=environment.author,
        visibility=environment.visibility,
        destructive=bool(counter) if counter in (0, ALWAYS) else counter,
        os=environment.environment_kind,
        image=_Image(file=environment.image.file, kind=kind.form, compression=kind.compression.name),
        preinstall=_document_archive(environment.preinstall) if environment.preinstall else None,
        postinstalls=[_document_archive(archive) for archive in environment.postinstalls] or None,
        boot=_Boot(**boot) if any(boot.values()) else None,
        filesystem=environment.filesystem,
        partition_type=int(environment.fdisktype, 16),
        part=environment.part,
    )
    built: dict[str, Any] = msgspec.to_builtins(document)
    always = {"version": document.version, "visibility": document.visibility}
    order = {name: rank for rank, name in enumerate(_Document.__struct_fields__)}
    return dict(sorted((built | always).items(), key=lambda item: order[item[0]]))


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
