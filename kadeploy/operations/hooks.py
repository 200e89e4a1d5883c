"""The site's command at the end of an operation."""

from __future__ import annotations

import shlex
import subprocess

TOKEN = "WORKFLOW_ID"  # noqa: S105 - a word that is replaced


def run(command: str, wid: str, timeout: int) -> str:
    """Run *command* (split into words, no shell) with ``WORKFLOW_ID`` replaced; at most *timeout* seconds.

    Answers what went wrong, empty when nothing did: a hook never changes how an operation ended.
    """
    if not command:
        return ""
    try:
        words = [word.replace(TOKEN, wid) for word in shlex.split(command)]
    except ValueError as error:
        return f"the hook {command!r} is malformed: {error}"
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the hook {words[0]} was ended after {timeout} s (end_hook_timeout in site.yml)"
    except OSError as error:
        return f"the hook {words[0]} cannot be run: {error.strerror}"
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return f"the hook {words[0]} ended with status {done.returncode}" + (f": {said[-1]}" if said else "")
    return ""
