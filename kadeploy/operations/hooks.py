"""The site's command at the end of an operation."""

from __future__ import annotations

import asyncio

from kadeploy import commands
from kadeploy.errors import ConfigError


def run(command: str, wid: str, timeout: int) -> str:
    """Run *command*, at most *timeout* seconds, with ``WORKFLOW_ID`` replaced.

    Answers what went wrong, empty when nothing did: a hook never changes how an operation ended.
    """
    if not command:
        return ""
    try:
        argv = commands.argv(command, {"WORKFLOW_ID": wid}, "hooks in site.yml")
        ended = asyncio.run(commands.run(argv, timeout))
    except ConfigError as error:
        return str(error).rstrip(".")
    except OSError as error:
        return f"the hook {argv[0]} cannot be run: {error.strerror}"
    if ended.rc is None:
        return f"the hook {argv[0]} was ended after {timeout} s (end_hook_timeout in site.yml)"
    said = f": {ended.said}" if ended.said else ""
    return f"the hook {argv[0]} ended with status {ended.rc}{said}" if ended.rc else ""
