"""Hosts of an Ansible inventory and values of their variables, by a process of its own.

``python -m kadeploy.config.host_variables`` reads one `Asked` as JSON from its standard input and writes one `Told` to
what its standard output was: what plugins print goes to the standard error. It does what ``ansible-inventory`` does,
and evaluates templates and vaulted values besides, which that leaves as they are.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

MODULE = "kadeploy.config.host_variables"
SECRET = frozenset({"bmc_user", "bmc_password"})
"""Of what is asked: what nobody may read, in a message neither."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which values, of which hosts."""

    source: str
    group: str
    vault_ids: list[str]
    expressions: dict[str, str]
    """Names of variables, or expressions of Jinja, by what is asked for."""


class Mistake(msgspec.Struct, frozen=True):
    """A value that cannot be had."""

    host: str
    asked: str
    said: str


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the inventory says."""

    hosts: dict[str, dict[str, str]] = {}
    """Of each host what was asked for; empty where it has no such variable."""
    mistakes: list[Mistake] = []
    groups: list[str] | None = None
    """All groups, where there is none of that name."""
    refused: str = ""
    """Why Ansible cannot read the inventory."""


def main() -> None:
    """Answer one question."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a plugin prints is no answer
    with os.fdopen(answer, "wb") as stream:
        stream.write(msgspec.json.encode(_told(asked)))


def _told(asked: Asked) -> Told:
    from ansible.errors import AnsibleError  # noqa: PLC0415 - only in this process, after its environment is made

    try:
        return _listed(asked)
    except AnsibleError as error:
        return Told(refused=_line(error))


def _listed(asked: Asked) -> Told:
    from ansible import constants  # noqa: PLC0415
    from ansible.cli import CLI  # noqa: PLC0415
    from ansible.inventory.manager import InventoryManager  # noqa: PLC0415
    from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415
    from ansible.plugins.loader import init_plugin_loader  # noqa: PLC0415
    from ansible.vars.manager import VariableManager  # noqa: PLC0415

    init_plugin_loader()
    loader = DataLoader()
    vault_ids = [*constants.DEFAULT_VAULT_IDENTITY_LIST, *asked.vault_ids]
    loader.set_vault_secrets(CLI.setup_vault_secrets(loader, vault_ids, auto_prompt=False))
    inventory = InventoryManager(loader=loader, sources=[asked.source])
    if asked.group not in inventory.groups:
        return Told(groups=sorted({name.strip() for name in inventory.groups} - {"all", "ungrouped"}))
    manager = VariableManager(loader=loader, inventory=inventory, version_info=CLI.version_info(gitinfo=False))
    hosts, mistakes = {}, []
    for host in inventory.groups[asked.group].get_hosts():
        known = manager.get_vars(host=host, include_hostvars=False)
        name = str(host).strip()  # Ansible's texts know where they are from, and are none for msgspec
        values = dict(_values(name, asked.expressions, known, loader))
        hosts[name] = {key: each for key, each in values.items() if isinstance(each, str)}
        mistakes += [each for each in values.values() if isinstance(each, Mistake)]
    return Told(hosts=hosts, mistakes=mistakes)


def _values(
    host: str, expressions: Mapping[str, str], known: Mapping[str, Any], loader: Any
) -> Iterator[tuple[str, str | Mistake]]:
    """Each value that is asked for, as a text."""
    for name, expression in expressions.items():
        try:
            value = _value(expression, known, loader)
        except Exception as error:  # filters and look-ups raise what they like
            yield name, Mistake(host, name, _said(name, error))
        else:
            yield name, _text(value) if _is_text(value) else Mistake(host, name, _no_text(value))


def _value(expression: str, known: Mapping[str, Any], loader: Any) -> Any:
    from ansible.template import Templar, trust_as_template  # noqa: PLC0415

    if not _NAME.fullmatch(expression):
        return Templar(loader, known).evaluate_expression(trust_as_template(expression)) if expression else ""
    value = known.get(expression)
    if isinstance(value, str) and "{" not in value and "vault" not in type(value).__module__:
        return value  # most are plain, and a template takes some milliseconds
    return Templar(loader, known).template(value)


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _no_text(value: Any) -> str:
    kind = type(value).__name__.lower().removeprefix("_ansibletagged")
    return f"a value of the kind {kind} is given; expected text."


def _said(name: str, error: Exception) -> str:
    from ansible.errors import AnsibleUndefinedVariable  # noqa: PLC0415

    if "decrypt" in str(error):
        return "its vault cannot be opened; expected the password in one of inventory.vault_password_file."
    if name in SECRET and not isinstance(error, AnsibleUndefinedVariable):
        return f"it cannot be evaluated ({type(error).__name__}); see ansible-inventory --host."
    return f"it cannot be evaluated: {_line(error).rstrip('.')}."


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", "") or error).split())[:_LONGEST]


_LONGEST = 300

if __name__ == "__main__":
    main()
