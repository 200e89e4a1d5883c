# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action `on_nodes`, which is no module: it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: on_nodes
short_description: Run a script on all nodes at once, or send them a file
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Runs a bash script on the nodes, over ssh, or sends them a file.
  - The exit status of the script decides whether a node is OK. The last line of its standard error is the reason that
    people read.
  - The script finds the variables C(KADEPLOY_*) in its environment.
  - Without a request it works as any action does, on one host over the connection that Ansible has to it, and its
    result is that of M(ansible.builtin.script). O(window), O(pinned), O(breakpoint) and O(secret) do not count then.
extends_documentation_fragment:
  - kadeploy.core.batch
options:
  script:
    description:
      - Name of a script in C(files/) of the role or beside the playbook. It is run with C(pipefail).
      - One of C(script) and C(send) is needed.
    type: str
  look:
    description:
      - Name of a script that tells how a host is, and behind a line that is the sign 0x1e, how it will be.
      - Without a request, O(script) runs only where the two differ, and check mode and diff tell them.
    type: str
  env:
    description: More variables for the script. They arrive as they are, whatever signs are in them.
    type: dict
    default: {}
  stdin_file:
    description: File on the controller that is the standard input of the script.
    type: str
  send:
    description: File that is sent to the nodes.
    type: dict
    suboptions:
      src:
        description: Path on the controller.
        type: str
        required: true
      dest:
        description: Path on the nodes.
        type: str
        required: true
      mode:
        description: Its mode on the nodes.
        type: str
        default: "0644"
  window:
    description: Window of the site that bounds how many nodes are treated at once, across all workflows.
    type: str
    choices: [reboot, check, ssh]
  timeout:
    description: Seconds after which a node that is still busy is KO. V(0) is no limit.
    type: float
    default: 0
  disconnect_ok:
    description: Whether a node may vanish meanwhile, as it does when it reboots.
    type: bool
    default: false
  pinned:
    description: Whether the node must show the host key of the deployment system.
    type: bool
    default: true
  breakpoint:
    description: Whether nodes that succeed are stopped here.
    type: bool
    default: false
  secret:
    description: Whether each node is told a secret in its kernel parameters, by which its next system is known.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Write everything to the disks
  kadeploy.core.on_nodes:
    script: sync.sh
  run_once: true

- name: Keep the processor busy
  kadeploy.core.on_nodes:
    script: burn_in.sh
    env:
      BURN_IN_SECONDS: "60"
    timeout: 90
  run_once: true

- name: Send the kernel
  kadeploy.core.on_nodes:
    send:
      src: /srv/tftp/vmlinuz
      dest: /tmp/kernel
      mode: "0600"
  run_once: true
"""

RETURN = r"""
step:
  description: Name of the micro-step, which is that of the role.
  returned: always
  type: str
  sample: format_deploy_part
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
