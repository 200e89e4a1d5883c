"""Claims that dead controllers have left: ended with their workflows, by the next operation or by an administrator."""

from __future__ import annotations

from kadeploy.config.site import Site
from kadeploy.errors import NodeHeldError, NothingChangedError
from kadeploy.operations.work import run_folder
from kadeploy.runner.player import end_processes
from kadeploy.state import nodes


def reap(site: Site, wid: str | None = None) -> dict[str, list[str]]:
    """See `kadeploy.state.nodes.reap`; what is left of the processes of these workflows is ended as well."""
    reaped = nodes.reap(site, wid)
    for each in reaped:
        end_processes(run_folder(site, each))
    return reaped


def free(site: Site, node: str) -> list[str]:
    """End the workflow that holds *node*, whose controller is dead: all nodes that are free by that.

    Raises:
        NothingChangedError: nobody holds it.
        NodeHeldError: its workflow runs, or somebody is about to go on with it.
    """
    found = nodes.claims(site, [node])
    if not found:
        raise NothingChangedError(f"{node}: no workflow holds it.")
    [claim] = found
    if not claim.is_left:
        raise NodeHeldError(
            f"{node} is held by workflow {claim.wid} of {claim.user}, which runs on {claim.host}: cancel it first "
            f"(kadeploy3 --cancel {claim.wid})."
        )
    return reap(site, claim.wid).get(claim.wid, [])
