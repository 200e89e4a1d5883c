"""What every tool shares with its shell: options, help, exit statuses, error lines, formats and colours.

A tool is a :class:`Tool` with one command that returns its exit status, and::

    def main() -> int:
        return run(app, "kanodes3")
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import IO, Annotated, Any, Literal, TypeVar

import typer
import typer.core

from kadeploy import __version__
from kadeploy.caller import as_user, caller
from kadeploy.cli import completion
from kadeploy.config.folder import load_site
from kadeploy.errors import FileError, KadeployError, NodeListError, OptionError, UserInterruptError
from kadeploy.nodeset import expand, natural_key, parse_lines

_UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
BROKEN_PIPE = 141
"""Exit status of a program that writes to a pipe nobody reads any more (128 + SIGPIPE)."""


# --- running ----------------------------------------------------------------------------------------------------


STATUSES = {
    0: "All went well.",
    1: "The request is refused and nothing was changed, or it failed; standard error says why.",
    130: "Interrupted by Ctrl-C.",
}
"""Exit status of every tool → what it tells."""
NODE_STATUSES = {
    0: "All nodes are OK.",
    1: "The request is refused, and no node was touched.",
    3: "Finished, and some nodes are KO: the report and the file of -n name them.",
    130: "Interrupted by Ctrl-C: what ran was stopped, and the nodes are free again.",
}
"""The same for tools that touch nodes."""


_Function = TypeVar("_Function", bound=Callable[..., Any])


class Tool(typer.Typer):
    """An application without a command yet, and what its help and its man page say besides the options.

    Args:
        summary: the sentence under the usage line.
        examples: command lines, most wanted first, and in a few words what each does.
        statuses: exit statuses and what each tells.
        about: paragraphs for the man page, with what one sentence cannot say.
    """

    def __init__(
        self,
        summary: str,
        examples: Mapping[str, str] | None = None,
        statuses: Mapping[int, str] = MappingProxyType(STATUSES),
        about: str = "",
    ) -> None:
        super().__init__(
            cls=_Group,
            help=summary,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            add_completion=False,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )
        self.summary = summary
        self.examples = examples or {}
        self.statuses = statuses
        self.about = about

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_Function], _Function]:
        """Decorate the function that does the work."""
        return super().command(name, cls=_Command, **settings)

    def made(self, name: str) -> Any:
        """The application as the command *name*, to be run or described."""
        command: Any = typer.main.get_command(self)
        command.help = self.summary
        if self.examples:
            command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in self.examples)
        for parameter in command.get_params(typer.Context(command, info_name=name, **command.context_settings)):
            vars(parameter)["get_runtime_param"] = _Frugal(parameter)
            vars(parameter)["show_default"] = parameter.show_default and not parameter.is_flag
        return command


class _Formatter(typer.Context.formatter_class):  # type: ignore[valid-type,misc]
    """Options and their help on one line where there is room."""

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 34, col_spacing: int = 1) -> None:
        """Write *rows*, the first column as wide as the widest name that is not too wide."""
        widths = [len(name) for name, _ in rows if len(name) <= col_max]
        super().write_dl(rows, max(widths, default=col_max), col_spacing)


class _Context(typer.Context):
    formatter_class = _Formatter


class _Command(typer.core.TyperCommand):
    context_class = _Context

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Values that may be left out, which the help shows in brackets, are filled in first."""
        optional = [name for each in self.params if str(each.metavar or "").startswith("[") for name in each.opts]
        return super().parse_args(ctx, optional_value(args, *optional))


class _Group(typer.core.TyperGroup):
    context_class = _Context


def run(app: Tool, name: str, argv: Sequence[str] | None = None) -> int:
    """Run the tool *name* with *argv* (default: this process's arguments) and return its exit status.

    A refusal is one line on standard error; so is wrong usage, followed by where to look.
    """
    if completion.asked():
        return completion.answer(app.made(name), name)
    return _ended(app.made(name), name, list(sys.argv[1:] if argv is None else argv))


def _ended(command: Any, name: str, arguments: list[str]) -> int:
    """Exit status of *command*, whichever way it ends."""
    try:
        with command.make_context(name, arguments) as context:
            status = command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except KadeployError as error:
        return _refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        return _refuse(f"{_one_line(error.format_message())} See {name} --help", KadeployError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return UserInterruptError.exit_code
    except OSError as error:
        return _output_lost(error)
    return status or 0


class _Frugal:
    """Checks one parameter as typer does, but only if there is something to check.

    typer checks even defaults and plain text with pydantic, whose import takes longer than most of our tools run.
    """

    def __init__(self, parameter: Any) -> None:
        self._thorough = parameter.get_runtime_param

    def __call__(self) -> _Frugal:
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if value == param.default or param.type_descriptor.annotation in {str, list[str]}:
            return value
        return self._thorough().coerce(value, param=param, ctx=ctx)


def _refuse(text: str, status: int) -> int:
    print(coloured("ERROR:", "red", sys.stderr), text, file=sys.stderr)
    return status


def warn(text: str) -> None:
    """Tell the user of something that is no reason to stop."""
    print(coloured("WARNING:", "yellow", sys.stderr), _one_line(text), file=sys.stderr)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "?", ")")) else f"{line}."


def _output_lost(error: OSError) -> int:
    """Leave when nobody reads the output (quietly), or when it cannot be written; what else went wrong is raised."""
    if error.errno not in _UNWRITABLE or error.filename is not None:
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed once more when the interpreter ends
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    return _refuse(f"The output cannot be written: {error.strerror}.", KadeployError.exit_code)


# --- options ----------------------------------------------------------------------------------------------------


def optional_value(argv: Sequence[str], *names: str, default: str = "") -> list[str]:
    """*argv* in which each option of *names* has a value, which users may leave out.

    >>> optional_value(["-k", "-m", "n-1"], "-k", "--key"), optional_value(["-k", "keys.pub"], "-k", "--key")
    (['-k', '', '-m', 'n-1'], ['-k', 'keys.pub'])
    """
    words: list[str] = []
    end = list(argv).index("--") if "--" in argv else len(argv)
    for rank, word in enumerate(argv):
        words.append(word)
        followed = rank + 1 < end and not argv[rank + 1].startswith("-")
        if rank < end and word in names and not followed:
            words.append(default)
    return words


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"Kadeploy version: {__version__}")
        raise typer.Exit


def _refuse_server(name: str | None) -> None:
    if name and name != load_site().name:
        raise OptionError(
            f"--server {name}: this Kadeploy works on the site of its own configuration. Run the command on {name}'s "
            "controller, or set KADEPLOY_CONFIG_DIR to that site's folder."
        )


def _refuse_multi_server(wanted: bool) -> None:
    if wanted:
        raise OptionError("--multi-server: one site at a time. Run the command once per site, with the nodes of each.")


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        print(completion.script(shell), end="")
        raise typer.Exit


Machines = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--machine",
        metavar="MACHINE",
        help="Node or range gdx-[5-12].site; repeatable.",
        autocompletion=completion.nodes,
    ),
]
Files = Annotated[
    list[str] | None,
    typer.Option(
        "-f",
        "--file",
        metavar="MACHINELIST",
        help="File of nodes or ranges; - is standard input.",
    ),
]
OkFile = Annotated[
    str | None,
    typer.Option("-o", "--output-ok-nodes", metavar="FILENAME", help="File that will hold the nodes that are OK."),
]
KoFile = Annotated[
    str | None,
    typer.Option("-n", "--output-ko-nodes", metavar="FILENAME", help="File that will hold the nodes that are KO."),
]
Server = Annotated[
    str | None,
    typer.Option("--server", metavar="STRING", help="Site; for now the one of this machine.", callback=_refuse_server),
]
MultiServer = Annotated[
    bool,
    typer.Option("--multi-server", help="Refused for now: one site at a time.", callback=_refuse_multi_server),
]
Version = Annotated[
    bool,
    typer.Option("-v", "--version", help="Print the version.", is_eager=True, callback=_show_version),
]
Completion = Annotated[
    str | None,
    typer.Option(
        "--show-completion",
        metavar="[SHELL]",
        help="TAB completion for bash, zsh or fish.",
        is_eager=True,
        callback=_show_completion,
        autocompletion=completion.choices(*completion.SHELLS),
    ),
]
Form = Literal["text", "json", "yaml"]
Format = Annotated[
    Form,
    typer.Option("--format", metavar="FORMAT", help="text, json or yaml."),
]


_DATES = {
    "%Y:%m:%d:%H:%M:%S": timedelta(),
    "%Y-%m-%d %H:%M:%S": timedelta(),
    "%Y-%m-%dT%H:%M:%S": timedelta(),
    "%Y-%m-%d %H:%M": timedelta(),
    "%Y-%m-%dT%H:%M": timedelta(),
    "%Y-%m-%d": timedelta(days=1, seconds=-1),
}
"""Ways to write a date (the first is the wiki page's), and how far its last second is from its first."""


def moment(option: str, text: str, day_ends: bool = False) -> int:
    """Unix seconds of a date that *option* was given, in local time; of a day alone its first or last second.

    Raises:
        OptionError: not a date.
    """
    for pattern, length in _DATES.items():
        try:
            start = datetime.strptime(text, pattern)
        except ValueError:
            continue
        return int((start + length if day_ends else start).timestamp())
    raise OptionError(
        f"{option} {text}: not a date. Expected yyyy:mm:dd:hh:mm:ss, 'yyyy-mm-dd hh:mm' or a day yyyy-mm-dd."
    )


# --- files of the caller ----------------------------------------------------------------------------------------


def node_names(machines: Sequence[str] | None, files: Sequence[str] | None) -> list[str]:
    """Names given with ``-m`` and ``-f``, in that order, each once; empty when neither was given.

    Raises:
        NodeListError: malformed range, or files that name no node.
        FileError: a file that the caller cannot read.
    """
    names = dict.fromkeys(name for pattern in machines or () for name in expand(pattern))
    for path in files or ():
        found = parse_lines(_read(path))
        if not found:
            raise NodeListError(f"{path}: no node in this file (one node or range per line).")
        names.update(dict.fromkeys(found))
    return list(names)


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    try:
        with as_user(caller()):
            return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: {_why(error)}. Give -f a file that you can read.") from error


def create_name_files(ok: str | None, ko: str | None) -> None:
    """Create or empty the files of ``-o`` and ``-n``, so that a wrong path is refused before any node is touched.

    Raises:
        OptionError: both are the same file.
        FileError: the caller may not write there.
    """
    if ok and ko and os.path.realpath(ok) == os.path.realpath(ko):
        raise OptionError(f"-o and -n name the same file {ok}: give two files.")
    for path in filter(None, (ok, ko)):
        write_names(path, ())


def write_names(path: str, names: Iterable[str]) -> None:
    """Write *names* to the caller's file *path*, one per line, in natural order.

    Raises:
        FileError: the caller may not write there.
    """
    write_bytes(path, "".join(f"{name}\n" for name in sorted(names, key=natural_key)).encode())


def write_bytes(path: str, content: bytes) -> None:
    """Write the caller's file *path*.

    Raises:
        FileError: the caller may not write there.
    """
    try:
        with as_user(caller()):
            Path(path).write_bytes(content)
    except OSError as error:
        raise FileError(f"{path}: {_why(error)}. Name a file that you can write.") from error


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not a text file (UTF-8)"


# --- formats and colours ----------------------------------------------------------------------------------------


def emit(data: Any, form: Form) -> None:
    """Print *data* as one document of format *form*."""
    print(document(data, form), end="")


def document(data: Any, form: Form) -> str:
    """*data* (dictionaries, lists, strings, numbers) as one JSON document, else as a YAML one."""
    if form == "json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    import yaml  # noqa: PLC0415 - not for every output

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


def coloured(text: str, colour: str, stream: IO[str] | None = None) -> str:
    """*text* in *colour* (red, green, yellow…), when *stream* (default: output) is a terminal that shows colours."""
    target = sys.stdout if stream is None else stream
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not target.isatty()
    return text if plain else typer.style(text, fg=colour)
