# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell how runs stand, as `kanodes3 -y` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_run_info
short_description: How runs stand
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Tells the operations that go on, or how one of them ended, node by node.
extends_documentation_fragment:
  - kadeploy.core.site
options:
  workflow:
    description: Id of a run, which may have ended; all that go on unless it is given.
    type: str
  nodes:
    description: Only runs on these nodes.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Wait for a deployment that was begun before
  kadeploy.core.kadeploy_run_info:
    workflow: D-3hq7a2
  register: run
  until: run.runs['D-3hq7a2'].state == 'ended'
  retries: 120
  delay: 10
"""

RETURN = r"""
runs:
  description: The runs by their ids, as C(kanodes3 -y --format json) has them.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Ask the site."""
    module = AnsibleModule(
        argument_spec={
            "workflow": {"type": "str"},
            "nodes": {"type": "list", "elements": "str", "default": []},
            "server": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        from kadeploy.modules import info
        from kadeploy.modules.module import run
    except ImportError as error:
        module.fail_json(msg=missing_required_lib("kadeploy"), exception=str(error))
    run(module, info.runs)


if __name__ == "__main__":
    main()
