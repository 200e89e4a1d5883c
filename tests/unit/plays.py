"""Playbooks of a test's own, and an action that answers with the outcomes it is given."""

from __future__ import annotations

import sys
from pathlib import Path

OUTCOMES = '''
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    """A batch action in miniature."""

    def run(self, tmp=None, task_vars=None):
        return {"changed": True, "step": self._task.args.get("step", ""), "nodes": self._task.args["nodes"]}
'''
HEAD = f"""\
- hosts: kadeploy_nodes
  gather_facts: false
  connection: local
  vars: {{ansible_python_interpreter: {sys.executable}}}
"""


def write_play(config: Path, name: str, text: str) -> None:
    """Add a playbook to a configuration folder; *text* follows `HEAD`."""
    for folder in ("playbooks", "roles", "action_plugins"):
        (config / folder).mkdir(exist_ok=True)
    (config / "action_plugins" / "outcomes.py").write_text(OUTCOMES, encoding="utf-8")
    (config / "playbooks" / f"{name}.yml").write_text(HEAD + text, encoding="utf-8")


def write_role(config: Path, name: str, tasks: str, says: str = "") -> None:
    """Add a role to a configuration folder; *says* is what it says of itself as a micro-step."""
    for path, text in (("tasks/main.yml", tasks), ("meta/microstep.yml", says)):
        if text:
            file = config / "roles" / name / path
            file.parent.mkdir(parents=True)
            file.write_text(text, encoding="utf-8")


def batch(step: str, **verdicts: str) -> str:
    """A task whose outcomes are given as ``n_1="ok"`` for node ``n-1``; two underscores are a dot."""
    nodes = {name.replace("__", ".").replace("_", "-"): verdict for name, verdict in verdicts.items()}
    lines = "".join(f"          {name}: {{verdict: {verdict}}}\n" for name, verdict in nodes.items())
    return f"    - run_once: true\n      outcomes:\n        step: {step}\n        nodes:\n{lines}"
