"""Host keys of the systems that were just deployed, for the users' known-hosts files (``--known-hosts``)."""

from __future__ import annotations

from kadeploy.config.cluster import address
from kadeploy.events import Report
from kadeploy.operations.work import Work
from kadeploy.remote import hostkeys, namespace


def lines(work: Work, report: Report) -> list[str]:
    """Lines for the nodes that run their new system; a node that does not answer has none."""
    ready = set(report.ok) - set(report.at_breakpoint)
    addresses = {
        name: node.vlan_address or address(work.site, node) for name, node in work.members.items() if name in ready
    }
    with namespace.inside(work.site.network_namespace):
        return hostkeys.collect(addresses, work.site.ssh.port)
