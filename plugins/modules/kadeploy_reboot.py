# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reboot nodes, as `kareboot3` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_reboot
short_description: Reboot nodes
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Reboots nodes into what they boot, the deployment system, or an environment that was deployed before.
  - It runs where the tools of Kadeploy are, and asks the site as they do, in the name of the account under which it
    runs.
extends_documentation_fragment:
  - kadeploy.core.site
  - kadeploy.core.site.operation
  - kadeploy.core.site.system
options:
  kind:
    description: What is booted, namely whatever the node boots, with its boot profile written anew (V(set_pxe)), the
      deployment system, or O(environment), which was deployed before (V(env_recorded)).
    type: str
    choices: [simple_reboot, set_pxe, deploy_env, env_recorded]
    default: simple_reboot
  level:
    description: How hard nodes are rebooted at first, which is over ssh, by a reset, or by switching them off and on.
    type: str
    choices: [soft, hard, very_hard]
    default: soft
  environment:
    description: For O(kind=env_recorded), C(name@user:version%arch) or its name alone.
    type: str
"""

EXAMPLES = r"""
- name: Reset nodes that hang
  kadeploy.core.kadeploy_reboot:
    nodes: gdx-[1-2]
    level: hard

- name: Look around in the deployment system
  kadeploy.core.kadeploy_reboot:
    nodes: gdx-3
    kind: deploy_env
    key: ~/.ssh/id_ed25519.pub
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
            "kind": {
                "type": "str",
                "choices": ["simple_reboot", "set_pxe", "deploy_env", "env_recorded"],
                "default": "simple_reboot",
            },
            "level": {"type": "str", "choices": ["soft", "hard", "very_hard"], "default": "soft"},
            "environment": {"type": "str"},
            "environment_version": {"type": "int"},
            "environment_owner": {"type": "str"},
            "environment_arch": {"type": "str"},
            "key": {"type": "str", "no_log": False},
            "authorized_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "partition": {"type": "int"},
            "block_device": {"type": "str"},
            "vlan": {"type": "str"},
            "reboot_classical_timeout": {"type": "str"},
            "force": {"type": "bool", "default": False},
            "hook": {"type": "bool", "default": True},
            "wait": {"type": "bool", "default": True},
            "fail_on_ko": {"type": "bool", "default": True},
            "server": {"type": "str"},
        },
        supports_check_mode=True,
        required_if=[("kind", "env_recorded", ("environment",))],
    )
    try:
        from kadeploy.modules import operations
        from kadeploy.modules.module import run
    except ImportError as error:
        module.fail_json(msg=missing_required_lib("kadeploy"), exception=str(error))
    run(module, operations.reboot)


if __name__ == "__main__":
    main()
