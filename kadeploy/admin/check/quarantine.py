"""Nodes in quarantine, and those that fail so often that they belong there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from kadeploy.admin import quarantine
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.admin.quarantine import Listed
from kadeploy.caller import as_user
from kadeploy.errors import DatabaseError, KadeployError
from kadeploy.nodeset import fold, told
from kadeploy.operations.reasons import kinds
from kadeploy.state import database

NODES = Look("quarantine", "nodes")
PROPOSED = Look("quarantine", "proposed")


def check(subject: Subject) -> Iterator[Finding]:
    """Which of the chosen nodes are or should be put aside."""
    try:
        found = known(subject)
    except (KadeployError, OSError) as error:
        yield NODES.warn(f"quarantine cannot be looked at: {error}", "see what the topic database says")
        return
    for text, names in kinds({stay.node: stay.told for stay in found.quarantine}).items():
        yield NODES.warn(
            f"{told(names)}: {text}", f"once repaired, let them out: kadeploy-site quarantine release {fold(names)}"
        )
    if not found.quarantine:
        yield NODES.ok("no node is in quarantine")
    for text, names in kinds({each.node: each.told for each in found.proposals}).items():
        yield PROPOSED.warn(
            f"{told(names)}: {text}",
            f"find out why; to have users spared meanwhile: kadeploy-site quarantine add {fold(names)}",
        )
    if subject.site.quarantine and not found.proposals:
        yield PROPOSED.ok("no other node fails too often")


def known(subject: Subject) -> Listed:
    """What there is of the chosen nodes; nothing where there are no tables yet.

    Raises:
        KadeployError: the database cannot be read, or is of another version.
        OSError: this user may not.
    """
    site = subject.site
    mine = as_user(subject.owner) if subject.owner and database.file_of(site) else nullcontext()
    with mine, database.as_it_is(site) as version:
        if version not in (None, database.SCHEMA_VERSION):
            raise DatabaseError(f"the database has schema version {version}, not {database.SCHEMA_VERSION}")
        return quarantine.known(site, subject.nodes) if version else Listed([], [])
