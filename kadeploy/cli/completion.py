"""The TAB key in bash, zsh and fish: what it offers, and the scripts that ask a tool for it.

A script puts the words of the command line into the environment and runs the tool, which prints one offer per line.
The shells quote an offer before they insert it: names of environments are what other users chose.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kadeploy.cli import TOOLS
from kadeploy.errors import DatabaseError, KadeployError, OptionError
from kadeploy.hints import did_you_mean

if TYPE_CHECKING:
    from kadeploy.config.cluster import Disk
    from kadeploy.config.folder import Configuration
    from kadeploy.environments.environment import Environment
    from kadeploy.operations.service import Service

VARIABLE = "_KADEPLOY_COMPLETE"
PATIENCE = 3.0
"""Seconds after which nothing is offered: a database or a file system that hangs must not hold back a prompt."""
_BASH = """\
_kadeploy() {
    local -a words=()
    local offers offer typed word char breaks='' rest=${COMP_LINE:0:COMP_POINT}
    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ ${#words[@]} = 0 || $rest = [[:space:]]* ]]; then words+=("$word"); else words[-1]+=$word; fi
        rest=${rest#"${rest%%[![:space:]]*}"}
        rest=${rest#"$word"}
    done
    typed=${words[-1]}
    for char in : = @; do [[ $COMP_WORDBREAKS != *$char* ]] || breaks+=$char; done
    mapfile -t offers < <(
        IFS=$'\\n'
        COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) VARIABLE=complete_bash "$1" 2> /dev/null | grep .
    )
    COMPREPLY=()
    for offer in "${offers[@]}"; do
        case $typed in
            [\\'\\"]*) [[ $offer = *[!A-Za-z0-9\\ ._/@:%=,*+-]* ]] && continue ;;
            *) printf -v offer %q "$offer"
               [[ ! $breaks ]] || offer=${offer#"${typed%"${typed##*[$breaks]}"}"} ;;
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
if [[ $funcstack[1] = _kadeploy ]]; then
    _kadeploy "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
    compdef _kadeploy TOOLS
fi
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

    threading.Thread(target=_give_up, daemon=True).start()
    offers = io.StringIO()
    with suppress(Exception, SystemExit), redirect_stdout(offers):
        for parameter in command.params:
            parameter.callback = None
        completion_init()
        command.main([], prog_name=name, complete_var=VARIABLE)
    typed = _as_typed()
    for offer in filter(None, offers.getvalue().splitlines()):
        print(typed(offer))
    return 0


def _give_up() -> None:
    time.sleep(PATIENCE)
    os._exit(0)


def _as_typed() -> Callable[[str], str]:
    """A function that puts ``--option=`` in front of an offer when the word begins so."""
    word = os.environ.get("COMP_WORDS", "").rpartition("\n")[2]
    option, equals, _ = word.partition("=")
    return lambda offer: f"{option}=" * bool(equals and option.startswith("--")) + offer


# --- what is offered --------------------------------------------------------------------------------------------


def nodes(incomplete: str) -> list[str]:
    """Names of the site's nodes; several may be separated by commas."""
    return _starting(incomplete, _configuration().cluster_of, several=True)


def servers(incomplete: str) -> list[str]:
    """Names of servers."""
    from kadeploy.client import sites  # noqa: PLC0415 - for the TAB key alone

    return _starting(incomplete, sites.names())


def workflows(incomplete: str) -> list[str]:
    """Ids of the operations that run and of those that ended last."""
    return _starting(incomplete, _service().newest())


def partitions(context: typer.Context, incomplete: str) -> list[str]:
    """Numbers of partitions that systems are put on, in the clusters of the nodes of ``-m`` or in all."""
    parts = [part for disk in _disks(context) for part in disk.partitions if part.role not in ("swap", "efi")]
    return _starting(incomplete, (str(number) for number in sorted({part.number for part in parts})))


def devices(context: typer.Context, incomplete: str) -> list[str]:
    """Device files of all partitions, and ``*`` for all."""
    return _starting(incomplete, [*(device for disk in _disks(context) for device in disk.devices), "*"])


def disks(context: typer.Context, incomplete: str) -> list[str]:
    """Device files of the disks."""
    return _starting(incomplete, (disk.device for disk in _disks(context)))


def file_systems(incomplete: str) -> list[str]:
    """Those that the deployment systems can make."""
    clusters = _configuration().clusters.values()
    return _starting(incomplete, (name for cluster in clusters for name in cluster.supported_filesystems))


def steps(incomplete: str) -> list[str]:
    """Macro-steps and implementations that the clusters use; behind a colon the micro-steps of one."""
    from kadeploy.runner import playbooks  # noqa: PLC0415 - for the TAB key alone

    service = _service()
    clusters = service.configuration.clusters.values()
    used = dict.fromkeys(name for cluster in clusters for name in cluster.implementations)
    macro, colon, _ = incomplete.partition(":")
    if not colon:
        return _starting(incomplete, [*playbooks.MACRO_STEPS, *used])
    known = service.register
    ways = [known[name] for name in used if macro in (name, playbooks.generic(name)) and name in known]
    micros = (name for names in ways for name in names)
    return _starting(incomplete, (f"{macro}:{micro}" for micro in micros))


def users(incomplete: str) -> list[str]:
    """Accounts of people on this machine, root, and for administrators whoever has rights."""
    import pwd  # noqa: PLC0415 - for the TAB key alone

    found = ["root", *(each.pw_name for each in pwd.getpwall() if each.pw_uid >= _FIRST_PERSON)]
    with suppress(Exception):
        found += _service().rights()
    return _starting(incomplete, found)


_FIRST_PERSON = 1000
"""The lowest number that Debian gives to an account of a person."""


def owners(incomplete: str) -> list[str]:
    """Users with environments that the caller may use."""
    from kadeploy.state.environments import EVERYBODY  # noqa: PLC0415 - for the TAB key alone

    service = _service()
    found = [*service.environments(), *service.environments(EVERYBODY)]
    return _starting(incomplete, (each.user for each in found))


def environments(context: typer.Context, incomplete: str) -> list[str]:
    """Environments that the caller sees, those of the user of ``-u`` when it comes before.

    Names, then aliases; with the architecture where there are several or a % is typed already.
    """
    from kadeploy.state.damage import sparing  # noqa: PLC0415 - for the TAB key alone

    found: list[Environment] = []
    with suppress(DatabaseError), sparing():
        found = _service().environments(context.params.get("user"))
    names = [each.name for each in found]
    aliases = [each.alias for each in found if each.alias]
    archs = [f"{each.name}%{each.arch}" for each in found if each.arch]
    several = [written for written in archs if "%" in incomplete or names.count(written.rpartition("%")[0]) > 1]
    return _starting(incomplete, [*names, *several, *aliases])


def choices(*words: str, several: bool = False) -> Callable[[str], list[str]]:
    """One of *words*, or *several* separated by commas."""
    return lambda incomplete: _starting(incomplete, words, several)


def ordered(*words: str) -> Callable[[str], list[str]]:
    """Several of *words*, each with a ``-`` in front where it is typed."""
    both = (*words, *(f"-{word}" for word in words))
    return lambda incomplete: _starting(incomplete, both if "-" in incomplete else words, several=True)


def _starting(incomplete: str, names: Iterable[str], several: bool = False) -> list[str]:
    """*names* that begin with what was typed; with *several*, behind its last comma."""
    before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
    return list(dict.fromkeys(f"{before}{comma}{name}" for name in names if name.startswith(last)))


def _service() -> Service:
    from kadeploy.client import sites  # noqa: PLC0415 - for the TAB key alone

    return sites.service()


def _configuration() -> Configuration:
    return _service().configuration


def _disks(context: typer.Context) -> list[Disk]:
    """Those of the clusters of the nodes that are named, else of all."""
    from kadeploy.nodeset import expand  # noqa: PLC0415

    configuration = _configuration()
    clusters: Iterable[str] = configuration.clusters
    with suppress(KadeployError):
        ranges = context.params.get("machines") or ()
        named = configuration.full_names(name for machine in ranges for name in expand(machine))
        clusters = configuration.cluster_nodes(named) or clusters
    return [configuration.clusters[name].disk for name in clusters]
