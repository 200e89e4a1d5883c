"""Whether somebody may keep what stays open, a console or a stream of events: it is asked again while it is open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kadeploy.errors import AuthenticationError, KadeployError, RightsError

PERIOD = 3.0
"""Seconds between two looks at who follows events."""
Require = Callable[[], None]
"""Raises `AuthenticationError` or `RightsError` once what is open may stay open no more. It waits: use threads."""

_log = logging.getLogger(__name__)


@contextmanager
def watched(require: Require) -> Iterator[asyncio.Task[KadeployError]]:
    """A task that is done once *require* refuses, with the refusal; what cannot be looked up now is asked again."""
    task = asyncio.create_task(_until_refused(require))
    try:
        yield task
    finally:
        task.cancel()


async def _until_refused(require: Require) -> KadeployError:
    while True:
        await asyncio.sleep(PERIOD)
        try:
            await asyncio.to_thread(require)
        except (AuthenticationError, RightsError) as error:
            return error
        except Exception:
            _log.exception("Whether a stream of events may stay open cannot be looked up")
