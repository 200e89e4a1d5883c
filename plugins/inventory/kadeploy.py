"""A request, or the nodes of a site as they stand, as an Ansible inventory."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

try:
    from kadeploy.caller import caller
    from kadeploy.errors import KadeployError
    from kadeploy.hints import did_you_mean
    from kadeploy.runner import artifact, inventory, request
except ImportError:
    MISSING = "kadeploy.core needs the Python package kadeploy beside Ansible: pip install kadeploy"
else:
    MISSING = ""

if TYPE_CHECKING:  # what asks a site takes a twentieth of a second to import, which a request need not pay
    from kadeploy.operations.hosts import Variables

DOCUMENTATION = """
name: kadeploy
short_description: Nodes of a Kadeploy site, with their states; or a request
description:
  - A file whose key C(plugin) is C(kadeploy.core.kadeploy) asks for the nodes of a site, as they stand. Who reads it
    sees what C(kanodes3) and C(kastat3) would show, no more; nobody sees how BMCs are reached.
  - The site is asked as the tools ask it, by its service or, where there is none, in its database.
  - Nodes are in groups by cluster (C(cluster_NAME)), state (C(state_deployed)), environment (C(environment_NAME)) and
    user (C(user_NAME)); those that operations leave out are in the group C(quarantine). Signs that names of groups may
    not have become C(_).
  - What users wrote, such as the name of an environment, stays text; nothing of it is ever evaluated as a template.
  - A file that has the key C(format) too is a request, which C(kadeploy3), C(kareboot3) or C(kapower3) has written
    into its run folder as C(inventory.kadeploy.yml). Its nodes are in the group C(kadeploy_nodes), in one for their
    cluster (C(cluster_NAME)) and, when an environment is deployed, in one for the kind of system (C(os_linux),
    C(os_xen), C(os_other)). The options below are not for requests.
author: Kadeploy maintainers
extends_documentation_fragment:
  - constructed
  - inventory_cache
notes:
  - Each node has the variables C(kadeploy_cluster), C(kadeploy_arch), C(kadeploy_disk), C(kadeploy_partition) (the one
    that is deployed to by default), C(kadeploy_state), C(kadeploy_since) (when the operation that led to the state
    began), C(kadeploy_user) (who deployed it last), C(kadeploy_environment), C(kadeploy_environment_version),
    C(kadeploy_environment_owner), C(kadeploy_environment_arch), C(kadeploy_rights) (a list of C(user), C(part) and
    C(until); yours, and for administrators everybody's), C(kadeploy_rights_end) (when the last of them ends; null
    when one of them has no end, or there are none), C(kadeploy_last) (the last operation in the log, with
    C(operation), C(success), C(error), C(start), C(user), C(environment) and C(workflow)) and
    C(kadeploy_quarantine) (with C(reason), C(since), C(until), which is null when somebody has to release the node,
    and C(by), which is empty for the site's rule; C(since) is null for a node that is not in quarantine).
    Where the configuration is read, C(ansible_host) is the address. Times are Unix seconds. A text that is
    not known is empty; a number, a time and the success of what was never done are null.
  - A site that cannot be asked makes an inventory without hosts and a warning, as other inventory plugins do. Set
    C(any_unparsed_is_failed) in the section C(inventory) of C(ansible.cfg) to make it an error.
  - A cache holds what you may see. Others who can read its folder can see it too, so name one of your own.
options:
  plugin:
    description:
      - By it Ansible finds the plugin. The name of the file ends with C(.yml) or C(.yaml), by custom it is
        C(*.kadeploy.yml).
    type: str
    choices: [kadeploy.core.kadeploy, kadeploy]
  server:
    description:
      - The service to ask, by its name in C(client.yml), its address (C(https://HOST:PORT)) or the path of its socket.
      - Without it, the default in C(client.yml); else the service of this machine's site; else its database, which
        root or the account of the service can read.
    type: str
    env:
      - name: KADEPLOY_SERVER
  config_dir:
    description:
      - Folder of the configuration of a site on this machine, whose database or service is asked.
    type: path
    env:
      - name: KADEPLOY_CONFIG_DIR
  nodes:
    description:
      - The nodes that are wanted, as a range or a list of them; without it all.
    type: raw
    default: []
  clusters:
    description:
      - The clusters whose nodes are wanted; without it all.
    type: list
    elements: str
    default: []
  group_by:
    description:
      - Kinds of groups that are made.
    type: list
    elements: str
    choices: [cluster, state, environment, user, quarantine]
    default: [cluster, state, environment, user, quarantine]
"""

EXAMPLES = """
# nodes.kadeploy.yml: all nodes of the site; try ansible-inventory -i nodes.kadeploy.yml --graph
plugin: kadeploy.core.kadeploy

---
# Some nodes of another site; the name of the server is in ~/.config/kadeploy/client.yml
plugin: kadeploy.core.kadeploy
server: lyon
clusters: [gdx]
nodes: gdx-[1-30].site
group_by: [state]

---
# A site on this machine, what it says kept for a minute
plugin: kadeploy.core.kadeploy
config_dir: /etc/kadeploy
cache: true
cache_plugin: jsonfile
cache_timeout: 60
cache_connection: ~/.cache/kadeploy

---
# Groups and variables of your own
plugin: kadeploy.core.kadeploy
strict: true
compose:
  ansible_user: "'root' if kadeploy_state == 'deployed' else 'admin'"
  deployed_days_ago: ((now().timestamp() - kadeploy_since) / 86400) | int if kadeploy_since else none
groups:
  failed: kadeploy_last.success == false
  mine: kadeploy_user == lookup('env', 'USER')
  free: kadeploy_rights == []
keyed_groups:
  - key: kadeploy_environment ~ '_' ~ kadeploy_environment_version if kadeploy_environment else []
    prefix: image
  - key: kadeploy_last.operation
    prefix: last
    default_value: none

---
# A request. Look at it, or repeat the attempt by hand:
#   ansible-inventory -i /var/lib/kadeploy/runs/W-1/01-SetDeploymentEnvUntrusted/inventory.kadeploy.yml --list
#   ansible-playbook -i .../inventory.kadeploy.yml kadeploy.core.SetDeploymentEnvUntrusted
# The beginning of such a file:
plugin: kadeploy.core.kadeploy
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
_NAMES = ("kadeploy.core.kadeploy", "kadeploy")
_PLUGIN = re.compile(rf"^plugin:\s*[\"']?({'|'.join(map(re.escape, _NAMES))})[\"']?\s*(#.*)?$")


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):  # type: ignore[misc]
    """The inventory plugin `kadeploy`."""

    NAME = _NAMES[0]

    def verify_file(self, path: str) -> bool:
        """Files named ``*.kadeploy.yml``, and those that name the plugin."""
        return bool(super().verify_file(path)) and (path.endswith(SUFFIX) or _names_us(path))

    def parse(self, inventory_data: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory."""
        super().parse(inventory_data, loader, path, cache)
        if MISSING:
            raise SystemExit(f"ERROR! {MISSING}")
        if warning := artifact.other_version(Path(__file__)):
            self.display.warning(warning)
        if _names_us(path) and not _has_key(path, "format"):
            self._parse_state(path, cache)
        else:
            self._parse_request(Path(path).resolve())

    # --- the nodes of a site --------------------------------------------------------------------------------------

    def _parse_state(self, path: str, cache: bool) -> None:
        config = self.loader.load_from_file(path, cache="none", trusted_as_template=True)
        self.set_options(direct=config, var_options=self._vars)
        self._require_known(config)
        try:
            found = self._kept(path, cache) if self.get_option("cache") else self._asked()
        except KadeployError as error:
            raise AnsibleParserError(str(error)) from error
        self._groups: dict[str, Any] = {}
        for name, variables in found.items():
            self._add(name, variables)

    def _require_known(self, config: Mapping[str, Any]) -> None:
        """Refuse what is no option, which Ansible would pass over."""
        known = set(self._options)
        for key in config:
            if key not in known:
                raise AnsibleParserError(f"{key}: there is no such option.{did_you_mean(str(key), known)}")

    def _kept(self, path: str, may_use: bool) -> dict[str, Variables]:
        """What the cache holds, or else what it will hold."""
        self.load_cache_plugin()
        key = f"{self.get_cache_key(path)}_{self._question()}"
        if may_use:
            try:
                return dict(self._cache[key])
            except KeyError:
                pass
        self._cache[key] = self._asked()
        return dict(self._cache[key])

    def _question(self) -> str:
        """Tells apart who asks what of whom: nobody is given what was kept for another."""
        options = [self.get_option(name) for name in ("server", "config_dir", "nodes", "clusters")]
        words = repr([caller().name, os.geteuid(), *options])
        return hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:16]

    def _asked(self) -> dict[str, Variables]:
        from kadeploy.client import sites  # noqa: PLC0415
        from kadeploy.operations import hosts  # noqa: PLC0415

        nodes, clusters = self.get_option("nodes"), self.get_option("clusters")
        ranges = [nodes] if isinstance(nodes, str) else nodes
        with _configured(self.get_option("config_dir")):
            service = sites.service(self.get_option("server"))
            return hosts.of(service, list(map(str, ranges)), list(map(str, clusters)), self.display.warning)

    def _add(self, name: str, variables: Variables) -> None:
        from kadeploy.operations import hosts  # noqa: PLC0415

        self.inventory.add_host(name)
        host = self.inventory.get_host(name)
        for key, value in variables.items():
            host.set_variable(key, value)  # InventoryData's own takes eight times as long, to note the file of each
        for group in hosts.groups(variables, self.get_option("group_by")):
            self._group(group).add_host(host)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict)

    def _group(self, name: str) -> Any:
        """The group that is called so, but for signs that names of groups may not have."""
        if name not in self._groups:
            self._groups[name] = self.inventory.groups[self.inventory.add_group(self._sanitize_group_name(name))]
        return self._groups[name]

    # --- a request ------------------------------------------------------------------------------------------------

    def _parse_request(self, source: Path) -> None:
        """Read with plain safe YAML, never by Ansible's loader: that keeps user strings from being templates."""
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


def _names_us(path: str) -> bool:
    return any(map(_PLUGIN.match, _lines(path)))


def _has_key(path: str, key: str) -> bool:
    return any(line.startswith(f"{key}:") for line in _lines(path))


def _lines(path: str) -> Iterable[str]:
    """Of a file that may be anything: for a look at its keys, which costs less than YAML."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        yield from file


@contextmanager
def _configured(folder: str | None) -> Iterator[None]:
    """Within, the configuration of this process is in *folder*, if one is named; at its end no database is open."""
    from kadeploy.state import database  # noqa: PLC0415

    before = os.environ.get("KADEPLOY_CONFIG_DIR")
    if folder:
        os.environ["KADEPLOY_CONFIG_DIR"] = folder
    try:
        yield
    finally:
        database.disconnect()
        os.environ.pop("KADEPLOY_CONFIG_DIR", None)
        if before is not None:
            os.environ["KADEPLOY_CONFIG_DIR"] = before
