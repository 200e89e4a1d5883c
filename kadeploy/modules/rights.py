"""The module ``kadeploy_rights``: who may use which partitions of which nodes, and until when."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from kadeploy import dates
from kadeploy.errors import OptionError, RightsError
from kadeploy.modules.module import Module, nodes_of
from kadeploy.operations.service import Grant, Service
from kadeploy.state.rights import ANY, Given

Answer = dict[str, Any]


def rights(module: Module, service: Service) -> Answer:
    """Given, or taken back; those alone count as changed that were not so."""
    params, wanted = module.params, _grant(module, service)
    held = {(each.node, each.part): each for each in service.rights(wanted.user).get(wanted.user, [])}
    asked = [(node, part) for node in wanted.nodes for part in wanted.parts]
    if params["state"] == "absent":
        gone = [held[each] for each in asked if each in held]
        if gone and not module.check_mode:
            gone = service.revoke(wanted).removed
        return {"changed": bool(gone), "rights": msgspec.to_builtins(gone)}
    _require_same_end([held[each] for each in asked if each in held], wanted)
    new = [Given(*each, wanted.until) for each in asked if each not in held]
    if new and not module.check_mode:
        done = service.grant(wanted)
        new = done.new
        if done.skipped:
            raise RightsError(
                f"Somebody else has rights on {', '.join(done.skipped)}, which were skipped: overwrite: true takes "
                "them away."
            )
    return {"changed": bool(new), "rights": msgspec.to_builtins(new)}


def _grant(module: Module, service: Service) -> Grant:
    params = module.params
    any_node = ANY in params["nodes"]
    nodes = nodes_of(service, [each for each in params["nodes"] if each != ANY], required=not any_node)
    return Grant(
        user=params["user"],
        nodes=tuple(([ANY] if any_node else []) + list(nodes.values())),
        parts=tuple(params["partitions"]),
        until=_end(params["until"]),
        overwrite=params["overwrite"],
    )


def _end(text: str | None) -> int | None:
    if text is None:
        return None
    end = dates.moment("until", text, day_ends=True)
    if end <= time.time():
        raise OptionError(f"until {text}: this date is over.")
    return end


def _require_same_end(held: list[Given], wanted: Grant) -> None:
    """Another end is a change that takes the right away first, which would end the user's operations: not by the way.

    Raises:
        RightsError: names a right that ends at another time.
    """
    for each in held:
        if each.until != wanted.until:
            raise RightsError(
                f"{wanted.user} has the right on {each.part} of {each.node} with another end. To change it, take the "
                "right back first (state: absent), which ends what the user runs there."
            )
