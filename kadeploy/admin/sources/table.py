"""Nodes from a table: CSV with a header, columns in any order, between commas, semicolons or tabs (RFC 4180)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from kadeploy.admin.sources.found import COLUMNS, Entry, Found, LeftOut, plain
from kadeploy.errors import FileError
from kadeploy.hints import did_you_mean

_DELIMITERS = ",;\t"
_SHOWN = 80


def read(text: str, path: str) -> Found:
    """Nodes of *text*, which is in the file *path*; lines that begin with a hash sign are comments.

    Raises:
        FileError: it is no table, or no column has the nodes' names.
    """
    numbered = list(enumerate(text.splitlines(keepends=True), start=1))
    lines = [(number, line) for number, line in numbered if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise FileError(f"{path}: is empty; its first line has to name the columns: name, address, mac, bmc.")
    number, header = lines[0]
    delimiter = max(_DELIMITERS, key=header.count)
    columns = _columns(_row(header, delimiter, f"{path}:{number}"), f"{path}:{number}")
    entries, left_out = [], []
    for number, line in lines[1:]:
        where = f"{path}:{number}"
        cells = dict(zip(columns, _row(line, delimiter, where), strict=False))
        values = {column: cells.get(column, "").strip() for column in COLUMNS}
        if not values["name"]:
            left_out.append(LeftOut(where=where, text="this line has no name"))
        elif "address" in columns and not values["address"]:
            left_out.append(LeftOut(where=where, text=f"{values['name']} has no address"))
        else:
            entries.append(Entry(**values, where=where))
    return Found(entries, left_out)


def _row(line: str, delimiter: str, where: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(line), delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        raise FileError(f"{where}: is no line of a table ({error or 'empty'}): correct it.") from error


def _columns(header: Sequence[str], where: str) -> list[str]:
    """Column by column, what it holds; its own name where that is nothing to us."""
    meanings = {word: column for column, words in COLUMNS.items() for word in words}
    columns = [meanings.get(plain(word), f"unused: {word}") for word in header]
    twice = next((column for column in COLUMNS if columns.count(column) > 1), "")
    if twice:
        raise FileError(f"{where}: two columns hold the {twice}: rename one of them.")
    if "name" not in columns:
        shown = ", ".join(header)[:_SHOWN]
        hint = next(filter(None, (did_you_mean(plain(word), COLUMNS) for word in header)), "")
        raise FileError(
            f"{where}: the first line has to name the columns (name, address, mac, bmc) and is {shown!r}.{hint}"
        )
    return columns
