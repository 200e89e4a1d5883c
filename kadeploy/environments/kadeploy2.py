"""Environments of Kadeploy 2: their ``key = value`` lines as an `Environment` (wiki page, "Migrate")."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import msgspec

from kadeploy.environments import rules
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.environments.image import ARCHIVE_KINDS, IMAGE_KINDS, suffixes
from kadeploy.errors import EnvironmentRefusedError, OptionError

Kind = Literal["linux", "xen", "other"]

KAENVIRONMENTS = "kaenvironments"
"""Kadeploy 2's own tool, which prints a recorded environment."""
TIMEOUT = 60
"""Seconds that it may take."""
POSTINSTALL = "traitement.ash /rambin"
"""What Kadeploy 2 ran in every ``filesite`` archive."""


class Translated(NamedTuple):
    """An environment, and what of its old description it does not hold: keys without a successor, and odd lines."""

    environment: Environment
    left_out: Sequence[str]


def translate(text: str, kind: Kind, source: str) -> Translated:
    """The old description *text* as an environment of *kind*; relative paths start at the folder of *source*.

    Raises:
        EnvironmentRefusedError: a key is missing, or its value has no meaning today; the text names the key.
    """
    old, odd = _read(text, source)
    for key in ("name", "filebase", "fdisktype"):
        if not old.get(key):
            raise EnvironmentRefusedError(f"{source}: {key} is missing: add a line `{key} = …`.")
    boot = _xen_boot(old, source) if kind == "xen" else _boot(old)
    environment = Environment(
        name=old["name"],
        version=_version(old.get("version") or "1", source),
        description=old.get("description", ""),
        author=old.get("author", ""),
        image=Image(file=old["filebase"], kind=_kind("filebase", old, IMAGE_KINDS, source)),
        postinstalls=_postinstalls(old, source),
        fdisktype=old["fdisktype"],
        filesystem=old.get("filesystem", ""),
        environment_kind=kind,
    )
    bootable = msgspec.structs.replace(environment, **boot)
    return Translated(rules.check(bootable, source), [*(key for key in old if key not in _KEYS), *odd])


def kaenvironments(name: str) -> str:
    """What Kadeploy 2 on this machine prints about its environment *name*.

    Raises:
        OptionError: Kadeploy 2 is not installed here, or does not know the environment.
    """
    command = [KAENVIRONMENTS, "-e", name]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise OptionError(
            f"{KAENVIRONMENTS} of Kadeploy 2 cannot be run here: save what it prints about {name!r} where it is "
            "installed, and give that file with -f."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise OptionError(f"{KAENVIRONMENTS} has not answered for {TIMEOUT} s: give a file with -f instead.") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or "it says nothing"
        raise OptionError(f"{KAENVIRONMENTS} -e {name!r} ends with status {error.returncode}: {said}.") from error
    return done.stdout


_KEYS = (
    "name",
    "version",
    "description",
    "author",
    "filebase",
    "filesite",
    "kernelpath",
    "kernelparam",
    "initrdpath",
    "fdisktype",
    "filesystem",
)
"""Keys of Kadeploy 2 whose values live on."""
_LINE = re.compile(r"\s*([A-Za-z_0-9]+)\s*=(.*)")


def _read(text: str, source: str) -> tuple[dict[str, str], list[str]]:
    """The keys with their values, and the lines that are no ``key = value``."""
    found: dict[str, str] = {}
    odd: list[str] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if match is None:
            odd.append(f"line {number}")
        elif match[1] in found:
            raise EnvironmentRefusedError(f"{source}, line {number}: {match[1]} is given twice: keep one environment.")
        else:
            found[match[1]] = match[2].strip()
    return found, odd


def _version(text: str, source: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise EnvironmentRefusedError(f"{source}: version {text!r}: expected a number, such as 1.")
    return int(text)


def _boot(old: Mapping[str, str]) -> dict[str, str]:
    keys = {"kernel": "kernelpath", "kernel_params": "kernelparam", "initrd": "initrdpath"}
    return {new: old.get(key, "") for new, key in keys.items()}


def _xen_boot(old: Mapping[str, str], source: str) -> dict[str, str]:
    """``initrdpath`` was the argument of the loader mboot.c32: ``hypervisor parameters --- kernel --- initrd``."""
    modules = [part.strip() for part in re.split(r"(?:^|\s)---(?=\s|$)", old.get("initrdpath", ""))]
    if len(modules) != 3 or not all(modules):
        raise EnvironmentRefusedError(
            f"{source}: initrdpath: expected `hypervisor parameters --- kernel --- initrd`, as environments of kind "
            "xen had it. Choose another kind with -k, or correct it."
        )
    hypervisor, _, hypervisor_params = modules[0].partition(" ")
    kernel, _, kernel_params = modules[1].partition(" ")
    return {
        "hypervisor": hypervisor,
        "hypervisor_params": hypervisor_params,
        "kernel": kernel,
        "kernel_params": f"{kernel_params} {old.get('kernelparam', '')}".strip(),
        "initrd": modules[2],
    }


def _postinstalls(old: Mapping[str, str], source: str) -> tuple[Archive, ...]:
    if not old.get("filesite"):
        return ()
    kind = _kind("filesite", old, ARCHIVE_KINDS, source)
    return (Archive(file=old["filesite"], kind=kind, script=POSTINSTALL),)


def _kind(key: str, old: Mapping[str, str], kinds: Sequence[str], source: str) -> str:
    name = PurePosixPath(old[key]).name
    known = {suffix: kind for suffix, kind in suffixes().items() if kind in kinds}
    kind = next((kind for suffix, kind in known.items() if name.endswith(suffix)), None)
    if kind is None:
        raise EnvironmentRefusedError(
            f"{source}: {key}: the kind of {name!r} is not in its name: end it in one of {', '.join(known)}."
        )
    return kind
