# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Record or delete environments, as `kaenv3` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_environment
short_description: Record an environment, or delete it
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - A version that is recorded as described is left alone. One that differs is refused, since what was deployed by it
    could not be told any more. Record another version.
  - It runs where the tools of Kadeploy are, and asks the site as they do, in the name of the account under which it
    runs.
extends_documentation_fragment:
  - kadeploy.core.site
options:
  state:
    description: Whether it is to be recorded.
    type: str
    choices: [present, absent]
    default: present
  description:
    description:
      - What describes the environment, with the keys of its written form.
      - Relative paths begin where the module runs, so whole paths are better.
    type: dict
  file:
    description: File that describes it, or several, read by the account under which the module runs. One of
      O(description) and O(file) is needed with O(state=present).
    type: path
  visibility:
    description: Who sees it; what the description says unless it is given. Administrators alone make one public.
    type: str
    choices: [private, shared, public]
  name:
    description: Which one is to be gone (O(state=absent)).
    type: str
  version:
    description: Which of its versions; all unless it is given (O(state=absent)).
    type: int
  owner:
    description: Whose it is; your own unless it is given (O(state=absent)).
    type: str
  arch:
    description: For which architecture it is, where there are several of one name.
    type: str
"""

EXAMPLES = r"""
- name: Record what the team builds
  kadeploy.core.kadeploy_environment:
    description:
      name: team
      version: 7
      os: linux
      image:
        file: /srv/images/team-7.tar.zst
        kind: tar
        compression: zstd
      boot:
        kernel: /vmlinuz
        initrd: /initrd.img
      filesystem: ext4
      partition_type: 131
    visibility: shared

- name: Delete all versions
  kadeploy.core.kadeploy_environment:
    state: absent
    name: team
"""

RETURN = r"""
environments:
  description: The environments as they are recorded, or those that are gone.
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Ask the site."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "description": {"type": "dict"},
            "file": {"type": "path"},
            "visibility": {"type": "str", "choices": ["private", "shared", "public"]},
            "name": {"type": "str"},
            "version": {"type": "int"},
            "owner": {"type": "str"},
            "arch": {"type": "str"},
            "server": {"type": "str"},
        },
        supports_check_mode=True,
        mutually_exclusive=[("description", "file")],
        required_if=[
            ("state", "present", ("description", "file"), True),
            ("state", "absent", ("name",)),
        ],
    )
    try:
        from kadeploy.modules import environments
        from kadeploy.modules.module import run
    except ImportError as error:
        module.fail_json(msg=missing_required_lib("kadeploy"), exception=str(error))
    run(module, environments.environment)


if __name__ == "__main__":
    main()
