"""What every tool shares with its shell: options, help, exit statuses, error lines, formats and colours.

A tool is a :class:`Tool` with one command that returns its exit status, and::

    def main() -> int:
        return run(app, "kanodes3")
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import IO, Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
import typer.core

from kadeploy import __version__, files
from kadeploy.caller import as_user, caller, shed_environment
from kadeploy.cli import completion, spelling, usage
from kadeploy.cli.spelling import Spelling
from kadeploy.errors import FileError, KadeployError, NodeListError, OptionError, UserInterruptError
from kadeploy.files import MEGA
from kadeploy.hints import did_you_mean, nearest
from kadeploy.nodeset import MOST, expand, natural_key, parse_lines, require_few

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
    3: "Finished, and some nodes are KO: the report and the file of -n name them. A site may choose another status.",
    4: "It had begun and broke off, nodes may be in any state: the disk is full, or the database is gone.",
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
        aliases: names that options had at other times, and today's.
        gone: options of other times that there are no more, and what to do in their place (see `Spelling`).
    """

    def __init__(
        self,
        summary: str,
        examples: Mapping[str, str] | None = None,
        statuses: Mapping[int, str] = MappingProxyType(STATUSES),
        about: str = "",
        aliases: Mapping[str, str] = MappingProxyType({}),
        gone: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(
            cls=_Group,
            help=summary,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            add_completion=False,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": usage.WIDEST},
        )
        self.summary = summary
        self.examples = examples or {}
        self.statuses = statuses
        self.about = about
        self.aliases = aliases
        self.gone = {**GONE, **gone}
        self._made: dict[str, Any] = {}

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_Function], _Function]:
        """Decorate the function that does the work."""
        return super().command(name, cls=_Command, **settings)

    def made(self, name: str) -> Any:
        """The application as the command *name*, to be run or described; it is made once, as that takes a while."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Any:
        command: Any = typer.main.get_command(self)
        command.spelt = (self.aliases, self.gone)
        command.help = self.summary
        command.examples = tuple(self.examples)
        _make_frugal(typer.Context(command, info_name=name, **command.context_settings))
        return command


def _make_frugal(context: Any) -> None:
    """Have the command of *context*, and those in it, check their parameters as `_Frugal` does."""
    for parameter in context.command.get_params(context):
        vars(parameter)["get_runtime_param"] = _Frugal(parameter)
        vars(parameter)["show_default"] = parameter.show_default and not getattr(parameter, "is_flag", False)
    for name, command in getattr(context.command, "commands", {}).items():
        _make_frugal(typer.Context(command, info_name=name, parent=context, **command.context_settings))


class _Formatter(typer.Context.formatter_class):  # type: ignore[valid-type,misc]
    """Options and their help on one line where there is room; headings stand out where the terminal can show it."""

    def first_column(self, rows: Sequence[tuple[str, str]], most: int = 34) -> int:
        """Width of the widest first column of *rows* that is not too wide."""
        return max((len(name) for name, _ in rows if len(name) <= most), default=most)

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int | None = None, col_spacing: int = 1) -> None:
        """Write *rows*, the first column *col_max* wide, or as wide as it needs."""
        super().write_dl(rows, col_max or self.first_column(rows), col_spacing)

    def write_heading(self, heading: str) -> None:
        """Write the heading of a group."""
        self.write(f"{heading}:\n" if is_plain(sys.stdout) else f"{typer.style(f'{heading}:', bold=True)}\n")


class _Context(typer.Context):
    formatter_class = _Formatter


class _Command(typer.core.TyperCommand):
    context_class = _Context

    spelt: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
    """Aliases, and options that are gone."""
    examples: Sequence[str] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options are called by today's names first, unless what follows is the command line of another program."""
        if not self.ignore_unknown_options:
            args = Spelling(spelling.of(self.get_params(ctx)), *self.spelt).today(args)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help`` is none of the options that it is about."""
        return _of_general_use(super().get_help_option(ctx))

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 - lines are wrapped, not cut off
        """The first sentence."""
        return _first_sentence(self.help)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The summary, and what is typed most."""
        super().format_help_text(ctx, formatter)
        usage.write_examples("Examples", usage.split_examples(self.examples)[0], formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """All options, in groups."""
        usage.write_options(self, ctx, formatter)

    def format_epilog(self, _: Any, formatter: Any) -> None:
        """What is typed more rarely."""
        usage.write_examples("More examples", usage.split_examples(self.examples)[1], formatter)


class _Group(typer.core.TyperGroup):
    context_class = _Context

    examples: Sequence[str] = ()

    def get_help_option(self, ctx: Any) -> Any:
        """``--help`` is none of the options that it is about."""
        return _of_general_use(super().get_help_option(ctx))

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 - lines are wrapped, not cut off
        """The first sentence."""
        return _first_sentence(self.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names."""
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            known = f"The commands are {', '.join(self.commands)}."
            raise OptionError(f"There is no command {args[0]}. {known}{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The summary, and what is typed in this order."""
        super().format_help_text(ctx, formatter)
        usage.write_examples("Examples", self.examples, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The commands, then the options."""
        self.format_commands(ctx, formatter)
        usage.write_options(self, ctx, formatter)


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].rstrip(".") + "."


def _of_general_use(option: Any) -> Any:
    option.rich_help_panel = usage.GENERAL
    return option


def run(app: Tool, name: str, argv: Sequence[str] | None = None) -> int:
    """Run the tool *name* with *argv* (default: this process's arguments) and return its exit status.

    A refusal is one line on standard error; so is wrong usage, followed by where to look.
    """
    shed_environment()
    _complete_streams()
    if completion.asked():
        return completion.answer(app.made(name), name)
    return _ended(app.made(name), name, list(sys.argv[1:] if argv is None else argv))


def _complete_streams() -> None:
    """Have all three standard streams even where they are closed, and an output that can write any character."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free descriptor is the one that is missing
            descriptor = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _ended(command: Any, name: str, arguments: list[str]) -> int:
    """Exit status of *command*, whichever way it ends."""
    try:
        _require_text(arguments)
        with command.make_context(name, arguments) as context:
            status = command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except KadeployError as error:
        return refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        return refuse(f"{_usage_error(error)} See {_asked(error, name)} --help", KadeployError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return UserInterruptError.exit_code
    except OSError as error:
        return _machine_refuses(error)
    return status or 0


def _usage_error(error: Any) -> str:
    """What is wrong with the command line, and which option was meant."""
    name = getattr(error, "option_name", "")
    if not name or not hasattr(error, "possibilities") or error.ctx is None:
        return _one_line(error.format_message())
    parameters = error.ctx.command.get_params(error.ctx)
    spelt = [word for each in parameters if not each.hidden for word in (*each.opts, *each.secondary_opts)]
    meant = nearest(name.lstrip("-"), [word.removeprefix("--") for word in spelt if word.startswith("--")])
    return f"There is no option {name}.{f' Did you mean --{meant}?' if meant else ''}"


def _asked(error: Any, name: str) -> str:
    """The tool, or its command, whose help explains *error*."""
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else name


def _require_text(arguments: Sequence[str]) -> None:
    for rank, word in enumerate(arguments, start=1):
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise OptionError(f"Word {rank} of the command line is no text (UTF-8): {word!r}.")


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
        kind = param.type_descriptor.annotation
        if value == param.default or kind in {str, list[str]}:
            return value
        if words := _words(kind):
            return _one_of(param.opts[-1], value, words)
        found = self._thorough().coerce(value, param=param, ctx=ctx)
        if isinstance(found, int) and abs(found) > _LARGEST:
            raise OptionError(f"{param.opts[-1]}: this number is too large.")
        return found


def _words(kind: Any) -> list[str]:
    """The words that an option of *kind*, a Literal, may have; none when it is something else."""
    kinds = (kind, *get_args(kind))
    return [word for each in kinds if get_origin(each) is Literal for word in get_args(each)]


def _one_of(option: str, word: str, words: Sequence[str]) -> str:
    if word not in words:
        raise OptionError(f"{option} {word}: expected one of {', '.join(words)}.{did_you_mean(word, words)}")
    return word


_LARGEST = 2**53
"""Whole numbers up to here mean the same to databases, to JSON and to us."""


def refuse(text: str, status: int) -> int:
    """Tell why something is not done; the exit status of that."""
    print(coloured("ERROR:", "red", sys.stderr), text, file=sys.stderr)
    return status


def warn(text: str) -> None:
    """Tell the user of something that is no reason to stop."""
    print(coloured("WARNING:", "yellow", sys.stderr), _one_line(text), file=sys.stderr)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "?", ")")) else f"{line}."


def _machine_refuses(error: OSError) -> int:
    """Tell what the machine does not do: a disk is full, a folder is somebody else's, nobody reads the output.

    What could not be written is not tried again: the interpreter flushes standard output once more at its end.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    what = f"{error.filename}:" if error.filename else "The output cannot be written:"
    return refuse(f"{what} {error.strerror or error}.", KadeployError.exit_code)


# --- options ----------------------------------------------------------------------------------------------------

GONE = {
    "--debug-http": "-d shows what commands on nodes say, and the log of kadeploy3d what was asked.",
    "-H": "-d shows what commands on nodes say, and the log of kadeploy3d what was asked.",
    "--no-debug-http": "",
    "--password": "a password is read from a file, which client.yml names as password_file.",
    "--server-info": "a site's steps and boot profiles are in what kadeploy3 --dry-run shows.",
    "-I": "a site's steps and boot profiles are in what kadeploy3 --dry-run shows.",
    "-i": "a site's steps and boot profiles are in what kadeploy3 --dry-run shows.",
    "--secure": "",
    "--no-secure": "",
    "--no-dry-run": "",
    "--no-debug-mode": "",
    "--no-force": "",
}
"""Options of Kadeploy 3.1.7 and 3.3 that no tool has any more; those without a word said nothing that is not so."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"Kadeploy version: {__version__}")
        raise typer.Exit


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
    typer.Option(
        "-o",
        "--output-ok-nodes",
        metavar="FILENAME",
        help="File that will hold the nodes that are OK.",
        rich_help_panel=usage.OUTPUT,
    ),
]
KoFile = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--output-ko-nodes",
        metavar="FILENAME",
        help="File that will hold the nodes that are KO.",
        rich_help_panel=usage.OUTPUT,
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        "-S",
        "--server",
        metavar="STRING",
        help="Server of client.yml, or its address.",
        autocompletion=completion.servers,
        rich_help_panel=usage.GENERAL,
    ),
]
MultiServer = Annotated[
    bool,
    typer.Option("-M", "--multi-server", help="Ask all servers of client.yml.", rich_help_panel=usage.GENERAL),
]
AllOrNothing = Annotated[
    bool,
    typer.Option("--all-or-nothing", help="With -M: all servers, or none.", rich_help_panel=usage.GENERAL),
]
Version = Annotated[
    bool,
    typer.Option(
        "-v",
        "--version",
        help="Print the version.",
        is_eager=True,
        callback=_show_version,
        rich_help_panel=usage.GENERAL,
    ),
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
        rich_help_panel=usage.GENERAL,
    ),
]
Form = Literal["text", "json", "yaml"]
Format = Annotated[
    Form,
    typer.Option("--format", metavar="FORMAT", help="text, json or yaml.", rich_help_panel=usage.OUTPUT),
]


# --- files of the caller ----------------------------------------------------------------------------------------


NODE_FILE_BYTES = 8 * MEGA
"""Largest file of nodes that is read."""


def node_names(machines: Sequence[str] | None, lists: Sequence[str] | None, most: int = MOST) -> list[str]:
    """Names given with ``-m`` and ``-f``, in that order, each once; empty when neither was given.

    Raises:
        NodeListError: malformed range, files that name no node, or more than *most* names.
        FileError: a file that the caller cannot read, that is no plain file, or too big.
    """
    names: dict[str, None] = {}
    for found in itertools.chain((expand(pattern, most) for pattern in machines or ()), _listed(lists or (), most)):
        names.update(dict.fromkeys(found))
        require_few(len(names), most, "All of -m and -f")
    return list(names)


def _listed(lists: Iterable[str], most: int) -> Iterator[list[str]]:
    for path in lists:
        found = parse_lines(files.read_text(path, caller(), NODE_FILE_BYTES), most)
        if not found:
            raise NodeListError(f"{path}: no node in this file (one node or range per line).")
        yield found


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
    with _opened(path, os.O_TRUNC) as stream:
        stream.write(content)


def require_writable(path: str) -> None:
    """Refuse the caller's file *path* unless it can be written; what is in it stays.

    Raises:
        FileError: the caller may not write there.
    """
    with _opened(path):
        pass


@contextmanager
def _opened(path: str, flags: int = 0) -> Iterator[IO[bytes]]:
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        with as_user(caller()):
            descriptor = os.open(path, flags, 0o666)
        os.set_blocking(descriptor, True)  # only to open a FIFO that nobody reads would wait for ever
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}. Name a file that you can write.") from error


# --- formats and colours ----------------------------------------------------------------------------------------


def emit(data: Any, form: Form) -> None:
    """Print *data* as one document of format *form*."""
    print(document(data, form), end="")


def document(data: Any, form: Form) -> str:
    """*data* (dictionaries, lists, strings, numbers) as one JSON document, else as a YAML one."""
    if form == "json":
        text = json.dumps(data, indent=2, ensure_ascii=False)
        return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text) + "\n"
    import yaml  # noqa: PLC0415 - not for every output

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    written: str = yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return written


def _escaped(letter: str) -> str:
    """A character of a JSON text as its number (RFC 8259, section 7)."""
    return json.dumps(letter).strip('"') if ord(letter) != 0x7F else "\\u007f"


def coloured(text: str, colour: str, stream: IO[str] | None = None) -> str:
    """*text* in *colour* (red, green, yellow…), when *stream* (default: output) is a terminal that shows colours."""
    return text if is_plain(sys.stdout if stream is None else stream) else typer.style(text, fg=colour)


def is_plain(stream: IO[str]) -> bool:
    """Whether *stream* gets lines of text alone, without any escape sequence.

    So it is where no terminal is, or one that knows none, and where ``NO_COLOR`` or ``KADEPLOY_PLAIN`` is set: programs
    that run us on a pseudo-terminal keep what we say.
    """
    wanted = any(os.environ.get(name) for name in ("NO_COLOR", "KADEPLOY_PLAIN"))
    return wanted or os.environ.get("TERM") == "dumb" or not stream.isatty()
