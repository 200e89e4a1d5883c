"""Time-outs: arithmetic of the number of nodes, and nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.config.timeouts import MAX_SECONDS, evaluate_timeout
from kadeploy.errors import OptionError


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("120", 120),
        (" 200+150*log(n) ", 891),
        ("max(60, n // 2) + min(3, 4)", 63),
        ("ceil(1.5) * floor(2.9) ** 3", 16),
        ("(10 + 20) / 4", 8),
        ("sqrt(n) + log2(8) + log10(1000) + 7 % 4", 19),
        ("-(-5) - +3", 2),
    ],
)
def test_a_timeout_is_seconds_or_arithmetic_of_the_number_of_nodes(expression: str, seconds: int) -> None:
    assert evaluate_timeout(expression, 100) == seconds


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "soon",
        "m + 1",
        "0",
        "-5",
        "1/0",
        "log(0)",
        "sqrt(0-1)",
        "(0-1)**0.5",
        "9**9**9**9",
        "1e308*10",
        "10**7",
        "True",
        "'a'*5",
        "[1]",
        "n if n else 1",
        "lambda: 1",
        "__import__('os').system('true')",
        "n.real",
        "max(*[1])",
        "log(x=2)",
        "min()",
        "max",
        "exp(2)",
        "1;2",
        "(" * 300,
        "1" * 5000,
        "\x00",
    ],
)
def test_anything_else_is_no_timeout(expression: str) -> None:
    with pytest.raises(OptionError):
        evaluate_timeout(expression, 10)


@given(st.text(alphabet="n0123456789.+-*/%() ,logsqrtminmaxceilfloor_'[]\x00", max_size=60), st.integers(1, 5000))
def test_every_text_is_seconds_within_a_week_or_a_refusal(expression: str, n: int) -> None:
    try:
        seconds = evaluate_timeout(expression, n)
    except OptionError:
        return
    assert 0 < seconds <= MAX_SECONDS


@given(st.integers(1, 1000), st.integers(0, 500), st.integers(1, 5000))
def test_the_documented_expression_grows_with_the_logarithm(base: int, factor: int, n: int) -> None:
    assert evaluate_timeout(f"{base}+{factor}*log(n)", n) == math.ceil(base + factor * math.log(n))
