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
notes:
  - In check mode the request is checked as with C(--dry-run), and RV(plan) tells what would be done.
attributes:
  async:
    description: May run with C(async) and C(poll).
    support: full
"""
