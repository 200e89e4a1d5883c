"""Nodes in quarantine, and those that the site's rule proposes for it, for who keeps the site."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kadeploy.admin import keeper
from kadeploy.caller import as_user, caller
from kadeploy.config.site import Site
from kadeploy.state import failing, quarantine
from kadeploy.state.failing import Failing
from kadeploy.state.quarantine import Stay


class Listed(msgspec.Struct, frozen=True):
    """What there is of some nodes, or of all."""

    quarantine: list[Stay]
    proposals: list[Failing]
    """Nodes that fail too often by the site's rule and are not in quarantine."""


def listed(site: Site, names: Sequence[str] | None = None) -> Listed:
    """Those of *names* (default: all) that are in quarantine or proposed for it.

    Raises:
        RightsError: this process is not of an account that keeps the state.
        DatabaseError: the state cannot be read.
    """
    with as_user(keeper.of(site)):
        return known(site, names)


def known(site: Site, names: Sequence[str] | None = None) -> Listed:
    """The same for a process that may read the state."""
    stays = quarantine.current(site, names)
    there = {stay.node for stay in stays}
    proposed = [each for each in failing.failing(site) if each.node not in there]
    wanted = None if names is None else frozenset(names)
    return Listed(stays, [each for each in proposed if wanted is None or each.node in wanted])


def add(site: Site, names: Sequence[str], reason: str, until: int | None) -> list[Stay]:
    """Put *names* into quarantine in the caller's name; without a *reason*, nodes that are proposed have their figures.

    Raises:
        RightsError, DatabaseError: see `listed`.
    """
    who = caller().name
    with as_user(keeper.of(site)):
        figures = {} if reason else {each.node: each.told for each in failing.failing(site)}
        alike: dict[str, list[str]] = {}
        for name in names:
            alike.setdefault(figures.get(name, reason), []).append(name)
        for text, nodes in alike.items():
            quarantine.put(site, nodes, who, text, until)
        return quarantine.current(site, names)


def release(site: Site, names: Sequence[str]) -> list[str]:
    """Let those of *names* out that are in quarantine, which are told, and have all of them begin anew.

    Raises:
        RightsError, DatabaseError: see `listed`.
    """
    who = caller().name
    with as_user(keeper.of(site)):
        return quarantine.release(site, names, who)
