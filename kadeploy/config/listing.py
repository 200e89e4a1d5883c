"""Nodes that an Ansible inventory tells, read anew when a file of it has changed or its time is over.

What was read is kept in *state_dir*: nodes in ``inventories/CLUSTER.json`` for everybody, what their BMCs have of
their own in ``inventories/CLUSTER.secrets.json``. Only what is right is kept, so that it need not be looked at again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from kadeploy.caller import as_user, numbered
from kadeploy.config import logins
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.inventory import Inventory, Marks, Wish
from kadeploy.config.logins import Login
from kadeploy.config.rules import Wrong
from kadeploy.config.site import Site


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
        return self.marks == self.wish.inventory.marks(Path(self.wish.folder))

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


# --- kept -----------------------------------------------------------------------------------------------------------


def _listing(cluster: Cluster, inventory: Inventory, folder: Path, site: Site) -> Listing | list[Wrong]:
    wish = Wish(str(folder), inventory, inventory.group or cluster.name, cluster.power.driver)
    kept = _kept(site, cluster.name)
    if kept and kept.wish == wish and kept.stands:
        return kept
    from kadeploy.config.reading import read  # noqa: PLC0415 - seldom needed, and it brings much

    before, begun = inventory.marks(folder), time.time()
    made = read(wish, cluster.power.password_env)
    due = time.time() + max(inventory.seconds, _SHARE * (time.time() - begun))
    if not isinstance(made, list):
        nodes, own = made
        stranger = next((each.name for each in nodes if each.bmc and each.name not in own), "")
        found = Listing(wish=wish, marks=before, read=begun, next=due, stranger=stranger, nodes=nodes)
        if not kept or kept.wish.folder == wish.folder or not Path(kept.wish.folder).is_dir():
            _keep(site, cluster.name, found, own)  # else this folder is a copy, to try something with
        return found
    if not kept or kept.wish != wish or kept.marks != before:
        return made
    still = msgspec.structs.replace(kept, next=due, failure=made[0].said)
    _keep(site, cluster.name, still)
    return still


_SHARE = 10
"""Times as long as an inventory takes to be read it counts at least: one of 10,000 hosts takes a minute."""


def _path(site: Site, cluster: str) -> Path:
    return site.state / logins.FOLDER / f"{cluster}.json"


def _kept(site: Site, cluster: str) -> Listing | None:
    with suppress(OSError, msgspec.MsgspecError):
        found = msgspec.json.decode(_path(site, cluster).read_bytes(), type=Listing)
        return found if logins.path(site, cluster).exists() else None
    return None


def _keep(site: Site, cluster: str, found: Listing, own: Mapping[str, Login] | None = None) -> None:
    """Write it down as the account that keeps the site, where this process may; else it counts for this process."""
    from kadeploy.files import replace_file  # noqa: PLC0415 - as above

    with suppress(OSError), as_user(numbered(site.state.stat().st_uid)):
        path = _path(site, cluster)
        path.parent.mkdir(mode=0o755, exist_ok=True)
        if own is not None:
            replace_file(logins.path(site, cluster), logins.encode(own), 0o600)
        replace_file(path, msgspec.json.encode(found), 0o644)
