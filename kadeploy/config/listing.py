"""Nodes that an Ansible inventory tells, read anew when a file of it has changed or its time is over.

What was read is kept in *state_dir*: nodes in ``inventories/CLUSTER.json`` for everybody, what their BMCs have of
their own in ``inventories/CLUSTER.secrets.json``. Only what is right is kept, so that it need not be looked at again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from kadeploy import process
from kadeploy.caller import as_user, numbered
from kadeploy.config import logins, trust
from kadeploy.config.cluster import Cluster, Node, rules_of
from kadeploy.config.host_variables import MODULE, Asked, Told
from kadeploy.config.inventory import Inventory
from kadeploy.config.logins import Login
from kadeploy.config.rules import Wrong
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, KadeployError
from kadeploy.files import replace_file
from kadeploy.hints import did_you_mean

PATIENCE = 600
"""Seconds that an inventory may take, which may be a program."""
_WITHIN = "KADEPLOY_LISTING"
"""Variable of the process that reads an inventory: one that asks us for nodes would wait for itself."""

Marks = dict[str, tuple[int, int, int]]
"""Size, time and inode of each file."""


class Wish(msgspec.Struct, frozen=True):
    """What is to be known: as long as it is the same, and the files are, the nodes are."""

    folder: str
    """The configuration folder."""
    inventory: Inventory
    group: str
    driver: str


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What an inventory has told."""

    wish: Wish
    marks: Marks
    """Of its files, before it was read."""
    read: float
    """Unix time."""
    next: float
    """When it is read again."""
    failure: str = ""
    """Why it could not be read again."""
    stranger: str = ""
    """A node whose BMC has no user and no password of its own."""
    nodes: list[Node]

    @property
    def unchanged(self) -> bool:
        """Whether it is of what the files say now."""
        return self.marks == marks(self.wish.inventory, Path(self.wish.folder))

    @property
    def stands(self) -> bool:
        """Whether it need not be read again."""
        return self.read <= time.time() < self.next and self.unchanged


def give(cluster: Cluster, folder: Path, site: Site) -> Iterator[Wrong]:
    """Give *cluster* the nodes that its inventory tells; what is wrong with them instead, if anything is."""
    if cluster.inventory is None:
        return
    found = _listing(cluster, cluster.inventory, folder.absolute(), site)
    if isinstance(found, Listing):
        yield from cluster.take(found.nodes, found.stranger)
        cluster.__dict__["listing"] = found
    else:
        yield from found


def of(cluster: Cluster) -> Listing | None:
    """Where the nodes of *cluster* are from; None: from its file."""
    found: Listing | None = cluster.__dict__.get("listing")
    return found


def marks(inventory: Inventory, folder: Path) -> Marks:
    """The files of *inventory* as they are now."""
    return dict(_marks(inventory.paths(folder)))


def _marks(paths: Iterable[Path]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            yield str(path), (status.st_size, status.st_mtime_ns, status.st_ino)
            yield from _marks(each for each in path.iterdir() if not each.name.startswith((".", "__pycache__")))


# --- kept -----------------------------------------------------------------------------------------------------------


def _listing(cluster: Cluster, inventory: Inventory, folder: Path, site: Site) -> Listing | list[Wrong]:
    wish = Wish(str(folder), inventory, inventory.group or cluster.name, cluster.power.driver)
    kept = _kept(site, cluster.name)
    if kept and kept.wish == wish and kept.stands:
        return kept
    before = marks(inventory, folder)
    now = time.time()
    made = _read(wish, partial(_answer, hidden=cluster.power.password_env))
    if isinstance(made, list):
        if not kept or kept.wish != wish or kept.marks != before:
            return made
        failure = " ".join(each.said for each in made[:1])
        found = msgspec.structs.replace(kept, next=_next(inventory, now), failure=failure)
        _keep(site, cluster.name, found, None)
        return found
    nodes, own = made
    stranger = next((each.name for each in nodes if each.bmc and each.name not in own), "")
    found = Listing(wish=wish, marks=before, read=now, next=_next(inventory, now), stranger=stranger, nodes=nodes)
    if not kept or kept.wish.folder == wish.folder or not Path(kept.wish.folder).is_dir():
        _keep(site, cluster.name, found, own)  # else this folder is a copy, to try something with
    return found


def _next(inventory: Inventory, begun: float) -> float:
    """When an inventory that was *begun* to be read then is read again: reading takes a small part of the time."""
    ended = time.time()
    return ended + max(inventory.seconds, _SHARE * (ended - begun))


_SHARE = 10
"""Times as long as an inventory takes to be read it counts at least: one of 10,000 hosts takes a minute."""


def _path(site: Site, cluster: str) -> Path:
    return site.state / logins.FOLDER / f"{cluster}.json"


def _kept(site: Site, cluster: str) -> Listing | None:
    with suppress(OSError, msgspec.MsgspecError):
        found = msgspec.json.decode(_path(site, cluster).read_bytes(), type=Listing)
        return found if logins.path(site, cluster).exists() else None
    return None


def _keep(site: Site, cluster: str, found: Listing, own: Mapping[str, Login] | None) -> None:
    """Write it down as the account that keeps the site, where this process may; else it counts for this process."""
    with suppress(OSError), as_user(numbered(site.state.stat().st_uid)):
        path = _path(site, cluster)
        path.parent.mkdir(mode=0o755, exist_ok=True)
        if own is not None:
            replace_file(logins.path(site, cluster), logins.encode(own), 0o600)
        replace_file(path, msgspec.json.encode(found), 0o644)


# --- read -----------------------------------------------------------------------------------------------------------


def _read(wish: Wish, answer: Callable[[Wish], Told]) -> tuple[list[Node], dict[str, Login]] | list[Wrong]:
    """Nodes, and logins of those whose BMCs have their own; or what is wrong."""
    inventory, folder = wish.inventory, Path(wish.folder)
    if missing := list(inventory.missing(folder)):
        return missing
    try:
        trust.require_all_roots([Path(each) for each in marks(inventory, folder)], "inventory")
        told = answer(wish)
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
        last = next(iter(reversed(said.strip().splitlines())), "it has said nothing")
        raise ConfigError(f"Ansible has ended before it has read {wish.inventory.source}: {last}.") from error
    reasons = [found[1].rstrip(".") for found in (re.search(pattern, said) for pattern in _REASONS) if found]
    return msgspec.structs.replace(told, refused=": ".join(reasons)) if told.refused and reasons else told


_REASONS = (
    r"\[WARNING\]: (?:Failed to parse|Error \w+ vault) .*?: (.*)",
    r"Standard error from inventory script:\n(?:.+\n)*(.+)\n\n",
)
"""What Ansible says in detail, and of a program what that has said."""
