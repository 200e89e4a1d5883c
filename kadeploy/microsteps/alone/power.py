"""Machines of somebody's play: switched by their BMCs, which say whether they are on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kadeploy.config.cluster import Node, Power
from kadeploy.config.logins import Login
from kadeploy.microsteps.alone.boot import going_down
from kadeploy.microsteps.alone.host import System, require_one_by_one
from kadeploy.power.switch import PowerCommand, one
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from ansible.plugins.action import ActionBase


def switched(action: ActionBase, args: Mapping[str, Any], facts: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Do the task `power_nodes`, which *what* tells, on the host of *action*; the result as Ansible's own actions have.

    Its key *power* is ``on`` or ``off`` where that was asked. A machine that is on or off as ordered is left alone,
    unless the order is a very hard one, which begins with the opposite.
    """
    require_one_by_one(action)
    host = str(facts["inventory_hostname"])
    node = Node(name=host, address=str(facts.get("ansible_host", host)), bmc=args["bmc"])
    login = Login(args["user"], args["password"])
    power = Power(driver=args["driver"], timeout=args["timeout"], verify_tls=args["verify_tls"])
    operation: PowerCommand = args["operation"]

    def order(operation: PowerCommand) -> Outcome:
        uefi = args["firmware"] == "uefi"
        return asyncio.run(one(power, node, login, operation, args["level"], uefi=uefi, remote=System(action)))

    if operation != "reboot":
        status = order("status")
        if not status.answer:
            return {"failed": True, "changed": False, "msg": status.message}
        if operation == "status" or (status.answer == operation and args["level"] != "very_hard"):
            return {"changed": False, "power": status.answer}
    if action._task.check_mode:
        return {"changed": True, "msg": f"would {what}"}
    begun = time.monotonic()
    done = order(operation)
    if done.verdict is not Verdict.OK:
        return {"failed": True, "changed": False, "msg": done.message}
    said = "; ".join(filter(None, [done.stdout.strip(), done.stderr.strip()]))
    return {"changed": True, "msg": said, **going_down(action, begun)}
