"""The TAB key in bash, zsh and fish: what it offers, and the scripts that ask a tool for it.

A script puts the words of the command line into the environment and runs the tool, which prints one offer per line.
The shells quote an offer before they insert it: names of environments are what other users chose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kadeploy.cli import TOOLS
from kadeploy.errors import DatabaseError, OptionError
from kadeploy.hints import did_you_mean

if TYPE_CHECKING:
    from kadeploy.environments.environment import Environment

VARIABLE = "_KADEPLOY_COMPLETE"
_BASH = """\
_kadeploy() {
    local offers offer
    mapfile -t offers < <(
        IFS=$'\\n'
        COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD VARIABLE=complete_bash "$1" 2> /dev/null | grep .
    )
    COMPREPLY=()
    for offer in "${offers[@]}"; do
        case ${COMP_WORDS[COMP_CWORD]} in
            [\\'\\"]*) [[ $offer = *[!A-Za-z0-9\\ ._/@+-]* ]] && continue ;;
            *) printf -v offer %q "$offer" ;;
        esac
        COMPREPLY+=("$offer")
    done
}
complete -o default -F _kadeploy TOOLS
"""
_ZSH = """\
#compdef TOOLS
_kadeploy() {
    local -a offers
    offers=(${(f)"$(COMP_WORDS="${(F)words[1,CURRENT]}" COMP_CWORD=$((CURRENT - 1)) \\
        VARIABLE=complete_bash ${words[1]} 2>/dev/null)"})
    if (( $#offers )); then compadd -a offers; else _files; fi
}
if [[ $funcstack[1] = _kadeploy ]]; then _kadeploy "$@"; else compdef _kadeploy TOOLS; fi
"""
_FISH = """\
function __kadeploy
    set -l words (commandline -opc)
    set -lx COMP_WORDS (string join \\n -- (string escape -- $words) (commandline -ct) | string collect)
    set -lx COMP_CWORD (count $words)
    set -lx VARIABLE complete_bash
    set -l offers ($words[1] 2>/dev/null | string match '?*')
    if test (count $offers) -gt 0
        string join \\n -- $offers
    else
        __fish_complete_path (commandline -ct)
    end
end
for tool in TOOLS
    complete --command $tool --no-files --arguments '(__kadeploy)'
end
"""
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str = "") -> str:
    """What *shell* (default: the user's login shell) evaluates to complete all tools.

    Raises:
        OptionError: a shell that we have no script for.
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        hint = did_you_mean(name, SHELLS)
        raise OptionError(f"--show-completion {name}: expected {', '.join(SHELLS)}.{hint}")
    return SHELLS[name].replace("VARIABLE", VARIABLE).replace("TOOLS", " ".join(TOOLS))


def asked() -> bool:
    """Whether a shell runs this tool to complete its command line."""
    return VARIABLE in os.environ


def answer(command: Any, name: str) -> int:
    """Print the offers for *command*, the tool *name*; nothing at all when something is wrong."""
    from typer.completion import completion_init  # type: ignore[attr-defined]  # noqa: PLC0415 - for the TAB key alone

    with suppress(Exception):
        for parameter in command.params:
            parameter.callback = None
        completion_init()
        command.main([], prog_name=name, complete_var=VARIABLE)
    return 0


# --- what is offered --------------------------------------------------------------------------------------------


def nodes(incomplete: str) -> list[str]:
    """Names of the site's nodes."""
    from kadeploy.config.folder import load_configuration  # noqa: PLC0415 - for the TAB key alone

    return _starting(incomplete, load_configuration().cluster_of)


def environments(context: typer.Context, incomplete: str) -> list[str]:
    """Environments that the caller sees, those of the user of ``-u`` when it comes before.

    Names, then aliases; with the architecture where there are several or a % is typed already.
    """
    from kadeploy.caller import caller  # noqa: PLC0415
    from kadeploy.config.folder import load_site  # noqa: PLC0415 - for the TAB key alone
    from kadeploy.state.damage import sparing  # noqa: PLC0415
    from kadeploy.state.environments import listed  # noqa: PLC0415

    found: list[Environment] = []
    with suppress(DatabaseError), sparing():
        found = listed(load_site(), caller().name, context.params.get("user"))
    names = [each.name for each in found]
    aliases = [each.alias for each in found if each.alias]
    archs = [f"{each.name}%{each.arch}" for each in found if each.arch]
    several = [written for written in archs if "%" in incomplete or names.count(written.rpartition("%")[0]) > 1]
    return _starting(incomplete, [*names, *several, *aliases])


def choices(*words: str) -> Callable[[str], list[str]]:
    """One of *words*."""
    return lambda incomplete: _starting(incomplete, words)


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name.startswith(incomplete)))
