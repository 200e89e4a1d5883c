"""The layers of docs/architecture.md, and one home for each third-party package."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kadeploy"

LAYERS = (
    ("errors", "nodeset"),
    (
        "config",
        "environment",
        "steps",
        "workflow",
        "files",
        "description",
        "caller",
        "controller",
        "namespace",
        "window",
    ),
    ("request", "inventory", "database", "environments", "operations", "plan", "migration", "fanout", "verdicts"),
    ("ssh",),
    ("broker", "microstep", "power", "reach", "profile", "broadcast", "uploads", "bootfiles", "hostkeys", "bootserver"),
    ("engines", "batch", "rights", "nodes", "journal", "history", "staging"),
    ("playbook", "admission", "display", "hooks", "console", "plot"),
    ("launch",),
    ("cli", "lab"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

HOMES = {
    "typer": {"cli"},
    "click": {"cli"},
    "ansible_runner": {"playbook"},
    "ansible": {"batch"},
    "peewee": {"database", "environments", "rights", "nodes", "journal", "history"},
    "asyncssh": {"ssh", "lab"},
    "pyghmi": {"power"},
    "sushy": {"power"},
    "ClusterShell": {"nodeset"},
    "tftpy": {"bootserver"},
    "libtorrent": {"broadcast"},
    "matplotlib": {"plot"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def noun(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("kadeploy.")} & set(RANK)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_its_own_layer_or_a_lower_one(path: Path) -> None:
    own = noun(path)
    if own == "__init__":
        return
    assert own in RANK, f"give {own} a layer in docs/architecture.md and here"
    too_high = {name for name in ours(path) if RANK[name] > RANK[own]}
    assert not too_high, f"{own} imports {too_high}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_third_party_package_has_one_home(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    strangers = {package for package, homes in HOMES.items() if package in used and noun(path) not in homes}
    assert not strangers, f"{path.name} imports {strangers}"


def test_the_automaton_needs_the_standard_library_only() -> None:
    used = {name.split(".")[0] for name in imports(PACKAGE / "workflow.py")}
    assert used <= set(sys.stdlib_module_names) | {"__future__"}


def test_nothing_imports_the_command_line() -> None:
    assert not [path for path in modules() if noun(path) != "cli" and "cli" in ours(path)]
