"""What ``--help``, the man pages and docs/commands.md show: options in named groups, those of every day first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

DAILY = "Options"
"""What a daily user needs: options without a group of their own."""
ENVIRONMENT = "Which environment"
DISK = "Disk"
BOOT = "Boot and network"
STEPS = "Steps"
SELECTION = "What is counted"
CHANGES = "Changing what is recorded"
MACHINES = "Machines"
FAULTS = "Faults"
RUN = "How it runs"
OUTPUT = "Output"
GENERAL = "General"
GROUPS = (DAILY, ENVIRONMENT, CHANGES, DISK, BOOT, STEPS, SELECTION, MACHINES, FAULTS, RUN, OUTPUT, GENERAL)
"""In the order in which they are shown."""

FIRST_EXAMPLES = 2
"""Examples in front of the options; the others come behind them, unless it would be one alone."""
WIDEST = 160
"""Columns beyond which lines are not followed by the eye."""


_TYPE = re.compile(r" <[\w\[\]]+>")
"""What typer adds to the name of an argument."""


def groups(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """The options and arguments of *command* by group: their spellings, and what they mean."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            words, meaning = record
            found[getattr(parameter, "rich_help_panel", None) or DAILY].append((_TYPE.sub("", words), meaning))
    return {name: records for name, records in found.items() if records}


def write_options(command: Any, context: Any, formatter: Any) -> None:
    """Write the groups, all second columns below each other."""
    found = groups(command, context)
    width = formatter.first_column([record for records in found.values() for record in records])
    for name, records in found.items():
        with formatter.section(name):
            formatter.write_dl([(words.ljust(width), meaning) for words, meaning in records], width)


def split_examples(examples: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Those in front of the options, and those behind."""
    first = FIRST_EXAMPLES if len(examples) > FIRST_EXAMPLES + 1 else len(examples)
    return examples[:first], examples[first:]


def write_examples(title: str, examples: Sequence[str], formatter: Any) -> None:
    """Write command lines as they are typed, none of them wrapped."""
    if examples:
        with formatter.section(title):
            for line in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
