"""Commands of the site: the programs that its configuration names, run without a shell.

A command is split into words as a shell does. Placeholders, words in capitals, stand for what is known only later:

====================================  =================================  ==========================================
command                               placeholder                        stands for
====================================  =================================  ==========================================
``hooks.*``                           ``WORKFLOW_ID``                    the workflow's id
``power.commands.*``, ``console``,    ``HOSTNAME_FQDN``                  the node's name
``console_log`` (a file)              ``HOSTNAME_SHORT``                 the same, up to the first dot
``vlan.set_command``                  ``NODES``                          ``-m NAME`` for each node
                                      ``VLAN_ID``, ``USER``              the VLAN, the user
``broadcast_command``                 ``ENVFILE``, ``NODEFILE``          the image, a file of the nodes' names
====================================  =================================  ==========================================

A placeholder with a text as its value is replaced wherever it stands, within an argument too. One with a list is
replaced where it is a whole argument, by one argument for each value. What users have chosen (a VLAN, a file) is given
as a list of one: a command such as ``sh -c '… $USER …' USER`` never has it within its script.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from kadeploy.errors import ConfigError
from kadeploy.process import end_group, spawn

Values = Mapping[str, str | Sequence[str]]
"""What placeholders stand for."""

OUTPUT_LIMIT = 64 << 10
"""Bytes kept of each output stream: as many of its head as of its tail."""
LINE_LIMIT = 300
"""Characters of a line that serves as a reason."""
LINGER = 1.0
"""Seconds in which the output of a program that has ended may still come."""
_TICK = 0.1
_PLAIN = re.compile(r"[ \t\r\n!#-&(-\[\]-~]*")
"""Text in which nothing is quoted, and whose blanks are those of a shell."""
_EPILOGUE = re.compile(
    r"dmesg\(1\) may have more information"
    r"|tar: (Exiting with failure status|Error is not recoverable|Child (returned status|died with signal))"
    r"|Try '.*' for more information"
    r"|\[it has ended; "
)
"""What programs say after the reason: that there was one."""


# --- words ------------------------------------------------------------------------------------------------------


def argv(command: str, values: Values, where: str) -> list[str]:
    """The arguments of *command*, which the setting *where* holds: split, and their placeholders replaced.

    >>> argv("kavlan -s -i VLAN_ID NODES", {"VLAN_ID": ["4"], "NODES": ["-m", "n-1", "-m", "n-2"]}, "site.yml")
    ['kavlan', '-s', '-i', '4', '-m', 'n-1', '-m', 'n-2']
    >>> argv("ipmitool -H HOSTNAME_SHORT-bmc power 'on'", node_values("gdx-1.site"), "clusters/gdx.yml")
    ['ipmitool', '-H', 'gdx-1-bmc', 'power', 'on']

    Raises:
        ConfigError: an unbalanced quote, or no word at all.
    """
    try:
        found = words(command)
    except ValueError as error:
        raise ConfigError(f"{where}: the command {command!r} is malformed: {error}.") from error
    arguments = [argument for word in found for argument in _replaced(word, values)]
    if not arguments:
        raise ConfigError(f"{where}: the command {command!r} names no program.")
    return arguments


def words(command: str) -> list[str]:
    """The words of *command*, as a shell has them, before placeholders are replaced.

    Raises:
        ValueError: an unbalanced quote.
    """
    return command.split() if _PLAIN.fullmatch(command) else shlex.split(command)  # which is much slower


def node_values(node: str) -> Values:
    """What the placeholders of a command for one node stand for."""
    return {"HOSTNAME_FQDN": node, "HOSTNAME_SHORT": node.partition(".")[0]}


def filled(text: str, node: str) -> str:
    """*text* with the placeholders of a node replaced, wherever they stand.

    >>> filled("/var/log/conserver/HOSTNAME_SHORT", "gdx-1.site")
    '/var/log/conserver/gdx-1'
    """
    return _replaced(text, node_values(node))[0]


def _replaced(word: str, values: Values) -> Sequence[str]:
    whole = values.get(word)
    if whole is not None:
        return [whole] if isinstance(whole, str) else whole
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if not texts:
        return [word]
    return [re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], word)]


# --- running ----------------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a command ended, and what it said (head and tail)."""

    rc: int | None
    """Exit status; None when it did not end in time, and was killed with all that it had started."""
    stdout: str
    stderr: str
    seconds: float

    @property
    def said(self) -> str:
        """What it said last: of its errors, or else of its output."""
        return last_line(self.stderr) or last_line(self.stdout)

    @property
    def reason(self) -> str:
        """Why it failed: what it said last, or else its exit status."""
        return self.said or f"exit status {self.rc}"


async def run(arguments: Sequence[str], limit: float | None = None) -> Ended:
    """Run a program of this machine to its end; it is killed with its children after *limit* seconds, or if cancelled.

    What it leaves running when it ends is left alone, and not waited for though it holds the program's output.

    Raises:
        OSError: it cannot be started.
    """
    begun, pipe = time.monotonic(), asyncio.subprocess.PIPE
    process = await spawn(
        *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    )
    stdout, stderr, rc = Capture(), Capture(), None
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                output = asyncio.gather(_drain(process.stdout, stdout), _drain(process.stderr, stderr))
                while not output.done() and process.returncode is None:  # asyncio's own wait is for the output, too
                    await asyncio.wait([output], timeout=_TICK)
                try:
                    await asyncio.wait_for(output, LINGER if process.returncode is not None else None)
                except TimeoutError:
                    process._transport.close()  # type: ignore[attr-defined]  # else its pipes outlive the loop
                rc = process.returncode if process.returncode is not None else await process.wait()
    finally:
        if rc is None:
            end_group(process.pid)
            await process.wait()
    return Ended(rc, stdout.text(), stderr.text(), round(time.monotonic() - begun, 3))


async def _drain(stream: asyncio.StreamReader | None, into: Capture) -> None:
    while stream and (piece := await stream.read(1 << 16)):
        into.add(piece)


# --- output -----------------------------------------------------------------------------------------------------


class Capture:
    """Keeps the head and the tail of a stream, at most `limit` bytes."""

    def __init__(self, limit: int = OUTPUT_LIMIT) -> None:
        self._half = limit // 2
        self._head = b""
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        room = self._half - len(self._head)
        if room:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        surplus = len(self._tail) - self._half
        if surplus > 0:
            del self._tail[:surplus]
            self._dropped += surplus

    def text(self) -> str:
        """What was kept; a line tells how much is missing in the middle."""
        middle = f"\n[{self._dropped} bytes left out]\n" if self._dropped else ""
        return self._head.decode(errors="replace") + middle + self._tail.decode(errors="replace")


def last_line(text: str) -> str:
    r"""The last line of an output that says something, as the reason of a failure; empty when none does.

    >>> last_line("mount: checking\n  no such device \n\n")
    'no such device'
    >>> last_line("tar: x: Cannot open: No such file\ntar: Exiting with failure status due to previous errors")
    'tar: x: Cannot open: No such file'
    """
    said = [line.strip() for line in reversed(text.splitlines()) if line.strip()]
    return next((line for line in said if not _EPILOGUE.match(line)), said[0] if said else "")[:LINE_LIMIT]
