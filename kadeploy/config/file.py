"""A YAML file of the administrator's, read as a strict and read-only object."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import yaml

from kadeploy.errors import ConfigError
from kadeploy.hints import explained

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """What every configuration object is: read-only, and strict about unknown keys."""


def read_yaml(path: Path) -> Any:
    """Parse one YAML file safely; raises ConfigError that names the file and the line."""
    try:
        with path.open(encoding="utf-8") as stream:
            return _parsed(path, stream)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Set KADEPLOY_CONFIG_DIR to the configuration folder.") from error


def _parsed(path: Path, text: str | IO[str]) -> Any:
    try:
        return yaml.load(text, Loader=SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}.") from error


StructT = TypeVar("StructT", bound=Struct)


def read_struct(path: Path, kind: type[StructT]) -> StructT:
    """Read one YAML file as a *kind*.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    return _converted(path, read_yaml(path), kind)


def as_struct(path: Path, text: str, kind: type[StructT]) -> StructT:
    """Understand *text*, which was read from *path*, as a *kind*.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    return _converted(path, _parsed(path, text), kind)


def _converted(path: Path, data: Any, kind: type[StructT]) -> StructT:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {explained(error, kind)}") from error
