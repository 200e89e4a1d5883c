"""What an administrator does for a site, on machines: build what they boot, try one, make environments of what runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.config.folder import load_configuration
from kadeploy.images.bootstrap import bootstrap
from kadeploy.lab import control, network
from kadeploy.lab.lab import CACHE
from tests import oci
from tests.vm.conftest import FAULTY, NVME, ROOT, Cluster

HOST_KEY = CACHE / "deployment_host_ed25519"
BOOT_FILES = ("deploy-vmlinuz", "deploy-initrd")


def site(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``kadeploy-site`` on the controller, as root."""
    return cluster.installation.tool("kadeploy-site", *words, account=ROOT, env=cluster.variables, timeout=1800)


@pytest.fixture
def administrator(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """The cluster, whose nodes root may reboot; its boot files are afterwards what they were."""
    for name in BOOT_FILES:
        shutil.copy2(cluster.lab.http / name, tmp_path / name)
    rights = ("-m", f"node-[1-{cluster.lab.nodes}]", "-p", "*", "-u", "root")
    cluster.admin("karights3", "-a", *rights)
    yield cluster
    cluster.admin("karights3", "-d", *rights)
    for name in BOOT_FILES:
        shutil.copy2(tmp_path / name, cluster.lab.http / f"{name}.former")
        (cluster.lab.http / f"{name}.former").replace(cluster.lab.http / name)


def test_a_deployment_system_is_built_for_the_hardware_and_a_node_is_tried_with_it(administrator: Cluster) -> None:
    cluster = administrator
    words = ("--kernel", "linux-image-amd64", "--keyboard", "fr", "--module", "ib_ipoib")
    built = site(cluster, "build", *words, "--host-key", str(HOST_KEY), "--cache", str(CACHE), "--format", "json")
    assert built.returncode == 0, built.stderr
    made = json.loads(built.stdout)
    assert sorted(made["files"]) == sorted(str(cluster.lab.http / name) for name in BOOT_FILES)
    assert made["memory"] > 100 << 20

    tried = site(cluster, "try", "node-3", "--stay", "--format", "json")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    rungs = json.loads(tried.stdout)["rungs"]
    reached = {each["rung"]: each["seen"] for each in rungs if each["reached"]}
    way = ["bmc", "power", "loader", "profile", "kernel", "initrd", "system", "ssh", "disk"]
    assert list(reached) == way
    assert sum(each["seconds"] for each in rungs) > 5
    assert "pxelinux.0" in reached["loader"]
    assert "deploy-vmlinuz" in reached["kernel"]
    assert reached["ssh"] == f"Linux {made['linux']}"
    assert "cloud" not in made["linux"]
    assert reached["disk"].startswith("sda 8G")
    found = cluster.ssh("node-3", "head -c 7 /etc/keymap; modprobe ib_ipoib && echo there", pinned=True)
    assert found.stdout == "bkeymapthere\n"


def test_where_a_node_breaks_is_told_with_what_was_seen_and_what_to_do(administrator: Cluster) -> None:
    (administrator.lab.http / "deploy-vmlinuz").unlink()
    tried = site(administrator, "try", "node-3", "--timeout", "60", "--format", "json")
    assert tried.returncode == 1
    *before, broken = json.loads(tried.stdout)["rungs"]
    assert [each["rung"] for each in before if each["reached"]] == ["bmc", "power", "loader", "profile"]
    assert (broken["rung"], broken["reached"]) == ("kernel", False)
    assert "nothing answers at" in broken["seen"]
    assert "GET /deploy-vmlinuz" in broken["seen"]
    assert broken["seconds"] < 90, "one try shows it"
    assert " 404 " in broken["seen"]
    assert "kadeploy-site check --topic boot" in broken["advice"]


@pytest.fixture
def cluster_file(administrator: Cluster) -> Iterator[Path]:
    """The cluster's file; cluster files are afterwards what they were."""
    folder = administrator.config_dir / "clusters"
    before = {path: path.read_text() for path in folder.iterdir()}
    yield folder / "lab.yml"
    for path, text in before.items():
        path.write_text(text)


def test_what_a_node_is_comes_into_the_cluster_file_and_a_machine_that_it_does_not_name_is_found(
    administrator: Cluster, cluster_file: Path
) -> None:
    cluster, node, before = administrator, "node-3", cluster_file.read_text()
    looked = site(cluster, "inspect", node, "--stay", "--format", "json")
    assert looked.returncode == 2, looked.stdout + looked.stderr
    told = json.loads(looked.stdout)["nodes"][node]
    assert (told["firmware"], told["boot_mac"]) == ("bios", cluster.lab.members[node].mac)
    assert told["memory_mib"] == cluster.lab.memory
    (disk,) = told["disks"]
    assert (disk["device"], disk["mib"]) == ("/dev/sda", cluster.lab.disk << 10)
    assert any(node in link for link in disk["ids"])
    assert cluster_file.read_text() == before

    for words in ("Written: ", "The cluster file says so already."):
        written = site(cluster, "inspect", node, "--no-reboot", "--yes")
        assert written.returncode == 0, written.stdout + written.stderr
        assert words in written.stdout
    known = load_configuration(cluster.config_dir).clusters["lab"]
    assert known.members[node].mac == told["boot_mac"]
    assert known.hardware[0].own[node].macs == {"eth0": told["boot_mac"]}
    assert cluster.is_on(node)
    control.ask(cluster.lab, "off", node)

    (cluster_file.parent / "nvme.yml").unlink()
    new, dead = cluster.lab.members[NVME], cluster.lab.members[FAULTY["dead"]]
    bmcs = f"{new.bmc.rsplit('.', 1)[0]}.0/28"
    found = site(cluster, "inspect", "--sweep", bmcs, new.name, "--addresses", new.address, "--yes")
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"new   {new.bmc}  of no cluster file" in found.stdout
    assert f"fail  {dead.bmc}  {dead.name}: nobody answers" in found.stdout
    assert load_configuration(cluster.config_dir).clusters["lab"].members[new.name].bmc == new.bmc


# --- environments -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def team(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Description of an environment that was built from an image of a registry, which had no kernel."""
    folder = tmp_path_factory.mktemp("team")
    tree = folder / "tree"
    bootstrap(CACHE, tree, ["apt"], variant="minbase", say=lambda _: None)
    base = folder / "base.tar"
    subprocess.run(["tar", "-cf", str(base), "--numeric-owner", "-C", str(tree), "."], check=True)
    shutil.rmtree(tree)
    changes: oci.Layer = {"usr/local/share/team": "of the team\n", "usr/share/.wh.common-licenses": ""}
    (folder / "registry").mkdir()
    output = Path(cluster.user.home) / "images"
    try:
        with oci.registry(folder / "registry") as address:
            reference = oci.push(folder / "image", address, "team/debian:12", base, changes)
            words = ("env", "team", "--from", reference, "--insecure", "--kernel", "linux-image-cloud-amd64")
            done = site(cluster, "build", *words, "--output", str(output), "--cache", str(folder / "cache"))
        assert done.returncode == 0, done.stderr
        yield output / "team-1.dsc"
    finally:
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(folder)


PLAY = """
- hosts: workers
  gather_facts: false
  tasks:
    - kadeploy.core.kadeploy_deploy:
        nodes: "{{ ansible_play_hosts }}"
        environment_file: "{{ team }}"
        key: "{{ own }}/key.pub"
      delegate_to: localhost
      run_once: true
      register: deployed
    - ansible.builtin.copy:
        content: "{{ deployed.host_keys | join('\n') }}\n"
        dest: "{{ own }}/known_hosts"
        mode: "0600"
      delegate_to: localhost
      run_once: true
    - ansible.builtin.raw: echo {{ inventory_hostname }} > /usr/local/share/configured
      register: entered
      until: entered is not unreachable and entered.rc == 0
      retries: 20
      delay: 3
"""
HOSTS = """
workers:
  hosts:
    node-2: {{ansible_host: {address}}}
  vars:
    ansible_user: root
    ansible_ssh_private_key_file: {own}/key
    ansible_ssh_common_args: -o UserKnownHostsFile={own}/known_hosts -o ConnectTimeout=20
"""


def test_a_playbook_deploys_a_container_image_and_goes_on_and_its_user_captures_what_runs(
    cluster: Cluster, team: Path, own_path: Path
) -> None:
    """The user is an ordinary account in a network of its own, and enters the node with a key of its own."""
    user, address = cluster.user, cluster.lab.members["node-2"].address
    key = own_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    for path in (key, key.with_suffix(".pub")):
        os.chown(path, user.uid, user.gid)
    (own_path / "play.yml").write_text(PLAY)
    (own_path / "hosts.yml").write_text(HOSTS.format(address=address, own=own_path))
    words = ("-i", "hosts.yml", "play.yml", "-e", f"team={team}", "-e", f"own={own_path}")
    deployed = among_nodes(cluster, own_path, "ansible-playbook", *words)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr

    options = f"-o UserKnownHostsFile={own_path}/known_hosts -o ConnectTimeout=20 -o LogLevel=ERROR"
    told = ("--ssh", f"ssh -i {key} {options}", "--format", "json", "--output", str(own_path))
    captured = among_nodes(cluster, own_path, "kadeploy-site", "capture", address, "mine", "--env-version", "7", *told)
    assert captured.returncode == 0, captured.stderr
    made = json.loads(captured.stdout)
    assert made["system"].startswith("Debian GNU/Linux 12")
    recorded = cluster.run("kaenv3", "-p", "mine").stdout
    assert "version : 7" in recorded
    assert f"author : {user.name}" in recorded
    listed = subprocess.run(["tar", "-tf", made["image"]], check=True, capture_output=True, text=True).stdout.split()
    brought = {"./usr/local/share/team", "./usr/local/share/configured", "./etc/machine-id", "./usr/bin/ping"}
    assert brought <= set(listed)
    assert not {"./etc/ssh/ssh_host_ed25519_key", "./root/.ssh/authorized_keys", "./usr/share/common-licenses/"} & set(
        listed
    )
    cluster.run("kaenv3", "-d", "mine")


def among_nodes(cluster: Cluster, folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of the tools as the cluster's user, in *folder*, where ssh reaches the nodes."""
    user = cluster.user
    environment = cluster.installation.environment(user) | cluster.variables
    return subprocess.run(
        network.inside(
            cluster.lab.name,
            [
                *("setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--", "env", "-i"),
                *(f"{variable}={value}" for variable, value in environment.items()),
                *(str(cluster.installation.tools / name), *words),
            ],
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=1800,
        check=False,
    )
