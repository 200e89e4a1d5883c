"""What users choose to be told, as far as the site lets them, and trials of it."""

from __future__ import annotations

import threading
import time

import msgspec

from kadeploy.config.folder import Configuration
from kadeploy.errors import LimitError, OptionError
from kadeploy.server.notifications import mail, sending, webhook
from kadeploy.server.notifications.sending import Tried
from kadeploy.state import notifications
from kadeploy.state.notifications import Choice, Delivery

PAUSE = 10.0
"""Seconds between two trials of a user."""
_SHOWN = 20
"""Messages that are shown, those that were made last."""

_trials: dict[str, float] = {}
"""When each user tried last; those long ago are forgotten."""
_trying = threading.Lock()


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a site lets its users choose."""

    mail: str
    """Where mail to the user goes; empty: there is none."""
    own_addresses: bool
    """Whether the user may name another address."""
    webhooks: tuple[str, ...]
    """How URLs have to begin that may be called."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What a user has chosen, what there is to choose, and what became of the last messages."""

    choice: Choice | None
    """None: nothing."""
    offer: Offer
    deliveries: list[Delivery]
    secret: str = ""
    """What calls are signed with, where it is new: it is never shown again."""


def shown(configuration: Configuration, user: str, secret: str = "") -> Shown:
    """What there is of *user*."""
    kept = notifications.of(configuration.site, user)
    return Shown(
        choice=kept.choice if kept else None,
        offer=_offer(configuration, user),
        deliveries=notifications.of_user(configuration.site, user, _SHOWN),
        secret=secret,
    )


def _offer(configuration: Configuration, user: str) -> Offer:
    offered = configuration.site.notifications
    by = offered.mail
    return Offer(
        mail=f"{user}@{by.domain}" if by else "",
        own_addresses=by is not None and by.own_addresses,
        webhooks=offered.webhooks,
    )


def choose(configuration: Configuration, user: str, choice: Choice, new_secret: bool = False) -> Shown:
    """Keep what *user* wants from now on; *new_secret* has calls signed with another one.

    Raises:
        OptionError: the site does not let users have that.
    """
    offered = configuration.site.notifications
    if choice.mail or choice.address:
        mail.address_of(offered.mail, user, choice.address)
    if choice.webhook:
        webhook.require_allowed(choice.webhook, offered.webhooks)
    if not choice.operations:
        raise OptionError("No operation is named: say of which you want to be told, deploy, reboot or power.")
    return shown(configuration, user, notifications.choose(configuration.site, user, choice, new_secret))


def trial(configuration: Configuration, user: str) -> list[Tried]:
    """Send *user* something now, on each channel: what became of it.

    Raises:
        OptionError: nothing has been chosen.
        LimitError: the last trial was a moment ago.
    """
    kept = notifications.of(configuration.site, user)
    if kept is None or not kept.choice.channels:
        raise OptionError("Neither mail nor a webhook has been chosen: choose one first.")
    _require_patience(user)
    message = sending.trial(user, configuration.site.name)
    results = {name: sending.send(configuration, kept, name, message) for name in kept.choice.channels}
    return [Tried(channel=name, sent=not why, told=why) for name, why in results.items()]


def _require_patience(user: str) -> None:
    now = time.monotonic()
    with _trying:
        for name in [name for name, last in _trials.items() if now - last >= PAUSE]:
            del _trials[name]
        if user in _trials:
            raise LimitError(f"The last trial was a moment ago: wait {PAUSE:.0f} s and try again.")
        _trials[user] = now
