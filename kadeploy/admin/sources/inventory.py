"""Nodes from an inventory of Ansible, of any kind that the installed Ansible reads, by ``ansible-inventory --list``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kadeploy.admin.sources.found import COLUMNS, Entry, Found, LeftOut, first_of, plain
from kadeploy.commands import last_line
from kadeploy.errors import FileError
from kadeploy.hints import did_you_mean

_PATIENCE = 120
"""Seconds that an inventory may take, which may be a program."""
_ADDRESSES = ("ansible_host", "ansible_ssh_host", "kadeploy_address")
_STRICT = {
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
    "ANSIBLE_NOCOLOR": "true",
    "ANSIBLE_DEPRECATION_WARNINGS": "false",
}


def read(path: str, group: str = "") -> Found:
    """Nodes of the inventory *path*, or of *group* in it.

    A host's address is its ``ansible_host``; one that has none is reached by its name. Its MAC address and its BMC are
    the first of its variables ``kadeploy_mac``, ``mac``… and ``kadeploy_bmc``, ``bmc``… (see `COLUMNS`). Texts with
    templates in them are left out: nothing is evaluated.

    Raises:
        FileError: Ansible cannot read it, or it has no such group.
    """
    if not Path(path).exists():
        raise FileError(f"{path}: No such file or directory. Name the inventory.")
    found = Found([], [])
    listed = _listed(path)
    variables = _mapping(_mapping(listed.get("_meta")).get("hostvars"))
    for name in _hosts(listed, group, path):
        _take(name, _mapping(variables.get(name)), f"{path}: host {name}", found)
    return found


def _take(name: str, values: Mapping[str, Any], where: str, found: Found) -> None:
    known = {plain(key): value for key, value in values.items()}
    texts = {
        "address": first_of(known, _ADDRESSES),
        "mac": first_of(known, ("kadeploy_mac", *COLUMNS["mac"])),
        "bmc": first_of(known, ("kadeploy_bmc", *COLUMNS["bmc"])),
    }
    for key, text in texts.items():
        if "{{" in text or "{%" in text:
            found.left_out.append(LeftOut(where=where, text=f"its {key} is a template, {text!r}, and is left out"))
            texts[key] = ""
    address = "" if texts["address"] == name else texts["address"]
    found.entries.append(Entry(name=name, address=address, mac=texts["mac"], bmc=texts["bmc"], where=where))


def _hosts(listed: Mapping[str, Any], group: str, path: str) -> list[str]:
    """Names of the hosts of *group* and of the groups in it; of all hosts where it is empty."""
    groups = {name: _mapping(value) for name, value in listed.items() if name != "_meta"}
    if group and group not in groups:
        known = sorted(set(groups) - {"all"})
        raise FileError(f"{path}: there is no group {group} with a host.{did_you_mean(group, known)}")

    def within(name: str, seen: frozenset[str]) -> Iterator[str]:
        inner = groups.get(name, {})
        yield from filter(_is_text, inner.get("hosts") or ())
        for child in filter(_is_text, inner.get("children") or ()):
            if child not in seen:
                yield from within(child, seen | {child})

    return list(dict.fromkeys(within(group or "all", frozenset({group or "all"}))))


def _listed(path: str) -> Mapping[str, Any]:
    program = Path(sys.executable).with_name("ansible-inventory")
    command = str(program) if program.exists() else shutil.which("ansible-inventory")
    if command is None:
        raise FileError("There is no ansible-inventory here: it comes with ansible-core.")
    arguments = [command, "-i", str(Path(path).absolute()), "--list"]
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            env=os.environ | _STRICT,
            stdin=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FileError(f"{path}: ansible-inventory has no answer after {_PATIENCE} s.") from error
    if done.returncode:
        reason = last_line(done.stderr.decode(errors="replace"))
        raise FileError(f"{path}: Ansible cannot read this inventory: {reason or f'exit status {done.returncode}'}.")
    try:
        return _mapping(json.loads(done.stdout))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: ansible-inventory does not answer with JSON.") from error


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
