"""Which script a node is sent: those of our roles by the name of their file, and the commands of our engines.

They are told apart by their text, in the form in which it travels (`script.program`), so that a script that
changes is still known; a lab that is up knows the scripts as they were when it was started. What users send is unknown,
and so is the script of a BitTorrent client.
"""

from __future__ import annotations

from functools import cache

from kadeploy.config.folder import collection
from kadeploy.microsteps import send_image
from kadeploy.power import switch
from kadeploy.remote import connections, reach
from kadeploy.remote.script import program


@cache
def known() -> dict[str, bytes]:
    """Script by name."""
    ours = {path.stem: path.read_bytes() for path in (collection() / "roles").glob("*/files/*.sh")}
    return ours | {
        "age": reach.AGE,
        "command_line": reach.COMMAND_LINE,
        "receive": connections.RECEIVE,
        "relay": send_image.RELAY,
        "reboot": switch.order("reboot"),
        "poweroff": switch.order("poweroff"),
    }


@cache
def _endings() -> dict[bytes, str]:
    return {program(text): name for name, text in known().items()}


def name_of(program: bytes) -> str:
    """Name of the script in *program*, which begins with exports; empty when it is unknown."""
    return next((name for ending, name in _endings().items() if program.endswith(ending)), "")
