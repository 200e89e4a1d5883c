"""Bodies of the original's requests, and the requests of ours that they stand for.

A key that we do not know is refused with its name. Some that clients send mean nothing here: see `_Operation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from kadeploy import files
from kadeploy.config.cluster import Implementation
from kadeploy.config.partition import split_partition
from kadeploy.environments import document
from kadeploy.environments.environment import Environment
from kadeploy.errors import CustomOperationError, EnvironmentRefusedError, FileError, MissingOptionError, OptionError
from kadeploy.hints import explained
from kadeploy.nodeset import expand
from kadeploy.operations import custom, plan
from kadeploy.operations.requests import DeployRequest, Described, Level, PowerRequest, RebootKind, RebootRequest, Wish
from kadeploy.operations.requests import Recorded as RecordedRequest
from kadeploy.runner.request import CustomOperation, Options
from kadeploy.server.served import Served

_KindT = TypeVar("_KindT")
Words = list[str] | str
"""One or several."""
Toggle = bool | Literal["true", "false", ""] | None
"""On when it is there, unless it says no."""
Number = int | str | None
"""Clients write numbers as texts, too."""
OriginalKind = Literal["simple", "set_pxe", "deploy_env", "recorded_env"]
_KINDS: Mapping[str, RebootKind] = {
    "simple": "simple_reboot",
    "set_pxe": "set_pxe",
    "deploy_env": "deploy_env",
    "recorded_env": "env_recorded",
}


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict about unknown keys."""


class _Operation(_Struct, frozen=True, kw_only=True):
    """What all operations have in common."""

    nodes: Words
    force: Toggle = None
    """Take nodes from whoever operates on them."""
    hook: Toggle = None
    debug: Toggle = None
    client: Any = None
    """Where the client serves its files: not looked at; they are sent, or named by a URL."""
    verbose_level: Any = None
    """Not looked at: the log tells everything."""
    user: Any = None
    """Not looked at: who asks is known otherwise."""


class BootProfile(_Struct, frozen=True, kw_only=True):
    """A boot profile of the user's own."""

    profile: str = ""
    singularities: dict[str, str] = {}
    files: list[str] = []


class _Boots(_Operation, frozen=True, kw_only=True):
    """What deployments and reboots have in common."""

    environment: dict[str, Any] | None = None
    """A recorded one by name, or a description with ``kind: anonymous``."""
    ssh_authorized_keys: str | None = None
    """A URL, or the keys themselves."""
    deploy_part: Number = None
    """Number of the partition; empty: the whole disk."""
    deploy_partition: Number = None
    """The same."""
    block_device: str | None = None
    vlan: Number = None
    pxe: BootProfile | None = None
    timeout_reboot_classical: Number = None
    breakpoint: str | None = None
    custom_operations: dict[str, Any] | None = None


class Deployment(_Boots, frozen=True, kw_only=True):
    """``POST /deployment``."""

    boot_partition: Number = None
    reformat_tmp_partition: str | None = None
    disable_disk_partitioning: Toggle = None
    disable_bootloader_install: Toggle = None
    disable_kexec: Toggle = None
    timeout_reboot_kexec: Number = None
    automata: dict[str, list[dict[str, Any]]] | str | None = None
    """Implementations by macro-step, in place of the cluster's; or as a line, as ``--force-steps`` takes it."""


class Reboot(_Boots, frozen=True, kw_only=True):
    """``POST /reboot``."""

    kind: OriginalKind
    level: Level = "soft"
    check_destructive: Toggle = None


class Power(_Operation, frozen=True, kw_only=True):
    """``PUT /power``."""

    status: Literal["on", "off"]
    level: Level = "soft"


class _Recorded(_Struct, frozen=True, kw_only=True):
    """A recorded environment."""

    name: str
    kind: Literal["database"] = "database"
    user: str | None = None
    version: Number = None
    arch: str | None = None
    id: Any = None
    alias: Any = None
    """Not looked at, nor is *id*: clients send back what they were told."""


class _Way(_Struct, frozen=True, kw_only=True):
    """One implementation of `Deployment.automata`."""

    name: str = ""
    type: str = ""
    """The same, or the end of it: ``Untrusted``."""
    retries: int = 0
    timeout: int = 0


def deployment(asked: Deployment, served: Served) -> DeployRequest:
    """The deployment that *asked* stands for.

    Raises:
        KadeployError: what is wrong, with its key.
    """
    environment = _environment(asked.environment)
    if environment is None:
        raise MissingOptionError("environment: it is missing. Name a recorded one, or describe one.")
    options = msgspec.structs.replace(
        _options(asked, served),
        boot_partition=number("boot_partition", asked.boot_partition),
        reformat_tmp=asked.reformat_tmp_partition or "",
        disable_disk_partitioning=is_on(asked.disable_disk_partitioning),
        disable_bootloader_install=is_on(asked.disable_bootloader_install),
        no_kexec=is_on(asked.disable_kexec),
        kexec_timeout=_word(asked.timeout_reboot_kexec),
    )
    return DeployRequest(
        nodes=names(asked.nodes, served),
        environment=environment,
        options=options,
        uploads=_uploads(asked),
        force_steps=_steps(asked.automata, served),
        ignore_nodes_deploying=is_on(asked.force),
        hook=is_on(asked.hook),
    )


def reboot(asked: Reboot, served: Served) -> RebootRequest:
    """The reboot that *asked* stands for.

    Raises:
        KadeployError: what is wrong, with its key.
    """
    environment = _environment(asked.environment)
    if isinstance(environment, Described):
        raise EnvironmentRefusedError("environment: a reboot takes a recorded one.")
    return RebootRequest(
        nodes=names(asked.nodes, served),
        kind=_KINDS[asked.kind],
        level=asked.level,
        environment=environment,
        check_production=is_on(asked.check_destructive),
        options=_options(asked, served),
        uploads=_uploads(asked),
        ignore_nodes_deploying=is_on(asked.force),
        hook=is_on(asked.hook),
    )


def power(asked: Power, served: Served) -> PowerRequest:
    """The switching that *asked* stands for."""
    return PowerRequest(
        nodes=names(asked.nodes, served),
        operation=asked.status,
        level=asked.level,
        ignore_nodes_deploying=is_on(asked.force),
        debug=is_on(asked.debug),
        hook=is_on(asked.hook),
    )


# --- words ------------------------------------------------------------------------------------------------------------


def is_on(toggle: object) -> bool:
    """Whether a toggle is set: ``?last``, ``?last=true`` and ``true`` are.

    >>> [is_on(each) for each in (None, False, "false", "", "true", True)]
    [False, False, False, True, True, True]
    """
    return toggle is not None and toggle is not False and toggle != "false"


def names(patterns: Words, served: Served) -> tuple[str, ...]:
    """The nodes of names and ranges."""
    most = served.site.limits.nodes
    listed = [patterns] if isinstance(patterns, str) else patterns
    return tuple(name for pattern in listed for name in expand(pattern, most))


def number(key: str, value: Number) -> int | None:
    """A number that may be written as a text.

    Raises:
        OptionError: it is none.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int) or (value.isascii() and value.isdecimal() and len(value) <= _DIGITS):
        return int(value)
    raise OptionError(f"{key}: {value[:40]!r} is not a number.")


_DIGITS = 18


def _word(value: Number) -> str:
    return "" if value is None else str(value)


# --- environments -----------------------------------------------------------------------------------------------------


def _environment(found: Mapping[str, Any] | None) -> RecordedRequest | Described | None:
    if found is None:
        return None
    if found.get("kind", "anonymous" if "image" in found else "database") == "anonymous":
        return Described(environment=described(found))
    wanted = _converted("environment", found, _Recorded)
    version = number("environment.version", wanted.version)
    return RecordedRequest(name=wanted.name, version=version, owner=wanted.user or None, arch=wanted.arch or None)


def described(found: Mapping[str, Any]) -> Environment:
    """The environment that a description holds, in the later form.

    Raises:
        EnvironmentRefusedError: malformed; the text names the key.
    """
    text = msgspec.json.encode({key: value for key, value in found.items() if key not in _ASIDE}).decode()
    described_here = document.read(text, "environment", lambda _: None)
    return described_here[0]


_ASIDE = ("kind", "user", "id")
"""Keys that are not the description's own."""


# --- options ----------------------------------------------------------------------------------------------------------


def _options(asked: _Boots, served: Served) -> Options:
    part = asked.deploy_part if asked.deploy_part is not None else asked.deploy_partition
    device = asked.block_device or ""
    disk, from_part = split_partition(part) if isinstance(part, str) and part.startswith("/") else (device, None)
    profile = asked.pxe or BootProfile()
    return Options(
        authorized_keys=_keys(asked.ssh_authorized_keys),
        block_device=disk,
        partition=from_part if from_part is not None else _partition(part),
        whole_device=part == "" and bool(device),
        vlan=_word(asked.vlan),
        pxe_profile=profile.profile,
        singularities=profile.singularities,
        breakpoint=asked.breakpoint or "",
        custom_operations=_operations(asked.custom_operations, served),
        reboot_timeout=_word(asked.timeout_reboot_classical),
        debug=is_on(asked.debug),
    )


def _partition(part: Number) -> int | None:
    return None if isinstance(part, str) and part.startswith("/") else number("deploy_part", part)


def _uploads(asked: _Boots) -> tuple[str, ...]:
    return tuple(asked.pxe.files) if asked.pxe else ()


def with_keys(request: Wish, served: Served) -> Wish:
    """*request* with the keys that it names by a URL; to be called once it was found good: nobody else fetches here.

    Raises:
        FileError: they cannot be fetched.
    """
    if isinstance(request, PowerRequest) or not files.is_url(request.options.authorized_keys):
        return request
    keys = files.read_keys(request.options.authorized_keys, served.who)
    return msgspec.structs.replace(request, options=msgspec.structs.replace(request.options, authorized_keys=keys))


def _keys(text: str | None) -> str:
    """Keys that are written out, or the URL at which they are.

    Raises:
        FileError: it is a path, which only the client could open, or a private key.
    """
    if not text or not text.strip():
        return ""
    if files.is_url(text):
        return text
    if files.looks_like_private_key(text):
        raise FileError("ssh_authorized_keys is a private key: send the public one.")
    if len(text.split()) < _WORDS:
        raise FileError("ssh_authorized_keys: neither a key nor an http(s) URL. Send the keys themselves, or a URL.")
    return text.rstrip("\n") + "\n"


_WORDS = 2
"""Of a public key at least: its kind and itself."""


def _operations(found: Mapping[str, Any] | None, served: Served) -> tuple[CustomOperation, ...]:
    if not found:
        return ()
    for name in _files(found):
        if not isinstance(name, str) or not files.is_server(name):
            raise CustomOperationError(f"custom_operations: {name!r}: the service opens server:///PATH alone.")
    text = msgspec.json.encode(found).decode()
    return custom.parse(text, source="custom_operations", who=served.who, known=served.register)


def _files(found: Any) -> Iterator[Any]:
    """All files that are named anywhere in *found*."""
    inner = list(found.items()) if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in inner:
        if key == "file" and value not in ("", None):
            yield value
        yield from _files(value)


def _steps(
    found: Mapping[str, Sequence[Mapping[str, Any]]] | str | None, served: Served
) -> dict[str, tuple[Implementation, ...]] | None:
    if not found:
        return None
    if isinstance(found, str):
        return plan.parse_force_steps(found, served.register)
    text = "&".join(f"{step}|{','.join(_way(step, each) for each in ways)}" for step, ways in found.items())
    return plan.parse_force_steps(text, served.register)


def _way(step: str, found: Mapping[str, Any]) -> str:
    way = _converted("automata", found, _Way)
    name = way.name or way.type
    return f"{name if name.startswith(step) else step + name}:{way.retries}:{way.timeout}"


def _converted(key: str, found: Any, kind: type[_KindT]) -> _KindT:
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise OptionError(f"{key}: {explained(error, kind)}") from error
