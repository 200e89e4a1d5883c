"""DHCP for the lab: dnsmasq gives every machine its address, its name and its loader."""

from __future__ import annotations

from kadeploy.lab.lab import CONTROLLER, Lab
from kadeploy.lab.loader import LOADERS
from kadeploy.lab.network import BRIDGE
from kadeploy.lab.service import Service

_OPTIONS = f"""\
# No DNS, no TFTP, no lease file: addresses are fixed.
port=0
# The namespace is its jail; a change of user would undo that the kernel ends it with the supervisor (prctl(2)).
user=root
group=root
leasefile-ro
interface={BRIDGE}
bind-interfaces
except-interface=lo
log-dhcp
dhcp-authoritative
dhcp-range=10.177.1.0,static,255.255.0.0,infinite
# RFC 4578: architectures 7 and 9 are UEFI on x86-64.
dhcp-match=set:uefi,option:client-arch,7
dhcp-match=set:uefi,option:client-arch,9
# iPXE waits for no further offer, by a server of boot files alone (no-pxedhcp).
dhcp-option=encap:175,176,1b
"""


def configuration(lab: Lab) -> str:
    """Text of dnsmasq's configuration (dnsmasq(8))."""
    hosts = [f"dhcp-host={node.mac},{node.address},{node.name},infinite" for node in lab.members.values()]
    uefi = LOADERS[lab.firmware if lab.uefi else "uefi"]
    loaders = [f"dhcp-boot=tag:uefi,{uefi},,{CONTROLLER}", f"dhcp-boot=tag:!uefi,{LOADERS['bios']},,{CONTROLLER}"]
    return _OPTIONS + "\n".join([*loaders, *hosts]) + "\n"


def service(lab: Lab) -> Service:
    """The DHCP server; writes its configuration."""
    path = lab.run / "dnsmasq.conf"
    path.write_text(configuration(lab))
    command = ["dnsmasq", "--keep-in-foreground", "--log-facility=-", f"--conf-file={path}", "--pid-file="]
    return Service("dhcp", command, (("udp", "0.0.0.0", 67),))  # noqa: S104 - where dnsmasq listens
