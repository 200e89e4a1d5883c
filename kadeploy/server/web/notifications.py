"""What the reader wants to be told of the ends of their operations, and what became of the last messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency

from kadeploy.errors import KadeployError
from kadeploy.server.notifications.choosing import Shown
from kadeploy.server.notifications.sending import Tried
from kadeploy.server.web.forms import Form
from kadeploy.server.web.visit import Visit
from kadeploy.state.notifications import Choice
from kadeploy.workflow import Operation


class Notifications(Controller):
    """Mail and webhooks of one user."""

    path = "/ui/notifications"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def show(self, visit: NamedDependency[Visit]) -> Response[str]:
        """What is chosen, and what there is to choose."""
        return _page(visit)

    @post("/", sync_to_thread=True, status_code=200)
    def change(self, visit: NamedDependency[Visit], form: NamedDependency[Form]) -> Response[str]:
        """Choose, forget, or be sent something now."""
        step = form.text("step")
        try:
            if step == "try":
                return _page(visit, tried=visit.served.try_notifications())
            if step == "forget":
                visit.served.forget_notifications()
                return _page(visit, said="You are told nothing any more.")
            found = visit.served.choose_notifications(_choice(form), new_secret=step == "secret")
        except KadeployError as error:
            return _page(visit, error=error, typed=None if step in ("try", "forget") else _choice(form))
        return _page(visit, found, said="You are told of what ends from now on.")


def _choice(form: Form) -> Choice:
    return Choice(
        mail=form.has("mail"),
        address=form.text("address"),
        webhook=form.text("webhook"),
        outcome="failures" if form.text("outcome") == "failures" else "always",
        operations=tuple(name for name in get_args(Operation) if name in form.all("operations")),
    )


def _page(
    visit: Visit,
    found: Shown | None = None,
    error: KadeployError | None = None,
    typed: Choice | None = None,
    said: str = "",
    tried: Sequence[Tried] = (),
) -> Response[str]:
    shown = found or visit.served.notifications()
    return visit.page(
        "notifications.html",
        "Notifications",
        status=200 if error is None else visit.refused(error),
        shown=shown,
        chosen=typed or shown.choice or Choice(),
        operations=get_args(Operation),
        refused="" if error is None else str(error),
        said=said,
        tried=tried,
    )
