"""How long ``ansible-inventory --graph`` takes for the nodes of a site, as a whole process.

It is compared to Ansible's own YAML inventory of the same hosts, groups and variables. Run: ``python -m bench inventory
[--quick] [--json FILE]``; the status is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from bench.commands import Cost, best, cost, prepare
from kadeploy.caller import caller
from kadeploy.config.folder import collection
from kadeploy.operations import hosts
from kadeploy.operations.local import Local
from kadeploy.state import database

NODES, ROWS = 10_000, 1_000_000
LIMIT = 5.0
"""Seconds."""
RATIO = 1.5
"""Of the CPU times, which a busy machine disturbs less than wall times."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the data: no judgement")
    options = parser.parse_args(argv)
    scale, runs = (100, 1) if options.quick else (1, 3)
    with tempfile.TemporaryDirectory(prefix="kadeploy-bench-") as name:
        prepare(Path(name), nodes=NODES // scale, rows=ROWS // scale, environments=10)
        ours, theirs = measure(Path(name), runs)
    ratio = ours.cpu / theirs.cpu
    print(f"{'inventory':<12} {'wall':>8} {'CPU':>8} {'memory':>8}")
    for kind, found in (("kadeploy", ours), ("YAML", theirs)):
        print(f"{kind:<12} {found.wall:>6.2f} s {found.cpu:>6.2f} s {found.rss:>5.0f} MB")
    print(f"{NODES // scale} nodes; {ratio:.2f} times the CPU time of YAML")
    if options.json:
        figures = {"kadeploy": asdict(ours), "YAML": asdict(theirs), "ratio": ratio}
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if options.quick or (ours.wall <= LIMIT and ratio <= RATIO) else 1


def measure(folder: Path, runs: int) -> tuple[Cost, Cost]:
    """The best of *runs* of ours, and one of YAML, which takes minutes."""
    (folder / "ansible.cfg").touch()
    (folder / "ansible_collections" / "kadeploy").mkdir(parents=True)
    (folder / "ansible_collections" / "kadeploy" / "core").symlink_to(collection())
    (folder / "nodes.kadeploy.yml").write_text(f"plugin: kadeploy.core.kadeploy\nconfig_dir: {folder}\n")
    write_yaml(folder, folder / "nodes.yml")
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(folder),
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
    }
    command = [Path(sys.executable).with_name("ansible-inventory"), "--graph", "-i"]
    ours = best([cost([*command, folder / "nodes.kadeploy.yml"], environment) for _ in range(runs)])
    return ours, cost([*command, folder / "nodes.yml"], environment)


def write_yaml(folder: Path, path: Path) -> None:
    """The same as an inventory of Ansible's own."""
    found = hosts.of(Local(caller(), folder), [], [], print)
    database.disconnect()
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for name, variables in found.items():
        for kind, variable in hosts.GROUPED.items():
            groups.setdefault(f"{kind}_{variables[variable]}", {"hosts": {}})["hosts"][name] = None
    written = {"all": {"hosts": found, "children": groups}}
    path.write_text(yaml.dump(written, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
