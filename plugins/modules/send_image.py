# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action `send_image`, which is no module: it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: send_image
short_description: Send the image of the environment to all nodes
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Sends the image from node to node, and unpacks or writes it as it arrives. Nothing is stored on the way.
  - A node that dies is left out, and those behind it get what they lack from its neighbour.
  - Each node checks the SHA-256 of what has arrived.
  - Without a request it goes to all hosts of the play, by ssh connections of its own. The result has those that have
    got it in C(sent), and the others with the reason in C(ko).
extends_documentation_fragment:
  - kadeploy.core.batch
options:
  method:
    description: How the image travels.
    type: str
    default: chain
    choices: [chain, kastafior, tree, bittorrent, custom]
  image:
    description: Without a request, a file of the controller.
    type: str
    default: ""
  kind:
    description: Without a request, what it is.
    type: str
    default: tgz
    choices: [tgz, tbz2, txz, tar.zst, ddgz, ddbz2, ddxz, dd.zst]
  sha256:
    description: Without a request, its SHA-256, empty for any.
    type: str
    default: ""
  device:
    description: Without a request, device that it is written to.
    type: str
    default: ""
  folder:
    description: Without a request, folder that it is unpacked to.
    type: str
    default: ""
  user:
    description: Without a request, user of ssh.
    type: str
    default: root
  private_key:
    description: Without a request, its private key.
    type: str
    default: ""
  known_hosts:
    description: Without a request, file of the host keys that are expected, empty for any.
    type: str
    default: ""
  port:
    description: Without a request, TCP port of the relays.
    type: int
    default: 25310
"""

EXAMPLES = r"""
- name: Send the image along a chain of nodes
  kadeploy.core.send_image:
    method: chain
  run_once: true
"""

RETURN = r"""
step:
  description: Name of the micro-step, which is that of the role.
  returned: always
  type: str
  sample: send_environment
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
