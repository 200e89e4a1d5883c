"""The layers between packages, as docs/architecture.md has them; the top floor; one home per third-party package."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kadeploy"

LAYERS = (
    {
        "workflow",
        "errors",
        "hints",
        "printable",
        "nodeset",
        "files",
        "caller",
        "process",
        "commands",
        "checksums",
        "dates",
    },
    {"environments", "remote", "config"},
    {"boot", "state", "power", "broadcast", "images"},
    {"events", "pictures"},
    {"runner", "microsteps"},
    {"workers"},
    {"operations", "lab", "admin"},
    {"client", "server"},
    {"worker"},
    {"cli", "modules"},
)
"""A package imports from lower layers, and from its own as long as no circle comes of it."""
WORKER = {"connection", "errands", "settings", "shard", "worker"}
"""Modules of `workers` that run on the worker's machine: above the client by which they call their controller."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

HOMES: dict[str, set[str]] = {
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"pictures"},
    "dateutil": {"pictures"},
    "ansible_runner": {"runner"},
    "ansible": {"microsteps", "config/host_variables.py"},
    "peewee": {"state"},
    "asyncssh": {"remote", "lab"},
    "pyghmi": {"power"},
    "sushy": {"power"},
    "ClusterShell": {"nodeset"},
    "tftpy": {"boot"},
    "jinja2": {"boot", "server"},
    "libtorrent": {"broadcast"},
    "litestar": {"server"},
    "prometheus_client": {"server"},
    "uvicorn": {"server"},
    "argon2": {"server"},
    "bcrypt": {"server"},
    "wsproto": {"client"},
    "procrastinate": {"workers/jobs.py"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room(path: Path) -> str:
    """Package or top module that a file belongs to."""
    return room_of(name_of(path).removesuffix(".py").split("/"))


def room_of(parts: Sequence[str]) -> str:
    """The same by the parts of its name."""
    return "worker" if parts[0] == "workers" and parts[1:] and parts[1] in WORKER else parts[0]


@cache
def imports(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return frozenset(names)


def rooms(path: Path) -> set[str]:
    """Rooms that a file imports from, its own left out."""
    named = (name.split(".")[1:] for name in imports(path) if name.startswith("kadeploy."))
    return ({room_of(parts) for parts in named} & set(RANK)) - {room(path)}


def imported_modules(path: Path) -> set[Path]:
    """Files of ours that a file imports."""
    names = {name for name in imports(path) if name.startswith("kadeploy.")}
    return {file for name in names if (file := module_file(name)) is not None} - {path}


def module_file(name: str) -> Path | None:
    """The file of module *name*; a package that merely leads to the modules in it does not count."""
    inner = PACKAGE / Path(*name.split(".")[1:])
    return inner.with_suffix(".py") if inner.with_suffix(".py").is_file() else None


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_package_imports_from_its_own_layer_or_a_lower_one(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    assert own in RANK, f"give {own} a layer in docs/architecture.md and here"
    too_high = {name for name in rooms(path) if RANK[name] > RANK[own]}
    assert not too_high, f"{own} imports {too_high}"


def test_no_package_imports_one_that_imports_it() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        graph.setdefault(room(path), set()).update(rooms(path))
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_module_imports_one_that_imports_it() -> None:
    TopologicalSorter({path: imported_modules(path) for path in modules()}).prepare()


def test_no_tool_imports_another_tool() -> None:
    tools = {path.stem for path in (PACKAGE / "cli").glob("ka*.py")}
    for path in modules():
        others = {each.stem for each in imported_modules(path) if each.parent.name == "cli"} & tools
        assert not others, f"{name_of(path)} imports the tools {others}"


def test_the_top_floor_stays_small() -> None:
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert len(packages) <= 19
    assert len([path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]) <= 12


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_each_third_party_package_has_one_home(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    own = {room(path), name_of(path)}
    strangers = {package for package, homes in HOMES.items() if package in used and not own & homes}
    assert not strangers, f"{path.name} imports {strangers}"


def test_the_automaton_needs_the_standard_library_only() -> None:
    needed = {name for module in ("workflow", "printable") for name in imports(PACKAGE / f"{module}.py")}
    used = {name.split(".")[0] for name in needed if not name.startswith("kadeploy.printable")}
    assert used <= set(sys.stdlib_module_names) | {"__future__"}


def test_who_does_without_workers_imports_none_of_the_worker_and_no_queue() -> None:
    """The worker's half is its command's alone and its pages'; Procrastinate is optional: imported where it is used."""
    users = {name_of(path) for path in modules() if "worker" in rooms(path)}
    assert users == {"cli/kadeploy_worker.py", "cli/file_pages.py", "cli/reference.py"}
    tree = ast.parse((PACKAGE / "workers" / "jobs.py").read_text(encoding="utf-8"))
    at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in at_once if "procrastinate" in ast.unparse(node) or "psycopg" in ast.unparse(node)]
