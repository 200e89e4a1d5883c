"""Questions to several servers at once, and what they refuse as one refusal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import TypeVar

from kadeploy.errors import KadeployError

_AnswerT = TypeVar("_AnswerT")


def at_once(jobs: Mapping[str, Callable[[], _AnswerT]]) -> tuple[dict[str, _AnswerT], dict[str, KadeployError]]:
    """What each of *jobs* answers, and what the others refuse; each runs in a thread of its own."""
    answers: dict[str, _AnswerT] = {}
    errors: dict[str, Exception] = {}

    def run(name: str, job: Callable[[], _AnswerT]) -> None:
        try:
            answers[name] = job()
        except Exception as error:
            errors[name] = error

    threads = [threading.Thread(target=copy_context().run, args=(run, *each), daemon=True) for each in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = {name: _refusal(errors[name]) for name in jobs if name in errors}
    return {name: answers[name] for name in jobs if name in answers}, refused


def _refusal(error: Exception) -> KadeployError:
    if isinstance(error, KadeployError):
        return error
    raise error


def together(errors: Mapping[str, KadeployError]) -> KadeployError:
    """What servers refuse, as one refusal of the kind that matters most."""
    worst = max(errors.values(), key=lambda error: error.exit_code)
    return type(worst)(" ".join(f"{server}: {error}" for server, error in errors.items()))
