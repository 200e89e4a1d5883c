"""A request as an Ansible inventory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.inventory import BaseInventoryPlugin

try:
    from kadeploy.errors import KadeployError
    from kadeploy.runner import artifact, inventory, request
except ImportError:
    MISSING = "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
else:
    MISSING = ""

DOCUMENTATION = """
name: kadeploy
short_description: A request of Kadeploy as inventory
description:
  - Reads a request that C(kadeploy3), C(kareboot3) or C(kapower3) has written into its run folder, a file named
    C(*.kadeploy.yml).
  - The nodes are in the group C(kadeploy_nodes), in one group per cluster (C(cluster_NAME)) and, when an environment is
    deployed, in one per kind of system (C(os_linux), C(os_xen), C(os_other)).
  - Everything that users wrote stays text; nothing of it is ever evaluated as a template.
author: Kadeploy maintainers
options:
  plugin:
    description: Not needed in the file, which is known by its name.
    type: str
"""

EXAMPLES = """
# Look at the request of an attempt, and repeat the attempt by hand:
#   ansible-inventory -i /var/lib/kadeploy/runs/W-1/01-SetDeploymentEnvUntrusted/inventory.kadeploy.yml --list
#   ansible-playbook -i .../inventory.kadeploy.yml kadeploy.core.SetDeploymentEnvUntrusted
#
# The beginning of such a file:
format: 1
workflow: W-1
operation: deploy
user: johnsmith
config_dir: /etc/kadeploy
run_dir: /var/lib/kadeploy/runs/W-1/01-SetDeploymentEnvUntrusted
workflow_dir: /var/lib/kadeploy/runs/W-1
attempt: {macro_step: SetDeploymentEnv, implementation: SetDeploymentEnvUntrusted}
"""

SUFFIX = ".kadeploy.yml"


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]
    """The inventory plugin `kadeploy`."""

    NAME = "kadeploy.core.kadeploy"

    def verify_file(self, path: str) -> bool:
        """Only files named ``*.kadeploy.yml``."""
        return bool(super().verify_file(path)) and path.endswith(SUFFIX)

    def parse(self, inventory_data: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory.

        The file is read with plain safe YAML, never by Ansible's loader: that keeps user strings from being templates.
        """
        super().parse(inventory_data, loader, path, cache)
        if MISSING:
            raise SystemExit(f"ERROR! {MISSING}")
        if warning := artifact.other_version(Path(__file__)):
            self.display.warning(warning)
        source = Path(path).resolve()
        try:
            asked = request.read(source)
        except KadeployError as error:
            # Any other exception would make Ansible offer the file to its YAML plugin, which takes texts for templates.
            raise SystemExit(f"ERROR! {error}") from error
        groups = [inventory.GROUP, f"cluster_{asked.cluster.name}"]
        if asked.environment:
            groups.append(f"os_{asked.environment.environment_kind}")
        names = [self.inventory.add_group(self._sanitize_group_name(group)) for group in groups]
        for name, value in inventory.variables(asked).items():
            self.inventory.set_variable(inventory.GROUP, name, value)
        self.inventory.set_variable(inventory.GROUP, "kadeploy_request_file", str(source))
        for node in asked.nodes:
            for group in names:
                self.inventory.add_host(node.name, group)
            for name, value in inventory.host_variables(asked, node).items():
                self.inventory.set_variable(node.name, name, value)
