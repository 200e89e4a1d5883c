"""Pages of roles: what each does, its variables, and how it is used, from what the role says of itself.

``python -m kadeploy.cli.role_pages roles`` writes the ``README.md`` of every role anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kadeploy.cli.reference import code, needs_a_request, of_step, options, plain, specification, table, unmarked
from kadeploy.runner.variables import SCRIPTS

MADE = "<!-- Made by `python -m kadeploy.cli.role_pages roles`: changes belong into meta/argument_specs.yml. -->"
_SCRIPT_VARIABLE = re.compile(r"\bKADEPLOY_\w+")


_ALONE = (
    "A request tells all that it needs. In a play without one these variables do. A host that is as it shall be "
    "already is left alone; check mode says what would be done, and diff how."
)


def main(arguments: Sequence[str]) -> int:
    """Write the pages of all roles in a folder."""
    if len(arguments) != 1:
        print(f"usage: python -m {__spec__.name} FOLDER", file=sys.stderr)
        return 1
    for role in folders(Path(arguments[0])):
        (role / "README.md").write_text(page(role), encoding="utf-8")
    return 0


def folders(roles: Path) -> list[Path]:
    """The roles in a folder."""
    return sorted(path.parent.parent for path in roles.glob("*/meta/argument_specs.yml"))


def page(role: Path) -> str:
    """The page of the role in a folder."""
    return "\n\n".join(_parts(role)) + "\n"


def _parts(role: Path) -> Iterator[str]:
    spec = specification(role)
    yield f"# kadeploy.core.{role.name}"
    yield MADE
    yield f"{plain(spec['short_description'])}."
    yield from (plain(unmarked(paragraph)) for paragraph in spec["description"])
    alone = not needs_a_request(spec["options"])
    if alone:
        yield _ALONE
    if told := of_step(role.name):
        yield f"As a micro-step: {'; '.join(told)}."
    yield "## Variables"
    yield options(spec["options"], "the request's, else required" if alone else "required")
    if used := _used(role):
        yield "Of the variables of scripts, in `kadeploy_env`, it uses:"
        yield table(("variable", "holds"), ((code(name), plain(SCRIPTS[name])) for name in used))
    yield "## Example"
    yield _example(role.name, spec)
    yield "Licence: GPL-3.0-or-later."


def _used(role: Path) -> list[str]:
    files = [*(role / "files").glob("*"), *(role / "tasks").glob("*.yml"), *(role / "defaults").glob("*.yml")]
    named = {name for file in files for name in _SCRIPT_VARIABLE.findall(file.read_text(encoding="utf-8"))}
    return [name for name in SCRIPTS if name in named]


def _example(name: str, spec: dict[str, object]) -> str:
    return f"""\
```yaml
# ansible-playbook -i inventory.kadeploy.yml this.yml
- name: {spec["short_description"]}
  hosts: kadeploy_nodes
  gather_facts: false
  run_once: true
  roles:
    - role: kadeploy.core.{name}
```"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
