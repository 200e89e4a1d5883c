# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action `write_profiles`, which is no module: it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: write_profiles
short_description: Write the boot profile of every node
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Writes what the boot loader of each node reads next, in the folder that the boot server serves.
  - The loader is PXELINUX, GRUB or iPXE, as the configuration of the cluster says.
  - Without a request it writes the profile of one host, on the machine to which the task is delegated.
extends_documentation_fragment:
  - kadeploy.core.batch
attributes:
  diff_mode:
    support: full
options:
  boot:
    description: What the nodes boot next.
    type: str
    required: true
    choices: [deploy, deployed, nfsroot, custom]
  address:
    description: Without a request, IPv4 address of the machine, or a name that has one.
    type: str
    default: ""
  folder:
    description: Without a request, folder that is served over TFTP.
    type: str
    default: /srv/tftp
  loader:
    description: Without a request, boot loader of the machine.
    type: str
    default: pxelinux
    choices: [pxelinux, grub, ipxe]
  kernel:
    description: Without a request, URL of the kernel.
    type: str
    default: ""
  initrd:
    description: Without a request, URL of its initrd.
    type: str
    default: ""
  params:
    description: Without a request, its parameters.
    type: str
    default: ""
  device:
    description: Without a request, partition that is booted, or a disk.
    type: str
    default: /dev/sda
  profile:
    description: Without a request, text of the profile.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Let the nodes boot the deployment system
  kadeploy.core.write_profiles:
    boot: deploy
  run_once: true
"""

RETURN = r"""
step:
  description: Name of the micro-step, which is that of the role.
  returned: always
  type: str
  sample: switch_pxe
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
