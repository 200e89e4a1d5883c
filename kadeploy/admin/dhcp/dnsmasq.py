"""What is to be answered, in the language of dnsmasq (dnsmasq(8)).

A tag says which cluster a node belongs to, and others what asks: the words of a line hold when all its tags are set.
"""

from __future__ import annotations

from collections.abc import Iterator

from kadeploy.admin.dhcp.packet import BIOS, IPXE
from kadeploy.admin.dhcp.wanted import Answer, Group, Host, Wanted

COMMENT = "#"
_NODE = "kadeploy"
_IS_IPXE = "kadeploy-ipxe"


def lines(wanted: Wanted) -> Iterator[str]:
    """For a dnsmasq that gives the nodes their addresses."""
    network = wanted.network
    yield "# The network of the nodes is yours to declare, for example:"
    yield f"#   dhcp-range={network.network_address},static,{network.netmask}"
    yield "#   dhcp-option=option:router,ADDRESS"
    yield ""
    yield from _tags(wanted)
    for group in wanted.groups:
        yield ""
        yield f"# {group.cluster}: {group.what}"
        for answer in group.answers:
            yield from _answer(wanted, group, answer)
        yield from (_host(group, host, f",{host.address},{host.short_name}") for host in group.hosts)


def proxy_lines(wanted: Wanted) -> Iterator[str]:
    """For a dnsmasq beside a DHCP server that may not be touched: it tells boot files and gives no address.

    UEFI is sent to port 4011 of the same machine, and told there where the file is; BIOS and iPXE are told at once.
    """
    yield "# Boot files alone: nodes get their addresses from the DHCP server that is there."
    yield f"dhcp-range={wanted.server},proxy"
    yield f"dhcp-ignore=tag:!{_NODE}"
    yield "# No node ever sees this question; without such a line dnsmasq does not answer ROMs at all."
    yield 'pxe-prompt=tag:kadeploy-never,"network boot"'
    if any(answer.over_http for group in wanted.groups for answer in group.answers):
        yield "dhcp-pxe-vendor=PXEClient,HTTPClient"
    yield ""
    yield from _tags(wanted)
    for group in wanted.groups:
        yield ""
        yield f"# {group.cluster}: {group.what}"
        for answer in group.answers:
            yield from _proxy_answer(wanted, group, answer)
        yield from (_host(group, host, "") for host in group.hosts)


def _tags(wanted: Wanted) -> Iterator[str]:
    """What asks: the architecture of its firmware, and whether it is iPXE."""
    asked = {number for group in wanted.groups for answer in group.answers for number in answer.architectures}
    yield "# What asks: the architecture of the firmware (RFC 4578), and iPXE by its user class."
    yield from (f"dhcp-match=set:{_architecture(number)},option:client-arch,{number}" for number in sorted(asked))
    yield f"dhcp-userclass=set:{_IS_IPXE},{IPXE}"


def _architecture(number: int) -> str:
    return f"kadeploy-arch-{number}"


def _cluster(group: Group) -> str:
    return f"kadeploy-of-{group.cluster}"


def _host(group: Group, host: Host, told: str) -> str:
    return f"dhcp-host={host.mac},set:{_NODE},set:{_cluster(group)}{told}"


def _answer(wanted: Wanted, group: Group, answer: Answer) -> Iterator[str]:
    for number in answer.architectures:
        tags = _when(group, answer, number)
        yield f"dhcp-boot={tags},{answer.file},,{wanted.server}"
        if answer.over_http:
            yield f"dhcp-option-force={tags},option:vendor-class,HTTPClient"


def _proxy_answer(wanted: Wanted, group: Group, answer: Answer) -> Iterator[str]:
    for number in answer.architectures:
        if number == BIOS or answer.is_ipxe or answer.over_http:
            yield f"dhcp-boot={_when(group, answer, number)},{answer.file},,{wanted.server}"
            continue
        is_rom = f"tag:{_cluster(group)},tag:!{_IS_IPXE}"
        yield f'pxe-service={is_rom},{number},"network boot",{answer.file},{wanted.server}'
        if answer.is_ipxe is None:
            also = f"tag:{_cluster(group)},tag:{_architecture(number)},tag:{_IS_IPXE}"
            yield f"dhcp-boot={also},{answer.file},,{wanted.server}"


def _when(group: Group, answer: Answer, number: int) -> str:
    """The tags with which an answer holds."""
    ipxe = {None: [], True: [f"tag:{_IS_IPXE}"], False: [f"tag:!{_IS_IPXE}"]}[answer.is_ipxe]
    return ",".join([f"tag:{_cluster(group)}", f"tag:{_architecture(number)}", *ipxe])
