"""What is to be answered, in the language of Kea: members of the object ``Dhcp4`` (Kea's reference manual, "DHCPv4").

A reservation puts a node into the class of its cluster. A class of each kind of answer tests for that and for what
asks; it names ``KNOWN``, so that it is looked at after the reservation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kadeploy.admin.dhcp.packet import IPXE
from kadeploy.admin.dhcp.wanted import Answer, Group, Wanted

COMMENT = "//"


def lines(wanted: Wanted) -> Iterator[str]:
    """For a Kea that gives the nodes their addresses."""
    network = wanted.network
    yield "// Members of the object Dhcp4. The network of the nodes is yours to declare, for example:"
    yield '//   { "Dhcp4": { <?include "THIS FILE"?>,'
    yield f'//     "subnet4": [ {{ "id": 1, "subnet": "{network}" }} ] }} }}'
    yield "// Where you have client-classes or reservations for all networks, put these beside yours in one list."
    yield '"reservations-global": true,'
    yield '"reservations-in-subnet": true,'
    yield from _listed("client-classes", [each for group in wanted.groups for each in _classes(wanted, group)])
    yield ","
    yield from _listed("reservations", [each for group in wanted.groups for each in _reservations(group)])


def _listed(name: str, members: list[dict[str, Any]]) -> Iterator[str]:
    """A list, one line for each member."""
    yield f"{json.dumps(name)}: ["
    for rank, member in enumerate(members, start=1):
        yield f"  {json.dumps(member)}{',' if rank < len(members) else ''}"
    yield "]"


def _cluster(group: Group) -> str:
    return f"kadeploy-of-{group.cluster}"


def _classes(wanted: Wanted, group: Group) -> Iterator[dict[str, Any]]:
    yield {"name": _cluster(group)}
    for rank, answer in enumerate(group.answers, start=1):
        found: dict[str, Any] = {
            "name": f"{_cluster(group)}-{rank}",
            "test": f"member('KNOWN') and member('{_cluster(group)}') and {_when(answer)}",
            "next-server": wanted.server,
            "boot-file-name": answer.file,
        }
        if answer.over_http:
            told = {"name": "vendor-class-identifier", "data": "HTTPClient", "always-send": True}
            found["option-data"] = [told]
        yield found


def _when(answer: Answer) -> str:
    """The condition with which an answer holds. iPXE's user class has its length in front of it, or not."""
    numbers = " or ".join(f"substring(option[93].hex,0,2) == 0x{number:04x}" for number in answer.architectures)
    ipxe = f"substring(option[77].hex,-{len(IPXE)},all) == '{IPXE}'"
    return f"({numbers})" + {None: "", True: f" and {ipxe}", False: f" and not ({ipxe})"}[answer.is_ipxe]


def _reservations(group: Group) -> Iterator[dict[str, Any]]:
    for host in group.hosts:
        yield {
            "hw-address": host.mac,
            "ip-address": host.address,
            "hostname": host.short_name,
            "client-classes": [_cluster(group)],
        }
