"""The wiki page's form of a description: ``key : value`` lines, by the table `_LINES`.

It cannot hold everything that the later form can (`lost`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kadeploy.environments.environment import Archive, Environment, Struct
from kadeploy.environments.image import ARCHIVE_KINDS, IMAGE_KINDS
from kadeploy.environments.rules import ALWAYS, check, converted, one_of, short
from kadeploy.errors import EnvironmentRefusedError
from kadeploy.hints import did_you_mean


def read(text: str, source: str) -> list[Environment]:
    """The environments that *text* describes; relative paths start at the folder of *source*.

    Raises:
        EnvironmentRefusedError: malformed; the text names the line and the key.
    """
    return [_environment(lines, source) for lines in _blocks(text, source)]


_LINE = re.compile(r"\s*([A-Za-z_0-9]+)\s*:(.*)\Z", re.DOTALL)


class _Line(Struct, frozen=True, kw_only=True):
    """A value, and where it was written."""

    value: str
    where: str


def _blocks(text: str, source: str) -> list[dict[str, _Line]]:
    """The fields of each environment; a line of ``###`` begins the next one, as `write` prints it."""
    blocks: list[dict[str, _Line]] = [{}]
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if content and not content.strip("#") and len(content) > 2:
            blocks.append({})
        if not content or content.startswith("#"):
            continue
        key, found = _field(content, f"{source}, line {number}")
        if key in blocks[-1]:
            raise EnvironmentRefusedError(f"{found.where}: {key} is given twice ({blocks[-1][key].where}).")
        blocks[-1][key] = found
    given = [block for block in blocks if block]
    return given or [{}]


def _field(line: str, where: str) -> tuple[str, _Line]:
    match = _LINE.match(line)
    if match is None:
        raise EnvironmentRefusedError(f"{where}: expected `key : value`, found {short(line)}.")
    key = match[1]
    if key not in _LINES:
        known = f"the keys are {', '.join(_LINES)}.{did_you_mean(key, _LINES)}"
        raise EnvironmentRefusedError(f"{where}: unknown key {short(key)}; {known}")
    return key, _Line(value=match[2].strip(), where=where)


def _environment(lines: Mapping[str, _Line], source: str) -> Environment:
    """An empty value means the same as none at all."""
    given = {key: line for key, line in lines.items() if line.value}
    missing = [key for key in ("name", "tarball", "environment_kind", "fdisktype") if key not in given]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        wanted = ", ".join(f"`{key} : …`" for key in missing)
        raise EnvironmentRefusedError(f"{source}: {', '.join(missing)} {verb} missing: add {wanted}.")
    fields: dict[str, Any] = {}
    for key, line in given.items():
        field, read = _LINES[key]
        try:
            fields[field] = read(line.value)
        except ValueError as error:
            raise EnvironmentRefusedError(f"{line.where}: {key}: {error}.") from error
    return check(converted(fields, source), source)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(f"expected a number of at most eighteen digits, found {short(text)}")
    return int(text)


def _demolishing(text: str) -> int:
    words = {"true": ALWAYS, "yes": ALWAYS, "false": 0, "no": 0}
    return words[text.lower()] if text.lower() in words else _number(text)


def _image(text: str) -> dict[str, str]:
    file, bar, kind = (part.strip() for part in text.partition("|"))
    if not bar or not file:
        raise ValueError(f"expected file|kind, found {short(text)}")
    return {"file": file, "kind": one_of(kind, IMAGE_KINDS, "kind")}


def _archive(text: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"expected file|kind|script (script: none to only unpack), found {short(text)}")
    return {"file": parts[0], "kind": one_of(parts[1], ARCHIVE_KINDS, "kind"), "script": parts[2]}


def _archives(text: str) -> list[dict[str, str]]:
    return [_archive(part) for part in text.split(",") if part.strip()]


def _word(*choices: str) -> Callable[[str], str]:
    return lambda text: one_of(text, choices, "value")


_LINES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "name": ("name", str),
    "alias": ("alias", str),
    "arch": ("arch", str),
    "version": ("version", _number),
    "description": ("description", str),
    "author": ("author", str),
    "tarball": ("image", _image),
    "preinstall": ("preinstall", _archive),
    "postinstall": ("postinstalls", _archives),
    "kernel": ("kernel", str),
    "kernel_params": ("kernel_params", str),
    "initrd": ("initrd", str),
    "hypervisor": ("hypervisor", str),
    "hypervisor_params": ("hypervisor_params", str),
    "fdisktype": ("fdisktype", str),
    "filesystem": ("filesystem", str),
    "environment_kind": ("environment_kind", _word("linux", "xen", "other")),
    "visibility": ("visibility", _word("private", "shared", "public")),
    "demolishing_env": ("demolishing_env", _demolishing),
    "part": ("part", str),
}
"""Key of the wiki form, in the order in which it is printed → field of `Environment`, and how its value is read."""

KEYS: Mapping[str, str] = {key: field for key, (field, _) in _LINES.items()}
"""The same without how values are read."""


_UNKNOWN: Mapping[str, Callable[[Environment], object]] = {
    "custom_variables": lambda each: each.custom_variables,
    "options.kexec": lambda each: not each.kexec,
    "options.partitions": lambda each: each.partitions,
    "multipart": lambda each: each.multipart,
    "boot.block_device": lambda each: each.block_device,
    "boot.partition": lambda each: each.boot_partition is not None,
    "a | in the name of the image": lambda each: "|" in each.image.file,
    "a | in a pre-install": lambda each: each.preinstall and "|" in each.preinstall.file + each.preinstall.script,
    "a comma or | in a post-install": lambda each: any(set(",|") & set(a.file + a.script) for a in each.postinstalls),
}
"""What these lines have no way to say, and whether an environment has it."""


def lost(environments: Iterable[Environment]) -> list[str]:
    """What of *environments* `write` would leave out or make illegible, in the words of the later form."""
    known = list(environments)
    return [what for what, has in _UNKNOWN.items() if any(has(each) for each in known)]


def write(environments: list[Environment]) -> str:
    """With several, a line ``###`` in front of each."""
    blocks = ["".join(f"{key} : {value}\n" for key, value in _written(each) if value != "") for each in environments]
    return "".join(f"###\n{block}" for block in blocks)


def _written(environment: Environment) -> list[tuple[str, Any]]:
    image, preinstall = environment.image, environment.preinstall
    texts: dict[str, Any] = {
        "image": f"{image.file}|{image.kind}",
        "preinstall": _archive_text(preinstall) if preinstall else "",
        "postinstalls": ",".join(map(_archive_text, environment.postinstalls)),
    }
    return [(key, texts.get(field, getattr(environment, field))) for key, (field, _) in _LINES.items()]


def _archive_text(archive: Archive) -> str:
    return f"{archive.file}|{archive.kind}|{archive.script}"
