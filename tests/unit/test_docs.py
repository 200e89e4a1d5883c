"""The pages tell the truth: names and links in them exist, nothing is left open, and every page can be reached."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.unit import test_layers

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kadeploy"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

SOURCES = ("kadeploy", "inventory_plugins", "plugins", "bench", "tests")
"""Folders of Python whose names pages may use."""
PRODUCT = ("kadeploy", "playbooks", "roles")
"""Folders whose files pages may call by the end of their path, such as remote/fanout.py."""
BUILDS = ("playbooks", "roles", "templates", "meta", "scripts", "docs", "molecule", "contrib", "debian")
"""Folders of other files."""

NAMED = ("README.md", "docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md", "docs/adr/*.md")
"""Pages for those who read the code: each name in them has to exist."""

FOREIGN = {
    "internal_poll_interval",
    *("if", "linear", "pipefail", "socat", "splice", "tee"),
}
"""Words that are no names of ours."""

# --- names that exist -------------------------------------------------------------------------------------------------


@dataclass
class Scope:
    """The names that a module or a class defines."""

    names: dict[str, Scope] = field(default_factory=dict)

    def has(self, dotted: str) -> bool:
        scope = self
        for part in dotted.split("."):
            if part not in scope.names:
                return False
            scope = scope.names[part]
        return True


def scope_of(body: Iterable[ast.stmt]) -> Scope:
    """What the statements of a module or of a class define, conditional ones included."""
    scope = Scope()
    for node in body:
        if isinstance(node, ast.ClassDef):
            scope.names[node.name] = scope_of(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            scope.names[node.name] = Scope()
        elif isinstance(node, ast.Assign):
            scope.names |= {each.id: Scope() for each in node.targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            scope.names[node.target.id] = Scope()
        elif isinstance(node, ast.If | ast.Try):
            scope.names |= scope_of(node.body).names
    return scope


@cache
def modules() -> dict[Path, Scope]:
    """Every Python file and what it defines, with what it inherits from classes of the same name space."""
    found = {
        path: scope_of(ast.parse(path.read_text(encoding="utf-8")).body)
        for folder in SOURCES
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
    }
    classes = {name: each for scope in found.values() for name, each in scope.names.items() if each.names}
    for path, scope in found.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in scope.names:
                for base in (each.id for each in node.bases if isinstance(each, ast.Name)):
                    scope.names[node.name].names |= classes.get(base, Scope()).names
    return found


@cache
def files() -> frozenset[str]:
    """Every file and folder of ours as a path below the project; those of the product by each shorter path as well."""
    tops = [path for path in ROOT.iterdir() if path.is_file() or path.name in (*SOURCES, *BUILDS)]
    paths = [path for top in tops for path in (top, *(top.rglob("*") if top.is_dir() else ()))]
    parts = [path.relative_to(ROOT).parts for path in paths if "__pycache__" not in path.parts]
    short = ("/".join(each[start:]) for each in parts if each[0] in PRODUCT for start in range(1, len(each)))
    return frozenset({*("/".join(each) for each in parts), *short})


@cache
def texts() -> frozenset[str]:
    """Single words that the program writes or reads: keys, choices, variables, names of files."""
    words: set[str] = set()
    for path in (*PACKAGE.rglob("*.py"), *ROOT.glob("plugins/*/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words |= {node.value} if re.fullmatch(r"[\w.-]+", node.value) else set()
            elif isinstance(node, ast.arg):
                words.add(node.arg)
    for folder in ("playbooks", "roles", "tests"):
        for path in (ROOT / folder).rglob("*.yml"):
            words |= set(keys(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return frozenset(words)


def keys(value: object) -> Iterator[str]:
    """The keys of a YAML file, and the words that are values on their own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)
    elif isinstance(value, str) and re.fullmatch(r"[\w.-]+", value):
        yield value


@cache
def packages() -> frozenset[str]:
    """Third-party packages that we depend on, and modules of Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[\[>=<]", each)[0] for each in wanted}
    return frozenset(names | {each.lower() for each in names} | set(sys.stdlib_module_names) | set(project["scripts"]))


@cache
def collection() -> str:
    """What Ansible calls us."""
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    return f"{galaxy['namespace']}.{galaxy['name']}"


@cache
def single_names() -> frozenset[str]:
    """Every name that may stand alone: of a module, a package, a class, a function, a constant, a key, a role."""
    names: set[str] = set()
    for path, scope in modules().items():
        names |= {path.stem, *scope.names}
        names |= {inner for each in scope.names.values() for inner in each.names}
    return frozenset(names | texts() | packages() | {Path(each).stem for each in files()} | FOREIGN)


def exists(name: str) -> bool:
    """Whether *name*, as a page writes it, is something of ours."""
    plain = name.strip("/")
    if plain in files() or plain in FOREIGN or plain in texts() or plain == collection():
        return True
    if "/" in name or re.search(r"\.(py|yml|md|j2|sh|jsonl?)$", name):
        return False
    if "." not in name:
        return name in single_names()
    return any(found.has(rest) for found, rest in owners(name.removeprefix("kadeploy."))) or settings(name)


def owners(dotted: str) -> Iterator[tuple[Scope, str]]:
    """The modules and classes that the beginning of *dotted* may mean, each with the rest of it."""
    parts = dotted.split(".")
    for path, scope in modules().items():
        place = path.relative_to(ROOT).with_suffix("").parts
        for length in range(1, len(parts)):
            if place[-length:] == tuple(parts[:length]):
                yield scope, ".".join(parts[length:])
        if parts[0] in scope.names:
            yield scope, dotted


def settings(dotted: str) -> bool:
    """Whether *dotted* is a variable of playbooks with its key; a module or a class would have had to define it."""
    first, *rest = dotted.split(".")
    known_owner = any(path.stem == first or first in scope.names for path, scope in modules().items())
    return not known_owner and first in texts() and all(each in single_names() for each in rest)


# --- what pages say ---------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    found = sorted(ROOT.rglob("*.md"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def called(path: Path) -> str:
    return str(path.relative_to(ROOT))


PAGES = pages()
FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./*<$-])(?:[\w-]+/)*[\w-]+\.(?:py|yml|sh|j2|jsonl)\b|(?<![\w./$-])(?:[a-z_]+/)+(?![\w<*{])")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[a-z]\w*(?:/[\w.-]+)*/?")


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def names_of(path: Path) -> set[str]:
    """The names in a page: in its code spans each that is one word, in its drawings and blocks those of files."""
    spans = {span.removesuffix("()") for span in SPAN.findall(prose(path))}
    names = {span for span in spans if NAME.fullmatch(span) or FILE.fullmatch(span)}
    blocks = "\n".join(match[0] for match in FENCE.finditer(path.read_text(encoding="utf-8")))
    names |= {name for text in (*spans, blocks) for name in FILE.findall(text)}
    return {name for name in names if "NAME" not in name}  # which stands for something else


@pytest.mark.parametrize("page", [path for pattern in NAMED for path in sorted(ROOT.glob(pattern))], ids=called)
def test_every_name_in_a_page_for_developers_exists(page: Path) -> None:
    missing = {name for name in names_of(page) if not exists(name)}
    assert set(missing) == set()


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_file_of_ours_that_a_page_names_exists(page: Path) -> None:
    ours = {name for name in names_of(page) if FILE.fullmatch(name) and name.split("/")[0] in (*SOURCES, *BUILDS)}
    assert {name for name in ours if not exists(name)} == set()


def test_every_name_in_the_table_of_modules_is_defined_in_its_module() -> None:
    rows = re.findall(r"^\| \[[^\]]+\]\(\.\./(kadeploy/\S+\.py)\) \| (`.*) \|$", prose(ARCHITECTURE), re.MULTILINE)
    assert len(rows) > 20
    wrong = {
        f"{module}: {name}"
        for module, names in rows
        for name in SPAN.findall(names)
        if not modules()[ROOT / module].has(name)
    }
    assert wrong == set()


def test_the_arguments_of_every_action_are_told() -> None:
    section = prose(ARCHITECTURE).split("### Arguments of the actions")[1].split("\n#")[0]
    told = {
        row[0]: set(re.findall(r"`(\w+)`:", row[1]))
        for row in re.findall(r"^\| `(\w+)` \| (.*) \|", section, re.MULTILINE)
    }
    actions = [path.stem for path in (ROOT / "plugins" / "action").glob("*.py")]
    engines = {name: import_module(f"kadeploy.microsteps.{name}") for name in actions}
    assert told == {name: set(getattr(engine, "ARGUMENTS", ())) for name, engine in engines.items()}


def test_the_layers_on_the_page_are_those_that_are_checked() -> None:
    [block] = re.findall(
        r"^```\n(cli, modules\n.*?)\n```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    told = [set(line.split(", ")) for line in block.splitlines()]
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {"events", "worker"}
    checked = [layer & folders for layer in reversed(test_layers.LAYERS)]
    assert told == [layer or {"the top level"} for layer in checked]


def test_every_package_has_its_question() -> None:
    told = set(re.findall(r"^\| `(\w+)/` \| .*\? \|", prose(ARCHITECTURE), re.MULTILINE))
    assert told == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_every_module_of_the_top_level_is_told_of() -> None:
    told = set(re.findall(r"`(\w+\.py)` \(", prose(ARCHITECTURE)))
    assert {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"} <= told


# --- links and gaps ---------------------------------------------------------------------------------------------------


def targets(page: Path) -> list[tuple[str, str]]:
    """Relative links of a page, each with its anchor (or an empty one)."""
    found = [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]
    return [(link.partition("#")[0], link.partition("#")[2]) for link in found]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link, anchor in targets(page):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    todo, seen = [ROOT / "README.md"], set()
    while todo:
        page = todo.pop().resolve()
        if page not in seen:
            seen.add(page)
            todo += [page.parent / link for link, _ in targets(page) if link.endswith(".md")]
    assert {called(page) for page in PAGES if page.resolve() not in seen} == set()


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_nothing_is_left_open(page: Path) -> None:
    text = SPAN.sub("", prose(page))
    capitals = set(re.findall(r"\b(?:[A-Z]+_[A-Z_]+|TODO|TBD|FIXME|XXX)(?![\w*])", text))
    assert {word for word in capitals if word not in texts()} == set()
