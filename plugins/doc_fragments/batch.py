# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the documents of all actions have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by Ansible where a document says C(extends_documentation_fragment: kadeploy.core.batch)."""

    DOCUMENTATION = r"""
requirements:
  - The Python package kadeploy, of the same version as the collection, where Ansible runs
notes:
  - It works on the nodes of a request, the inventory C(inventory.kadeploy.yml), which C(kadeploy_request_file) names.
  - With C(run_once) one task treats all hosts of the batch at once, which is why it is quick; without it each host is
    treated by itself. It is refused where C(run_once) would treat hosts for which the task is not meant.
  - The task succeeds even if nodes are KO. They take no part in what follows, and the role C(kadeploy.core.finish)
    makes them fail.
attributes:
  action:
    description: Runs on the controller.
    support: full
  check_mode:
    description: Tells what it would do, and does nothing.
    support: full
  diff_mode:
    description: Tells what changes.
    support: none
  platform:
    description: Systems that the nodes may run.
    platforms: posix
    support: full
"""
