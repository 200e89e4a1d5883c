"""Rules for values: what each kind of value has to be like, what is told of one that is not, and what was meant.

A key's type names its rule, ``tftp_root: Folder``, so that it stands beside the key. What several keys say against each
other is told by ``contradictions`` of the object they belong to. Nothing here looks at files, names or the network.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from kadeploy import commands
from kadeploy.caller import is_user_name
from kadeploy.config.lines import Place
from kadeploy.hints import nearest


class Wrong(NamedTuple):
    """What is wrong at a place of a file: a sentence behind the key's name."""

    place: Place
    said: str
    line_of: Place = ()
    """Place whose line is told; empty: *place* itself."""


def dotted(place: Place) -> str:
    """A place as people write it.

    >>> dotted(("disk", "partitions", 0, "size"))
    'disk.partitions[0].size'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


def shown(value: object) -> str:
    """A wrong value as far as one line of a message has room for it; nothing has a name, too."""
    text = " ".join(str(value).split())
    return (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…") or "an empty text"


_SHOWN = 100


@dataclass(frozen=True)
class Rule:
    """What a text has to be like, where it is not the key's default."""

    broken: Callable[[str], str]
    """What is wrong with a value, what is allowed and what was meant, as sentences; empty when nothing is."""


def expects(
    holds: Callable[[str], bool],
    expected: str,
    meant: Callable[[str], str] = lambda _: "",
    told: Callable[[str], str] = lambda text: f"wrong value {shown(text)}",
) -> Rule:
    """The rule that *holds* is true; *meant*: what a wrong one may have been meant to be, *told*: how it is named."""

    def broken(value: str) -> str:
        if holds(value):
            return ""
        guess = meant(value)
        hint = f" Did you mean {guess}?" if guess and guess != value and holds(guess) else ""
        return f"{told(value)}; expected {expected}.{hint}"

    return Rule(broken)


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


# --- numbers ----------------------------------------------------------------------------------------------------

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
OpenPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
"""Of this machine; 0: one that is free."""
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


# --- words ------------------------------------------------------------------------------------------------------

Line = Annotated[str, expects(lambda text: "\n" not in text.strip(), "one line")]
Name = Annotated[str, expects(_matches(r"[^\s/.-][^\s/]*"), "a name without blanks and slashes")]
User = Annotated[str, expects(is_user_name, "the name of a user")]
VariableName = Annotated[
    str,
    expects(
        _matches(r"[A-Za-z_][A-Za-z0-9_]*"),
        "the name of an environment variable",
        meant=lambda text: text.strip().lstrip("$").strip("{}").partition("=")[0],
    ),
]
SecretVariable = Annotated[
    str,
    expects(
        _matches(r"[A-Za-z_][A-Za-z0-9_]*"),
        "the name of an environment variable that holds the password, such as BMC_PASSWORD",
        told=lambda _: "this is no name of a variable",
    ),
]
Header = Annotated[
    str,
    expects(
        _matches(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"),
        "the name of a header, such as X-Remote-Ident",
        meant=lambda text: text.strip().partition(":")[0].replace(" ", "-"),
    ),
]

OUR_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")
"""Those that our deployment system can make and mount."""
_OTHERS = ("bcachefs", "exfat", "f2fs", "fat", "jfs", "minix", "msdos", "nilfs2", "ntfs", "ocfs2", "reiserfs", "udf")
FILE_SYSTEMS = (*OUR_FILE_SYSTEMS, *_OTHERS)
"""Those for which there is a ``mkfs.NAME``."""
FileSystem = Annotated[
    str,
    expects(
        FILE_SYSTEMS.__contains__,
        f"one of {', '.join(FILE_SYSTEMS)}",
        meant=lambda text: nearest(text, FILE_SYSTEMS),
    ),
]


# --- paths ------------------------------------------------------------------------------------------------------


def _is_path(text: str) -> bool:
    return text.startswith("/") and "\n" not in text and "\0" not in text


def _below_root(text: str) -> bool:
    return _is_path(text) and text.strip("/") != "" and ".." not in text.split("/")


def _rooted(text: str) -> str:
    """A path that lacks its slash; one of the user's home is nobody's here."""
    plain = text.strip().removeprefix("file://")
    return plain if plain.startswith("/") else f"/{plain}" if plain and plain[0] not in "~.$" else ""


_FILE = expects(_is_path, "a whole path, which begins with /", meant=_rooted)
File = Annotated[str, _FILE]
Folder = Annotated[str, expects(_is_path, "the whole path of a folder, which begins with /", meant=_rooted)]
FolderOnNode = Annotated[
    str, expects(_below_root, "the whole path of a folder below /, such as /mnt/dest", meant=_rooted)
]
FileOrUrl = Annotated[
    str,
    expects(
        lambda text: _is_path(text) or re.fullmatch(r"(https?|server)://[^\s]+", text) is not None,
        "a whole path, which begins with /, or a URL, http://…, https://… or server:///…",
        meant=_rooted,
    ),
]
PrivateKeyFile = Annotated[
    str,
    expects(
        lambda text: _is_path(text) and not text.endswith(".pub"),
        "the whole path of a private key, such as /var/lib/kadeploy/keys/site_ed25519",
        meant=lambda text: _rooted(text).removesuffix(".pub"),
    ),
]
BootFile = Annotated[
    str,
    expects(
        lambda text: re.fullmatch(r"\S+", text) is not None and ".." not in text.split("/"),
        "a file below boot.http_root, or a URL",
    ),
]


# --- addresses --------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)")
_PADDED = re.compile(r"(?:^|\.)0\d")
_NUMBERS = re.compile(r"[\d.]+")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^/:@\s?#]+)(?::(?P<port>\d+))?(?P<path>/[^\s?#]*)?"
)


def is_host(text: str) -> bool:
    """Whether *text* may be an address, of IP of either version, or the name of a machine."""
    if _IPV4.fullmatch(text):
        return not _PADDED.search(text)
    if _NUMBERS.fullmatch(text):
        return False
    if _HOST.fullmatch(text):
        return len(text) <= _LONGEST_HOST and ".." not in text
    return ":" in text and is_ip(text)


_LONGEST_HOST = 253


def is_ip(text: str) -> bool:
    """Whether *text* is an address of IP, of either version."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    """Whether *text* is an address of IP or a network: ``10.2.0.0/16``."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def is_url(text: str) -> bool:
    """Whether *text* is a URL of a web server, with a machine and a port that may be."""
    found = _URL.fullmatch(text)
    return bool(found and is_host(found["host"].strip("[]")) and 0 < int((found["port"] or "1")[:6]) <= _LAST_PORT)


_LAST_PORT = 65535


_MAILBOX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+=.-]{0,63}")


_LONGEST_ADDRESS = 254


def is_mail_address(text: str) -> bool:
    """Whether *text* is an address of mail, in a form that needs no quotes and holds no second one."""
    mailbox, at, domain = text.partition("@")
    return bool(
        at and len(text) <= _LONGEST_ADDRESS and _MAILBOX.fullmatch(mailbox) and is_host(domain) and ":" not in domain
    )


def _host_of(text: str) -> str:
    """The machine that somebody wrote more of than that: its URL, its port, a zero in front."""
    bare = text.strip().partition("://")[2] or text.strip()
    bare = bare.split("/")[0].rpartition("@")[2]
    if bare.count(":") == 1:
        bare = bare.split(":")[0]
    return re.sub(r"(^|\.)0+(?=\d)", r"\1", bare) if _NUMBERS.fullmatch(bare) else bare


def _network_of(text: str) -> str:
    """The network that an address with a mask is in."""
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        return ""


def _base_url(text: str) -> str:
    bare = text.strip()
    return bare if is_url(bare) else f"http://{bare}" if "://" not in bare else ""


def _is_bmc(text: str) -> bool:
    """Whether *text* may be the address of a BMC, with the port that it listens at where that is another one."""
    host, colon, port = text.rpartition(":")
    if colon and ":" not in host:
        return is_host(host) and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
    return is_host(text)


HOST = expects(is_host, "an IP address or the name of a machine", meant=_host_of)
BMC = expects(_is_bmc, "an IP address or the name of a machine, and its port after a colon", meant=_host_of)
URL = expects(
    is_url, "a URL, such as https://10.0.0.1", meant=lambda text: "" if "://" in text else f"https://{text.strip()}"
)
Host = Annotated[str, HOST]
IpAddress = Annotated[str, expects(is_ip, "an IP address", meant=_host_of)]
Network = Annotated[str, expects(is_network, "an address such as 10.1.0.4 or a network 10.2.0.0/16", meant=_network_of)]
FolderUrl = Annotated[
    str,
    expects(
        lambda text: is_url(text) and text.endswith("/"),
        "a URL that begins with http:// or https:// and ends with /",
        meant=lambda text: f"{_base_url(text).rstrip('/')}/",
    ),
]
_DATABASES = ("sqlite", "postgresql", "postgres", "mysql")


def _database_of(text: str) -> str:
    """A path is one of SQLite; the rest of a URL may hold a password and is not told."""
    if text.startswith("/"):
        return f"sqlite://{text}"
    kind = nearest(text.partition(":")[0], ("sqlite", "postgresql", "mysql"))
    return f"{kind}://…" if kind else ""


def _kind_of_database(text: str) -> str:
    return f"unknown kind of database {shown(text.partition(':')[0])}" if ":" in text else f"wrong value {shown(text)}"


DatabaseUrl = Annotated[
    str,
    expects(
        lambda text: text.partition("://")[0] in _DATABASES and text.partition("://")[2] != "",
        "sqlite:///PATH, postgresql://… or mysql://…",
        meant=_database_of,
        told=_kind_of_database,
    ),
]

_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}")


def _is_mac(text: str) -> bool:
    """Of one network card: not of a group (its first byte is odd), and not of none."""
    return bool(_MAC.fullmatch(text)) and not int(text[:2], 16) & 1 and text.strip("0:-") != ""


def _mac_of(text: str) -> str:
    digits = re.sub(r"[\s:.-]", "", text)
    pairs = re.split(r"[:-]", text.strip())
    if len(pairs) == _MAC_BYTES and all(0 < len(pair) <= 2 for pair in pairs):
        return ":".join(pair.zfill(2) for pair in pairs).lower()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)).lower()


_MAC_BYTES = 6
MAC = expects(_is_mac, "the MAC address of one network card, such as 52:54:00:12:34:56", meant=_mac_of)


# --- keys -------------------------------------------------------------------------------------------------------

_KEY_KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_ED25519_BYTES = 51
"""The kind, the key, and the length of each (RFC 8709)."""


def _is_public_key(text: str) -> bool:
    """A line of a ``.pub`` file: the kind, which the key itself begins with too (RFC 4253), the key, a comment."""
    kind, _, rest = text.strip().partition(" ")
    if kind not in _KEY_KINDS or "\n" in text.strip():
        return False
    try:
        key = base64.b64decode(rest.split()[0] if rest.split() else "", validate=True)
    except (binascii.Error, ValueError):
        return False
    told = len(kind).to_bytes(4, "big") + kind.encode()
    return key.startswith(told) and (kind != _KEY_KINDS[0] or len(key) == _ED25519_BYTES)


def _without_host(text: str) -> str:
    """A line of ``known_hosts`` without the machine in front."""
    found = re.search(rf"(?:{'|'.join(map(re.escape, _KEY_KINDS))}) \S+", text)
    return found[0] if found else ""


PublicKey = Annotated[
    str,
    expects(
        _is_public_key,
        "the line of a public key, ssh-ed25519 AAAA…, as it is in the .pub file of the deployment system's host key",
        meant=_without_host,
        told=lambda text: "this is a private key" if "PRIVATE KEY" in text else f"{shown(text)} is no public key",
    ),
]


# --- commands ---------------------------------------------------------------------------------------------------

_CAPITALS = re.compile(r"(?<![A-Za-z0-9_$\{])[A-Z][A-Z0-9_]*(?![A-Za-z0-9_=])")
NODE_PLACEHOLDERS = ("HOSTNAME_FQDN", "HOSTNAME_SHORT")
_UNMISTAKABLE = (*NODE_PLACEHOLDERS, "WORKFLOW_ID", "VLAN_ID", "NODEFILE", "ENVFILE")
"""Placeholders that mean nothing else wherever they stand."""


def command(anywhere: Sequence[str] = (), whole: Sequence[str] = ()) -> Rule:
    """The rule of a command with placeholders, those of *whole* as whole arguments only."""

    def broken(value: str) -> str:
        try:
            words = commands.words(value)
        except ValueError as error:
            return f"{shown(value)} cannot be split into words: {str(error).lower()}; close each quote."
        if not words:
            return "this names no program; expected a command, or leave the key out."
        return next(filter(None, (_misplaced(word, value, anywhere, whole) for word in words)), "")

    return Rule(broken)


def _path_of_node(value: str) -> str:
    return _FILE.broken(value) or _misplaced(value, value, NODE_PLACEHOLDERS, ())


def _misplaced(word: str, text: str, anywhere: Sequence[str], whole: Sequence[str]) -> str:
    """What is wrong with the placeholders in *word*, an argument of *text*; empty when nothing is."""
    known = (*anywhere, *whole)
    for name in _CAPITALS.findall(word):
        if name in known:
            if name in whole and name in _UNMISTAKABLE and word != name:
                return f"{name} is replaced only where it is a whole argument, and not in {shown(word)}."
            continue
        meant = nearest(name, known) if len(name) >= _SHORTEST else ""
        if name in _UNMISTAKABLE or (meant and meant not in _CAPITALS.findall(text) and _slip(name, meant)):
            hint = f" Did you mean {meant}?" if meant else ""
            return f"there is no placeholder {name} here; expected {' or '.join(known)}.{hint}"
    return ""


_SHORTEST = 4
"""Letters; shorter words are like anything."""


def _slip(name: str, meant: str) -> bool:
    """Whether *name* is a slip of the hand, or the beginning of *meant*."""
    return meant.startswith(f"{name}_") or sorted(name) == sorted(meant) or abs(len(name) - len(meant)) <= 1


NodeCommand = Annotated[str, command(NODE_PLACEHOLDERS)]
NodePath = Annotated[str, Rule(_path_of_node)]
HookCommand = Annotated[str, command(["WORKFLOW_ID"])]
VlanCommand = Annotated[str, command(whole=["NODES", "VLAN_ID", "USER"])]
BroadcastCommand = Annotated[str, command(whole=["ENVFILE", "NODEFILE"])]
VlanSuffix = Annotated[
    str,
    expects(
        lambda text: "VLAN_ID" in text and re.fullmatch(r"[A-Za-z0-9._-]+", text) is not None,
        "a text that holds VLAN_ID, such as -kavlan-VLAN_ID",
        meant=lambda text: re.sub(r"VLANID|VLAN-ID|VLANS?_IDS?|vlan_id", "VLAN_ID", text),
    ),
]
