"""What users want to be told of the ends of their operations, and what has been told: the outbox.

A workflow that has ended gets a row of the outbox for each channel of its user's; the row's key is what has it told
once, whoever looks, and however often a service is restarted. The row stays for a while: it tells what became of it.
"""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from peewee import fn

from kadeploy.config.site import Site
from kadeploy.state.database import connect, fetch, insert, records, transaction, upsert
from kadeploy.state.journal import Flow, flow_of
from kadeploy.state.tables import NotificationRow, Outbox, Workflow
from kadeploy.workflow import Operation

Channel = Literal["mail", "webhook"]
KEPT = 30 * 86_400
"""Seconds for which a row of the outbox is kept."""
LATEST = 86_400
"""Seconds after the end of a workflow behind which it is not told any more."""
LEASE = 120
"""Seconds for which a row is in the hands of who tries it: a service that is killed meanwhile tries again then."""
_SECRET = "whsec_"  # noqa: S105 - how secrets of the specification begin
_SECRET_BYTES = 32
_TOLD = 500
"""Letters of a reason that are kept."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user wants to be told, and how."""

    mail: bool = False
    address: str = ""
    """Where mail goes; empty: to the address that the site gives the user."""
    webhook: str = ""
    """URL that is called; empty: none."""
    outcome: Literal["always", "failures"] = "always"
    """All ends, or those of operations that were stopped or of which a node is KO."""
    operations: tuple[Operation, ...] = ("deploy", "reboot", "power")

    @property
    def channels(self) -> list[Channel]:
        """By what ways."""
        given: dict[Channel, bool] = {"mail": self.mail, "webhook": bool(self.webhook)}
        return [name for name, is_given in given.items() if is_given]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The choice of *user*, as it is kept."""

    user: str
    choice: Choice
    secret: str
    since: int
    """Unix seconds; what ended before is not told."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the outbox; times are Unix seconds."""

    wid: str
    channel: str
    user: str
    made: int
    tries: int
    due: int | None
    """When it is tried next; None: it was told, or given up."""
    sent: int | None
    error: str
    """Why the last try failed."""


# --- what users want --------------------------------------------------------------------------------------------


def of(site: Site, user: str) -> Kept | None:
    """What *user* has chosen; None: nothing."""
    connect(site)
    return next((_kept(row) for row in records(NotificationRow.select().where(NotificationRow.user == user))), None)


def everybody(site: Site) -> dict[str, Kept]:
    """What users have chosen, by their names."""
    connect(site)
    return {row.user: _kept(row) for row in records(NotificationRow.select())}


def _kept(row: Any) -> Kept:
    choice = Choice(
        mail=row.mail,
        address=row.address,
        webhook=row.webhook,
        outcome="failures" if row.outcome == "failures" else "always",
        operations=tuple(row.operations.split()),
    )
    return Kept(user=row.user, choice=choice, secret=row.secret, since=row.since)


def choose(site: Site, user: str, choice: Choice, new_secret: bool = False) -> str:
    """Keep what *user* wants: the secret of the webhook where it is a new one, which nobody is shown again.

    Another URL has another secret: who reads at one cannot sign for the other.
    """
    connect(site)
    with transaction():
        before = of(site, user)
        keeps = before is not None and before.choice.webhook == choice.webhook and not new_secret
        secret = before.secret if before and keeps else _new_secret() if choice.webhook else ""
        row = msgspec.structs.asdict(choice) | {
            "user": user,
            "secret": secret,
            "operations": " ".join(dict.fromkeys(choice.operations)),
            "since": int(time.time()),
        }
        replaced = [field for name, field in NotificationRow._meta.fields.items() if name != "user"]
        upsert(NotificationRow, [row], key=[NotificationRow.user], replaced=replaced)
    return "" if keeps else secret


def _new_secret() -> str:
    return _SECRET + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def forget(site: Site, user: str) -> bool:
    """Tell *user* nothing any more, nor what has not been told yet: whether anything had been chosen."""
    connect(site)
    with transaction():
        Outbox.delete().where(Outbox.user == user).execute()
        return bool(NotificationRow.delete().where(NotificationRow.user == user).execute())


# --- what there is to tell --------------------------------------------------------------------------------------


def ended(site: Site, since: int) -> list[Flow]:
    """Workflows that have ended since then (Unix seconds), in that order."""
    connect(site)
    query = Workflow.select().where(Workflow.ended >= since).order_by(Workflow.ended, Workflow.wid)
    return [flow_of(row, ()) for row in records(query)]


def put(site: Site, ends: Mapping[str, str], channels: Iterable[Channel]) -> None:
    """Put workflows that have ended (users by id) into the outbox, for each of *channels*, unless they were before."""
    connect(site)
    now = int(time.time())
    rows = [
        {"wid": wid, "channel": channel, "user": user, "made": now, "due": now, "tries": 0, "sent": None, "error": ""}
        for channel in channels
        for wid, user in ends.items()
    ]
    insert(Outbox, rows, ignore=True)
    Outbox.delete().where(Outbox.made < now - KEPT).execute()


Place = tuple[str, str]
"""A user and a channel."""


def due(site: Site, besides: Container[Place] = ()) -> Iterator[Delivery]:
    """Of each user and channel, but those *besides*, the row that is due first, if one is due now.

    So a channel that is dead, however many rows wait for it, leaves room for all others.
    """
    connect(site)
    first = fn.MIN(Outbox.due)
    place = (Outbox.user, Outbox.channel)
    query = Outbox.select(*place, first).where(Outbox.due <= int(time.time()))
    for user, channel, moment in fetch(query.group_by(*place).order_by(first, *place)):
        if (user, channel) not in besides:
            mine = (Outbox.user == user) & (Outbox.channel == channel) & (Outbox.due == moment)
            yield from _told(_deliveries().where(mine).order_by(Outbox.wid).limit(1))


def of_user(site: Site, user: str, most: int) -> list[Delivery]:
    """The *most* rows of *user* that were made last."""
    connect(site)
    query = _deliveries().where(Outbox.user == user)
    return _told(query.order_by(Outbox.made.desc(), Outbox.wid, Outbox.channel).limit(most))


def _deliveries() -> Any:
    return Outbox.select(*(getattr(Outbox, name) for name in Delivery.__struct_fields__))


def _told(query: Any) -> list[Delivery]:
    names: Sequence[str] = Delivery.__struct_fields__
    return [Delivery(**dict(zip(names, row, strict=True))) for row in fetch(query)]


def take(site: Site, delivery: Delivery) -> bool:
    """Take a row that is due into this process's hands, for `LEASE`; False: another one was faster."""
    connect(site)
    mine = _row(delivery) & (Outbox.due == delivery.due)
    later = int(time.time()) + LEASE
    return bool(Outbox.update(due=later, tries=Outbox.tries + 1).where(mine).execute())


def sent(site: Site, delivery: Delivery) -> None:
    """It was told."""
    connect(site)
    Outbox.update(due=None, sent=int(time.time()), error="").where(_row(delivery)).execute()


def failed(site: Site, delivery: Delivery, why: str, again: int | None) -> None:
    """It was not, and is tried *again* after so many seconds; None: not any more."""
    connect(site)
    at = None if again is None else int(time.time()) + again
    Outbox.update(due=at, error=why[:_TOLD]).where(_row(delivery)).execute()


def _row(delivery: Delivery) -> Any:
    return (Outbox.wid == delivery.wid) & (Outbox.channel == delivery.channel)
