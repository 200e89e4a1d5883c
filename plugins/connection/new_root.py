# Copyright: Kadeploy maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tasks in the system that lies on a node's deployment partition, which nobody has booted yet."""

from __future__ import annotations

DOCUMENTATION = r"""
name: new_root
short_description: The new system on a node, from its deployment system
version_added: 0.1.0
author: Kadeploy maintainers (@kadeploy)
description:
  - Runs tasks in the system that lies on the deployment partition, by C(ssh) to the deployment system and C(chroot)
    there. Its F(/dev), F(/proc) and F(/sys) are those of the deployment system while a task runs.
  - All options and variables of P(ansible.builtin.ssh#connection) count, but that files always go through a pipe.
notes:
  - Modules need Python in the new system. M(ansible.builtin.raw) does without.
options:
  root:
    description: Folder where the deployment partition is mounted.
    type: path
    default: /mnt/dest
    vars:
      - name: kadeploy_new_root
"""

EXAMPLES = r"""
# /etc/kadeploy/hooks/BroadcastEnv/sync.pre.d/50-site.yml
- name: What every system of this site has
  ansible.builtin.import_role:
    name: site_basics
  connection: new_root
"""

import shlex

import yaml
from ansible.plugins.connection import ssh

# Every ansible-playbook that may find this plugin loads it, and libyaml does that ten times as fast where it is there.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_SSH = yaml.load(ssh.DOCUMENTATION, _Loader)  # noqa: S506 - a safe one
_OWN = yaml.load(DOCUMENTATION, _Loader)  # noqa: S506
_OPTIONS = {"options": _SSH["options"] | _OWN["options"]}
_FRAGMENTS = {"extends_documentation_fragment": _SSH["extends_documentation_fragment"]}
# What Ansible asks for the options; ansible-doc reads the file, and so the document above.
globals().update(DOCUMENTATION=yaml.dump(_OWN | _OPTIONS | _FRAGMENTS, Dumper=_Dumper))

_ENTER = """\
for each in dev proc sys; do [ ! -d "$0/$each" ] || mount --rbind "/$each" "$0/$each"; done
exec chroot "$0" /bin/sh -c "$1"
"""
"""Reads the root and a command; it has mounts of its own, so that nothing stays mounted."""


class Connection(ssh.Connection):
    """`ansible.builtin.ssh`, one step further."""

    transport = "kadeploy.core.new_root"

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run *cmd*, a command for a shell, in the new system."""
        inside = shlex.join(["unshare", "--mount", "sh", "-c", _ENTER, self.get_option("root"), cmd])
        return super().exec_command(inside, in_data, sudoable)

    def put_file(self, in_path: str, out_path: str) -> tuple[int, bytes, bytes]:
        """Bring a file into the new system."""
        self._pipe()
        return super().put_file(in_path, out_path)

    def fetch_file(self, in_path: str, out_path: str) -> tuple[int, bytes, bytes]:
        """Fetch a file of the new system."""
        self._pipe()
        return super().fetch_file(in_path, out_path)

    def _pipe(self) -> None:
        """Have files go through `exec_command`: ``sftp`` would follow the links of the new system to the other one."""
        self.set_option("ssh_transfer_method", "piped")
