"""Nodes from Ansible inventories of all kinds: what is listed, kept, read again and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kadeploy.config import listing, logins
from kadeploy.config.cluster import Node
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.logins import Login
from kadeploy.errors import ConfigError
from tests.unit.build import HOST_KEY

pytestmark = pytest.mark.versions

PASSWORDS = ("s3cret-of-all", "s3cret-of-one", "s3cret-vaulted")
NODES = {
    "gdx-1": Node(name="gdx-1", address="10.0.0.1", mac="52:54:00:00:00:01", bmc="10.0.1.1"),
    "gdx-2": Node(name="gdx-2", address="10.0.0.2", mac="52:54:00:00:00:02", bmc="10.0.1.2"),
}
INI = """\
[gdx]
gdx-1 ansible_host=10.0.0.1 mac=52:54:00:00:00:01 bmc=10.0.1.1
gdx-2 ansible_host=10.0.0.2 mac=52:54:00:00:00:02 bmc=10.0.1.2

[others]
other-1 ansible_host=10.9.0.1
"""
YAML = """\
gdx:
  hosts:
    gdx-1: {ansible_host: 10.0.0.1, mac: "52:54:00:00:00:01", bmc: 10.0.1.1}
    gdx-2: {ansible_host: 10.0.0.2, mac: "52:54:00:00:00:02", bmc: 10.0.1.2}
"""
PROGRAM = """\
#!/bin/sh
echo x >>"$(dirname "$0")/../calls"
[ ! -e "$(dirname "$0")/../down" ] || { echo "the server does not answer" >&2; exit 3; }
cat "$(dirname "$0")/../answer.json"
"""


class Estate:
    """A site whose cluster gdx is from an inventory, all in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "etc"
        self.state = folder / "state"
        self.inventory = self.config / "inventory"
        for each in (self.config / "clusters", self.state, self.inventory):
            each.mkdir(parents=True)
        self.write(
            "etc/site.yml",
            f"""\
name: paris
state_dir: {self.state}
server_address: 127.0.0.1
ssh: {{private_key: {folder}/key, host_key: {HOST_KEY}}}
boot: {{tftp_root: {folder}/tftp, http_root: {folder}/http, http_url: "http://127.0.0.1/"}}
""",
        )

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    def cluster(self, inventory: str, power: str = "{driver: ipmi, user: admin, password_file: bmc}") -> None:
        """Have the cluster file say so; `inventory` is a mapping in one line."""
        self.write(
            "etc/clusters/gdx.yml",
            f"disk: {{partitions: [{{number: 3, role: deploy}}]}}\npower: {power}\ninventory: {inventory}\n",
        )

    def read(self) -> Configuration:
        return load_configuration(self.config)

    def members(self) -> dict[str, Node]:
        return self.read().clusters["gdx"].members

    def refused(self) -> str:
        with pytest.raises(ConfigError) as caught:
            self.read()
        return str(caught.value).replace(str(self.config), "")

    @property
    def kept(self) -> Path:
        return self.state / "inventories" / "gdx.json"

    def run_out(self) -> None:
        """As if its time were over."""
        known = json.loads(self.kept.read_bytes())
        self.kept.write_text(json.dumps({**known, "next": known["read"]}), encoding="utf-8")

    def calls(self) -> int:
        """How often the program was run."""
        path = self.config / "calls"
        return len(path.read_text().split()) if path.exists() else 0

    def program(self, hosts: dict[str, dict[str, str]]) -> None:
        """Have the cluster's nodes come from a program."""
        self.write("etc/inventory/hosts", PROGRAM, 0o755)
        self.answer(hosts)
        self.cluster("{source: inventory/hosts}")

    def answer(self, hosts: dict[str, dict[str, str]]) -> None:
        self.write("etc/answer.json", json.dumps({"gdx": {"hosts": list(hosts)}, "_meta": {"hostvars": hosts}}))


@pytest.fixture
def estate(tmp_path: Path) -> Estate:
    return Estate(tmp_path)


def variables(node: Node) -> dict[str, str]:
    return {"ansible_host": node.address, "mac": node.mac, "bmc": node.bmc}


# --- kinds of sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), [("hosts.ini", INI), ("hosts.yml", YAML)])
def test_nodes_are_the_hosts_of_the_group_that_is_called_as_the_cluster(estate: Estate, name: str, text: str) -> None:
    estate.write(f"etc/inventory/{name}", text)
    estate.cluster(f"{{source: inventory/{name}}}")
    found = estate.read()
    assert found.clusters["gdx"].members == NODES
    assert found.cluster_of == {"gdx-1": "gdx", "gdx-2": "gdx"}


def test_a_folder_with_group_and_host_variables_is_read_as_ansible_does(estate: Estate) -> None:
    estate.write("etc/inventory/a.ini", "[computers]\ngdx-[1:2]\n")
    estate.write("etc/inventory/group_vars/computers.yml", 'ansible_host: "10.0.0.{{ inventory_hostname[-1] }}"\n')
    for number in "12":
        text = f'card: {{mac: "52:54:00:00:00:0{number}"}}\n'
        estate.write(f"etc/inventory/host_vars/gdx-{number}.yml", text)
    estate.cluster(
        "{source: inventory, group: computers, variables: {mac: card.mac, bmc: \"'10.0.1.' ~ inventory_hostname[-1]\"}}"
    )
    assert estate.members() == NODES


def test_a_program_is_run(estate: Estate) -> None:
    estate.program({name: variables(node) for name, node in NODES.items()})
    assert estate.members() == NODES


def test_a_configuration_of_a_plugin_makes_the_group(estate: Estate) -> None:
    estate.write("etc/inventory/1.yml", YAML.replace("gdx:", "computers:"))
    estate.write(
        "etc/inventory/2.constructed.yml",
        "plugin: ansible.builtin.constructed\ncompose: {bmc: \"'10.0.1.' ~ inventory_hostname[-1]\"}\n"
        "groups: {gdx: inventory_hostname.startswith('gdx')}\n",
    )
    estate.cluster("{source: inventory}")
    assert estate.members() == NODES


def test_what_a_plugin_prints_is_no_answer(estate: Estate) -> None:
    estate.write("etc/ansible.cfg", "[defaults]\ninventory_plugins = plugins\n[inventory]\nenable_plugins = noisy\n")
    estate.write(
        "etc/plugins/noisy.py",
        "from ansible.plugins.inventory.ini import InventoryModule as Ini\n\n\n"
        'DOCUMENTATION = "name: noisy\\nshort_description: prints\\ndescription: prints\\n"\n\n\n'
        "class InventoryModule(Ini):\n    NAME = 'noisy'\n\n    def parse(self, *arguments, **options):\n"
        "        print('{\"hosts\": {}}')\n        super().parse(*arguments, **options)\n",
    )
    estate.write("etc/inventory/hosts.ini", INI)
    estate.cluster("{source: inventory/hosts.ini}")
    assert estate.members() == NODES


def test_variables_of_the_caller_that_configure_ansible_do_not_count(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSIBLE_INVENTORY_ENABLED", "yaml")
    estate.write("etc/inventory/hosts.ini", INI)
    estate.cluster("{source: inventory/hosts.ini}")
    assert estate.members() == NODES


def test_an_inventory_that_asks_for_the_nodes_of_the_site_is_refused(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(estate.config))
    ask = "from kadeploy.config.folder import load_configuration; load_configuration()"
    estate.write("etc/inventory/hosts", f"#!/bin/sh\nexec {sys.executable} -c '{ask}'\n", 0o755)
    estate.cluster("{source: inventory/hosts}")
    assert "asks for the nodes of the site, which it is to tell" in estate.refused()


# --- secrets --------------------------------------------------------------------------------------------------------


def vaulted(estate: Estate, text: str, *, name: str = "") -> str:
    """*text* in Ansible's vault, as a file or as the value of a variable."""
    tool = str(Path(sys.executable).with_name("ansible-vault"))
    words = ["encrypt_string", "--stdin-name", name] if name else ["encrypt", "--output", "-"]
    password = estate.write("etc/vault-password", "open sesame\n", 0o600)
    done = subprocess.run(
        [tool, *words, "--vault-password-file", str(password)], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_passwords_of_vaults_are_known_to_the_file_of_secrets_alone(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", f"{INI}gdx-1 bmc_user=ada bmc_password={PASSWORDS[1]}\n")
    estate.write(
        "etc/inventory/group_vars/gdx/main.yml",
        'bmc_user: "{{ vault_user }}"\nbmc_password: "{{ vault_bmc_password }}"\n',
    )
    estate.write("etc/inventory/group_vars/gdx/user.yml", vaulted(estate, "kadeploy", name="vault_user"))
    estate.write("etc/inventory/group_vars/gdx/vault.yml", vaulted(estate, f"vault_bmc_password: {PASSWORDS[2]}\n"))
    estate.write("etc/inventory/host_vars/gdx-1.yml", f"bmc_user: ada\nbmc_password: {PASSWORDS[1]}\n")
    estate.cluster("{source: inventory/hosts.ini, vault_password_file: [estate@vault-password]}", "{driver: ipmi}")
    site = estate.read().site
    assert logins.read(site, "gdx") == {"gdx-1": Login("ada", PASSWORDS[1]), "gdx-2": Login("kadeploy", PASSWORDS[2])}
    secrets = logins.path(site, "gdx")
    assert secrets.stat().st_mode & 0o777 == 0o600
    with_one = [
        path
        for path in estate.state.rglob("*")
        if path.is_file() and any(each.encode() in path.read_bytes() for each in PASSWORDS)
    ]
    assert with_one == [secrets]


def test_a_vault_that_cannot_be_opened_is_a_refusal(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    estate.write("etc/inventory/group_vars/gdx.yml", vaulted(estate, PASSWORDS[2], name="bmc_password"))
    estate.cluster("{source: inventory/hosts.ini}")
    said = estate.refused()
    assert "inventory: host gdx-1, variable bmc_password: its vault cannot be opened; expected" in said
    assert PASSWORDS[2] not in said
    estate.cluster("{source: inventory/hosts.ini, vault_password_file: [nothing]}")
    assert "vault_password_file[0]: there is no /nothing" in estate.refused()


def test_a_bmc_without_any_login_is_named(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    estate.write("etc/inventory/host_vars/gdx-1.yml", "bmc_user: ada\n")
    estate.cluster("{source: inventory/hosts.ini}", "{driver: ipmi}")
    fault = estate.read().faults["gdx"]
    assert "power: gdx-2 has a BMC without a user and a password of its own, and there is nobody to log in as" in fault


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "inventory", "said"),
    [
        (
            "gdx-1 bmc_address=10.0.0.300\ngdx-2",
            "variables: {bmc: bmc_address}",
            "inventory: host gdx-1, variable bmc_address: wrong value 10.0.0.300; expected an IP address",
        ),
        ("gdx-1 mac=52540000000A", "", "host gdx-1, variable mac: wrong value 52540000000A; expected the MAC address"),
        ("gdx-1 ansible_host=http://x/", "", "host gdx-1, variable ansible_host: wrong value http://x/"),
        ("gdx!1", "", "host gdx!1, name: wrong value gdx!1"),
        ('gdx-1 mac="[1, 2]"', "", "host gdx-1, variable mac: a value of the kind list is given; expected text."),
        (
            "gdx-1",
            "variables: {mac: 'cards[0].mac'}",
            "host gdx-1, variable cards[0].mac: it cannot be evaluated: 'cards' is undefined.",
        ),
        ('gdx-1 mac="{{ card }}"', "", "host gdx-1, variable mac: it cannot be evaluated: 'card' is undefined."),
        (
            "gdx-1",
            'variables: {mac: "{{ card }}"}',
            "inventory.variables.mac: wrong value {{ card }}; expected the name of a variable",
        ),
        (
            "gdx-1",
            "group: gdxx",
            "inventory.group: there is no group gdxx; expected one of empty, gdx. Did you mean gdx",
        ),
        ("gdx-1", "group: empty", "inventory.group: the group empty has no host; expected at least one node."),
        ("gdx-1", "seconds: 0", "inventory.seconds: wrong value 0; expected a whole number of at least 1."),
        (
            "gdx-1",
            "vault_password_file: [../x]",
            "inventory.vault_password_file[0]: wrong value ../x; expected a whole",
        ),
        ("gdx-1", "config: none.cfg", "inventory.config: there is no /none.cfg; expected the path of a file."),
        ("[broken", "", "inventory.source: Ansible cannot read inventory/hosts.ini: "),
    ],
)
def test_mistakes_are_told_by_host_and_variable(estate: Estate, hosts: str, inventory: str, said: str) -> None:
    estate.write("etc/inventory/hosts.ini", f"[gdx]\n{hosts}\n\n[empty]\n")
    estate.cluster(f"{{source: inventory/hosts.ini, {inventory}}}")
    told = estate.refused()
    assert f"/clusters/gdx.yml:3: {said}" in told or f"/clusters/gdx.yml:3: inventory: {said}" in told
    assert not estate.kept.exists()


def test_a_source_that_is_not_there_is_named(estate: Estate) -> None:
    estate.cluster("{source: inventory/hosts.ini}")
    assert "/clusters/gdx.yml:3: inventory.source: there is no /inventory/hosts.ini" in estate.refused()


def test_nodes_are_in_the_file_or_in_the_inventory(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    estate.cluster("{source: inventory/hosts.ini}\nnodes: [{name: gdx-1}]")
    assert "/clusters/gdx.yml:4: nodes: the key inventory is given too; leave out one of the two." in estate.refused()
    estate.write("etc/clusters/gdx.yml", "disk: {partitions: [{number: 3, role: deploy}]}\n")
    assert "nodes: no node is given; expected a list of at least one, or the key inventory." in estate.refused()
    estate.cluster(
        "{source: inventory/hosts.ini}", '{driver: ipmi, user: a, password_file: b, address: "10.0.1.[1-2]"}'
    )
    assert "power.address: the inventory tells the BMCs of the nodes" in estate.refused()


def test_a_node_that_another_cluster_has_is_refused(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    estate.cluster("{source: inventory/hosts.ini}")
    estate.write("etc/clusters/a.yml", "nodes: [{name: gdx-2}]\ndisk: {partitions: [{number: 3, role: deploy}]}\n")
    assert "/clusters/gdx.yml:3: inventory: gdx-2 belongs to cluster a already." in estate.refused()


def test_two_hosts_that_would_be_one_machine_are_refused(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI.replace("10.0.0.2", "10.0.0.1"))
    estate.cluster("{source: inventory/hosts.ini}")
    assert "/clusters/gdx.yml:3: inventory: gdx-2 has the address 10.0.0.1 of gdx-1" in estate.refused()


# --- kept, and read again -------------------------------------------------------------------------------------------


def test_what_was_read_counts_until_its_time_is_over(estate: Estate) -> None:
    estate.program({"gdx-1": {}})
    assert [set(estate.members()) for _ in range(3)] == [{"gdx-1"}] * 3
    assert estate.calls() == 1
    estate.answer({"gdx-1": {}, "gdx-2": {}})
    assert set(estate.members()) == {"gdx-1"}
    estate.run_out()
    assert set(estate.members()) == {"gdx-1", "gdx-2"}
    assert estate.calls() == 2


def test_a_changed_file_of_variables_counts_at_once(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", "[gdx]\ngdx-1\n")
    estate.write("etc/inventory/group_vars/gdx.yml", "ansible_host: 10.0.0.1\n")
    estate.cluster("{source: inventory/hosts.ini}")
    assert estate.members()["gdx-1"].address == "10.0.0.1"
    estate.write("etc/inventory/host_vars/gdx-1.yml", "ansible_host: 10.0.0.9\n")
    assert estate.members()["gdx-1"].address == "10.0.0.9"
    estate.cluster("{source: inventory/hosts.ini, variables: {address: \"'10.0.0.8'\"}}")
    assert estate.members()["gdx-1"].address == "10.0.0.8"


def test_a_changed_file_with_a_mistake_is_a_refusal(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    estate.cluster("{source: inventory/hosts.ini}")
    assert estate.members() == NODES
    estate.write("etc/inventory/hosts.ini", INI.replace("10.0.1.2", "10.0.1.300"))
    assert "host gdx-2, variable bmc: wrong value 10.0.1.300" in estate.refused()


def test_the_nodes_of_a_source_that_is_down_go_on_counting(estate: Estate) -> None:
    estate.program({"gdx-1": {}})
    assert set(estate.members()) == {"gdx-1"}
    down = estate.write("etc/down", "")
    estate.run_out()
    found = estate.read().clusters["gdx"]
    assert set(found.members) == {"gdx-1"}
    known = listing.of(found)
    assert known is not None
    assert "the server does not answer" in known.failure
    assert set(estate.members()) == {"gdx-1"}
    assert estate.calls() == 2, "it is tried again when its time is over, and not each time"
    down.unlink()
    estate.run_out()
    estate.answer({"gdx-2": {}})
    assert set(estate.members()) == {"gdx-2"}


def test_a_listing_without_its_secrets_is_made_anew(estate: Estate) -> None:
    estate.program({"gdx-1": {"bmc_user": "ada"}})
    site = estate.read().site
    logins.path(site, "gdx").unlink()
    estate.read()
    assert logins.read(site, "gdx") == {"gdx-1": Login("ada")}


def test_a_copy_of_the_folder_to_try_something_leaves_what_is_kept_alone(estate: Estate, tmp_path: Path) -> None:
    estate.program({"gdx-1": {}})
    estate.read()
    before = estate.kept.read_bytes()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(estate.config), str(copy)], check=True)
    assert set(load_configuration(copy).cluster_of) == {"gdx-1"}
    assert estate.kept.read_bytes() == before


# --- whose it is ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")
@pytest.mark.parametrize("name", ["inventory/hosts.ini", "inventory/group_vars/gdx.yml", "inventory", "vault-password"])
def test_root_reads_no_inventory_that_others_could_change(estate: Estate, name: str) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    estate.write("etc/inventory/group_vars/gdx.yml", "bmc_user: \"{{ lookup('pipe', 'touch ran') }}\"\n")
    estate.write("etc/vault-password", "open sesame\n", 0o600)
    estate.cluster("{source: inventory/hosts.ini, vault_password_file: [vault-password]}")
    path = estate.config / name
    path.chmod(path.stat().st_mode | 0o002)
    assert f"/clusters/gdx.yml:3: inventory: /{name} could be changed by others than root" in estate.refused()
    assert not (estate.config / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")
def test_root_follows_no_link_that_others_could_turn_round(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    somebodys = estate.folder / "somebodys"
    somebodys.mkdir()
    (somebodys / "hosts.ini").symlink_to(estate.inventory / "hosts.ini")
    estate.cluster(f"{{source: {somebodys}/hosts.ini}}")
    assert estate.members() == NODES
    os.chown(somebodys, 65534, 65534)
    (somebodys / "group_vars").mkdir()
    assert f"inventory: {somebodys} could be changed by others than root" in estate.refused()


def test_where_nothing_can_be_kept_what_was_read_counts(estate: Estate) -> None:
    estate.write("etc/inventory/hosts.ini", INI)
    estate.cluster("{source: inventory/hosts.ini}")
    estate.state.rmdir()
    estate.state.touch()
    assert estate.members() == NODES


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner")
def test_what_root_reads_is_kept_by_the_account_of_the_site(open_folder: Path) -> None:
    estate = Estate(open_folder / "estate")
    estate.write("etc/inventory/hosts.ini", INI)
    estate.cluster("{source: inventory/hosts.ini}")
    os.chown(estate.state, 65534, 65534)
    assert estate.members() == NODES
    assert {each.stat().st_uid for each in (estate.state / "inventories").iterdir()} == {65534}
