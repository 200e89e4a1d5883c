"""What others say reaches people as text, and does nothing else."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from kadeploy.errors import FileError
from kadeploy.printable import printable
from kadeploy.workflow import Outcome, Verdict


@given(st.text())
def test_only_tabs_and_line_ends_are_left_of_what_controls_a_terminal(text: str) -> None:
    shown = printable(text)
    assert {c for c in shown if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}} <= {"\t", "\n"}
    assert printable(shown) == shown


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert printable(text) is text


def test_the_order_of_what_is_read_cannot_be_changed() -> None:
    """A right-to-left override makes a name look like another one."""
    assert printable("node-1\u202egpj.exe\u2066") == "node-1�gpj.exe�"


def test_every_outcome_and_every_refusal_is_fit_to_be_shown() -> None:
    """Nobody who passes a node's words on has to think of it."""
    evil = "\x1b]0;owned\x07\x9b31m\r\nend"
    shown = "�]0;owned��31m\nend"
    outcome = Outcome(Verdict.KO, evil, 1, evil, evil, answer=evil)
    assert (outcome.message, outcome.stdout, outcome.stderr, outcome.answer) == (shown,) * 4
    assert str(FileError(evil)) == shown
