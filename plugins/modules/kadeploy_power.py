# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Switch nodes, as `kapower3` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_power
short_description: Switch nodes on or off
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Asks the nodes first, and switches those that are not as O(state) says. Only then the task has changed something.
  - It runs where the tools of Kadeploy are, and asks the site as they do, in the name of the account under which it
    runs.
extends_documentation_fragment:
  - kadeploy.core.site
  - kadeploy.core.site.operation
options:
  state:
    description: Nodes are switched that are not so already; V(status) only asks, and a node is OK when it is on.
    type: str
    choices: ["on", "off", status]
    required: true
  level:
    description: How hard nodes are switched.
    type: str
    choices: [soft, hard, very_hard]
    default: soft
"""

EXAMPLES = r"""
- name: Save energy
  kadeploy.core.kadeploy_power:
    nodes: "{{ groups['idle'] }}"
    state: "off"

- name: See which nodes are on
  kadeploy.core.kadeploy_power:
    nodes: gdx-[1-100]
    state: status
    fail_on_ko: false
  register: power
"""

RETURN = r"""
workflow:
  description: Id of the operation, by which C(kanodes3), C(kastat3) and M(kadeploy.core.kadeploy_run_info) know it.
  returned: when an operation began
  type: str
  sample: D-3hq7a2
nodes:
  description: What became of each node, by the name that O(nodes) has for it.
  returned: when the end was waited for
  type: dict
  contains:
    name:
      description: The whole name of the node.
      type: str
    status:
      description: V(ok), V(ko), V(aborted), or V(breakpoint) for a node that waits in the deployment system.
      type: str
    message:
      description: Why it is not OK, beginning with the step that failed.
      type: str
    answer:
      description: What its BMC said of it.
      type: str
  sample: {"gdx-1": {"name": "gdx-1.site", "status": "ok"}}
ok:
  description: The nodes that are OK, by the names that O(nodes) has for them.
  returned: when the end was waited for
  type: list
  elements: str
ko:
  description: Why nodes are not OK, by the same names.
  returned: when the end was waited for
  type: dict
plan:
  description: What would be done, as C(--dry-run) shows it.
  returned: in check mode
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Ask the site."""
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["on", "off", "status"], "required": True},
            "level": {"type": "str", "choices": ["soft", "hard", "very_hard"], "default": "soft"},
            "force": {"type": "bool", "default": False},
            "hook": {"type": "bool", "default": True},
            "wait": {"type": "bool", "default": True},
            "fail_on_ko": {"type": "bool", "default": True},
            "server": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        from kadeploy.modules import operations
        from kadeploy.modules.module import run
    except ImportError as error:
        module.fail_json(msg=missing_required_lib("kadeploy"), exception=str(error))
    run(module, operations.power)


if __name__ == "__main__":
    main()
