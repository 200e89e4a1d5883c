"""Playbooks of a test's own under the real ansible-playbook, with our actions, on a real sshd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from kadeploy.config.site import Ssh
from kadeploy.remote.fanout import Target
from kadeploy.runner import request
from kadeploy.runner.request import Options, RequestNode
from tests.unit import build

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")


class Lab:
    """A request, roles and a playbook of the test; runs them by ansible-playbook."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.folder = folder
        self.nodes = nodes
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        self.roles: list[str] = []
        self.play: dict[str, Any] = {}
        """What the play says beyond its roles, or in their place."""
        self.tool: list[str | Path] = [ANSIBLE]
        """What plays it."""
        self.behind: list[Path] = []
        """Playbooks that follow in the same run."""
        ssh = Ssh(
            private_key=str(nodes.credentials.private_key),
            host_key=nodes.known_key,
            port=nodes.port,
            connect_timeout=2,
        )
        self.request = build.request(
            folder, wid=folder.name, run_dir=str(self.run_dir), site=build.site(folder, ssh=ssh)
        )

    def members(self, *targets: Target) -> None:
        listed = tuple(RequestNode(name=target.name, address=target.address) for target in targets)
        self.request = msgspec.structs.replace(self.request, nodes=listed)

    def options(self, **options: Any) -> None:
        self.request = msgspec.structs.replace(self.request, options=Options(**options))

    def cluster(self, **settings: Any) -> None:
        cluster = msgspec.structs.replace(self.request.cluster, **settings)
        self.request = msgspec.structs.replace(self.request, cluster=cluster)

    def role(self, name: str, *scripts: str, **arguments: Any) -> None:
        """A micro-step of one task per script; what the first task answers is stored."""
        tasks: list[dict[str, Any]] = []
        files = self.folder / "roles" / name / "files"
        files.mkdir(parents=True)
        for rank, text in enumerate(scripts):
            (files / f"{rank}.sh").write_text(text)
            task = {"on_nodes": {"script": f"{rank}.sh", **arguments}, "run_once": True, "register": f"answer_{rank}"}
            tasks.append({"name": f"Do {name} {rank}", **task})
            copy = {"content": f"{{{{ answer_{rank} | to_json }}}}", "dest": str(self.folder / f"{name}.{rank}.json")}
            local = {"delegate_to": "localhost", "connection": "local", "run_once": True, "vars": self._python()}
            tasks.append({"name": "Keep the answer", "ansible.builtin.copy": copy, **local})
        (files.parent / "tasks").mkdir()
        (files.parent / "tasks" / "main.yml").write_text(yaml.safe_dump(tasks))
        self.roles.append(name)

    @staticmethod
    def _python() -> dict[str, str]:
        return {"ansible_python_interpreter": sys.executable}

    def start(self, *arguments: str, apart: bool = False, **environment: str) -> subprocess.Popen[str]:
        """Start it; what it says on standard error is among the rest, or else *apart*."""
        head = {"name": "SetDeploymentEnvTest", "hosts": "kadeploy_nodes", "gather_facts": False}
        playbook = self.folder / "SetDeploymentEnvTest.yml"
        playbook.write_text(yaml.safe_dump([{**head, "roles": [*self.roles, "finish"], **self.play}]))
        env = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": f"{self.folder / 'roles'}:{ROOT / 'roles'}",
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            **environment,
        }
        return subprocess.Popen(
            [*self.tool, playbook, *self.behind, "-i", request.write(self.request), *arguments],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status and output."""
        process = self.start(*arguments, **environment)
        output = process.communicate(timeout=280)[0]
        return process.returncode, output

    def answer(self, role: str, task: int = 0) -> dict[str, dict[str, Any]]:
        """What a task told about its nodes."""
        told: dict[str, dict[str, Any]] = json.loads((self.folder / f"{role}.{task}.json").read_text())["nodes"]
        return told

    def verdicts(self, role: str, task: int = 0) -> dict[str, str]:
        return {node: row["verdict"] for node, row in self.answer(role, task).items()}
