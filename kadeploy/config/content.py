"""Where Ansible finds what tasks of a site use: roles, collections, plugins, and passwords of vaults.

That is ``roles`` and others of the configuration folder, ours, and what ``hooks/ansible.cfg`` names, the settings of
the site's estate. Of these, what says where content is counts; what says how Ansible works does not, since a workflow
relies on that.
"""

from __future__ import annotations

import configparser
import os
import site
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kadeploy.config import trust
from kadeploy.config.folder import places
from kadeploy.errors import ConfigError

FILE = Path("hooks", "ansible.cfg")
"""Below the configuration folder. Paths in it are relative to the folder it is in, as Ansible has them."""
COLLECTIONS = Path("/usr/share/ansible/collections")
"""Where packages of the machine put collections."""
_OF_A_COLLECTION = 2
"""Dots in the name of a collection's role; plain roles may have dots as well."""


# --- roles ----------------------------------------------------------------------------------------------------------


def role(name: str, config_dir: Path) -> Path | None:
    """The folder of the role *name*, which may be one of a collection.

    Raises:
        ConfigError: see `settings`.
    """
    return next((place for place in _places(name, config_dir) if place.is_dir()), None)


def roles(config_dir: Path) -> list[str]:
    """Names of roles that are in no collection.

    Raises:
        ConfigError: see `settings`.
    """
    return sorted({each.name for place in _roles(config_dir) for each in place.glob("*/")})


def _roles(config_dir: Path) -> list[Path]:
    return [*places(config_dir, "roles"), *settings(config_dir).paths("roles_path")]


def _places(name: str, config_dir: Path) -> Iterator[Path]:
    yield from (place / name for place in _roles(config_dir))
    parts = name.split(".", _OF_A_COLLECTION)
    if len(parts) > _OF_A_COLLECTION:
        namespace, collection, last = parts
        packages = [sysconfig.get_path("purelib"), *site.getsitepackages()]
        for place in (*settings(config_dir).paths("collections_path"), COLLECTIONS, *map(Path, packages)):
            yield place / "ansible_collections" / namespace / collection / "roles" / last


# --- settings of an estate --------------------------------------------------------------------------------------------

_VARIABLES = {
    "collections_path": "ANSIBLE_COLLECTIONS_PATH",
    "roles_path": "ANSIBLE_ROLES_PATH",
    "library": "ANSIBLE_LIBRARY",
    "module_utils": "ANSIBLE_MODULE_UTILS",
    "action_plugins": "ANSIBLE_ACTION_PLUGINS",
    "filter_plugins": "ANSIBLE_FILTER_PLUGINS",
    "lookup_plugins": "ANSIBLE_LOOKUP_PLUGINS",
    "test_plugins": "ANSIBLE_TEST_PLUGINS",
}
"""Folders, by the key of ``[defaults]``: the variable by which Ansible takes them."""
_VAULT_FILE = "vault_password_file"
_VAULT_IDS = "vault_identity_list"
_TEXTS = {
    "jinja2_extensions": "ANSIBLE_JINJA2_EXTENSIONS",
    "vault_id_match": "ANSIBLE_VAULT_ID_MATCH",
    "vault_identity": "ANSIBLE_VAULT_IDENTITY",
}
TAKEN = (*_VARIABLES, _VAULT_IDS, _VAULT_FILE, *_TEXTS)
"""Keys of ``[defaults]`` that count."""


@dataclass(frozen=True)
class Settings:
    """What the settings of an estate say about content."""

    path: Path
    values: Mapping[str, str]
    """Of keys that count, as they are written."""
    ignored: tuple[str, ...]
    """Keys that do not count, those outside ``[defaults]`` with their section in front."""

    def paths(self, key: str) -> list[Path]:
        """Folders that a key names, separated by colons."""
        return [self._place(each) for each in self.values.get(key, "").split(":") if each.strip()]

    @property
    def vault_ids(self) -> list[tuple[str, str]]:
        """Label, with its ``@`` where there is one, and file of each password of a vault."""
        found = [each.strip().rpartition("@") for each in self.values.get(_VAULT_IDS, "").split(",") if each.strip()]
        return [(f"{label}{at}", str(self._place(name))) for label, at, name in found]

    @property
    def secrets(self) -> frozenset[Path]:
        """Files that hold or print passwords of vaults."""
        files = [Path(name) for _, name in self.vault_ids]
        given = self.values.get(_VAULT_FILE, "")
        return frozenset([*files, *([self._place(given)] if given else [])])

    @property
    def missing(self) -> list[tuple[str, Path]]:
        """Folders that are not there, by the key that names them."""
        return [(key, path) for key in _VARIABLES for path in self.paths(key) if not path.is_dir()]

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """Variables by which Ansible takes them, behind what is *given* in such a variable; no secret among them."""
        found = {_TEXTS[key]: text for key, text in self.values.items() if key in _TEXTS}
        for key, name in _VARIABLES.items():
            behind = [str(COLLECTIONS)] if key == "collections_path" else []
            if paths := self.paths(key):
                found[name] = ":".join([*filter(None, [given.get(name)]), *map(str, paths), *behind])
        if ids := self.vault_ids:
            found["ANSIBLE_VAULT_IDENTITY_LIST"] = ",".join(f"{label}{name}" for label, name in ids)
        if given_file := self.values.get(_VAULT_FILE):
            found["ANSIBLE_VAULT_PASSWORD_FILE"] = str(self._place(given_file))
        return found

    def _place(self, name: str) -> Path:
        expanded = os.path.expandvars(os.path.expanduser(name.strip()))  # noqa: PTH111 - a text, as Ansible has it
        return Path(os.path.normpath(self.path.parent / expanded))


def settings(config_dir: Path) -> Settings:
    """What ``hooks/ansible.cfg`` says; nothing where it is not there.

    Raises:
        ConfigError: it cannot be read, or a password of a vault cannot.
    """
    path = config_dir / FILE
    parser = configparser.ConfigParser(inline_comment_prefixes=(";",), interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings(path, {}, ())
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ConfigError(f"{path}: it cannot be read: {' '.join(str(error).split())}") from error
    given = [(section, *pair) for section in parser.sections() for pair in parser.items(section)]
    values = {key: value for section, key, value in given if section == "defaults" and key in TAKEN and value}
    others = [(section, key) for section, key, _ in given if section != "defaults" or key not in TAKEN]
    names = [key if section == "defaults" else f"{section}.{key}" for section, key in others]
    found = Settings(path, values, tuple(names))
    _require_sound(found)
    return found


def _require_sound(found: Settings) -> None:
    """Refuse passwords of vaults that nobody could tell in a workflow, and what others could have root run."""
    for path in sorted(found.secrets):
        if path.name.startswith("prompt") and not path.exists():
            raise ConfigError(
                f"{found.path}: a vault's password is asked for; expected a file that holds or prints it."
            )
        if not path.is_file():
            raise ConfigError(f"{found.path}: there is no file {path}; expected one with the password of a vault.")
        if not os.access(path, os.R_OK, effective_ids=True):
            raise ConfigError(f"{path}: let the account read it that runs deployments, and nobody else.")
    named = [*found.secrets, *(path for key in _VARIABLES for path in found.paths(key))]
    trust.require_all_roots([path for path in named if path.exists()], str(found.path))


def without(secrets: Iterable[Path]) -> Callable[[str, list[str]], list[str]]:
    """What `shutil.copytree` is to ignore so that none of *secrets* is copied, nor what git keeps."""
    real = {path.resolve() for path in secrets}
    return lambda folder, names: [name for name in names if name == ".git" or Path(folder, name).resolve() in real]
