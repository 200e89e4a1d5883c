"""Whether a user may do to nodes what an assignment asks for: when it is admitted, and for as long as it runs."""

from __future__ import annotations

from collections.abc import Sequence

from kadeploy.config.site import Site
from kadeploy.runner.request import Assignment
from kadeploy.state import rights


def require(site: Site, assignment: Assignment) -> None:
    """Refuse unless its user has the right on every partition of every node that it touches.

    Raises:
        RightsError: names the nodes and the partition.
    """
    names = [node.name for node in assignment.nodes]
    for part in assignment.deploy_parts:
        rights.require(site, assignment.user, names, part)


def missing(site: Site, assignment: Assignment, names: Sequence[str]) -> dict[str, str]:
    """Those of *names* where the right is gone, each with a partition on which it is."""
    parts = reversed(assignment.deploy_parts)  # the first one is told
    return {node: part for part in parts for node in rights.missing(site, assignment.user, names, part)}
