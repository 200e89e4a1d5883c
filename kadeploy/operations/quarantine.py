"""Nodes in quarantine take no part in operations; by the site's rule, those that keep failing get there by themselves.

The rule is looked at where an operation ends, for the nodes that it lost. A controller that dies before leaves that to
the next operation on which a node fails.
"""

from __future__ import annotations

from dataclasses import replace

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError, QuarantineError
from kadeploy.events import Report
from kadeploy.nodeset import fold
from kadeploy.operations.reasons import kinds
from kadeploy.operations.work import Work
from kadeploy.state import failing, quarantine

ADVICE = "Ask an administrator, or take other nodes"
"""What those do who want a node that is in quarantine."""


def spared(work: Work) -> Work:
    """*work* without the nodes that are in quarantine; administrators may use them, to try a repair, and are told.

    Raises:
        QuarantineError: no other nodes are asked for.
    """
    stays = [] if work.only_looks else quarantine.current(work.site, work.names)
    reasons = {stay.node: f"{stay.told}. {ADVICE}" for stay in stays}
    if not reasons:
        return work
    if work.user in work.site.almighty_users:
        told = kinds({stay.node: stay.told for stay in stays})
        notes = [f"{fold(names)}: {text}; administrators may use them all the same" for text, names in told.items()]
        return replace(work, notes=(*work.notes, *notes))
    if len(reasons) == len(work.names):
        texts = [f"{fold(names)}: {text}." for text, names in kinds(reasons).items()]
        raise QuarantineError(f"No node is left to work on. {' '.join(texts)}")
    return replace(work, quarantined=reasons)


def judge(site: Site, report: Report) -> str:
    """Put nodes into quarantine that fail too often, if that is the site's rule, after the deployment of *report*.

    What people are told of it; empty when there is nothing to tell.
    """
    if site.quarantine is None or site.quarantine.rule != "leave_out":
        return ""
    lost = [name for name in report.ko if name not in report.aborted and name not in report.taken]
    try:
        reasons = {each.node: each.told for each in failing.failing(site, lost)}
        put = quarantine.put_by_rule(site, reasons)
    except DatabaseError as error:
        return f"nodes that fail too often are not looked for (quarantine in site.yml): {error}"
    told = kinds({name: reasons[name] for name in put})
    return "; ".join(f"{fold(names)}: in quarantine from now on: {text}" for text, names in told.items())
