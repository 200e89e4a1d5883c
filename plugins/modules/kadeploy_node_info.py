# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell what is recorded of nodes, as `kanodes3` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_node_info
short_description: What is recorded of nodes
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Tells each node's cluster, state, last operation, and who has rights on it, as far as the asking account may see
    them.
extends_documentation_fragment:
  - kadeploy.core.site
options:
  nodes:
    description: Nodes, ranges too; all of the site unless they are given.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Ask
  kadeploy.core.kadeploy_node_info:
    nodes: gdx-[1-100]
  register: site

- name: Deploy those that do not run it yet
  kadeploy.core.kadeploy_deploy:
    nodes: "{{ site.nodes | dict2items | rejectattr('value.last.env', 'eq', 'debian12:1') | map(attribute='key') }}"
    environment: debian12
"""

RETURN = r"""
nodes:
  description: What is known of each node, by the name that O(nodes) has for it.
  returned: always
  type: dict
  contains:
    name:
      description: The whole name.
      type: str
    cluster:
      description: The cluster that it belongs to.
      type: str
    state:
      description: What C(kanodes3 -d) tells, or none for a node on which nothing was done yet.
      type: dict
    last:
      description: The last operation and what came of it, or none.
      type: dict
    rights:
      description: Who has a right on it, on which partition, until when (Unix seconds).
      type: list
      elements: dict
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Ask the site."""
    module = AnsibleModule(
        argument_spec={
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
    run(module, info.nodes)


if __name__ == "__main__":
    main()
