# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give rights and take them back, as `karights3` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_rights
short_description: Give users rights on nodes
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - For administrators of the site. A right that is there is left alone. One with another end is refused, because
    changing it takes it away first, which ends what the user runs there.
  - It runs where the tools of Kadeploy are, and asks the site as they do, in the name of the account under which it
    runs.
extends_documentation_fragment:
  - kadeploy.core.site
options:
  state:
    description: Whether the user is to have the rights.
    type: str
    choices: [present, absent]
    default: present
  user:
    description: Who has them.
    type: str
    required: true
  nodes:
    description: Nodes, ranges too; V("*") stands for all of them, also for those that come later.
    type: list
    elements: str
    required: true
  partitions:
    description: Partitions, such as V(/dev/sda3); V("*") stands for all.
    type: list
    elements: str
    required: true
  until:
    description: Their end, a day (its last second) or C(YYYY-MM-DD HH:MM), in the time zone of where the module runs
      unless a zone follows.
    type: str
  overwrite:
    description: Take nodes from whoever else has rights on them. Otherwise such nodes are skipped, and the task
      fails.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Give a job its nodes
  kadeploy.core.kadeploy_rights:
    user: alice
    nodes: gdx-[1-4]
    partitions: /dev/sda3
    until: "2030-06-30 18:00"

- name: Take them back
  kadeploy.core.kadeploy_rights:
    state: absent
    user: alice
    nodes: gdx-[1-4]
    partitions: /dev/sda3
"""

RETURN = r"""
rights:
  description: The rights that are new, or gone.
  returned: always
  type: list
  elements: dict
  sample: [{"node": "gdx-1.site", "part": "/dev/sda3", "until": null}]
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Ask the site."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "user": {"type": "str", "required": True},
            "nodes": {"type": "list", "elements": "str", "required": True},
            "partitions": {"type": "list", "elements": "str", "required": True},
            "until": {"type": "str"},
            "overwrite": {"type": "bool", "default": False},
            "server": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        from kadeploy.modules import rights
        from kadeploy.modules.module import run
    except ImportError as error:
        module.fail_json(msg=missing_required_lib("kadeploy"), exception=str(error))
    run(module, rights.rights)


if __name__ == "__main__":
    main()
