"""Reasons of silent BMCs: what makes one is what knows it again."""

from __future__ import annotations

import pytest

from kadeploy.power import silence
from kadeploy.power.silence import Silence


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (silence.unreached("10.0.2.1 port 623"), Silence.UNREACHED),
        (silence.at_login("10.0.2.1", "kadeploy", "check its user"), Silence.AT_LOGIN),
        (silence.late("10.0.2.1", 60), Silence.LATE),
        (f"PowerOn-press: {silence.late('10.0.2.1', 2.5)}", Silence.LATE),
        ("the BMC at 10.0.2.1 lets nobody in: wrong password", None),
        ("", None),
    ],
)
def test_a_reason_is_known_again_by_the_way_in_which_the_bmc_was_silent(reason: str, kind: Silence | None) -> None:
    assert silence.of(reason) is kind
    assert any(phrase in reason for phrase in silence.PHRASES) is (kind is not None)
