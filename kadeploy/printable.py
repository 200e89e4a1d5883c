"""What others say, made fit for terminals and files: a node, a BMC and a web server choose their own words.

Every `Outcome` and every refusal passes here when it is made, so that nothing which comes later has to think of it: the
terminal, the run folder's files, the database and what is listed from it.
"""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tabs and line ends: they move cursors, colour, name windows
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # these change the order of what is read
    "\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""*text* with a replacement character for each character that does something in place of being seen.

    >>> printable("no such \x1b[31mdevice\r\n\tat all")
    'no such �[31mdevice\n\tat all'
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text) if _UNPRINTABLE.search(text) else text
