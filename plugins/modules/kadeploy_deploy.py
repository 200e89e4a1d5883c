# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Deploy an environment, as `kadeploy3` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_deploy
short_description: Deploy an environment on nodes
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - The nodes reboot into the deployment system, their disk is prepared, the image travels from node to node, and
    they reboot into the environment.
  - It runs where the tools of Kadeploy are, and asks the site as they do, in the name of the account under which it
    runs.
  - An interrupted task ends the operation, as Ctrl-C ends C(kadeploy3); its nodes are aborted and free.
  - Each run deploys. A play that is to deploy only nodes that need it looks at M(kadeploy.core.kadeploy_node_info)
    first.
extends_documentation_fragment:
  - kadeploy.core.site
  - kadeploy.core.site.operation
  - kadeploy.core.site.system
options:
  environment:
    description:
      - Recorded environment, C(name@user:version%arch) or its name alone.
      - One of O(environment) and O(environment_file) is needed.
    type: str
  environment_file:
    description: Description of an environment that need not be recorded, a file or URL that is read by the account
      under which the module runs.
    type: str
  boot_partition:
    description: Partition that is booted; V(0) is the MBR.
    type: int
  partition_disk:
    description: Write the partition table.
    type: bool
    default: true
  bootloader:
    description: Install a boot loader.
    type: bool
    default: true
  reformat_tmp:
    description: File system that the partition for C(/tmp) is formatted with; it is left alone unless this is given.
    type: str
  kexec:
    description: Boot by kexec where the cluster does.
    type: bool
    default: true
  reboot_kexec_timeout:
    description: The same for kexec.
    type: str
  force_steps:
    description: Implementations of macro-steps in place of the cluster's, as C(kadeploy3 --force-steps) has them.
    type: str
"""

EXAMPLES = r"""
- name: Deploy what the play is about, and go on with it
  hosts: workers
  gather_facts: false
  tasks:
    - name: Deploy all of them in one operation
      kadeploy.core.kadeploy_deploy:
        nodes: "{{ ansible_play_hosts }}"
        environment: debian12
        authorized_keys: "{{ team_keys }}"
        fail_on_ko: false
      delegate_to: frontend.example
      run_once: true
      register: deployed

    - name: Leave those out that are KO
      ansible.builtin.assert:
        that: deployed.nodes[inventory_hostname].status == "ok"
        fail_msg: "{{ deployed.nodes[inventory_hostname].message | default() }}"

    - name: Wait for their ssh
      ansible.builtin.wait_for_connection:

- name: Deploy on the third partition, and do not wait
  hosts: frontend.example
  gather_facts: false
  tasks:
    - name: Begin
      kadeploy.core.kadeploy_deploy:
        nodes: gdx-[1-4].site
        environment_file: /home/alice/mine.dsc
        partition: 3
        wait: false
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
host_keys:
  description: Lines for a known-hosts file, with the keys of the systems that were deployed.
  returned: when the end was waited for
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Ask the site."""
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "list", "elements": "str", "required": True},
            "environment": {"type": "str"},
            "environment_version": {"type": "int"},
            "environment_owner": {"type": "str"},
            "environment_arch": {"type": "str"},
            "environment_file": {"type": "str"},
            "key": {"type": "str", "no_log": False},
            "authorized_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "partition": {"type": "int"},
            "block_device": {"type": "str"},
            "boot_partition": {"type": "int"},
            "partition_disk": {"type": "bool", "default": True},
            "bootloader": {"type": "bool", "default": True},
            "reformat_tmp": {"type": "str"},
            "kexec": {"type": "bool", "default": True},
            "vlan": {"type": "str"},
            "reboot_classical_timeout": {"type": "str"},
            "reboot_kexec_timeout": {"type": "str"},
            "force_steps": {"type": "str"},
            "force": {"type": "bool", "default": False},
            "hook": {"type": "bool", "default": True},
            "wait": {"type": "bool", "default": True},
            "fail_on_ko": {"type": "bool", "default": True},
            "server": {"type": "str"},
        },
        supports_check_mode=True,
        mutually_exclusive=[("environment", "environment_file")],
        required_one_of=[("environment", "environment_file")],
    )
    try:
        from kadeploy.modules import operations
        from kadeploy.modules.module import run
    except ImportError as error:
        module.fail_json(msg=missing_required_lib("kadeploy"), exception=str(error))
    run(module, operations.deploy)


if __name__ == "__main__":
    main()
