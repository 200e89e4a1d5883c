# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action `finish_step`, which is no module: it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: finish_step
short_description: End a macro-step, and tell which nodes are KO
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Runs the operations that were asked for after the last micro-step.
  - Tells in its result where and why each node is KO, by its name.
extends_documentation_fragment:
  - kadeploy.core.batch
"""

EXAMPLES = r"""
- name: Ask which nodes are KO
  kadeploy.core.finish_step:
  register: answer
  run_once: true

- name: Leave them out of what follows
  ansible.builtin.meta: end_host
  when: inventory_hostname in answer.ko
"""

RETURN = r"""
ko:
  description: Where and why each node is KO, by its name.
  returned: always
  type: dict
  sample: {"node-4": "SetDeploymentEnvUntrusted-format_deploy_part: mkfs.ext4: no space"}
step:
  description: Name of the micro-step, which is that of the role.
  returned: always
  type: str
  sample: finish
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
