"""What a user is told, on the channels that they have chosen."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from kadeploy.config.folder import Configuration
from kadeploy.errors import KadeployError, NotToldError
from kadeploy.operations.ended import Run
from kadeploy.server.notifications import mail, webhook
from kadeploy.state.notifications import Channel, Kept

TOOLS = {"deploy": "kadeploy3", "reboot": "kareboot3", "power": "kapower3"}


class Message(NamedTuple):
    """What is told, on whatever channel."""

    id: str
    """The same at each try, so that who gets it twice can see so."""
    kind: str
    """``run.ended`` or ``test``."""
    data: Mapping[str, Any]
    subject: str
    lines: list[str]


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a trial on one channel."""

    channel: str
    sent: bool
    told: str
    """Why not."""


def of_run(run: Run, page: str = "") -> Message:
    """How *run* ended; *page* is where the service's page is, for a link."""
    known = {name: getattr(run, name) for name in run.__struct_fields__ if name != "report"}
    link = f"{page}ui/runs/{run.wid}" if page else ""
    report = msgspec.to_builtins(run.report)
    again = ["", f"To see it again: {TOOLS[run.operation]} --attach {run.wid}", *([link] if link else [])]
    return Message(
        id=run.wid,
        kind="run.ended",
        data={**known, "url": link, "report": report},
        subject=f"[kadeploy] {run.wid}: {run.headline}",
        lines=[*run.lines, *again],
    )


def trial(user: str, site: str) -> Message:
    """Something to see by whether notifications arrive."""
    said = f"This is a trial: {user} is told so of operations at {site} that have ended."
    name = f"test-{secrets.token_hex(8)}"
    return Message(name, "test", {"user": user, "site": site}, "[kadeploy] a trial", [said])


def send(configuration: Configuration, kept: Kept, channel: Channel, message: Message) -> str:
    """Tell the user of *kept*, on *channel*: why that failed, empty where it did not."""
    try:
        _SENDERS[channel](configuration, kept, message)
    except (NotToldError, KadeployError) as error:
        return str(error)
    return ""


def _by_mail(configuration: Configuration, kept: Kept, message: Message) -> None:
    by = configuration.site.notifications.mail
    to = mail.address_of(by, kept.user, kept.choice.address)
    if by:
        mail.send(by, configuration.folder, to, message.id, message.subject, message.lines)


def _by_webhook(configuration: Configuration, kept: Kept, message: Message) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    body = msgspec.json.encode({"type": message.kind, "timestamp": now, "data": message.data})
    allowed = configuration.site.notifications.webhooks
    webhook.call(kept.choice.webhook, kept.secret, message.id, body, allowed)


_SENDERS: Mapping[Channel, Callable[[Configuration, Kept, Message], None]] = {
    "mail": _by_mail,
    "webhook": _by_webhook,
}
