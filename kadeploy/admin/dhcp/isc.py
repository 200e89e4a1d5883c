"""What is to be answered, in the language of ISC's dhcpd (dhcpd.conf(5), dhcp-eval(5)).

The nodes of a cluster stand in a group, whose conditions hold for them alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from kadeploy.admin.dhcp.packet import IPXE
from kadeploy.admin.dhcp.wanted import Answer, Group, Wanted

COMMENT = "#"


def lines(wanted: Wanted) -> Iterator[str]:
    """For a dhcpd that gives the nodes their addresses."""
    network = wanted.network
    yield "# The network of the nodes is yours to declare, for example:"
    yield f"#   subnet {network.network_address} netmask {network.netmask} {{ option routers ADDRESS; }}"
    for group in wanted.groups:
        yield ""
        yield f"# {group.cluster}: {group.what}"
        yield "group {"
        yield f"  next-server {wanted.server};"
        yield from _conditions(group)
        for host in group.hosts:
            yield f"  host {host.name} {{"
            yield f"    hardware ethernet {host.mac};"
            yield f"    fixed-address {host.address};"
            yield f"    option host-name {_quoted(host.short_name)};"
            yield "  }"
        yield "}"


def _conditions(group: Group) -> Iterator[str]:
    """One condition for each answer, that of iPXE before those of ROMs, which do not test for it."""
    word = "if"
    for answer in sorted(group.answers, key=lambda each: not each.is_ipxe):
        yield f"  {word} ({_when(answer)}) {{"
        yield f"    filename {_quoted(answer.file)};"
        if answer.over_http:
            yield '    option vendor-class-identifier "HTTPClient";'
            yield "    option dhcp-parameter-request-list = concat(option dhcp-parameter-request-list, 3c);"
        yield "  }"
        word = "elsif"


def _when(answer: Answer) -> str:
    """The condition with which an answer holds. iPXE's user class has its length in front of it, or not."""
    numbers = " or ".join(
        f"substring(option pxe-system-type, 0, 2) = {number // 256:02x}:{number % 256:02x}"
        for number in answer.architectures
    )
    return f'({numbers}) and suffix(option user-class, {len(IPXE)}) = "{IPXE}"' if answer.is_ipxe else numbers


def _quoted(text: str) -> str:
    """A string: a backslash stands in front of what would end it, or begin something else (dhcp-eval(5))."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
