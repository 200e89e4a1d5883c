"""What a node left behind while it tried to boot: in the log of the boot server, and in the log of its console.

The logs are other programs'. All that is known of the boot server's is that its lines name the address of who asks.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kadeploy.commands import LINE_LIMIT, last_line

_MOST = 1 << 20
"""Bytes that are read of a log, from its end."""


@dataclass(frozen=True)
class Log:
    """A log that others write, and how long it was when we began to look."""

    path: Path
    length: int

    @classmethod
    def now(cls, path: str | Path) -> Log:
        """The log at *path* from here on; there may be none yet."""
        try:
            return cls(Path(path), Path(path).stat().st_size)
        except OSError:
            return cls(Path(path), 0)

    def lines(self) -> list[str] | None:
        """What was written since, in printable characters, without empty lines; None when it cannot be read."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begun = self.length if self.length <= size else 0  # else it is another file by now
                file.seek(max(begun, size - _MOST))
                text = file.read(_MOST).decode(errors="replace")
        except OSError:
            return None
        printable = ("".join(sign for sign in line if sign.isprintable()).strip() for line in text.splitlines())
        return [line[:LINE_LIMIT] for line in printable if line]


def asked(lines: list[str], address: str) -> str:
    """What the boot server was last asked from *address*, for people.

    >>> asked(["tftp: 10.0.1.2 'pxelinux.0' sent", "tftp: 10.0.1.20 'pxelinux.0' sent"], "10.0.1.2")
    "the boot server's last word of it is: tftp: 10.0.1.2 'pxelinux.0' sent"
    >>> asked([], "10.0.1.2")
    '10.0.1.2 asked the boot server for nothing'
    """
    whole = re.compile(rf"(?<![\w.:]){re.escape(address)}(?![\w:]|\.\w)")
    nothing = f"{address} asked the boot server for nothing"
    found = [line for line in lines if whole.search(line)]
    return f"the boot server's last word of it is: {found[-1]}" if found else nothing


def said(lines: list[str]) -> str:
    """What a console showed last, for people."""
    last = last_line("\n".join(lines))
    return f"its console says last: {last}" if last else "its console has said nothing"
