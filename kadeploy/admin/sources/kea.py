"""Nodes from the configuration of Kea: reservations of subnets, shared networks, or of all (JSON with comments)."""

from __future__ import annotations

import json
import json.decoder
import json.scanner
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kadeploy.admin.sources.found import Entry, Found, LeftOut
from kadeploy.errors import FileError

_LINE = ("its line",)
"""Key of an object's line; no JSON has a key like it."""
_PIECE = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*")|(?P<include><\?\s*include.*?\?>)|(?P<comment>//[^\n]*|#[^\n]*|/\*.*?\*/)', re.DOTALL
)
_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\\n])*")|,(?=\s*[}\]])')


def read(text: str, path: str) -> Found:
    """Nodes of *text*, which is in the file *path*.

    Raises:
        FileError: it is no JSON, or includes another file.
    """
    found = Found([], [])
    for reservation in _reservations(_parsed(text, path)):
        _take(reservation, f"{path}:{reservation[_LINE]}", found)
    return found


def _take(reservation: Mapping[Any, Any], where: str, found: Found) -> None:
    """Add the node that *reservation* is for to what is *found*, or why it is none."""
    values = {key: value for key, value in reservation.items() if isinstance(value, str)}
    several = reservation.get("ip-addresses")
    addresses = [values["ip-address"]] if values.get("ip-address") else []
    addresses += [each for each in several if isinstance(each, str)] if isinstance(several, list) else []
    name, mac = values.get("hostname", "").rstrip("."), values.get("hw-address", "")
    shown = name or mac or (addresses[0] if addresses else "this reservation")
    if not name:
        found.left_out.append(LeftOut(where=where, text=f"{shown} has no hostname"))
    elif not addresses:
        found.left_out.append(LeftOut(where=where, text=f"{shown} has no ip-address"))
    else:
        if len(addresses) > 1:
            text = f"{shown} has several addresses; {addresses[0]}, the first one, is taken"
            found.left_out.append(LeftOut(where=where, text=text))
        found.entries.append(Entry(name=name, address=addresses[0], mac=mac, where=where))


def _reservations(value: Any) -> Iterator[Mapping[Any, Any]]:
    """All objects in lists that are called ``reservations``, however deep."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            todo.extend(reversed(each))
        elif isinstance(each, dict):
            listed = each.get("reservations")
            yield from (inner for inner in listed if isinstance(inner, dict)) if isinstance(listed, list) else ()
            todo.extend(reversed([inner for key, inner in each.items() if key != "reservations"]))


def _parsed(text: str, path: str) -> Any:
    def blank(found: re.Match[str]) -> str:
        if found["include"]:
            line = text.count("\n", 0, found.start()) + 1
            raise FileError(f"{path}:{line}: {found[0]} is not followed: give the file that it names to --from.")
        return found["text"] or re.sub(r"[^\n]", " ", found[0])

    plain = _LAST_COMMA.sub(lambda comma: comma[1] or " ", _PIECE.sub(blank, text))
    try:
        return _Decoder(plain).decode(plain)
    except json.JSONDecodeError as error:
        raise FileError(f"{path}:{error.lineno}: is no configuration of Kea: {error.msg}.") from error
    except (RecursionError, ValueError) as error:
        raise FileError(f"{path}: is no configuration of Kea: too deep, or a number without end.") from error


class _Decoder(json.JSONDecoder):
    """Keeps the line of each object with it, under `_LINE`."""

    def __init__(self, text: str) -> None:
        super().__init__()

        def parse_object(place: tuple[str, int], *settings: Any) -> tuple[dict[Any, Any], int]:
            found, end = _parse_object(place, *settings)
            found[_LINE] = text.count("\n", 0, place[1]) + 1
            return found, end

        self.parse_object = parse_object
        self.scan_once = _make_scanner(self)


_parse_object: Any = vars(json.decoder)["JSONObject"]
_make_scanner: Any = vars(json.scanner)["py_make_scanner"]
"""The decoder in Python, which calls what an instance has for objects; the one in C has its own."""
