"""Each wrong value of a configuration is refused by file, line, key, what is allowed and what was probably meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from kadeploy.config.folder import load_configuration
from kadeploy.errors import ConfigError
from tests.unit import build

SITE = f"""\
# A site.
name: paris
state_dir: /var/lib/kadeploy
server_address: 10.0.0.1
database: sqlite:///var/lib/kadeploy/kadeploy.db
ssh:
  private_key: /var/lib/kadeploy/keys/site_ed25519
  host_key: {build.HOST_KEY}
  port: 22
  connect_timeout: 10
boot:
  tftp_root: /srv/kadeploy/tftp
  http_root: /srv/kadeploy/http
  http_url: http://10.0.0.1/
  log: /var/log/boot.log
rights: db
almighty_users: [root]
marker_port: 25300
broadcast_port: 25310
windows:
  reboot: 50
  check: 200
limits:
  preinstall: 20
runs:
  days: 30
  events_days: 90
mkfs_options:
  ext4: -O ^64bit
extraction_dir: /mnt/dest
rambin_dir: /rambin
kept_variables: [http_proxy]
verbosity: 3
broadcast_patience: 3.5
messages: "3.1"
use_address: true
vlan:
  hostname_suffix: -vlan-VLAN_ID
  set_command: kavlan -s -i VLAN_ID -u USER NODES
hooks:
  end_of_deployment: notify WORKFLOW_ID
service:
  socket: /run/kadeploy/kadeploy3d.sock
  htpasswd: /etc/kadeploy/htpasswd
  https:
    certificate: /etc/ssl/site.pem
    private_key: /etc/ssl/site.key
    address: 0.0.0.0
    port: 25300
  front_ends:
    - sources: [10.1.0.4]
      header: X-Remote-Ident
  folders: [/srv/images]
  quota:
    nodes: 100
"""

CLUSTER = """\
# A cluster.
nodes:
  - name: gdx-[1-3].site
    address: 10.0.1.[1-3]
    bmc: 10.0.2.[1-3]
    mac: 52-54-00-00-00-0[1-3]
arch: x86_64
disk:
  device: /dev/sda
  firmware_number: 0
  table: msdos
  partitions:
    - {number: 1, size: 1GiB, role: swap}
    - {number: 2, size: 4GiB, role: prod}
    - {number: 3, size: 4GiB, role: deploy}
    - {number: 5, role: tmp}
loader:
  firmware: bios
  profiles: pxelinux
  method: chainload
  kernel: deploy-vmlinuz
  params: console=ttyS0
power:
  driver: ipmi
  user: admin
  password_file: bmc
  port: 623
  timeout: 30
  off_delay: 5
  verify_tls: true
console: ipmitool -H HOSTNAME_SHORT-bmc sol activate
console_account: console
console_log: /var/log/conserver/HOSTNAME_FQDN
timeouts:
  reboot: 200+150*log(n)
  kexec: "60"
macro_steps:
  SetDeploymentEnv:
    - {implementation: SetDeploymentEnvUntrusted, retries: 1, timeout: 600}
  BroadcastEnv:
    - implementation: BroadcastEnvChain
  BootNewEnv:
    - implementation: BootNewEnvClassical
micro_timeouts:
  format_deploy_part: 60
micro_retries:
  send_key: 1
supported_filesystems: [ext4, xfs]
kexec_dir: /dev/shm/kexec
broadcast_command: broadcast ENVFILE NODEFILE
pre_installs:
  - file: /srv/pre.tgz
"""


class Row(NamedTuple):
    """A line of a good file, what is written in its place, and what is said of it."""

    line: str
    """Text of the line, from the first letter on; the refusal tells its number."""
    written: str
    key: str
    allowed: str
    """What the refusal says of what is right."""
    meant: str = ""
    at: int = 0
    """Lines from there to the one that is told."""


def _is(key: str, wrong: str, allowed: str, meant: str = "", path: str = "", at: int = 0) -> Row:
    """A row for a *key* of the top, or at the end of *path*, whose value is *wrong*."""
    return Row(f"{key}: ", f"{key}: {wrong}", path or key, allowed, meant, at)


def _post_install(wrong: str, allowed: str, meant: str = "", *, key: str = "") -> Row:
    """A row for the only post-install, which is *wrong* at its *key*."""
    place = f"post_installs[0]{key and '.'}{key}"
    return Row("broadcast_command: ", f"post_installs: [{wrong}]", place, allowed, meant)


NUMBER = "expected a whole number"
PORT = "expected a whole number from 1 to 65535."
AT_LEAST_1 = "expected a whole number of at least 1."
PATH = "which begins with /"
PLACEHOLDERS = "expected HOSTNAME_FQDN or HOSTNAME_SHORT."

OF_SITE = [
    _is("name", "3", 'expected text. Put it in quotes: "3".'),
    _is("name", "''", "expected a name without blanks and slashes."),
    _is("name", "new york", "expected a name without blanks and slashes."),
    _is("name", "[paris]", "a list is given; expected text."),
    Row("name: ", "nmae: paris", "", "unknown key nmae", "name"),
    Row("name: ", "# none", "", "the key name is missing.", at=1),
    _is("state_dir", "var/lib/kadeploy", PATH, "/var/lib/kadeploy"),
    _is("state_dir", "~/kadeploy", PATH),
    _is("server_address", "http://10.0.0.1:80/", "expected an IP address or the name of a machine.", "10.0.0.1"),
    _is("server_address", "10.0.0.256", "expected an IP address or the name of a machine."),
    _is("server_address", "10.0.0.01", "expected an IP address or the name of a machine.", "10.0.0.1"),
    _is("database", "postgre://db/kadeploy", "expected sqlite:///PATH, postgresql://… or mysql://…", "postgresql://…"),
    _is("database", "/var/lib/kadeploy.db", "expected sqlite:///PATH", "sqlite:///var/lib/kadeploy.db"),
    _is("  private_key", "keys/site", "expected the whole path of a private key", "/keys/site", path="ssh.private_key"),
    _is("  private_key", "/keys/site.pub", "the whole path of a private key", "/keys/site", path="ssh.private_key"),
    _is("  host_key", "nonsense", "expected the line of a public key", path="ssh.host_key"),
    _is("  host_key", "ssh-ed25519 AAAA", "expected the line of a public key", path="ssh.host_key"),
    _is(
        "  host_key",
        f"10.0.0.2 {build.HOST_KEY}",
        "expected the line of a public key",
        build.HOST_KEY,
        path="ssh.host_key",
    ),
    _is("  host_key", "-----BEGIN OPENSSH PRIVATE KEY-----", "this is a private key; expected", path="ssh.host_key"),
    _is("  host_key", "/keys/host.pub", "expected the line of a public key", path="ssh.host_key"),
    Row("  host_key: ", "  # none", "ssh", "the key host_key is missing.", at=-2),
    _is("  port", "99999", f"wrong value 99999; {PORT}", path="ssh.port"),
    _is("  port", "0", PORT, path="ssh.port"),
    _is("  connect_timeout", "10s", AT_LEAST_1, "10", path="ssh.connect_timeout"),
    _is("  connect_timeout", "-1", AT_LEAST_1, path="ssh.connect_timeout"),
    _is("  tftp_root", "srv/tftp", PATH, "/srv/tftp", path="boot.tftp_root"),
    _is("  http_root", "''", PATH, path="boot.http_root"),
    _is("  http_url", "10.0.0.1", "expected a URL that begins with http", "http://10.0.0.1/", path="boot.http_url"),
    _is("  http_url", "http://10.0.0.1", "and ends with /.", "http://10.0.0.1/", path="boot.http_url"),
    _is("  http_url", "http://10.0.0.1:99999/", "expected a URL", path="boot.http_url"),
    _is("  http_url", "tftp://10.0.0.1/", "begins with http:// or https://", path="boot.http_url"),
    _is("  log", "boot.log", PATH, "/boot.log", path="boot.log"),
    _is("rights", "dumy", "unknown word dumy; expected one of db, dummy.", "dummy"),
    _is("almighty_users", "root", "root is text; expected a list.", "[root]"),
    _is("almighty_users", "['root,ada:x']", "expected the name of a user.", path="almighty_users[0]"),
    _is("marker_port", "65536", PORT),
    _is("marker_port", '"25300"', PORT, "25300"),
    _is("broadcast_port", "25300", "25300 is marker_port too; expected a port of its own."),
    _is("broadcast_port", "22", "22 is ssh.port too; expected a port of its own."),
    _is("  reboot", "0", AT_LEAST_1, path="windows.reboot"),
    _is("  reboot", "many", f"many is text; {AT_LEAST_1}", path="windows.reboot"),
    _is("  check", "1.5", f"1.5 is a number to YAML; {AT_LEAST_1}", path="windows.check"),
    Row("  reboot: ", "  rebot: 50", "windows", "unknown key rebot; the keys here are reboot, check, ssh.", "reboot"),
    Row("windows:", "windows: 50\nx:", "windows", "expected a section with the keys reboot, check, ssh."),
    _is("  preinstall", "-20", "expected a whole number of at least 0.", path="limits.preinstall"),
    _is("  preinstall", "20MB", NUMBER, "20", path="limits.preinstall"),
    _is("  days", "0", AT_LEAST_1, path="runs.days"),
    _is("  events_days", "-1", "expected a whole number of at least 0.", path="runs.events_days"),
    Row("  ext4: ", "  etx4: -F", "mkfs_options.etx4", "expected one of ext2, ext3, ext4,", "ext4"),
    Row("  ext4: ", "  ext4: 4", "mkfs_options.ext4", 'Put it in quotes: "4".'),
    Row("  ext4: ", "  4: -F", "mkfs_options.4", "4 is no name: put it in quotes."),
    _is("extraction_dir", "mnt/dest", "expected the whole path of a folder below /", "/mnt/dest"),
    _is("extraction_dir", "/", "expected the whole path of a folder below /"),
    _is("rambin_dir", "/mnt/dest", "/mnt/dest is extraction_dir too; expected a folder of its own."),
    _is("kept_variables", "[$http_proxy]", "an environment variable.", "http_proxy", path="kept_variables[0]"),
    _is("verbosity", "9", "expected a whole number from 0 to 4."),
    _is("broadcast_patience", "0", "expected a number above 0."),
    _is("messages", "3.2", 'expected one of 3.1, 3.2. Put it in quotes: "3.2".'),
    _is("messages", '"3.3"', "unknown word 3.3; expected one of 3.1, 3.2.", "3.2"),
    _is("use_address", "ture", "ture is text; expected true or false.", "true"),
    _is("  hostname_suffix", "-vlan", "expected a text that holds VLAN_ID", path="vlan.hostname_suffix"),
    _is("  hostname_suffix", "-VLANID", "a text that holds VLAN_ID", "-VLAN_ID", path="vlan.hostname_suffix"),
    _is("  set_command", "kavlan -i VLANID", "expected NODES or VLAN_ID or USER.", "VLAN_ID", path="vlan.set_command"),
    _is("  set_command", "kavlan -i VLAN_ID/x", "where it is a whole argument", path="vlan.set_command"),
    _is("  set_command", "kavlan 'x", "cannot be split into words: no closing quotation", path="vlan.set_command"),
    _is("  end_of_deployment", "notify WORKFLOWID", "expected WORKFLOW_ID.", "WORKFLOW_ID", "hooks.end_of_deployment"),
    _is("  socket", "kadeploy3d.sock", PATH, "/kadeploy3d.sock", path="service.socket"),
    _is("  htpasswd", "htpasswd", PATH, "/htpasswd", path="service.htpasswd"),
    _is("    certificate", "site.pem", PATH, "/site.pem", path="service.https.certificate"),
    _is("    address", "all", "expected an IP address.", path="service.https.address"),
    _is("    port", "-1", "expected a whole number from 0 to 65535.", path="service.https.port"),
    Row(
        "    - sources: ",
        "    - sources: [10.1.0.4/16]",
        "service.front_ends[0].sources[0]",
        "an address such as 10.1.0.4 or a network 10.2.0.0/16.",
        "10.1.0.0/16",
    ),
    Row(
        "    - sources: ",
        "    - sources: []",
        "service.front_ends[0].sources",
        "expected a list of at least one address or network.",
    ),
    _is("      header", "'X-Who: me'", "the name of a header", "X-Who", path="service.front_ends[0].header"),
    _is("  folders", "[images]", PATH, "/images", path="service.folders[0]"),
    _is("    nodes", "0", AT_LEAST_1, path="service.quota.nodes"),
]

PART_3 = "    - {number: 3, "
PART_5 = "    - {number: 5, "
OF_CLUSTER = [
    Row("  - name: ", "  - name: gdx-[3-1].site", "nodes[0].name", "Write a range as in n-[1-10]."),
    Row("  - name: ", "  - name: -gdx-[1-3]", "nodes[0].name", "expected an IP address or the name of a machine."),
    Row("  - name: ", "  - nam: gdx", "nodes[0]", "the keys here are name, address, bmc, mac.", "name"),
    _is("    address", "10.0.1.[1-2]", "has 2 values for 3 nodes in 'gdx-[1-3].site'.", path="nodes[0].address"),
    _is("    address", "10.0.1.[254-256]", "expected an IP address", path="nodes[0].address"),
    _is("    address", "10.0.1.[3,1,2]", "is not in order and would be paired as", path="nodes[0].address"),
    _is("    address", "10.0.1.3,10.0.1.[1-2]", "give each of its nodes a line.", path="nodes[0].address"),
    _is("    bmc", "10.0.2.[1-4]", "has 4 values for 3 nodes", path="nodes[0].bmc"),
    _is(
        "    bmc",
        "https://10.0.2.[1-3]",
        "an IP address or the name of a machine, and its port",
        "10.0.2.1",
        "nodes[0].bmc",
    ),
    _is(
        "    bmc",
        "10.0.2.[1-3]:99999",
        "an IP address or the name of a machine, and its port",
        "10.0.2.1",
        "nodes[0].bmc",
    ),
    _is("    mac", "52-54-00-00-00-[1-3]", "expected the MAC address", "52:54:00:00:00:01", "nodes[0].mac"),
    _is("    mac", "53-54-00-00-00-0[1-3]", "the MAC address of one network card", path="nodes[0].mac"),
    _is("    mac", "52:54:00:00:00:0[1-3]", "a range of MAC addresses is written with dashes.", path="nodes[0].mac"),
    _is("    mac", "52:54:00:12:34:56", 'Put it in quotes: "52:54:00:12:34:56".', path="nodes[0].mac"),
    _is("arch", "x86-64", "expected one word, such as x86_64 or aarch64."),
    _is("  device", "sda", "expected a whole disk", "/dev/sda", "disk.device"),
    _is("  device", "/dev/sda3", "expected a whole disk", "/dev/sda", "disk.device"),
    _is("  device", "/dev/nvme0", "expected a whole disk", "/dev/nvme0n1", "disk.device"),
    _is("  device", "/dev/disk/by-id/wwn-0x5-part2", "expected a whole disk", "/dev/disk/by-id/wwn-0x5", "disk.device"),
    _is("  firmware_number", "-1", "expected a whole number of at least 0.", path="disk.firmware_number"),
    _is("  table", "dos", "unknown word dos; expected one of gpt, msdos.", "msdos", "disk.table"),
    Row(PART_3, f"{PART_3}size: 4GB, role: deploy}}", "disk.partitions[2].size", "with MiB, GiB or TiB", "4GiB"),
    Row(PART_3, f"{PART_3}size: 4 gib, role: deploy}}", "disk.partitions[2].size", "such as 4GiB", "4GiB"),
    Row(PART_3, f"{PART_3}size: '4096', role: deploy}}", "disk.partitions[2].size", "with MiB, GiB or TiB"),
    Row(PART_3, f"{PART_3}size: 0GiB, role: deploy}}", "disk.partitions[2].size", "with MiB, GiB or TiB"),
    Row(PART_3, f"{PART_3}size: 4096, role: deploy}}", "disk.partitions[2].size", 'Put it in quotes: "4096".'),
    Row(PART_3, f"{PART_3}role: deploy}}", "disk.partitions[2].size", "expected a size for all but the last."),
    Row(PART_3, f"{PART_3}size: 4GiB, role: depoly}}", "disk.partitions[2].role", "unknown word depoly", "deploy"),
    Row(PART_3, f"{PART_3}size: 4GiB}}", "disk.partitions", "none has the role deploy; expected one", at=-3),
    Row(PART_5, f"{PART_5}role: deploy}}", "disk.partitions", "2 have the role deploy; expected one", at=-4),
    Row(PART_3, "    - {number: 2, size: 4GiB, role: deploy}", "disk.partitions[2].number", "2 is the number of part"),
    Row(PART_3, "    - {number: 0, size: 4GiB, role: deploy}", "disk.partitions[2].number", AT_LEAST_1),
    Row(PART_3, "    - {number: three, size: 4GiB}", "disk.partitions[2].number", AT_LEAST_1),
    Row(PART_5, "    - {number: 7, role: tmp}", "disk.partitions[3].number", "expected 5: Linux numbers", "5"),
    Row(
        PART_3,
        f"{PART_3}size: 4GiB, role: deploy}}\n    - {{number: 4, size: 1GiB}}",
        "disk.partitions[4].number",
        "no room for the extended one",
        at=2,
    ),
    Row(PART_5, "    - {number: 129, role: tmp}", "disk.partitions[3].number", "expected a number from 1 to 60"),
    _is("  firmware", "efi", "unknown word efi; expected one of bios, uefi.", "uefi", "loader.firmware"),
    _is("  kernel", "''", "expected a file below boot.http_root, or a URL.", path="loader.kernel"),
    _is("  kernel", "../vmlinuz", "expected a file below boot.http_root, or a URL.", path="loader.kernel"),
    _is("  params", '"a\\nb"', "expected one line.", path="loader.params"),
    _is(
        "  profiles",
        "grub\n  secure_boot: true",
        "bios has no Secure Boot; expected uefi",
        path="loader.firmware",
        at=1,
    ),
    _is("  firmware", "uefi\n  secure_boot: true", "no pxelinux signed for Secure", path="loader.profiles", at=1),
    _is("  driver", "ipmii", "unknown word ipmii; expected one of command, ipmi, redfish.", "ipmi", "power.driver"),
    _is("  driver", "redfish", "expected a URL", "https://10.0.2.1", "nodes[0].bmc", at=-19),
    _is("  driver", "command", "the driver command needs at least one command", path="power.commands", at=-1),
    _is("  password_file", "bmc\n  password_env: BMC", "leave out one of the two.", path="power.password_env", at=1),
    Row(
        "  password_file: ", "  password_env: s3cret!", "power.password_env", "this is no name of a variable; expected"
    ),
    Row("  password_file: ", "  password: x", "power", "unknown key password", "password_env"),
    Row("  password_file: ", "  # none", "power.user", "expected password_file or password_env as well.", at=-1),
    Row("  user: ", "  commands: {staus: x}\n  user: a", "power.commands", "unknown key staus", "status"),
    Row(
        "  user: ",
        "  commands: {status: ask HOSTNAME_FQND}\n  user: a",
        "power.commands.status",
        PLACEHOLDERS,
        "HOSTNAME_FQDN",
    ),
    _is("  port", "70000", PORT, path="power.port"),
    _is("  timeout", "-5", AT_LEAST_1, path="power.timeout"),
    _is("  off_delay", "-0.5", "expected a number from 0 to 3600.", path="power.off_delay"),
    _is("  off_delay", ".nan", "expected a number from 0 to 3600.", path="power.off_delay"),
    _is("  verify_tls", "maybe", "expected true or false.", path="power.verify_tls"),
    _is("console", "ipmitool -H HOSTNAME sol", PLACEHOLDERS, "HOSTNAME_FQDN"),
    _is("console", "log WORKFLOW_ID", f"there is no placeholder WORKFLOW_ID here; {PLACEHOLDERS}"),
    _is("console", '"ipmitool \'-H"', "close each quote."),
    _is("console_account", "'a b'", "expected the name of a user."),
    _is("console_log", "log/HOSTNAME_FQDN", PATH, "/log/HOSTNAME_FQDN"),
    _is("console_log", "/log/HOSTNAME_SHROT", PLACEHOLDERS, "HOSTNAME_SHORT"),
    _is("  reboot", "soon", "give seconds, or an expression of n", path="timeouts.reboot"),
    _is("  reboot", "120s", "give seconds, or an expression of n", "120", "timeouts.reboot"),
    _is("  reboot", "150*log(n)", "is 0 s for 1 nodes: a time-out is between 1 s and a week.", path="timeouts.reboot"),
    _is("  reboot", "120", 'Put it in quotes: "120".', path="timeouts.reboot"),
    _is("  kexec", '"-60"', "a time-out is between 1 s and a week.", path="timeouts.kexec"),
    Row("  BroadcastEnv:", "  BroadcastEnvs:", "macro_steps.BroadcastEnvs", "SetDeploymentEnv, Broad", "BroadcastEnv"),
    Row(
        "    - implementation: BroadcastEnvChain",
        "    - implementation: BroadcastEnvChian",
        "macro_steps.BroadcastEnv[0].implementation",
        "unknown implementation BroadcastEnvChian; expected one of BroadcastEnvBittorrent, BroadcastEnvChain,",
        "BroadcastEnvChain",
    ),
    Row(
        "    - implementation: BroadcastEnvChain",
        "    - implementation: BootNewEnvKexec",
        "macro_steps.BroadcastEnv[0].implementation",
        "BootNewEnvKexec is no implementation of BroadcastEnv; expected a name such as BroadcastEnvMine.",
    ),
    Row("    - implementation: BroadcastEnvChain", "    []", "macro_steps", "implementation of BroadcastEnv.", at=-4),
    Row(
        "    - {implementation: SetDep",
        "    - implementation: SetDeploymentEnvNfsroot",
        "macro_steps.SetDeploymentEnv[0].implementation",
        "SetDeploymentEnvNfsroot needs loader.nfsroot_kernel",
    ),
    Row(
        "    - {implementation: SetDep",
        "    - {implementation: SetDeploymentEnvUntrusted, retries: -1}",
        "macro_steps.SetDeploymentEnv[0].retries",
        "expected a whole number of at least 0.",
    ),
    Row(
        "  format_deploy_part: ",
        "  format_part: 60",
        "micro_timeouts.format_part",
        "unknown micro-step",
        "format_tmp_part",
    ),
    Row("  format_deploy_part: ", "  format_deploy_part: -1", "micro_timeouts.format_deploy_part", "of at least 0."),
    Row("  send_key: ", "  sendkey: 1", "micro_retries.sendkey", "expected one of check_kernel_files,", "send_key"),
    Row("  send_key: ", "  send_key: once", "micro_retries.send_key", "once is text; expected a whole number"),
    _is("supported_filesystems", "[etx4]", "expected one of ext2,", "ext4", "supported_filesystems[0]"),
    _is("kexec_dir", "dev/shm", "expected the whole path of a folder below /", "/dev/shm"),
    _is("broadcast_command", "cast ENVFILES NODEFILE", "expected ENVFILE or NODEFILE.", "ENVFILE"),
    Row("  - file: ", "  - file: pre.tgz", "pre_installs[0].file", "or a URL, http://…", "/pre.tgz"),
    _post_install("{role: roles/motd}", "the name of a role, such as motd", "motd", key="role"),
    _post_install("{playbook: users.yml}", "wrong value users.yml; expected a playbook in a folder", key="playbook"),
    _post_install("{playbook: /srv/x/users.yml}", "expected a playbook in a folder of its own", key="playbook"),
    _post_install("{role: motd, where: boot}", "unknown word boot; expected one of booted,", "booted", key="where"),
    _post_install("{role: motd, on: booted}", "put it in quotes.", key="True"),
    _post_install("{rloe: motd}", "unknown key rloe; the keys here are file, kind,", "role"),
    _post_install("{vars: {a: 1}}", "nothing is given; expected one of file, role, playbook."),
    _post_install("{file: /x.tgz, role: motd}", "file and role are given; expected one of file,", key="role"),
    _post_install("{file: /x.tgz, vars: {a: 1}}", "this is no key for a file; leave it out.", key="vars"),
    _post_install("{playbook: p/x.yml, facts: no}", "this is no key for a playbook; leave it out.", key="facts"),
    _post_install("{role: motd, script: run.sh}", "this is no key for a role; leave it out.", key="script"),
    Row(
        "  - file: ", "  - {file: /srv/pre.tgz, kind: zip}", "pre_installs[0].kind", "unknown word zip; expected one of"
    ),
]


def folder(tmp_path: Path, site: str = SITE, cluster: str = CLUSTER) -> Path:
    """A configuration folder."""
    (tmp_path / "clusters").mkdir(exist_ok=True)
    (tmp_path / "site.yml").write_text(site, encoding="utf-8")
    (tmp_path / "clusters" / "gdx.yml").write_text(cluster, encoding="utf-8")
    return tmp_path


def changed(text: str, row: Row) -> tuple[str, int]:
    """*text* with the row's line in place of its own, and the number of the line that is to be told."""
    lines = text.splitlines()
    (index,) = [rank for rank, line in enumerate(lines) if line.startswith(row.line)][:1]
    lines[index] = row.written
    return "\n".join(lines) + "\n", index + 1 + row.at


def refused(where: Path) -> str:
    """What the configuration is refused with, or its one cluster that has mistakes."""
    try:
        (fault,) = load_configuration(where).faults.values()
    except ConfigError as refusal:
        return str(refusal)
    return fault


def name(row: Row) -> str:
    """The row's name as a test."""
    return " ".join(row.written.split())[:60]


def require(said: str, file: Path, line: int, row: Row) -> None:
    """Check that a refusal has one line, and tells file, line, key, what is allowed, and what was meant if anything."""
    assert said.startswith(f"{file}:{line}: {row.key}{': ' if row.key else ''}"), said
    assert row.allowed in said
    assert "\n" not in said, said
    hint = re.search(r" Did you mean (.*)\?\Z", said)
    assert (hint[1] if hint else "") == row.meant, said


@pytest.mark.parametrize("row", OF_SITE, ids=name)
def test_a_wrong_value_of_the_site_is_refused_by_file_line_key_and_what_is_allowed(tmp_path: Path, row: Row) -> None:
    text, line = changed(SITE, row)
    require(refused(folder(tmp_path, text)), tmp_path / "site.yml", line, row)


@pytest.mark.parametrize("row", OF_CLUSTER, ids=name)
def test_a_wrong_value_of_a_cluster_is_refused_by_file_line_key_and_what_is_allowed(tmp_path: Path, row: Row) -> None:
    text, line = changed(CLUSTER, row)
    require(refused(folder(tmp_path, cluster=text)), tmp_path / "clusters" / "gdx.yml", line, row)


# --- what keys say against each other, and more than one mistake ------------------------------------------------


def test_all_mistakes_of_a_file_are_told_at_once_in_the_order_of_its_lines(tmp_path: Path) -> None:
    text = CLUSTER.replace("size: 4GiB, role: prod", "size: 4GB, role: prod").replace("arch: x86_64", "arch: a b")
    lines = refused(folder(tmp_path, cluster=text.replace("/dev/shm/kexec", "dev/shm"))).splitlines()
    file = tmp_path / "clusters" / "gdx.yml"
    told = [line.removeprefix(f"{file}:").split(": ")[:2] for line in lines]
    assert told == [["7", "arch"], ["14", "disk.partitions[1].size"], ["49", "kexec_dir"]]


def test_a_flood_of_mistakes_is_cut(tmp_path: Path) -> None:
    parts = "\n".join(f"    - {{number: {number}, size: 1GB}}" for number in range(6, 36))
    lines = refused(folder(tmp_path, cluster=CLUSTER.replace("    - {number: 5, role: tmp}", parts))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == f"{tmp_path}/clusters/gdx.yml: 11 more."


@pytest.mark.parametrize(
    ("power", "key", "said"),
    [
        ("{driver: ipmi}", "power", "there is nobody to log in as; expected user, and password_file or password_env."),
        ("{driver: redfish, user: a, password_file: b}", "power.driver", "no node has a BMC, which the driver redfish"),
        ("{driver: command}", "power.commands", "the driver command needs at least one command"),
        ("{address: '10.0.2.[1-4]', user: a, password_file: b}", "power.address", "has 4 values for 3 nodes"),
        ("{address: 10.0.2.300, user: a, password_file: b}", "power.address", "has 1 value for 3 nodes"),
        ("{address: '10.0.300.[1-3]', user: a, password_file: b}", "power.address", "expected an IP address or"),
        (
            "{driver: redfish, address: '10.0.2.[1-3]', user: a, password_file: b}",
            "power.address",
            "wrong value 10.0.2.1; expected a URL, such as https://10.0.0.1. Did you mean https://10.0.2.1?",
        ),
    ],
)
def test_power_that_cannot_work_is_refused(tmp_path: Path, power: str, key: str, said: str) -> None:
    bmcs = re.sub(r"    bmc: .*\n", "", CLUSTER) if "ipmi" not in power else CLUSTER
    text = re.sub(r"power:\n(  .*\n)+", f"power: {power}\n", bmcs)
    line = text.splitlines().index(f"power: {power}") + 1
    found = refused(folder(tmp_path, cluster=text))
    assert found.startswith(f"{tmp_path}/clusters/gdx.yml:{line}: {key}: ")
    assert said in found


def test_a_broadcast_of_the_sites_own_needs_its_command(tmp_path: Path) -> None:
    text = CLUSTER.replace("BroadcastEnvChain", "BroadcastEnvCustom").replace("broadcast_command: ", "# ")
    place = "clusters/gdx.yml:41: macro_steps.BroadcastEnv[0].implementation"
    said = f"{tmp_path}/{place}: BroadcastEnvCustom needs broadcast_command, the command that sends the image."
    assert refused(folder(tmp_path, cluster=text)) == said


BEHIND = "[0]: behind auto nothing boots through the firmware; expected another way behind it, as BootNewEnvClassical."
AUTO = [
    (
        ("BroadcastEnv", "auto"),
        "[0]: auto chooses how nodes boot, and BroadcastEnv boots none; expected an implementation, as "
        "BroadcastEnvChain.",
    ),
    (("BootNewEnv", "auto"), BEHIND),
    (("BootNewEnv", "auto", "BootNewEnvKexec"), BEHIND),
    (
        ("BootNewEnv", "BootNewEnvClassical", "auto"),
        "[1]: auto is only known in the first place; expected an implementation.",
    ),
    (
        ("BootNewEnv", "auto", "BootNewEnvKexec", "BootNewEnvClassical"),
        "[0]: auto stands for BootNewEnvKexec, which is given too; leave out one of the two.",
    ),
]
"""A macro-step with its implementations, where the word auto is wrong, and what is said of it."""


@pytest.mark.parametrize(("steps", "told"), AUTO)
def test_the_word_auto_is_refused_where_it_has_no_meaning(tmp_path: Path, steps: tuple[str, ...], told: str) -> None:
    step, *ways = steps
    usual = {"BroadcastEnv": "BroadcastEnvChain", "BootNewEnv": "BootNewEnvClassical"}[step]
    listed = "".join(f"\n    - implementation: {way}" for way in ways)
    text = CLUSTER.replace(f"{step}:\n    - implementation: {usual}", f"{step}:{listed}")
    rank, _, said = told.partition(": ")
    refusal = refused(folder(tmp_path, cluster=text))
    assert refusal.endswith(f"macro_steps.{step}{rank}.implementation: {said}"), refusal


@pytest.mark.parametrize("step", ["SetDeploymentEnv", "BootNewEnv"])
def test_the_word_auto_comes_first_and_has_retries_and_a_time_out(tmp_path: Path, step: str) -> None:
    way = {"SetDeploymentEnv": "SetDeploymentEnvUntrusted", "BootNewEnv": "BootNewEnvClassical"}[step]
    auto = f"{step}:\n    - {{implementation: auto, retries: 1, timeout: 60}}\n"
    text = CLUSTER.replace(f"{step}:\n", auto)
    gdx = load_configuration(folder(tmp_path, cluster=text)).clusters["gdx"]
    first, second = gdx.macro_steps[step]
    assert (first.name, first.retries, first.timeout, second.name) == ("auto", 1, 60, way)
    assert {f"{step}Kexec", way} <= set(gdx.implementations)


def test_a_node_that_two_ranges_have_is_told_with_the_line_of_the_second(tmp_path: Path) -> None:
    text = CLUSTER.replace("arch:", '  - name: "gdx-[3-4].site"\narch:')
    said = f"{tmp_path}/clusters/gdx.yml:7: nodes[1].name: gdx-3.site is listed twice."
    assert refused(folder(tmp_path, cluster=text)) == said


def test_a_machine_that_two_clusters_have_is_told_with_the_line_of_its_range(tmp_path: Path) -> None:
    folder(tmp_path)
    text = CLUSTER.replace("gdx-", "nvm-").replace("10.0.1.", "10.0.3.").replace("00-0[1-3]", "00-1[1-3]")
    (tmp_path / "clusters" / "nvm.yml").write_text(text)
    said = f"{tmp_path}/clusters/nvm.yml:3: nodes[0]: nvm-1.site has the BMC 10.0.2.1 of gdx-1.site (cluster gdx): "
    assert refused(tmp_path).startswith(said)


def test_a_cluster_without_a_name_has_that_of_its_file(tmp_path: Path) -> None:
    for text in (CLUSTER, f"name: ''\n{CLUSTER}", f'name:   ""\n{CLUSTER}'):
        assert list(load_configuration(folder(tmp_path, cluster=text)).clusters) == ["gdx"]


def test_two_files_cannot_be_one_cluster(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "clusters" / "nvm.yml").write_text(f"name: gdx\n{CLUSTER}")
    assert refused(tmp_path).startswith(f"{tmp_path}/clusters/nvm.yml:1: name: gdx is the name of another cluster")


def test_implementations_and_micro_steps_of_the_sites_own_are_known(tmp_path: Path) -> None:
    text = CLUSTER.replace("BroadcastEnvChain", "BroadcastEnvMine").replace("send_key: 1", "burn_in: 1")
    said = refused(folder(tmp_path, cluster=text.replace("format_deploy_part", "site.lab.burn_in")))
    assert "BroadcastEnvMine; expected one of" in said
    assert "unknown micro-step burn_in;" in said
    assert "site.lab" not in said
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "BroadcastEnvMine.yml").write_text("[]")
    (tmp_path / "roles" / "burn_in").mkdir(parents=True)
    load_configuration(tmp_path).require_sound()


def test_what_may_be_a_password_is_not_repeated(tmp_path: Path) -> None:
    text = CLUSTER.replace("password_file: bmc", "password_env: Tr0ub4dor&3")
    assert "Tr0ub4dor" not in refused(folder(tmp_path, cluster=text))
    site = SITE.replace("sqlite:///var/lib/kadeploy/kadeploy.db", "postgrsql://kadeploy:Tr0ub4dor@db/kadeploy")
    assert "Tr0ub4dor" not in refused(folder(tmp_path, site))


# --- the text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "line", "said"),
    [
        ("rights: db", "rights: db\nrights: dummy", 17, "rights: given in line 16 already; remove one of them."),
        ("  port: 22\n", "  port: 22\n  port: 23\n", 9 + 1, "ssh.port: given in line 9 already; remove one of them."),
        ("name: paris", "name: {a: 1, b: 2, a: 1}", 2, "name.a: given in line 2 already; remove one of them."),
        ("  port: 22\n", "\tport: 22\n", 9, "not valid YAML: ", ),
        ("rights: db", "rights: [db", 17, "not valid YAML: did not find expected ',' or ']'; close each bracket"),
        ("name: paris", "name: paris: two", 2, "a value that holds a colon and a blank in quotes"),
        ("name: paris", "name: @paris", 2, "put a value that begins with @, `, % or a tab in quotes"),
        ("name: paris", "name: *paris", 2, "undefined alias; put a value that begins with * or & in quotes."),
        ("name: paris", "name: !paris x", 2, "put a value that begins with ! in quotes."),
        ("name: paris", "name: 2024-13-45", 2, "name: month must be in 1..12: put the value in quotes."),
        ("name: paris", "name: 2024-12-31", 2, "name: 2024-12-31 is a date; expected text."),
        ("name: paris", "name: &a [*a]", 2, "name: a list is given; expected text."),
        ("name: paris", f"name: {'[' * 2000}{']' * 2000}", 2, "not valid YAML: exceeded maximum nesting depth."),
        ("name: paris", "name: par\0is", 2, "not valid YAML: "),
        ("# A site.", "---\na: 1\n---", 3, "not valid YAML: but found another document."),
    ],
)  # fmt: skip
def test_what_is_no_yaml_or_gives_a_key_twice_is_told_with_its_line(
    tmp_path: Path, before: str, after: str, line: int, said: str
) -> None:
    text = SITE.replace(before, after, 1)
    found = refused(folder(tmp_path, text))
    assert found.startswith(f"{tmp_path}/site.yml:{line}: ")
    assert said in found
    assert "\n" not in found


def test_a_file_that_is_empty_or_no_text_is_told(tmp_path: Path) -> None:
    for text in ("", "# nothing\n"):
        said = refused(folder(tmp_path, text))
        assert said.startswith(f"{tmp_path}/site.yml:1: the file is empty; expected the keys name, state_dir,")
    (tmp_path / "site.yml").write_bytes(b"name: a\nstate_dir: caf\xe9\n")
    assert refused(tmp_path) == f"{tmp_path}/site.yml:2: not UTF-8: byte 0xe9; save it as UTF-8."


def test_keys_that_are_merged_may_be_given_anew(tmp_path: Path) -> None:
    merged = "arch: &none ''\npower:\n  <<: &bmc {driver: ipmi, user: a, password_file: b}\n  user: admin\nx: "
    text = re.sub(r"power:\n(  .*\n)+", merged.removesuffix("x: "), CLUSTER.replace("arch: x86_64\n", ""))
    assert load_configuration(folder(tmp_path, cluster=text)).clusters["gdx"].power.user == "admin"
    twice = text.replace("  user: admin\n", "  user: admin\n  user: root\n")
    assert "power.user: given in line" in refused(folder(tmp_path, cluster=twice))


# --- good neighbours --------------------------------------------------------------------------------------------

GOOD_SITE = [
    ("name: paris", "name: paris-2"),
    ("server_address: 10.0.0.1", "server_address: controller.paris.example"),
    ("server_address: 10.0.0.1", "server_address: 2001:db8::1"),
    ("sqlite:///var/lib/kadeploy/kadeploy.db", "postgresql://kadeploy@db.site/kadeploy"),
    ("sqlite:///var/lib/kadeploy/kadeploy.db", "''"),
    (build.HOST_KEY, f"{build.HOST_KEY} root@deployment"),
    ("  port: 22\n", "  port: 65535\n"),
    ("  port: 22\n", "  port: 1\n"),
    ("marker_port: 25300", "marker_port: 22"),
    ("http_url: http://10.0.0.1/", "http_url: https://boot.site:8443/kadeploy/"),
    ("  log: /var/log/boot.log", "  log: ''"),
    ("almighty_users: [root]", "almighty_users: [root, ada@paris, svc_kadeploy]"),
    ("almighty_users: [root]", "almighty_users: []"),
    ("  reboot: 50", "  reboot: 1"),
    ("  preinstall: 20", "  preinstall: 0"),
    ("  ext4: -O ^64bit", "  f2fs: -f"),
    ("extraction_dir: /mnt/dest", "extraction_dir: /mnt/dest/"),
    ("verbosity: 3", "verbosity: 0"),
    ("verbosity: 3", "verbosity: null"),
    ("broadcast_patience: 3.5", "broadcast_patience: 1"),
    ("set_command: kavlan -s -i VLAN_ID -u USER NODES", "set_command: switch set VLAN VLAN_ID NODES"),
    ("set_command: kavlan -s -i VLAN_ID -u USER NODES", "set_command: sh -c 'LC_ALL=C x $USER \"$@\"' x NODES"),
    ("notify WORKFLOW_ID", "notify --ended=WORKFLOW_ID LOUD"),
    ("sources: [10.1.0.4]", "sources: [10.2.0.0/16, '2001:db8::/32', '::1']"),
    ("    address: 0.0.0.0", "    address: '::'"),
]
GOOD_CLUSTER = [
    ("gdx-[1-3].site", "gdx_[01-03]-a.site"),
    ("10.0.1.[1-3]", "gdx-eth0-[1-3]"),
    ("10.0.1.[1-3]", "10.0.1.[253-255]"),
    ("10.0.1.[1-3]", "10.0.1.1,10.0.2.7,10.0.3.5"),
    ("10.0.1.[1-3]", "10.0.1.[1,3,7]"),
    ("10.0.2.[1-3]", "gdx-[1-3]-bmc.site"),
    ("10.0.2.[1-3]", "10.0.2.[1-3]:6230"),
    ("52-54-00-00-00-0[1-3]", "''"),
    ("arch: x86_64", "arch: ppc64le"),
    ("device: /dev/sda", "device: /dev/nvme0n1"),
    ("device: /dev/sda", "device: /dev/mmcblk0"),
    ("device: /dev/sda", "device: /dev/cciss/c0d0"),
    ("device: /dev/sda", "device: /dev/disk/by-path/pci-0000:00:1f.2-ata-1"),
    ("number: 2, size: 4GiB", "number: 2, size: 4G"),
    ("number: 2, size: 4GiB", "number: 2, size: 0.5TiB"),
    ("number: 2, size: 4GiB", "number: 2, size: 512MiB"),
    ("    - {number: 5, role: tmp}\n", ""),
    ("    - {number: 5, role: tmp}", "    - {number: 6, role: tmp}\n    - {number: 5, size: 1GiB}"),
    ("    - {number: 5, role: tmp}", "    - {number: 4, role: tmp}"),
    ("size: 4GiB, role: deploy}\n    - {number: 5, ", "size: 4GiB, role: deploy}\n    - {number: 5, size: 1GiB, "),
    ("  table: msdos", "  table: gpt"),
    ("  profiles: pxelinux", "  profiles: ipxe"),
    ("  kernel: deploy-vmlinuz", "  kernel: http://boot.site/vmlinuz"),
    ("  kernel: deploy-vmlinuz", "  kernel: gdx/deploy-vmlinuz"),
    ("  params: console=ttyS0", "  params: >\n    console=ttyS0\n    quiet"),
    ("  password_file: bmc", "  password_env: BMC_PASSWORD"),
    ("  user: admin\n", ""),
    ("  off_delay: 5", "  off_delay: 0"),
    ("  timeout: 30", "  timeout: 1"),
    ("console: ipmitool -H HOSTNAME_SHORT-bmc", "console: ipmitool -U ADMIN -H HOSTNAME_FQDN"),
    ("console: ipmitool -H HOSTNAME_SHORT-bmc", "console: sh -c 'echo $HOSTNAME; exec cat' HOSTNAME_FQDN"),
    ("  reboot: 200+150*log(n)", "  reboot: '1'"),
    ("  reboot: 200+150*log(n)", "  reboot: 60 + 30*sqrt(n)"),
    ("format_deploy_part: 60", "format_deploy_part: 0"),
    ("format_deploy_part: 60", "community.general.parted: 60"),
    ("[ext4, xfs]", "[f2fs]"),
    ("broadcast ENVFILE NODEFILE", "sh -c 'ENVFILE=$1; cast \"$ENVFILE\"' cast ENVFILE"),
    ("/srv/pre.tgz", "http://boot.site/pre.tgz"),
    ("pre_installs", "post_installs: [{role: a.b.c, vars: {x: [1, {y: z}]}}, {playbook: p/x.yml}]\npre_installs"),
    ("/srv/pre.tgz", "server:///srv/images/pre.tgz"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), GOOD_SITE)
def test_a_right_value_of_the_site_near_a_wrong_one_is_accepted(tmp_path: Path, before: str, after: str) -> None:
    assert before in SITE
    load_configuration(folder(tmp_path, SITE.replace(before, after))).require_sound()


@pytest.mark.parametrize(("before", "after"), GOOD_CLUSTER)
def test_a_right_value_of_a_cluster_near_a_wrong_one_is_accepted(tmp_path: Path, before: str, after: str) -> None:
    assert before in CLUSTER
    load_configuration(folder(tmp_path, cluster=CLUSTER.replace(before, after))).require_sound()


def test_the_good_files_are_good_and_so_is_the_least_that_may_be_written(tmp_path: Path) -> None:
    assert len(load_configuration(folder(tmp_path)).cluster_of) == 3
    site = re.sub(r"(?ms)^rights: .*", "", SITE)
    least = "nodes: [{name: n-1}]\ndisk: {partitions: [{number: 1, role: deploy}]}\n"
    assert list(load_configuration(folder(tmp_path, site, least)).cluster_of) == ["n-1"]
