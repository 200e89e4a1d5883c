"""The tree of exceptions: drawn whole, in one file, with names of one form."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from kadeploy import errors
from kadeploy.errors import KadeployError
from kadeploy.operations.service import Refusal

PACKAGE = Path(errors.__file__).parent


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]


def is_exception(node: ast.ClassDef) -> bool:
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return any(base.endswith(("Error", "Exception")) for base in bases)


def test_every_exception_of_ours_is_in_the_tree_that_the_docstring_draws() -> None:
    """The relay is a program of its own, which nodes run without the rest of the package."""
    found = {
        node.name
        for path in PACKAGE.rglob("*.py")
        if path.name != "relay.py"
        for node in classes(path)
        if is_exception(node)
    }
    drawn = set(re.findall(r"\b\w+Error\b", errors.__doc__ or "")) - {"OSError"}
    assert found == drawn == {node.name for node in classes(PACKAGE / "errors.py")}


def test_the_exit_codes_are_those_that_the_docstring_tells() -> None:
    told = dict(re.findall(r"(\w+Error) +exit code (\d+)", errors.__doc__ or ""))
    own = {
        name: str(kind.exit_code)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and "exit_code" in vars(kind)
    }
    assert told == own


@pytest.mark.parametrize(
    "name", [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, KadeployError)]
)
def test_every_refusal_arrives_at_a_client_as_what_it_was(name: str) -> None:
    kind = getattr(errors, name)
    told = msgspec.json.encode(Refusal.of(kind("No: do this.")))
    with pytest.raises(KadeployError, match=r"^No: do this\.$") as refused:
        msgspec.json.decode(told, type=Refusal).raised()
    assert type(refused.value) is kind
