"""What each key of a configuration file means, and files that tell it: complete, with what is not set as a comment.

The meanings are the docstrings behind the fields of ``kadeploy.config``, read from the source. Prose begins with a
hash sign and one blank; a key that has its default stands behind a hash sign alone, so that taking the sign away sets
it. A section that is not set at all is such a comment as a whole.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml
from msgspec import inspect

_WIDTH = 110
"""Of the comments."""
_ENDLESS = 2**31 - 1


class Key(NamedTuple):
    """One key of a section."""

    name: str
    kind: inspect.Type
    required: bool
    default: Any
    """As plain data; None too where the key is required."""
    meaning: str
    """Sentences for administrators; empty where name and section say it all."""

    @property
    def section(self) -> type | None:
        """The class of the section that it begins, if it begins one."""
        found = (each.cls for each in _kinds(self.kind) if isinstance(each, inspect.StructType))
        return next(found, None)

    @property
    def member(self) -> type | None:
        """The class of what it lists."""
        found = (each for kind in _kinds(self.kind) for each in _members(kind))
        return next((each.cls for each in found if isinstance(each, inspect.StructType)), None)

    @property
    def choices(self) -> list[str]:
        """The words that it may have; none where any will do."""
        literals = (each for each in _kinds(self.kind) if isinstance(each, inspect.LiteralType))
        return [str(word) for each in literals for word in each.values]

    @property
    def told(self) -> str:
        """The meaning, with the words that it may have where there is a choice."""
        words = f"One of {', '.join(self.choices)}." if self.choices else ""
        return " ".join(filter(None, (self.meaning, words)))


@cache
def keys(kind: type) -> tuple[Key, ...]:
    """All keys of *kind*, a class of the configuration, in their order."""
    structure = inspect.type_info(kind)
    assert isinstance(structure, inspect.StructType), kind  # noqa: S101 - told to programmers
    return tuple(_key(kind, field) for field in structure.fields)


def _key(kind: type, field: inspect.Field) -> Key:
    default = field.default
    if default is msgspec.NODEFAULT:
        default = None if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    key = Key(field.encode_name, field.type, field.required, _plain(default), "")
    own = texts(kind).get(field.name) or UNTOLD.get(f"{kind.__name__}.{field.name}", "")
    meaning = own or (_summary(key.section) if key.section else "")
    return key._replace(meaning=readable(meaning, kind))


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


# --- meanings -----------------------------------------------------------------------------------------------------

UNTOLD = {
    "Site.name": "Name of the site.",
    "Site.rights": "Where rights are looked up: in the database; dummy: everybody may do everything.",
    "Site.almighty_users": "Users who may manage rights and publish environments.",
    "Site.marker_port": "TCP port that is open in the deployment system only, which tells it from other systems.",
    "Site.extraction_dir": "Folder of the deployment system where the partition is mounted that is deployed.",
    "Site.rambin_dir": "Folder of the deployment system that archives of pre- and post-installs are unpacked in.",
    "Site.service": "How kadeploy3d serves other accounts and other machines.",
    "Site.mkfs_options": 'Options of mkfs by file system, such as {ext4: "-O ^64bit"}.',
    "Site.end_hook_timeout": "Seconds that such a command may take.",
    "Site.broadcast_arity": "Chains that the server feeds side by side.",
    "Site.broadcast_port": "TCP port of the relays on the nodes.",
    "Ssh.port": "Port of the ssh servers of nodes.",
    "Windows.reboot": "Nodes that are rebooted at a time.",
    "Windows.check": "Nodes that are looked at, at a time.",
    "Runs.days": "Days.",
    "Https.private_key": "Path of the certificate's key (PEM).",
    "Https.address": "Address to listen on.",
    "Https.port": "Port to listen on.",
    "Service.front_ends": "Servers that have authenticated a user already, and whose word counts.",
    "Quota.consoles": "Consoles open at a time.",
    "Vlan.hostname_suffix": "What is added to a host name in a VLAN.",
    "Demolishing.threshold": "Failures after which it counts as such.",
    "Demolishing.auto_tag": "Whether it is recorded as such by itself.",
    "Hooks.end_of_deployment": "After a deployment.",
    "Hooks.end_of_reboot": "After a reboot.",
    "Hooks.end_of_power": "After power was switched.",
    "Cluster.nodes": "The machines.",
    "Cluster.macro_steps": "Implementations of each macro-step, the preferred first; auto: kexec where it works.",
    "Cluster.micro_retries": "Further tries per micro-step (by role name).",
    "Cluster.pre_installs": "Archives for before the image is sent.",
    "Cluster.post_installs": "What the new system is set up by, archives first: each is a file, a role or a playbook.",
    "Cluster.supported_filesystems": "File systems that the deployment system can make and mount.",
    "Cluster.kexec_dir": "Folder on the nodes for the kernel of BootNewEnvKexec.",
    "NodeRange.name": "Names: gdx-[1-100].",
    "NodeRange.address": "Addresses: 10.0.1.[1-100].",
    "NodeRange.mac": "The MAC address of the card that boots.",
    "Disk.table": "Partition table.",
    "Disk.partitions": "The layout, with one partition for deploy; in an msdos table numbers from 5 on are logical.",
    "Partition.number": "As in /dev/sda3.",
    "Partition.role": "What it is for.",
    "Loader.firmware": "What nodes boot by.",
    "Loader.profiles": "Language of the boot profiles, which is that of the network boot loader.",
    "Loader.method": "How deployed systems boot: by the loader on the disk, or always with a kernel from the network.",
    "Loader.initrd": "Its initrd, likewise.",
    "Loader.nfsroot_kernel": "Kernel of the system of SetDeploymentEnvNfsroot, likewise.",
    "Loader.nfsroot_initrd": "Its initrd, likewise.",
    "Loader.nfsroot_params": "Its kernel parameters.",
    "Power.driver": "How BMCs are spoken to; command: the site's own commands switch the nodes.",
    "Power.port": "UDP port of the BMCs (ipmi).",
    "Power.user": "User of the BMCs.",
    "Power.password_file": "File whose first line is that user's password (mode 0600).",
    "Power.password_env": "In place of it: name of the environment variable that holds the password.",
    "Power.verify_tls": "Whether certificates of BMCs are checked (redfish).",
    "PowerCommands.soft_reboot": "Asks the node's system.",
    "PowerCommands.hard_reboot": "Resets it.",
    "PowerCommands.very_hard_reboot": "Takes its power away for a while.",
    "PowerCommands.soft_on": "Switches it on.",
    "PowerCommands.hard_on": "Likewise, where that failed.",
    "PowerCommands.very_hard_on": "Likewise, where that failed too.",
    "PowerCommands.soft_off": "Asks the node's system to shut down.",
    "PowerCommands.hard_off": "Switches it off.",
    "PowerCommands.very_hard_off": "Likewise, where that failed.",
    "PowerCommands.status": "Ends with status 0 for a node that is on.",
    "Timeouts.reboot": "Time in which nodes have to come back.",
    "Timeouts.kexec": "The same where a kernel starts the next one, without the firmware.",
    "Implementation.retries": "Further tries on nodes that failed.",
    "Implementation.timeout": "Seconds for each of them.",
    "AdminArchive.file": "Path or URL.",
    "AdminArchive.kind": "How it is packed.",
    "AdminArchive.script": "Path in the archive of what is run; none: nothing.",
    "PostInstall.file": "An archive: path or URL.",
    "PostInstall.kind": "How it is packed.",
    "PostInstall.script": "Path in the archive of what is run; none: nothing.",
}
"""Meanings of fields that have no docstring; one that gets a docstring is to leave this table."""


@cache
def texts(kind: type) -> dict[str, str]:
    """Docstring of each field of *kind* that has one."""
    found = ((_named_by(field), text) for field, text in itertools.pairwise(_class(kind).body))
    return {
        name: " ".join(text.value.value.split())
        for name, text in found
        if name
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _named_by(field: ast.stmt) -> str:
    """The name that *field* defines, if it defines one."""
    targets = [field.target] if isinstance(field, ast.AnnAssign) else getattr(field, "targets", [])
    return next((each.id for each in targets if isinstance(each, ast.Name)), "")


def _summary(kind: type) -> str:
    """First paragraph of the docstring of *kind*, unless it only repeats the key."""
    text = " ".join((ast.get_docstring(_class(kind)) or "").partition("\n\n")[0].split())
    return "" if re.fullmatch(r"``\S+``\.", text) else text


def _class(kind: type) -> ast.ClassDef:
    found = (each for each in _module(kind.__module__).body if isinstance(each, ast.ClassDef))
    return next(each for each in found if each.name == kind.__name__)


@cache
def _module(name: str) -> ast.Module:
    path = sys.modules[name].__file__
    assert path is not None  # noqa: S101 - the modules of the configuration are files
    return ast.parse(Path(path).read_text(encoding="utf-8"))


_CLASSES = {"PowerCommands": "power.commands"}
"""Classes that docstrings name, as the keys that they stand behind."""


def readable(text: str, kind: type) -> str:
    """A docstring in *kind* without its markup: constants are their values, and Python's None is YAML's null."""

    def value(found: re.Match[str]) -> str:
        named = getattr(sys.modules[kind.__module__], found[1], None)
        return str(named) if isinstance(named, str | int) else found[1]

    text = re.sub(r"``([^`]+)``", r"\1", text)
    text = re.sub(r"`([^`]+)`", value, text)
    text = re.sub(r"(?<!\w)\*(\w[\w.]*)\*(?!\w)", lambda found: _CLASSES.get(found[1], found[1]), text)
    return re.sub(r"\bNone\b", "null", text)


# --- types --------------------------------------------------------------------------------------------------------


def _kinds(kind: inspect.Type) -> Iterator[inspect.Type]:
    """*kind*, or all that it may be."""
    yield from kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _members(kind: inspect.Type) -> Iterator[inspect.Type]:
    """What a *kind* has as members, however deep."""
    for attribute in ("item_type", "value_type"):
        inner = getattr(kind, attribute, None)
        if isinstance(inner, inspect.Type):
            yield inner
            yield from _members(inner)


# --- files --------------------------------------------------------------------------------------------------------

EXAMPLES: dict[str, Any] = {
    "Vlan.hostname_suffix": "-kavlan-VLAN_ID",
    "Vlan.set_command": "kavlan -s -i VLAN_ID -u USER NODES",
    "Https.certificate": "/etc/ssl/kadeploy/certificate.pem",
    "Https.private_key": "/etc/ssl/kadeploy/private_key.pem",
    "Mail.server": "smtp.example.org",
    "Mail.sender": "kadeploy@example.org",
    "Mail.domain": "example.org",
    "Workers.users": ["worker"],
    "Service.front_ends": [{"sources": ["10.1.0.4", "10.2.0.0/16"], "header": "X-Remote-Ident"}],
    "Inventory.source": "/etc/ansible/hosts.yml",
    "Cluster.pre_installs": [{"file": "/srv/kadeploy/admin-pre.tgz", "kind": "tgz", "script": "run.sh"}],
    "Cluster.post_installs": [
        {"file": "/srv/kadeploy/admin-post.tgz", "kind": "tgz", "script": "run.sh"},
        {"role": "motd", "where": "new_root", "vars": {"motd_text": "Welcome"}},
    ],
    "Cluster.hardware": [
        {
            "nodes": "gdx-[1-2]",
            "product": "Dell Inc. PowerEdge C6420",
            "arch": "x86_64",
            "firmware": "uefi",
            "memory_mib": 196608,
            "processors": {"model": "Intel Xeon Gold 6130", "sockets": 2, "cores": 32, "threads": 64},
            "disks": [
                {"device": "/dev/sda", "mib": 457862, "model": "MZ7KM480", "bus": "sata", "rotates": False, "paths": []}
            ],
            "cards": [{"name": "eth0", "driver": "ixgbe", "mbps": 10000, "boots": True}],
            "own": {
                "gdx-1": {
                    "serial": "J5X8ZR2",
                    "macs": {"eth0": "52:54:00:00:00:01"},
                    "disks": {"/dev/sda": ["/dev/disk/by-id/wwn-0x5002538c40b1d1e1"]},
                }
            },
        }
    ],
}
"""What stands in a comment where the default is nothing."""


def text(kind: type, values: Mapping[str, Any], header: str) -> str:
    """A file of *kind* in which *values* (plain data, by key) are set and all other keys are comments.

    *header* is prose for its first lines.
    """
    blocks = [_prose(header)]
    blocks += [_block(kind, key, values, prose=True) for key in keys(kind)]
    return "\n".join("".join(f"{line}\n" for line in block) for block in blocks)


def _block(kind: type, key: Key, values: Mapping[str, Any], prose: bool) -> list[str]:
    """Comment and value of one key, from the first column on."""
    if key.name in values:
        return [*_comment(kind, key, values[key.name], prose), *_set(key, values[key.name])]
    shown = EXAMPLES.get(f"{kind.__name__}.{key.name}", key.default)
    return [*_comment(kind, key, key.default, prose), *(f"#{line}" for line in _set(key, shown))]


def _comment(kind: type, key: Key, value: Any, prose: bool) -> list[str]:
    if not prose:
        return []
    lines = [key.told] if key.told else []
    if f"{kind.__name__}.{key.name}" in EXAMPLES and not key.required:
        lines.append("None unless set; this is an example.")
    elif not key.required and key.section is None and value != key.default:
        lines.append(f"Default: {_flow(key.default)}.")
    found = _prose(" ".join(lines)) if lines else []
    if key.member:
        for each in keys(key.member):
            found += _prose(f"- {each.name}: {_of_member(each)}", "  ")
    return found


def _of_member(key: Key) -> str:
    default = "Required." if key.required else f"Default: {_flow(key.default)}."
    return " ".join(filter(None, (key.told, default)))


def _prose(words: str, indent: str = "") -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(words, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)]


def _set(key: Key, value: Any) -> list[str]:
    """The key with its value, as YAML."""
    if key.section is not None:
        inner = value if isinstance(value, Mapping) and value != key.default else {}
        is_shown = not inner  # then all of it is a comment, and its keys need no second sign
        return [f"{key.name}:", *_indented(_section(key.section, inner, is_shown))]
    if isinstance(value, Mapping) and value:
        return [f"{key.name}:", *(line for name, inner in value.items() for line in _indented(_named(name, inner)))]
    return _named(key.name, value, is_list=key.member is not None)


def _section(kind: type, values: Mapping[str, Any], all_keys: bool) -> list[str]:
    shown = {key.name: _example(kind, key) for key in keys(kind) if not _is_extra(kind, key)} if all_keys else {}
    complete = shown | dict(values)
    return [line for key in keys(kind) for line in _block(kind, key, complete, prose=True)]


def _is_extra(kind: type, key: Key) -> bool:
    """Whether what is shown of it, as an example, is more than its default."""
    is_empty = key.section is not None and key.default is None
    return not key.required and (is_empty or f"{kind.__name__}.{key.name}" in EXAMPLES)


def _example(kind: type, key: Key) -> Any:
    return EXAMPLES.get(f"{kind.__name__}.{key.name}", key.default)


def _named(name: str, value: Any, is_list: bool = True) -> list[str]:
    """A key with a plain value; members of a list that have keys themselves are lines of their own."""
    if is_list and isinstance(value, Sequence) and not isinstance(value, str) and any(map(_has_keys, value)):
        return [f"{_flow(name)}:", *(f"  - {_flow(each)}" for each in value)]
    return [f"{_flow(name)}: {_flow(value)}"]


def _has_keys(value: Any) -> bool:
    return isinstance(value, Mapping)


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _flow(value: Any) -> str:
    """*value* as YAML on one line, quoted where it has to be.

    >>> _flow("gdx-1"), _flow("no"), _flow({"size": "4GiB", "role": "a: b"})
    ('gdx-1', "'no'", "{size: 4GiB, role: 'a: b'}")
    """
    if isinstance(value, str) and not value.isprintable():
        written = yaml.dump(value, Dumper=_Dumper, width=_ENDLESS, allow_unicode=False, default_style='"')
    else:
        written = yaml.dump(
            value, Dumper=_Dumper, width=_ENDLESS, allow_unicode=True, default_flow_style=True, sort_keys=False
        )
    return str(written).removesuffix("\n").removesuffix("\n...")


_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
