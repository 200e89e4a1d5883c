# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action `site_command`, which is no module: it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: site_command
short_description: Run a command of the site for all nodes
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Runs a command that the configuration of the site names, on the controller, and no other.
  - Its exit status decides whether the nodes are OK.
extends_documentation_fragment:
  - kadeploy.core.batch
options:
  command:
    description: Name of the command in the configuration.
    type: str
    required: true
    choices: [set_vlan]
  vlan:
    description: VLAN to move the nodes into. Empty is the one of the request.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Move the nodes into the VLAN in which deployments start
  kadeploy.core.site_command:
    command: set_vlan
    vlan: DEFAULT
  run_once: true
"""

RETURN = r"""
step:
  description: Name of the micro-step, which is that of the role.
  returned: always
  type: str
  sample: set_vlan
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
