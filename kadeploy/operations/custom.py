"""Custom operations of ``--set-custom-operations``: what users put in front of, behind or in place of micro-steps.

Two forms are read: the wiki page's lines ``Macro,micro@send%file%folder,exec%command%`` (use case 10 of kadeploy3), and
the later YAML, macro-step → micro-step → ``pre-ops``, ``substitute``, ``post-ops``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.config.file import Struct
from kadeploy.config.timeouts import MAX_SECONDS
from kadeploy.environments import users_yaml
from kadeploy.errors import CustomOperationError, FileError, OptionError
from kadeploy.hints import did_you_mean, explained
from kadeploy.runner import playbooks
from kadeploy.runner.playbooks import Register
from kadeploy.runner.request import CustomOperation

ALIASES: Mapping[tuple[str, str], str] = {("BootNewEnvKexec", "reboot"): "kexec"}
"""Micro-steps that had another name when the wiki page was written."""

CHAINS = ("BroadcastEnvChain", "BroadcastEnvKastafior", "BroadcastEnvKascade")
"""Names that the chained broadcast has and had: what is meant for one is meant for whichever of them is used."""

When = Literal["pre", "substitute", "post"]


def load(path: str, who: Account, known: Register) -> tuple[CustomOperation, ...]:
    """Read the operations in the file *path*; it and the files that it names are opened with the rights of *who*.

    Raises:
        FileError: the file cannot be read.
        CustomOperationError: an operation is malformed, or goes to a step that does not exist; names file and line.
    """
    source = path if files.is_stream(path) else str(files.local_path(path, who))
    return parse(files.read_text(path, who), source=source, who=who, known=known)


def parse(text: str, *, source: str, who: Account, known: Register) -> tuple[CustomOperation, ...]:
    """The operations that *text* describes, in its order; *source* is where it came from (see `load`)."""
    content = text.removeprefix("\ufeff")
    checks = _Checks(source, who, known)
    return tuple(_from_lines(content, checks) if _LINES.search(content) else _from_yaml(content, checks))


def fitted(operations: Sequence[CustomOperation], used: Sequence[str]) -> tuple[CustomOperation, ...]:
    """*operations* for the implementations that a deployment has *used* for, in order.

    Raises:
        CustomOperationError: one belongs to an implementation that it does not go through.
    """
    return tuple(_fitted(each, used) for each in operations)


def _fitted(operation: CustomOperation, used: Sequence[str]) -> CustomOperation:
    name = operation.implementation
    if name in used or name in playbooks.MACRO_STEPS:
        return operation
    chain = as_used(name, used)
    if chain == name:
        raise CustomOperationError(
            f"--set-custom-operations: {name}, of {told(operation)!r}, is not used by this deployment, which uses "
            f"{', '.join(used)}. Name one of these, or {playbooks.generic(name)} for whichever it is."
        )
    return msgspec.structs.replace(operation, implementation=chain)


def as_used(where: str, used: Sequence[str]) -> str:
    """*where*, an implementation, alone or with a micro-step: by the name of the chain that is *used*, if it is one."""
    name, colon, micro = where.partition(":")
    chain = next((each for each in used if each in CHAINS), name) if name in CHAINS and name not in used else name
    return f"{chain}{colon}{micro}"


def told(operation: CustomOperation) -> str:
    """What *operation* does, in a few words."""
    if operation.action == "exec":
        return f"exec {operation.command}"
    return " ".join(filter(None, (operation.action, operation.file, operation.destination or operation.params)))


@dataclass(frozen=True)
class _Checks:
    """Checks what both forms have in common."""

    source: str
    who: Account
    known: Register

    def refusal(self, line: int, text: str) -> CustomOperationError:
        """What to raise: *text* with file and line in front."""
        return CustomOperationError(f"{self.source}, line {line}: {text}")

    def step(self, line: int, macro: str, micro: str) -> tuple[str, str]:
        """Implementation (or macro-step) and micro-step by the names they have today."""
        macro = playbooks.named_today(macro)
        if macro not in self.known and macro not in playbooks.MACRO_STEPS:
            try:
                playbooks.require_known(macro, self.known, playbooks.MACRO_STEPS)
            except OptionError as error:
                raise self.refusal(line, str(error)) from error
        found = ALIASES.get((macro, micro), micro)
        ways = [micros for name, micros in self.known.items() if macro in (name, playbooks.generic(name))]
        known = dict.fromkeys(name for micros in ways for name in micros)
        if found not in known:
            hint = did_you_mean(micro, known)
            raise self.refusal(line, f"{macro} has no micro-step {micro!r}; it has {', '.join(known)}.{hint}")
        return macro, found

    def file(self, line: int, name: str) -> str:
        """Absolute path of a file that the caller can read; a relative one starts beside the operations.

        ``server:///PATH`` stays as it is: whether the administrator offers it is seen when the file is opened.
        """
        if files.is_server(name):
            return name
        if files.is_url(name):
            raise self.refusal(line, f"{name}: a file of this machine is needed here; fetch it first.")
        try:
            path = files.local_path(name)
            if path.parts[:1] == ("~",):
                path = files.local_path(name, self.who)
            absolute = (Path.cwd() if files.is_stream(self.source) else Path(self.source).parent) / path
            files.open_as_user(absolute, self.who).close()
        except FileError as error:
            raise self.refusal(line, str(error)) from error
        return str(absolute)

    def check(self, line: int, operation: CustomOperation) -> CustomOperation:
        """*operation* with its file made absolute, if it is complete."""
        if wrong := _incomplete(operation):
            raise self.refusal(line, wrong)
        return msgspec.structs.replace(operation, file=self.file(line, operation.file)) if operation.file else operation


_MAX_RETRIES = 100


def _incomplete(operation: CustomOperation) -> str:
    """What is wrong with *operation*; empty when nothing is."""
    return next(_faults(operation), "")


def _faults(operation: CustomOperation) -> Iterator[str]:
    destination, action = operation.destination, operation.action
    if action == "exec" and (not operation.command.strip() or operation.file or destination or operation.params):
        yield "exec takes a command, and nothing else."
    if action != "exec" and (not operation.file or operation.command):
        yield f"{action} takes a file, not a command."
    if action == "send" and (not destination.startswith(("/", "$")) or operation.params):
        yield "send takes a file and a destination, an absolute path on the nodes."
    if action == "run" and destination:
        yield "run takes a file and params, no destination."
    if any("\0" in text for text in (operation.command, operation.params, destination)):
        yield "null characters are not allowed."
    if not (0 <= operation.timeout <= MAX_SECONDS and 0 <= operation.retries <= _MAX_RETRIES):
        yield f"timeout is seconds up to a week, retries at most {_MAX_RETRIES}, 0 is none."
    try:
        shlex.split(operation.params)
    except ValueError as error:
        yield f"params: {error}: {operation.params!r}."


def require_complete(operations: Sequence[CustomOperation], known: Register) -> None:
    """Check operations that no file describes: somebody has sent them as they are.

    Raises:
        OptionError: one is malformed, or goes to a step that does not exist; tells its number.
    """
    for number, each in enumerate(operations, start=1):
        ways = [micros for name, micros in known.items() if each.implementation in (name, playbooks.generic(name))]
        wrong = _incomplete(each)
        if not any(each.micro_step in micros for micros in ways):
            wrong = f"there is no micro-step {each.implementation}:{each.micro_step}."
        if wrong:
            raise OptionError(f"custom_operations, number {number}: {wrong}")


# --- the wiki page's lines ----------------------------------------------------------------------------------------

_LINES = re.compile(r"\A(?:\s*(?:#[^\n]*)?\n)*\s*[\w.-]+\s*,\s*[\w.-]+\s*@")
"""Begins as the wiki page's lines do, after comments."""
_LINE = re.compile(r"\s*([\w.-]+)\s*,\s*([\w.-]+)\s*@(.+)\Z")
_NEXT = re.compile(r",\s*(?=(?:send|exec)%)")
"""A comma that another operation follows; other commas belong to a command."""


def _from_lines(text: str, checks: _Checks) -> Iterator[CustomOperation]:
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        match = _LINE.match(content)
        if not match:
            raise checks.refusal(number, "expected Macro,micro@send%file%folder,exec%command%.")
        implementation, micro_step = checks.step(number, match[1], match[2])
        for part in _NEXT.split(match[3]):
            fields = _fields(part.strip(), number, checks)
            operation = CustomOperation(implementation=implementation, micro_step=micro_step, **fields)
            yield checks.check(number, operation)


def _fields(part: str, line: int, checks: _Checks) -> dict[str, Any]:
    """The command of exec may hold percent signs: its end is the last one."""
    action, _, rest = part.partition("%")
    argument, percent, folder = rest.rpartition("%")
    if action not in ("send", "exec") or not percent:
        raise checks.refusal(line, f"expected send%file%folder or exec%command%, found {part!r}.")
    if action == "send":
        return {"action": "send", "file": argument.strip(), "destination": folder.strip()}
    if folder.strip():
        raise checks.refusal(line, f"exec%command% ends with a percent sign, found {folder!r} behind it.")
    return {"action": "exec", "command": argument}


# --- YAML ---------------------------------------------------------------------------------------------------------


class _Entry(Struct, frozen=True, kw_only=True):
    action: Literal["exec", "send", "run"]
    name: str = ""
    command: str = ""
    file: str = ""
    destination: str = ""
    params: str = ""
    timeout: int = 0
    retries: int = 0
    scattering: Literal["tree", "chain"] = "tree"
    """Accepted for old files: files always go to all nodes at once."""


class _MicroStep(Struct, frozen=True, kw_only=True, rename={"pre": "pre-ops", "post": "post-ops"}):
    pre: tuple[_Entry, ...] = ()
    substitute: tuple[_Entry, ...] = ()
    post: tuple[_Entry, ...] = ()
    override: bool = False
    """Accepted for old files: there are no operations of the site that could be overridden."""


_Document = dict[str, dict[str, _MicroStep]]
"""Operations by macro-step and micro-step."""
_WHEN: tuple[When, ...] = ("pre", "substitute", "post")


def _from_yaml(text: str, checks: _Checks) -> Iterator[CustomOperation]:
    try:
        root, content = _only_document(text)
        lines = _key_lines(root)
        found = msgspec.convert(content, _Document)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = explained(error, _Document)
        raise CustomOperationError(
            f"{checks.source}: neither lines Macro,micro@exec%command% nor YAML of custom operations: {reason}"
        ) from error
    for macro, micros in found.items():
        for micro, operations in micros.items():
            line = lines.get((macro, micro), 1)
            implementation, micro_step = checks.step(line, macro, micro)
            for when in _WHEN:
                for each in getattr(operations, when):
                    fields = {name: getattr(each, name) for name in _COMMON}
                    operation = CustomOperation(
                        implementation=implementation, micro_step=micro_step, when=when, **fields
                    )
                    yield checks.check(line, operation)


def _only_document(text: str) -> tuple[yaml.Node | None, Any]:
    documents = list(users_yaml.read(text))
    if len(documents) > 1:
        raise ValueError("several documents, expected one")
    return documents[0] if documents else (None, None)


_COMMON = tuple(name for name in _Entry.__struct_fields__ if name in CustomOperation.__struct_fields__)


def _key_lines(root: Any) -> dict[tuple[str, str], int]:
    """Line of each micro-step's key."""
    return {
        (macro.value, micro.value): micro.start_mark.line + 1
        for macro, micros in _pairs(root)
        for micro, _ in _pairs(micros)
        if isinstance(macro.value, str) and isinstance(micro.value, str)
    }


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    return node.value if isinstance(node, yaml.MappingNode) else []
