"""``inventory:`` of a cluster file: where an Ansible inventory has the cluster's nodes, and in which variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from kadeploy.config.file import Struct
from kadeploy.config.rules import Positive, Rule, Wrong, expects, shown

Marks = dict[str, tuple[int, int, int]]
"""Size, time and inode of each file."""
_BRACES = re.compile(r"\{\{(.*)\}\}", re.DOTALL)


def _stays(path: str) -> bool:
    return bool(path) and not path.startswith("~") and "\0" not in path and ".." not in path.split("/")


_PLACE = expects(_stays, "a whole path, which begins with /, or one below the configuration folder")
Place = Annotated[str, _PLACE]


def _vault_file(text: str) -> str:
    return text if text.startswith("/") else text.rpartition("@")[2]


VaultFile = Annotated[str, Rule(lambda text: _PLACE.broken(_vault_file(text)))]
Expression = Annotated[
    str,
    expects(
        lambda text: "{{" not in text and "{%" not in text,
        "the name of a variable, or an expression of Jinja without braces around it",
        meant=lambda text: found[1].strip() if (found := _BRACES.fullmatch(text.strip())) else "",
    ),
]


class Variables(Struct, frozen=True, kw_only=True):
    """Names of host variables, or expressions of Jinja; a variable that a host does not have is empty."""

    address: Expression = "ansible_host"
    """Empty: the node is reached by its name."""
    mac: Expression = "mac"
    """The MAC address of the card that boots."""
    bmc: Expression = "bmc"
    """Address of the BMC, or its URL (redfish)."""
    bmc_user: Expression = "bmc_user"
    """User of the host's own BMC; empty: *power.user*."""
    bmc_password: Expression = "bmc_password"  # noqa: S105 - the name of a variable
    """Password of the host's own BMC; empty: that of *power*."""


class Inventory(Struct, frozen=True, kw_only=True):
    """Nodes that an Ansible inventory has."""

    source: Place
    """File, folder, program or plugin configuration; relative to the configuration folder."""
    group: str = ""
    """Group whose hosts are the nodes; empty: the cluster's name."""
    config: Place = ""
    """``ansible.cfg`` of the estate; empty: that of the configuration folder, else ``/etc/ansible/ansible.cfg``."""
    vault_password_file: tuple[VaultFile, ...] = ()
    """Files that hold or print vault passwords, with ``LABEL@`` in front where they have one."""
    seconds: Positive = 300
    """After these the inventory is read again, though none of its files has changed."""
    variables: Variables = Variables()

    def missing(self, folder: Path) -> Iterator[Wrong]:
        """What it names and is not there."""
        named: dict[tuple[str | int, ...], str] = {("source",): self.source, ("config",): self.config}
        for rank, name in enumerate(self.vault_password_file):
            named["vault_password_file", rank] = _vault_file(name)
        for place, name in named.items():
            if name and not (folder / name).exists():
                yield Wrong(("inventory", *place), f"there is no {shown(folder / name)}; expected the path of a file.")

    def vault_ids(self, folder: Path) -> list[str]:
        """*vault_password_file* as Ansible has vault ids."""
        return [
            f"{name.removesuffix(_vault_file(name))}{folder / _vault_file(name)}" for name in self.vault_password_file
        ]

    def paths(self, folder: Path) -> Iterable[Path]:
        """Files and folders that it is made of, whether they are there or not."""
        source = folder / self.source
        yield source
        yield source.parent / "group_vars"
        yield source.parent / "host_vars"
        yield from (folder / _vault_file(name) for name in self.vault_password_file)
        yield from self.configs(folder)

    def marks(self, folder: Path) -> Marks:
        """Its files as they are now."""
        return dict(_marks(self.paths(folder)))

    def configs(self, folder: Path) -> list[Path]:
        """Where Ansible's own configuration may be; the first that is there counts."""
        return [folder / self.config] if self.config else [folder / "ansible.cfg", Path("/etc/ansible/ansible.cfg")]


class Wish(msgspec.Struct, frozen=True):
    """What is to be known of an inventory: as long as it is the same, and the files are, so are the nodes."""

    folder: str
    """The configuration folder."""
    inventory: Inventory
    group: str
    driver: str


def _marks(paths: Iterable[Path]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            yield str(path), (status.st_size, status.st_mtime_ns, status.st_ino)
            yield from _marks(each for each in path.iterdir() if not each.name.startswith((".", "__pycache__")))
