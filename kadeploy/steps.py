"""Macro-steps, their implementations and their micro-steps: the playbooks are the register.

An implementation is a playbook named after it, ours or the site's; its micro-steps are the ``roles:`` of that playbook.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kadeploy.config import Implementation, read_yaml
from kadeploy.errors import ConfigError, OptionError

MACRO_STEPS = ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
"""In the order in which a deployment goes through them."""

NEVER_IMPLEMENTED = {"BootNewEnvPivotRoot": "PivotRoot has never been implemented, neither here nor before."}
"""Names that users may know from documentation, and what to tell them."""

_HIDDEN = frozenset({"finish", "drop_failed_nodes"})
"""Roles that are no micro-step of their own."""

_HERE = Path(__file__).resolve().parent


@cache
def collection() -> Path:
    """The folder of our playbooks, roles and plugins: a checkout, or the collection inside site-packages."""
    checkout = _HERE.parent
    if (checkout / "playbooks" / "deploy.yml").is_file():
        return checkout
    return checkout / "ansible_collections" / "kadeploy" / "core"


def playbook_folders(config_dir: Path) -> list[Path]:
    """Where playbooks are looked for: the site's first, then ours."""
    return [config_dir / "playbooks", collection() / "playbooks"]


def implementations(config_dir: Path) -> dict[str, Path]:
    """Every implementation of a macro-step and its playbook; the file's name registers it."""
    return {
        path.stem: path
        for folder in reversed(playbook_folders(config_dir))
        for path in sorted(folder.glob("*.yml"))
        if generic(path.stem)
    }


def generic(implementation: str) -> str:
    """The macro-step that *implementation* implements; empty when it is none."""
    return next((step for step in MACRO_STEPS if implementation.startswith(step) and implementation != step), "")


def micro_steps(playbook: Path) -> tuple[str, ...]:
    """Names of the micro-steps of a playbook, in order, each once; roles of collections by their last word.

    Raises:
        ConfigError: the file is no playbook.
    """
    names = dict.fromkeys(map(_role, _roles(playbook)))
    return tuple(name for name in names if name and name not in _HIDDEN)


def left_out(playbook: Path, wants: Mapping[str, bool]) -> frozenset[str]:
    """Micro-steps of a playbook that will not run, by their condition ``when: kadeploy_wants.NAME``.

    Raises:
        ConfigError: the file is no playbook.
    """
    conditions = {
        _role(entry): str(entry.get("when", "")).removeprefix("kadeploy_wants.")
        for entry in _roles(playbook)
        if isinstance(entry, dict)
    }
    return frozenset(role for role, condition in conditions.items() if not wants.get(condition, True))


def before(playbook: Path, micro_step: str) -> tuple[str, ...]:
    """Micro-steps of a playbook in front of *micro_step*; none when it is empty.

    Raises:
        ConfigError: the file is no playbook.
    """
    names = micro_steps(playbook)
    return names[: names.index(micro_step)] if micro_step in names else ()


def boots(playbook: Path) -> tuple[str, ...]:
    """What the boot profiles that a playbook writes make nodes boot (*switch_pxe_boot* of the role ``switch_pxe``).

    Raises:
        ConfigError: the file is no playbook.
    """
    written = (entry for entry in _roles(playbook) if isinstance(entry, dict) and _role(entry) == "switch_pxe")
    return tuple(str(entry["switch_pxe_boot"]) for entry in written if "switch_pxe_boot" in entry)


def _roles(playbook: Path) -> list[Any]:
    plays = read_yaml(playbook) or []
    if not isinstance(plays, list) or not all(isinstance(play, dict) for play in plays):
        raise ConfigError(f"{playbook}: expected a playbook, which is a list of plays.")
    return [entry for play in plays for entry in play.get("roles") or ()]


def _role(entry: Any) -> str:
    name = entry.get("role", entry.get("name", "")) if isinstance(entry, dict) else entry
    return str(name).rsplit(".", 1)[-1]


def require_implementation(name: str, config_dir: Path) -> None:
    """Raises OptionError, listing what there is, when *name* is no implementation."""
    known = implementations(config_dir)
    if name in known:
        return
    if name in NEVER_IMPLEMENTED:
        raise OptionError(NEVER_IMPLEMENTED[name])
    step = generic(name)
    choices = [other for other in known if generic(other) == step] or list(known)
    raise OptionError(f"Unknown implementation {name!r}; there are: {', '.join(sorted(choices))}.")


# --- --force-steps ------------------------------------------------------------------------------------------------

_FORCED = re.compile(r"(\w+):(\d{1,4}):(\d{1,6})\Z")


def parse_force_steps(text: str, config_dir: Path) -> dict[str, tuple[Implementation, ...]]:
    """Read ``SetDeploymentEnv|Impl:retries:timeout,…&BroadcastEnv|…&BootNewEnv|…`` (use case 9 of kadeploy3).

    Blanks and line ends around the delimiters are tolerated; so is a backslash before ``&``.

    Raises:
        OptionError: says what is wrong; all three macro-steps are mandatory, in this order.
    """
    parts = [part.strip() for part in text.replace("\\&", "&").split("&")]
    found: dict[str, tuple[Implementation, ...]] = {}
    for part in parts:
        step, bar, ways = part.partition("|")
        if not bar or not ways.strip():
            raise OptionError(f"--force-steps: {part!r} is not of the form MacroStep|Implementation:retries:timeout.")
        found[step.strip()] = tuple(_forced(way.strip(), step.strip(), config_dir) for way in ways.split(","))
    if tuple(found) != MACRO_STEPS or len(parts) != len(MACRO_STEPS):
        raise OptionError(f"--force-steps: expected all of {', '.join(MACRO_STEPS)}, once each and in this order.")
    return found


def _forced(way: str, step: str, config_dir: Path) -> Implementation:
    match = _FORCED.match(way)
    if not match:
        raise OptionError(f"--force-steps: {way!r} is not of the form Implementation:retries:timeout.")
    name = match[1]
    require_implementation(name, config_dir)
    if generic(name) != step:
        raise OptionError(f"--force-steps: {name} is not an implementation of {step}.")
    return Implementation(implementation=name, retries=int(match[2]), timeout=int(match[3]))


# --- --breakpoint -------------------------------------------------------------------------------------------------


def check_breakpoint(text: str, plan: Mapping[str, Sequence[Implementation]], config_dir: Path) -> None:
    """Check ``Macro`` or ``Macro:micro`` against the implementations that this deployment may use.

    Raises:
        OptionError: no such macro-step or micro-step, or none that this deployment goes through.
    """
    macro, colon, micro = text.partition(":")
    known = implementations(config_dir)
    if macro not in known and macro not in MACRO_STEPS:
        require_implementation(macro, config_dir)
    used = [way.implementation for step, ways in plan.items() for way in ways if macro in (step, way.implementation)]
    if not used:
        ways = [way.implementation for ways in plan.values() for way in ways]
        raise OptionError(f"--breakpoint: {macro} is not used by this deployment, which uses {', '.join(ways)}.")
    steps = dict.fromkeys(name for way in used if way in known for name in micro_steps(known[way]))
    if (colon or micro) and micro not in steps:
        raise OptionError(f"--breakpoint: {macro} has no micro-step {micro!r}; it has {', '.join(steps)}.")


# --- time-outs ----------------------------------------------------------------------------------------------------

MAX_SECONDS = 7 * 24 * 3600
_MAX_EXPRESSION = 200
"""Characters; nesting is bounded with it."""

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
"""Of floating-point numbers only, so that no power takes longer or needs more memory than another."""
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sqrt": math.sqrt,
    "min": min,
    "max": max,
    "ceil": math.ceil,
    "floor": math.floor,
}


def evaluate_timeout(expression: str, n: int) -> int:
    """Seconds that *expression* stands for with *n* nodes.

    Understood are numbers, ``n``, ``+ - * / // % **``, parentheses, and the functions log (natural), log2, log10, sqrt,
    min, max, ceil and floor. Nothing else is evaluated.

    >>> evaluate_timeout("200+150*log(n)", 50)
    787

    Raises:
        OptionError: it is something else, or not a positive number of seconds up to a week.
    """
    try:
        if len(expression) > _MAX_EXPRESSION:
            raise ValueError(f"longer than {_MAX_EXPRESSION} characters")  # noqa: TRY301 - told as the others are
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # the refusal says enough
            tree = ast.parse(expression.strip(), mode="eval")
        seconds = math.ceil(_value(tree.body, float(n)))
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise OptionError(
            f"{expression!r} is not a time-out: give seconds, or an expression of n: 200+150*log(n)."
        ) from error
    if not 0 < seconds <= MAX_SECONDS:
        raise OptionError(f"{expression!r} is {seconds} s for {n} nodes: a time-out is between 1 s and a week.")
    return seconds


def _value(node: ast.expr, n: float) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id="n"):
            return n
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, n)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, n)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, n), _value(right, n))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return float(_FUNCTIONS[name](*(_value(arg, n) for arg in args)))
    raise ValueError(ast.unparse(node))
