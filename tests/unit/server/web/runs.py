"""Events of runs for tests of their pages: as the automaton tells them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from kadeploy.events import AttemptEnded, AttemptStarted, Began, Ended, Event, Finished, Report, StepResult, StepStarted
from kadeploy.workflow import Attempt, Final, Leaving, Outcome, Perform, Plan, Verdict, run


class Told:
    """An observer that makes events of what the automaton does, as an operation does, for *listener*."""

    def __init__(self, listener: Callable[[Event], None]) -> None:
        self.tell = listener

    def started(self, attempt: Attempt, nodes: tuple[str, ...]) -> None:
        self.tell(AttemptStarted(attempt=attempt, nodes=nodes))

    def ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float) -> None:
        self.tell(AttemptEnded(attempt=attempt, outcomes=outcomes, seconds=seconds))

    def finished(self, nodes: Mapping[str, Final]) -> None:
        self.tell(Finished(finals=nodes))


def tell(
    listener: Callable[[Event], None],
    steps: Plan,
    answer: Perform,
    names: Sequence[str],
    stop: threading.Event | None = None,
    leaving: Leaving | None = None,
) -> dict[str, Final]:
    """Bring *names* through *steps*, as the workflow D-1 of alice, and tell *listener* all of it."""
    lock = threading.Lock()

    def heard(event: Event) -> None:
        with lock:
            listener(event)

    def perform(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        """Within a micro-step, of which is told what it did."""
        heard(StepStarted(attempt=attempt, micro_step="work", nodes=nodes))
        outcomes = answer(attempt, nodes)
        heard(StepResult(attempt=attempt, micro_step="work", outcomes=outcomes))
        return outcomes

    groups = {"gdx": tuple(names)}
    heard(Began(wid="D-1", operation="deploy", user="alice", groups=groups, plans={"gdx": steps}))  # type: ignore[dict-item]
    finals = run(names, steps, perform, Told(heard), stop or threading.Event(), leaving=leaving)
    ok = tuple(name for name, final in finals.items() if final.verdict is not Verdict.KO)
    ko = {name: final.message for name, final in finals.items() if final.verdict is Verdict.KO}
    aborted = tuple(name for name, final in finals.items() if final.aborted)
    heard(Ended(operation="deploy", groups=groups, report=Report("D-1", ok, ko, aborted=aborted)))
    return finals
