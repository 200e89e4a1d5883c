"""Pages of the reference, made from what the program itself goes by.

``python -m kadeploy.cli.reference docs/reference`` writes them anew. The page of messages is made with the site alone,
since nearly every change changes it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from kadeploy import errors
from kadeploy.admin import commented
from kadeploy.cli import TOOLS, manpages
from kadeploy.client.servers import Client
from kadeploy.config.cluster import Cluster
from kadeploy.config.file import read_yaml
from kadeploy.config.folder import collection
from kadeploy.config.site import Site
from kadeploy.environments import document, lines
from kadeploy.errors import KadeployError
from kadeploy.runner import playbooks, roles, variables
from kadeploy.server.statuses import status_of
from kadeploy.state import tables
from kadeploy.state.database import SCHEMA_VERSION
from kadeploy.workers.settings import Worker

PACKAGE = Path(errors.__file__).parent
NOWHERE = Path("/nonexistent")
"""A configuration folder without playbooks and roles of a site."""
MADE = "<!-- Made by `python -m kadeploy.cli.reference docs/reference`: changes belong into the program. -->"


def main(arguments: Sequence[str]) -> int:
    """Write the pages into a folder."""
    if len(arguments) != 1:
        print(f"usage: python -m {__spec__.name} FOLDER", file=sys.stderr)
        return 1
    for name, page in PAGES.items():
        (Path(arguments[0]) / name).write_text(page(), encoding="utf-8")
    return 0


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", MADE, *parts)) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without columns that are empty throughout."""
    found = list(rows)
    kept = [number for number in range(len(heads)) if any(row[number] for row in found)]
    shown = [[row[number] for number in kept] for row in ([*heads], ["---"] * len(heads), *found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def code(text: object) -> str:
    """*text* in a code span, within a table."""
    return f"`{str(text).replace('|', chr(92) + '|')}`" if str(text) else ""


def plain(words: str) -> str:
    """*words* as plain text of a table: no sign in them is Markdown."""
    return "".join(f"\\{sign}" if sign in "\\`*_<>[]|" else sign for sign in " ".join(words.split()))


# --- keys of files ------------------------------------------------------------------------------------------------

FILES: Mapping[str, tuple[type, str]] = {
    "site.yml": (Site, "The site: `/etc/kadeploy/site.yml`; more is in [configuration.md](../configuration.md)."),
    "clusters/NAME.yml": (Cluster, "A cluster of like nodes: `/etc/kadeploy/clusters/NAME.yml`."),
    "client.yml": (
        Client,
        "Servers that a user's tools know by name: `~/.config/kadeploy/client.yml`, else `/etc/kadeploy/client.yml`.",
    ),
    "worker.yml": (
        Worker,
        "A [worker](../howto/workers.md), on its own machine: `/etc/kadeploy/worker.yml`.",
    ),
    "An environment, as YAML or JSON": (
        document.FORM,
        "The description that `kaenv3 -a` and `kadeploy3 -a` read: [environments.md](../environments.md).",
    ),
}


def keys() -> str:
    """Every key of every file."""
    parts = ["Each key with its meaning, what it may be and its default. A key without a default has to be there."]
    for name, (kind, about) in FILES.items():
        parts += [f"## {name}", about]
        for place, section in sections(kind):
            parts += [*([f"### {name}: `{place}`"] if place else []), _keys(section)]
    parts += ["## An environment, as lines", "The same in the form of Kadeploy 3.1: `KEY : VALUE`, a line each."]
    parts += [table(("line", "field"), ((code(line), code(field)) for line, field in lines.KEYS.items()))]
    return _page("Keys of files", *parts)


def sections(kind: type, place: str = "") -> Iterator[tuple[str, type]]:
    """*kind*, and the sections and lists in it, each with the key under which it stands."""
    yield place, kind
    for key in commented.keys(kind):
        inner = key.section or key.member
        if inner:
            several = "" if key.section else "[]"
            yield from sections(inner, f"{place}{'.' if place else ''}{key.name}{several}")


def _keys(kind: type) -> str:
    rows = (
        (code(key.name), plain(key.meaning), typed(key.kind), "" if key.required else _default(key))
        for key in commented.keys(kind)
    )
    return table(("key", "meaning", "is", "default"), rows)


def _default(key: commented.Key) -> str:
    if key.section:
        return "none" if key.default is None else "as below"
    return code(msgspec.json.encode(key.default).decode())


_PLAIN: Mapping[type, str] = {
    inspect.StrType: "text",
    inspect.IntType: "number",
    inspect.FloatType: "number, also with decimals",
    inspect.BoolType: "true or false",
    inspect.NoneType: "null",
    inspect.AnyType: "anything",
    inspect.StructType: "section",
}


def typed(kind: inspect.Type) -> str:
    """What a value may be, in words."""
    if isinstance(kind, inspect.Metadata):
        return typed(kind.type)
    if isinstance(kind, inspect.LiteralType):
        return " ".join(code(word) for word in kind.values)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(dict.fromkeys(typed(each) for each in kind.types if not isinstance(each, inspect.NoneType)))
    if isinstance(kind, inspect.DictType):
        return f"by {typed(kind.key_type)}: {typed(kind.value_type)}"
    if isinstance(kind, inspect.CollectionType):
        return f"list: {typed(kind.item_type)}"
    return f"{_PLAIN[type(kind)]} {_bounds(kind)}".rstrip()


def _bounds(kind: Any) -> str:
    low, above, high = (getattr(kind, name, None) for name in ("ge", "gt", "le"))
    if above is not None:
        return f"above {above}"
    if low is None:
        return ""
    return f"from {low} on" if high is None else f"from {low} to {high}"


# --- variables ----------------------------------------------------------------------------------------------------


def seen() -> str:
    """Every variable of tools, scripts and plays."""
    own = ((code(name), plain(meaning)) for name, meaning in manpages.ENVIRONMENT.items())
    return _page(
        "Variables",
        "## Of the tools",
        table(("variable", "meaning"), own),
        "## Of scripts",
        "Scripts of micro-steps, pre- and post-installs and custom operations find these in their environment, besides "
        "the [custom variables](../environments.md#custom-variables) of the environment.",
        _variables(variables.SCRIPTS),
        "## Of plays",
        "What a playbook or a role of a site sees, for the group `kadeploy_nodes` "
        "([how to add one](../workflow.md#adding-a-macro-step-implementation)). "
        "Variables of roles are with the [steps](steps.md#micro-steps).",
        _variables({name: each for name, each in variables.PLAYS.items() if name in variables.PROMISED}),
        "For each node:",
        _variables(variables.NODES),
        "## What is promised",
        "Hooks, roles, playbooks and scripts of a site may rely on all variables above, and on the groups "
        "`kadeploy_nodes`, `cluster_NAME` and `os_KIND`: they keep their names and meanings for as long as the first "
        "number of Kadeploy's version stays. One that has to go is named in the changelog a minor version before, and "
        "works until then. New ones come at any time.",
        "These go between our own roles, and change with them:",
        _variables({name: each for name, each in variables.PLAYS.items() if name not in variables.PROMISED}),
    )


def _variables(meanings: Mapping[str, str]) -> str:
    return table(("variable", "holds"), ((code(name), plain(meaning)) for name, meaning in meanings.items()))


# --- steps --------------------------------------------------------------------------------------------------------


_PARTS = ("deploy", "failed_nodes")
"""Playbooks of ours that are no step."""


def steps() -> str:
    """Every macro-step with its implementations, and every micro-step."""
    folder = collection()
    parts = [
        "What each does is told on [workflow.md](../workflow.md). A micro-step in parentheses runs where "
        "[its condition](../workflow.md#micro-steps) holds.",
        "## Macro-steps",
    ]
    known = playbooks.implementations(NOWHERE)
    for macro in playbooks.MACRO_STEPS:
        rows = ((code(name), _micro_steps(path)) for name, path in known.items() if playbooks.generic(name) == macro)
        parts += [f"### {macro}", table(("implementation", "micro-steps, in order"), rows)]
    others = (path for path in sorted((folder / "playbooks").glob("*.yml")) if path.stem not in (*known, *_PARTS))
    parts += ["### Reboots and power", table(("playbook", "micro-steps, in order"), map(_other, others))]
    parts += ["## Micro-steps"]
    for path in sorted((folder / "roles").iterdir()):
        parts += _role(path)
    return _page("Steps", *parts)


def _other(path: Path) -> tuple[str, str]:
    return code(path.stem), _micro_steps(path)


def _micro_steps(path: Path) -> str:
    conditional = playbooks.left_out(path, {"": True} | dict.fromkeys(_conditions(path), False))
    names = playbooks.micro_steps(path, NOWHERE)
    return ", ".join(f"({code(name)})" if name in conditional else code(name) for name in names)


def _conditions(path: Path) -> set[str]:
    entries = [entry for play in read_yaml(path) for entry in play["roles"]]
    return {str(entry["when"]).removeprefix("kadeploy_wants.") for entry in entries if "when" in entry}


def _role(path: Path) -> list[str]:
    spec = specification(path)
    own = {name: option for name, option in spec["options"].items() if not name.startswith("kadeploy_")}
    about = f"{plain(spec['short_description'])}{_told(path.name)}. [More](../../roles/{path.name}/README.md)"
    return [f"### {path.name}", about, *([options(own, "the request's")] if own else [])]


def _told(name: str) -> str:
    facts = "; ".join(of_step(name))
    return f" ({facts})" if facts else ""


def specification(role: Path) -> dict[str, Any]:
    """What the role in a folder says of itself and its variables."""
    spec: dict[str, Any] = read_yaml(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]
    return spec


def of_step(name: str) -> list[str]:
    """What else is to be known of our role *name* as a micro-step."""
    role = roles.find(name, NOWHERE)
    facts = (
        f"after {role.timeout} s nodes that are still busy are KO" * bool(role.timeout),
        "its nodes count as rebooting" * role.reboots,
        "nodes that are OK after it have booted" * role.booted,
        "it is no step of its own, and cannot be named" * role.silent,
    )
    return [fact for fact in facts if fact]


def needs_a_request(spec: Mapping[str, Any]) -> bool:
    """Whether a role with these variables works in a play that has a request alone."""
    return bool(spec.get("kadeploy_request_file", {"required": True}).get("required"))


def options(spec: Mapping[str, Any], required: str = "required") -> str:
    """A table of the variables of a role, with that word for those that have no default."""
    rows = (_option(name, option, required) for name, option in spec.items())
    return table(("variable", "meaning", "is", "one of", "default"), rows)


def _option(name: str, option: Mapping[str, Any], required: str) -> tuple[str, ...]:
    described = option["description"]
    meaning = described if isinstance(described, str) else " ".join(described)
    choices = " ".join(map(code, option.get("choices", ())))
    default = code(option["default"]) or "empty" if "default" in option else ""
    return (
        code(name),
        plain(unmarked(meaning)),
        option["type"],
        choices,
        required if option.get("required") else default,
    )


def unmarked(text: str) -> str:
    """*text* without the marks of Ansible's documents, such as ``V(…)``."""
    return re.sub(r"\b[CMOV]\(([^)]*)\)", r"\1", text)


# --- the database -------------------------------------------------------------------------------------------------


def database() -> str:
    """Every table and its columns."""
    parts = [
        f"The tables of a site's state, as of version {SCHEMA_VERSION} of the schema; `kadeploy-site upgrade` leads "
        "older ones to it. They may be read at any time. Only Kadeploy writes: its commands keep together what belongs "
        "together.",
    ]
    for kind in tables.TABLES:
        rows = [_column(kind, name) for name in kind._meta.fields]
        heads = ("column", "type", "", "default", "meaning")
        parts += [f"## {kind._meta.table_name}", plain(_summary(kind)), table(heads, rows)]
    return _page("Tables of the database", *parts)


def _column(kind: Any, name: str) -> tuple[str, ...]:
    field = kind._meta.fields[name]
    key = kind._meta.primary_key
    is_key = name in (key.field_names if hasattr(key, "field_names") else (key.name,))
    length = getattr(field, "max_length", None)
    typed = f"{field.field_type.lower()}({length})" if length else field.field_type.lower()
    held = "key" if is_key else "or null" if field.null else ""
    meaning = commented.readable(commented.texts(kind).get(name, ""), kind)
    return code(field.column_name), plain(typed), held, _column_default(field.default), plain(meaning)


def _column_default(value: Any) -> str:
    return "" if value is None or callable(value) else code(msgspec.json.encode(value).decode())


# --- statuses and messages ----------------------------------------------------------------------------------------


def statuses() -> str:
    """Every exit status of every tool, and every kind of refusal."""
    rows = [
        (code(name), code(status), plain(manpages.tool(name).statuses[status]))
        for name in TOOLS
        for status in sorted(manpages.tool(name).statuses)
    ]
    return _page(
        "Exit statuses and refusals",
        "## Statuses of the tools",
        table(("tool", "status", "tells"), rows),
        "## Refusals",
        "What is refused is told in one line on standard error. Programs get the kind too: from the "
        "[service](../api.md) as `error`, with an HTTP status.",
        table(("kind", "means", "exit status", "HTTP status"), map(_refusal, _kinds())),
    )


def _refusal(kind: type[KadeployError]) -> tuple[str, ...]:
    return code(kind.__name__), plain(_summary(kind)), code(kind.exit_code), code(status_of(kind("")))


def _kinds(kind: type[KadeployError] = KadeployError) -> Iterator[type[KadeployError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _kinds(each)


def _summary(kind: type) -> str:
    return commented.readable(" ".join((kind.__doc__ or "").split()), kind)


def messages() -> str:
    """Every text with which something is refused, by its kind; … stands for what is only known then."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, words in _raised(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(name, set()).add((plain(words), code(path.relative_to(PACKAGE))))
    parts = [
        "What is refused and why, as the program says it. … stands for a name, a number or a reason that is only known "
        "then.",
    ]
    for kind in (each for each in _kinds() if each.__name__ in found):
        about = f"{plain(_summary(kind))} Exit status {kind.exit_code}."
        parts += [f"## {kind.__name__}", about, table(("message", "in"), sorted(found[kind.__name__]))]
    return _page("Messages", *parts)


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What is raised in a module with a text, and the text."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name), args=[text, *_])):
                words = re.sub(r"(?:…\.?)+…", "…", "".join(_literal(text))).strip()
                if words.strip("… .:"):
                    yield name, words


def _literal(node: ast.expr) -> Iterator[str]:
    """The text of an expression, as far as it stands in the source."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for each in node.values:
            yield from _literal(each)
    elif isinstance(node, ast.BinOp):
        yield from _literal(node.left)
        yield from _literal(node.right)
    else:
        yield "…"


PAGES: Mapping[str, Callable[[], str]] = {
    "keys.md": keys,
    "variables.md": seen,
    "steps.md": steps,
    "database.md": database,
    "statuses.md": statuses,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
