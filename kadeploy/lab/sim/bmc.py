"""The BMCs of simulated nodes: one TCP server for all of them, that knows each by the address it was called at.

A line is an order (a key of `ORDERS`), the answer a line too: ``ok``, ``on``, ``off``, or what went wrong. The
supervisor does what is ordered. A dead BMC does not answer. `files/bmc` asks.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from kadeploy.lab.lab import Lab, LabNode, saved
from kadeploy.lab.service import Service

PORT = 623
ORDERS: Mapping[str, tuple[str, ...]] = {
    "reset": ("status", "reset"),
    "cycle": ("off", "on"),
    "on": ("on",),
    "off": ("off",),
    "status": ("status",),
}
"""Order → operations of the supervisor, one after the other."""

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - of a namespace that has a loopback device only


def service(lab: Lab) -> Service:
    """The server as a daemon of the lab."""
    return Service("bmcs", [sys.executable, "-I", __file__, lab.name], (("tcp", _EVERYWHERE, PORT),))


async def serve(lab: Lab) -> None:
    """Answer for ever."""
    nodes = {node.bmc: node for node in lab.members.values()}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = nodes.get(writer.get_extra_info("sockname")[0])
        order = (await reader.readline()).decode(errors="replace").strip()
        if node is None or node.fault == "dead":
            await reader.read()  # silent until the caller gives up
        else:
            writer.write(f"{await obey(lab, node, order)}\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, _EVERYWHERE, PORT, backlog=1024)
    await server.serve_forever()


async def obey(lab: Lab, node: LabNode, order: str) -> str:
    """Have the supervisor do *order*; its answer in a word, or what went wrong."""
    if order not in ORDERS:
        return f"unknown order {order!r}"
    told: dict[str, Any] = {}
    for operation in ORDERS[order]:
        switched_off = operation == "reset" and not told["on"]  # IPMI's reset does nothing then, a deployment wants on
        told = await _ask(lab, "on" if switched_off else operation, node)
    if not told["ok"]:
        return str(told["error"])
    return "ok" if order != "status" else "on" if told["on"] else "off"


async def _ask(lab: Lab, operation: str, node: LabNode) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(lab.control)
    writer.write(json.dumps({"operation": operation, "node": node.name, "by": "bmc"}).encode() + b"\n")
    answer: dict[str, Any] = json.loads(await reader.readline())
    writer.close()
    return answer


def main(name: str) -> None:
    """Serve the lab called *name*."""
    lab = saved(name)
    if lab is None:
        sys.exit(f"No lab {name} here: `kadeploy-lab up` starts one.")
    asyncio.run(serve(lab))


if __name__ == "__main__":
    main(sys.argv[1])
