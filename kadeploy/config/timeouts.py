"""Time-outs: seconds, or expressions of the number of nodes."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable

from kadeploy.errors import OptionError

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
