# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the documents of all modules have in common that ask a site."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by Ansible where a document says C(extends_documentation_fragment: kadeploy.core.site)."""

    DOCUMENTATION = r"""
options:
  server:
    description: Server of C(client.yml), or the URL of one; unless it is given, whom the tools ask there.
    type: str
requirements:
  - The Python package kadeploy where the module runs, in the Python that C(ansible_python_interpreter) names.
notes:
  - After the Debian package of Kadeploy, that Python is C(/usr/lib/kadeploy/bin/python3).
  - C(module_defaults) may set options of all these modules by the group C(kadeploy.core.all).
attributes:
  check_mode:
    description: Can say what it would do, and does nothing.
    support: full
  diff_mode:
    description: Tells what changes.
    support: none
  platform:
    description: Systems that it runs on.
    platforms: posix
    support: full
"""

    OPERATION = r"""
options:
  nodes:
    description: Nodes, by their whole names or the beginnings of these; ranges such as V(gdx-[1-5].site) too.
    type: list
    elements: str
    required: true
  force:
    description: Take nodes from other operations that hold them.
    type: bool
    default: false
  hook:
    description: Run the site's hook at the end.
    type: bool
    default: true
  wait:
    description: Wait for the end. Without it the answer is RV(workflow) alone, and
      M(kadeploy.core.kadeploy_run_info) tells how it goes on.
    type: bool
    default: true
  fail_on_ko:
    description:
      - Fail when a node is KO. Otherwise the task succeeds as long as the site took the request, and RV(nodes) says
        what became of each node.
    type: bool
    default: true
notes:
  - In check mode the request is checked as with C(--dry-run), and RV(plan) tells what would be done.
attributes:
  async:
    description: May run with C(async) and C(poll).
    support: full
"""

    SYSTEM = r"""
options:
  environment_version:
    description: Its version; the highest unless it is given.
    type: int
  environment_owner:
    description: Whose environment it is; your own goes first, then public ones.
    type: str
  environment_arch:
    description: For which architecture it is, where there are several of one name.
    type: str
  key:
    description: File or URL of public keys that root is entered with, read by the account under which the module
      runs.
    type: str
  authorized_keys:
    description: Public keys that root is entered with, each a line for C(authorized_keys).
    type: list
    elements: str
    default: []
  partition:
    description: Number of the partition; the cluster's unless it is given.
    type: int
  block_device:
    description: Disk of the partition; the cluster's unless it is given.
    type: str
  vlan:
    description: VLAN that the nodes are put into, as the site's command knows it.
    type: str
  reboot_classical_timeout:
    description: Seconds for a reboot, or an expression of C(n), the number of nodes.
    type: str
"""
