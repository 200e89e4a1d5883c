"""Man pages, and the option tables of the page for users, made from what ``--help`` is made of.

``python -m kadeploy.cli.manpages docs/man docs/commands.md`` writes one man page per tool, and the tables anew.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from kadeploy import __version__
from kadeploy.cli import TOOLS, usage
from kadeploy.cli.shell import Tool

ENVIRONMENT = {
    "KADEPLOY_CONFIG_DIR": "Folder of the site's configuration; /etc/kadeploy by default.",
    "KADEPLOY_PLAIN": "Set to anything: plain lines, without colours or a live view, on any terminal.",
    "NO_COLOR": "The same.",
}
FILES = {
    "/etc/kadeploy/site.yml": "The site: database, boot server, administrators, default verbosity.",
    "/etc/kadeploy/clusters/NAME.yml": "A cluster: nodes, disk, power and console commands, steps.",
}


def tool(name: str) -> Tool:
    """The application that the command *name* runs."""
    module = importlib.import_module(f"kadeploy.cli.{name.replace('-', '_')}")
    app: Tool = module.app
    return app


def page(name: str) -> str:
    """The man page of the tool *name*, in roff: groff_man(7)."""
    app = tool(name)
    (command, context), *verbs = described(name)
    lines = [f'.TH {literal(name.upper())} 1 "" "Kadeploy {__version__}" "Kadeploy"']
    lines += [".SH NAME", literal(f"{name} - {app.summary.rstrip('.')}")]
    lines += [".SH SYNOPSIS", *_usage(command, context)]
    lines += [".SH DESCRIPTION", literal(app.summary)]
    if app.about:
        lines += [".PP", literal(app.about)]
    lines += [".SH OPTIONS", *_options(command, context)]
    if verbs:
        lines += [".SH COMMANDS"]
    for each, inner in verbs:
        lines += [*_usage(each, inner, ".SS"), literal(each.help), *_options(each, inner)]
    lines += [".SH EXIT STATUS", *_definitions((str(status), app.statuses[status]) for status in sorted(app.statuses))]
    lines += [".SH EXAMPLES", *_definitions(app.examples.items())]
    lines += [".SH ENVIRONMENT", *_definitions(ENVIRONMENT.items())]
    lines += [".SH FILES", *_definitions(FILES.items())]
    others = [f".BR {literal(other)} (1)" for other in TOOLS if other != name]
    lines += [".SH SEE ALSO", " ,\n".join(others)]
    return "\n".join(lines) + "\n"


def described(name: str) -> list[tuple[Any, Any]]:
    """The command *name* and the commands that it has, each with the context in which it tells of itself."""
    command = tool(name).made(name)
    context = typer.Context(command, info_name=name, **command.context_settings)
    return [(command, context), *_verbs(command, context)]


def _verbs(command: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """The commands of a group, and those of the groups in it."""
    commands: Mapping[str, Any] = getattr(command, "commands", {})
    for verb, each in commands.items():
        inner = typer.Context(each, info_name=verb, parent=context, **each.context_settings)
        if not hasattr(each, "commands") or each.invoke_without_command:
            yield each, inner
        yield from _verbs(each, inner)


def records(command: Any, context: Any) -> list[tuple[str, str]]:
    """Options and arguments as the help shows them: their spellings, and what they mean."""
    return [record for found in usage.groups(command, context).values() for record in found]


_TABLE = re.compile(r"(^##+ (ka[\w-]+(?: \w+)*)\n(?:(?!##).*\n)*?\| option \|.*\n\|-.*\n)(?:\|.*\n)+", re.MULTILINE)


def with_tables(text: str) -> str:
    """*text*, in Markdown, with the option table under each heading that is a tool (and its command) made anew."""
    rows = {
        context.command_path: "".join(f"{row}\n" for row in _rows(usage.groups(command, context)))
        for name in TOOLS
        for command, context in described(name)
    }
    return _TABLE.sub(lambda match: match[1] + rows[match[2]], text)


def _rows(groups: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[str]:
    for group, found in groups.items():
        if group != usage.DAILY:
            yield f"| *{group}* | |"
        yield from (f"| `{words}` | {meaning} |" for words, meaning in found)


def _usage(command: Any, context: Any, macro: str = "") -> list[str]:
    words = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    return [f"{macro} {_styled(words)}".lstrip()]


def _options(command: Any, context: Any) -> list[str]:
    """Each group as a paragraph with its name, that of every day without one."""
    lines: list[str] = []
    for group, found in usage.groups(command, context).items():
        lines += [] if group == usage.DAILY else [".PP", f"\\fI{literal(group)}\\fR"]
        lines += [line for words, meaning in found for line in (".TP", _styled(words), literal(meaning))]
    return lines


def _definitions(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [line for word, text in pairs for line in (".TP", f"\\fB{literal(word)}\\fR", literal(text))]


_WORD = re.compile(r"(?<![\w-])(--?\w[\w-]*|kadeploy(?:-lab|3d)(?: [a-z]+)*|ka\w+3)(?![\w-])|([A-Z][A-Z_]*|<\w+>)")


def _styled(words: str) -> str:
    """Options and commands in bold, what stands for something else in italics."""
    parts = []
    end = 0
    for match in _WORD.finditer(words):
        parts += [literal(words[end : match.start()]), f"\\f{'B' if match[1] else 'I'}{literal(match[0])}\\fR"]
        end = match.end()
    return "".join(parts) + literal(words[end:])


def literal(words: str) -> str:
    """*words* as roff prints them: nothing in them is a request."""
    safe = " ".join(words.split("\n")).replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    portable = "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in safe)
    return f"\\&{portable}" if portable.startswith(".") else portable


def main(arguments: Sequence[str]) -> int:
    """Write the man pages into a folder, and the tables into a page."""
    if len(arguments) != 2:
        print(f"usage: python -m {__spec__.name} FOLDER PAGE", file=sys.stderr)
        return 1
    folder, users = map(Path, arguments)
    for name in TOOLS:
        (folder / f"{name}.1").write_text(page(name), encoding="utf-8")
    users.write_text(with_tables(users.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
