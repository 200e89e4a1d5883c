# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action `power_nodes`, which is no module: it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: power_nodes
short_description: Switch all nodes by their BMCs, or ask how they are
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Switches the nodes by IPMI, Redfish or commands of the site, as the configuration of their cluster says.
  - A level that fails, or that the cluster does not have, passes the node on to the next one.
  - Reboots stay within the reboot window of the site.
  - Without a request it switches one host by its BMC, which the options name, and says in C(power) whether it is on. A
    machine that is on or off as ordered is left alone, unless O(level) is V(very_hard).
extends_documentation_fragment:
  - kadeploy.core.batch
options:
  operation:
    description: What to do.
    type: str
    required: true
    choices: [reboot, 'on', 'off', status]
  level:
    description: Level that is tried first. V(soft) goes over ssh, V(hard) resets, V(very_hard) switches off and on.
    type: str
    default: soft
    choices: [soft, hard, very_hard]
  bmc:
    description: Without a request, address of the BMC with or without a port, or its base URL.
    type: str
    default: ""
  driver:
    description: Without a request, the language of the BMC.
    type: str
    default: ipmi
    choices: [ipmi, redfish]
  user:
    description: Without a request, user of the BMC.
    type: str
    default: ""
  password:
    description: Without a request, password of the BMC.
    type: str
    default: ""
  firmware:
    description: Without a request, firmware of the machine, which its BMC wants to know.
    type: str
    default: bios
    choices: [bios, uefi]
  verify_tls:
    description: Without a request, whether the certificate of the BMC is checked.
    type: bool
    default: true
  timeout:
    description: Without a request, seconds that the BMC may take for an order.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: Reset the nodes
  kadeploy.core.power_nodes:
    operation: reboot
    level: hard
  run_once: true
"""

RETURN = r"""
step:
  description: Name of the micro-step, which is that of the role.
  returned: always
  type: str
  sample: reboot
nodes:
  description: What became of each node, by its name. Nodes that were KO before are not in it.
  returned: always
  type: dict
  contains:
    verdict:
      description: V(ok), V(ko), or V(brk) for a node that was stopped at a breakpoint.
      type: str
    msg:
      description: Why it is not OK.
      type: str
    rc:
      description: Exit status of what ran.
      type: int
    stdout:
      description: What it said, in debug mode.
      type: str
    stderr:
      description: What it said on its standard error, if it failed or in debug mode.
      type: str
    seconds:
      description: How long it took.
      type: float
"""
