"""What the service does by itself, now and then: workflows go on whose controllers died, and old things go."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kadeploy.config.folder import Configuration
from kadeploy.errors import KadeployError
from kadeploy.events import FILE_NAME
from kadeploy.operations import background, resume, runs
from kadeploy.state import database, journal, sent

_LOG = logging.getLogger("kadeploy.server")
_OFTEN = 2.0
"""Seconds between two looks for workflows that have to go on."""
_AGAIN = 10.0
"""Seconds after which one that could not go on is tried again: the database may have been down."""
_RARELY = 300.0
_KEPT = 600.0
"""Seconds for which one can still read how an operation went that only looked at nodes."""


class Keeper:
    """A thread that does it, from `start` to `stop`."""

    def __init__(self, configuration: Callable[[], Configuration]) -> None:
        self._configuration = configuration
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._refused: dict[str, tuple[str, float]] = {}
        """Workflows that could not go on: why, and when they are tried again."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once what is under way is done."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        cleaned = -_RARELY
        while not self._stop.wait(_OFTEN):
            try:
                self._go_on()
                if time.monotonic() - cleaned > _RARELY:
                    cleaned = time.monotonic()
                    self._clean()
            except KadeployError as error:
                _LOG.error("%s", error)
            except Exception:
                _LOG.exception("the keeper failed; it goes on")
        database.disconnect()

    def _go_on(self) -> None:
        """No workflow is given up; what is the same as before is not told again."""
        configuration = self._configuration()
        for wid in resume.resumable(configuration.site):
            told, due = self._refused.get(wid, ("", 0.0))
            if time.monotonic() < due:
                continue
            if why := self._resumed(wid, configuration, told):
                self._refused[wid] = why, time.monotonic() + _AGAIN
            else:
                self._refused.pop(wid, None)

    def _resumed(self, wid: str, configuration: Configuration, told: str) -> str:
        """Why it does not go on, or nothing; *told* is what was said last time."""
        if not told:
            _LOG.warning("workflow %s goes on: its controller died", wid)
        try:
            background.resume(wid, configuration.folder)
        except KadeployError as error:
            if str(error) != told:
                _LOG.error("workflow %s does not go on: %s", wid, error)
            return str(error)
        return ""

    def _clean(self) -> None:
        site = self._configuration().site
        sent.purge(site)
        runs.purge(site)
        known = journal.ended(site)
        for folder in site.run_folders.glob("P-*"):
            if folder.name not in known and _is_old(folder / FILE_NAME):
                shutil.rmtree(folder, ignore_errors=True)


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > _KEPT
    return False
