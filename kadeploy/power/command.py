"""Commands of the site: switch a node, or open its console; no shell is involved."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import time
from contextlib import suppress

from kadeploy.errors import ConfigError
from kadeploy.remote.fanout import TIMED_OUT, Capture
from kadeploy.workflow import Outcome, Verdict


def words(command: str, node: str) -> list[str]:
    """*command* of the configuration for one node: split as a shell does, then the placeholders replaced in each word.

    >>> words("ipmitool -H HOSTNAME_SHORT-bmc power 'on'", "gdx-1.site")
    ['ipmitool', '-H', 'gdx-1-bmc', 'power', 'on']

    Raises:
        ConfigError: unbalanced quotes.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{command!r} in a cluster file: {error}.") from error
    short = node.partition(".")[0]
    return [part.replace("HOSTNAME_FQDN", node).replace("HOSTNAME_SHORT", short) for part in parts]


async def run(command: str, node: str, limit: float) -> Outcome:
    """Run *command* for *node*; after *limit* seconds it is killed with all that it started."""
    begun = time.monotonic()
    argv = words(command, node)
    out, err = Capture(), Capture()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(Verdict.KO, f"{argv[0]}: {error.strerror}: check power.commands in the cluster file.", 127)
    rc = None
    try:
        async with asyncio.timeout(limit):
            await asyncio.gather(_drain(process.stdout, out), _drain(process.stderr, err))
            rc = await process.wait()
        message = "" if rc == 0 else _last_line(err.text()) or _last_line(out.text()) or f"exit status {rc}"
    except TimeoutError:
        message = f"{argv[0]} did not end within {limit:g} s and was killed"
    finally:
        if rc is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    seconds = round(time.monotonic() - begun, 3)
    rc = TIMED_OUT if rc is None else rc
    return Outcome(Verdict.KO if rc else Verdict.OK, message, rc, out.text(), err.text(), seconds)


async def _drain(stream: asyncio.StreamReader | None, into: Capture) -> None:
    while stream and (piece := await stream.read(1 << 16)):
        into.add(piece)


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "")
