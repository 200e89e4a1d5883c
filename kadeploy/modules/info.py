"""The modules that only ask: ``kadeploy_node_info`` and ``kadeploy_run_info``."""

from __future__ import annotations

from typing import Any

import msgspec

from kadeploy.modules.module import Module, nodes_of
from kadeploy.operations.service import Service

Answer = dict[str, Any]


def nodes(module: Module, service: Service) -> Answer:
    """``kadeploy_node_info``: what is recorded of nodes, by the name that the task has for them."""
    asked = nodes_of(service, module.params["nodes"], required=False)
    named = asked or {name: name for name in service.configuration.cluster_of}
    whole = list(asked.values()) or None
    states = {row.hostname: msgspec.to_builtins(row) for row in service.states(whole)}
    last = {row.hostname: msgspec.to_builtins(row) for row in service.latest(whole)}
    holders = service.holders(whole)
    cluster_of = service.configuration.cluster_of
    found = {
        name: {
            "name": full,
            "cluster": cluster_of[full],
            "state": states.get(full),
            "last": last.get(full),
            "rights": msgspec.to_builtins(list(holders.get(full, ()))),
        }
        for name, full in named.items()
    }
    return {"changed": False, "nodes": found}


def runs(module: Module, service: Service) -> Answer:
    """``kadeploy_run_info``: the runs that go on, or one of them, which may have ended."""
    names = list(nodes_of(service, module.params["nodes"], required=False).values()) or None
    flows = service.workflows(module.params["workflow"], names)
    return {"changed": False, "runs": {wid: _merged(flow) for wid, flow in flows.items()}}


def _merged(flow: dict[str, Any]) -> dict[str, Any]:
    """One mapping for each node, where ``kanodes3 -y`` has a list of mappings with one key."""
    return flow | {
        "nodes": {node: {k: v for each in stand for k, v in each.items()} for node, stand in flow["nodes"].items()}
    }
