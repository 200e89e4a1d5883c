# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action `wait_nodes`, which is no module: it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wait_nodes
short_description: Wait until all nodes have booted
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Waits until the nodes answer by ssh, and are the system that is waited for.
  - The time-out of the cluster counts. A node that is late is KO, and told with what it was seen doing last.
  - Without a request it waits for one host, which has booted when its first process is younger than the order of
    M(kadeploy.core.power_nodes) or M(kadeploy.core.on_nodes) to reboot, or than this run of Ansible.
extends_documentation_fragment:
  - kadeploy.core.batch
options:
  target:
    description: System that must be running. V(deploy) has the marker port open, V(user) has it closed.
    type: str
    default: user
    choices: [deploy, user, any]
  kind:
    description: Which time-out of the cluster counts.
    type: str
    default: classical
    choices: [classical, kexec]
  address:
    description: Without a request, address of the host.
    type: str
    default: ""
  port:
    description: Without a request, its ssh port.
    type: int
    default: 22
  marker_port:
    description: Without a request, port that the deployment system alone has open.
    type: int
    default: 25300
  timeout:
    description: Without a request, seconds for the boot.
    type: int
    default: 600
"""

EXAMPLES = r"""
- name: Wait for the deployment system
  kadeploy.core.wait_nodes:
    target: deploy
  run_once: true
"""

RETURN = r"""
step:
  description: Name of the micro-step, which is that of the role.
  returned: always
  type: str
  sample: wait_reboot
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
