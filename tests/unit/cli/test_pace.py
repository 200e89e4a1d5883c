"""The clock of what is told again."""

from __future__ import annotations

import threading
import time

import pytest

from kadeploy.cli.pace import Pace
from kadeploy.events import Event, Note


def test_the_clock_of_a_replay_goes_from_the_first_event_on_and_not_beyond_the_present() -> None:
    told: list[Event] = []
    pace = Pace(100.0)
    tell = pace.paced(told.append, threading.Event())
    at = time.time() - 1000
    tell(Note(at=at, text="first"))
    assert at <= pace.now() < at + 100
    tell(Note(at=at + 20, text="second"))
    assert at + 20 <= pace.now() < at + 120
    fast = Pace(1000.0)
    fast.paced(told.append, threading.Event())(Note(at=time.time() - 1, text="of a run that goes on"))
    time.sleep(0.05)
    assert fast.now() == pytest.approx(time.time(), abs=1)
