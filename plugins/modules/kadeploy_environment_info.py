# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell which environments there are, as `kaenv3 -l` does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kadeploy_environment_info
short_description: Which environments there are
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Tells the environments that the asking account sees, with all that describes them.
extends_documentation_fragment:
  - kadeploy.core.site
options:
  name:
    description: Name or alias; all that you see unless it is given.
    type: str
  owner:
    description: Whose they are; your own and the public ones unless it is given, V("*") for all that you see.
    type: str
  all_versions:
    description: Tell all versions, not the highest of each alone.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: See which versions there are
  kadeploy.core.kadeploy_environment_info:
    name: debian12
    all_versions: true
"""

RETURN = r"""
environments:
  description: The environments.
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Ask the site."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "owner": {"type": "str"},
            "all_versions": {"type": "bool", "default": False},
            "server": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        from kadeploy.modules import environments
        from kadeploy.modules.module import run
    except ImportError as error:
        module.fail_json(msg=missing_required_lib("kadeploy"), exception=str(error))
    run(module, environments.environments)


if __name__ == "__main__":
    main()
