"""Reads an Ansible inventory: what Ansible tells in a process of its own, as nodes, or as what is wrong with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from kadeploy import process
from kadeploy.commands import last_line
from kadeploy.config import trust
from kadeploy.config.cluster import Node, rules_of
from kadeploy.config.host_variables import MODULE, Asked, Told
from kadeploy.config.inventory import Inventory, Wish
from kadeploy.config.logins import Login
from kadeploy.config.rules import Wrong
from kadeploy.errors import ConfigError, KadeployError
from kadeploy.hints import did_you_mean

PATIENCE = 600
"""Seconds that an inventory may take, which may be a program."""
_WITHIN = "KADEPLOY_LISTING"
"""Variable of the process that reads an inventory: one that asks us for nodes would wait for itself."""


def read(wish: Wish, hidden: str) -> tuple[list[Node], dict[str, Login]] | list[Wrong]:
    """Nodes, and logins of those whose BMCs have their own; or what is wrong.

    The environment variable *hidden*, which holds a password, is not told.
    """
    inventory, folder = wish.inventory, Path(wish.folder)
    if missing := list(inventory.missing(folder)):
        return missing
    try:
        trust.require_all_roots([Path(each) for each in inventory.marks(folder)], "inventory")
        told = _answer(wish, hidden)
    except KadeployError as error:
        return [_wrong(str(error).removeprefix("inventory: "))]
    if told.refused:
        return [_wrong(f"Ansible cannot read {inventory.source}: {told.refused.rstrip('.')}.", "source")]
    if not told.hosts:
        return [_groupless(wish, told.groups)]
    nodes = [_node(name, values) for name, values in told.hosts.items()]
    wrong = [*_mistaken(inventory, told), *_broken(wish, nodes)]
    return wrong or (nodes, {name: login for name, values in told.hosts.items() if (login := _login(values))})


def _wrong(said: str, *place: str) -> Wrong:
    return Wrong(("inventory", *place), said)


def _groupless(wish: Wish, groups: Sequence[str] | None) -> Wrong:
    place = ("group",) if wish.inventory.group else ()
    if groups is None:
        return _wrong(f"the group {wish.group} has no host; expected at least one node.", *place)
    known = ", ".join(groups[:_FEW]) + (" …" if len(groups) > _FEW else "")
    hint = did_you_mean(wish.group, groups)
    return _wrong(f"there is no group {wish.group}; expected one of {known or 'its groups'}.{hint}", *place)


_FEW = 10


def _node(name: str, values: Mapping[str, str]) -> Node:
    where = values.get("address", "")
    return Node(name=name, address="" if where == name else where, bmc=values.get("bmc", ""), mac=values.get("mac", ""))


def _login(values: Mapping[str, str]) -> Login | None:
    found = Login(values.get("bmc_user", ""), values.get("bmc_password", ""))
    return found if found != Login() else None


def _mistaken(inventory: Inventory, told: Told) -> Iterator[Wrong]:
    for each in told.mistakes:
        yield _of_host(inventory, each.host, each.asked, each.said)


def _broken(wish: Wish, nodes: Iterable[Node]) -> Iterator[Wrong]:
    """Values that break the rules of what they are for."""
    rules = rules_of(wish.driver)
    for node in nodes:
        for key, rule in rules.items():
            value: str = getattr(node, key)
            if value and (said := rule.broken(value)):
                yield _of_host(wish.inventory, node.name, key, said)


def _of_host(inventory: Inventory, host: str, key: str, said: str) -> Wrong:
    variable = getattr(inventory.variables, key, "")
    return _wrong(f"host {host}, {f'variable {variable}' if variable else key}: {said}")


# --- the process ----------------------------------------------------------------------------------------------------


def _answer(wish: Wish, hidden: str) -> Told:
    """What Ansible says, in a process that starts in the configuration folder and is its own session's.

    Variables by which a caller configures Ansible do not count: nodes are the same for whoever asks.

    Raises:
        ConfigError: it does not end well.
    """
    if os.environ.get(_WITHIN):
        raise ConfigError("this inventory asks for the nodes of the site, which it is to tell; name another source.")
    folder = Path(wish.folder)
    with tempfile.TemporaryDirectory(prefix="kadeploy-listing-") as temporary:
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=_environment(wish.inventory, folder, temporary, hidden),
            start_new_session=True,
        )
        try:
            answer, said = started.communicate(msgspec.json.encode(_asked(wish, folder)), PATIENCE)
        except BaseException as error:
            process.end_group(started.pid)
            started.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise ConfigError(f"Ansible has not read {wish.inventory.source} after {PATIENCE} s.") from error
    return _understood(answer, said.decode(errors="replace"), wish)


def _asked(wish: Wish, folder: Path) -> Asked:
    inventory = wish.inventory
    return Asked(
        source=str(folder / inventory.source),
        group=wish.group,
        vault_ids=inventory.vault_ids(folder),
        expressions=msgspec.structs.asdict(inventory.variables),
    )


def _environment(inventory: Inventory, folder: Path, temporary: str, hidden: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_") and name != hidden}
    config = next((path for path in inventory.configs(folder) if path.exists()), None)
    return kept | ({"ANSIBLE_CONFIG": str(config)} if config else {}) | _STRICT | {"ANSIBLE_LOCAL_TEMP": temporary}


_STRICT = {
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
    "ANSIBLE_NOCOLOR": "true",
    "ANSIBLE_DEPRECATION_WARNINGS": "false",
    "LC_ALL": "C.UTF-8",
    _WITHIN: "1",
}


def _understood(answer: bytes, said: str, wish: Wish) -> Told:
    try:
        told = msgspec.json.decode(answer, type=Told)
    except msgspec.MsgspecError as error:
        last = last_line(said) or "it has said nothing"
        raise ConfigError(f"Ansible has ended before it has read {wish.inventory.source}: {last}.") from error
    reasons = [found[1].rstrip(".") for found in (re.search(pattern, said) for pattern in _REASONS) if found]
    return msgspec.structs.replace(told, refused=": ".join(reasons)) if told.refused and reasons else told


_REASONS = (
    r"\[WARNING\]: (?:Failed to parse|Error \w+ vault) .*?: (.*)",
    r"Standard error from inventory script:\n(?:.+\n)*(.+)\n\n",
)
"""What Ansible says in detail, and of a program what that has said."""
