"""Operations from the page: a form, then the plan of ``--dry-run`` with a button, then the operation itself.

The plan carries what was typed in hidden fields, and everything is read and checked anew when the button is pressed:
nothing of it is believed. A plan begins one operation (`kadeploy.server.web.once`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from litestar.response import Redirect

from kadeploy import files
from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import DatabaseError, KadeployError
from kadeploy.nodeset import fold
from kadeploy.operations.requests import PowerRequest, RebootRequest, Wish
from kadeploy.server.served import Served
from kadeploy.server.web import wishes
from kadeploy.server.web.forms import Form
from kadeploy.server.web.visit import Visit, see
from kadeploy.state.damage import sparing

Answer = Response[str] | Redirect
Typed = Mapping[str, str]
"""What stands in the fields of a form, by their names."""
Nodes = Annotated[list[str] | None, QueryParameter(name="nodes", description="Nodes or ranges.")]

ONCE = "once"
"""Name of the field with the key of a plan, which begins one operation however often its button is pressed."""
_OLD = "Nothing has begun: that plan was old, or from before the service began anew. This is the one of now."


@dataclass(frozen=True)
class Action:
    """One kind of operation, as the page offers it."""

    title: str
    path: str
    template: str
    """Of its form."""
    fields: Sequence[str]
    read: Callable[[Form, Served], Wish]

    def form(self, visit: Visit, typed: Typed, refused: KadeployError | None = None) -> Response[str]:
        """The form with what was *typed*, and why that was *refused*."""
        values: dict[str, Any] = {"action": self, "typed": typed, "choices": _choices(visit.served)}
        if refused is None:
            return visit.page(self.template, self.title, refused="", **values)
        return visit.page(self.template, self.title, status=visit.refused(refused), refused=str(refused), **values)

    def answer(self, visit: Visit, form: Form) -> Answer:
        """What comes of pressing a button of the form, or of its plan."""
        typed = {name: text for name in self.fields if (text := form.text(name))}
        try:
            match form.text("step"):
                case "change":
                    return self.form(visit, typed)
                case "start":
                    return self._started(visit, self.read(form, visit.served), typed, form.text(ONCE))
            return self._planned(visit, self.read(form, visit.served), typed)
        except KadeployError as error:
            return self.form(visit, _without_secrets(typed), error)

    def _planned(self, visit: Visit, request: Wish, typed: Typed, said: str = "") -> Response[str]:
        visit.served.note(f"{fold(request.nodes)} (dry run)")
        values: dict[str, Any] = {"action": self, "typed": typed, "does": does(request), "said": said}
        once = {"name": ONCE, "key": visit.once.key(visit.user)}
        return visit.page("plan.html", f"{self.title}: the plan", lines=visit.served.plan(request), once=once, **values)

    def _started(self, visit: Visit, request: Wish, typed: Typed, key: str) -> Answer:
        """The page of what the first press of a plan's button begins."""
        visit.served.note(fold(request.nodes))
        wid = visit.once.begin(visit.user, key, lambda: visit.served.start(request))
        return self._planned(visit, request, typed, _OLD) if wid is None else see(f"/ui/runs/{wid}")


def does(request: Wish) -> str:
    """What a button says that begins it.

    >>> does(PowerRequest(nodes=("gdx-1.site",), operation="off"))
    'Switch 1 node off'
    """
    count = f"{len(request.nodes)} node{'s' * (len(request.nodes) != 1)}"
    match request:
        case PowerRequest(operation="status"):
            return f"Ask {count}"
        case PowerRequest():
            return f"Switch {count} {request.operation}"
        case RebootRequest():
            return f"Reboot {count}"
    return f"Deploy {count}"


def _without_secrets(typed: Typed) -> Typed:
    return {name: "" if files.looks_like_private_key(text) else text for name, text in typed.items()}


def _choices(served: Served) -> dict[str, str]:
    """The environments that the user sees, in their highest versions: what people read, by what is sent."""
    found: list[Environment] = []
    with suppress(DatabaseError), sparing():
        found.extend(served.environments())
    return {str(Reference(each.name, each.version, each.user, each.arch)): _described(each) for each in found}


def _described(each: Environment) -> str:
    told = [f"version {each.version}", f"of {each.user}", each.arch, each.visibility, each.description]
    return f"{each.name} ({', '.join(filter(None, told))})"


ACTIONS = {
    "reboot": Action("Reboot", "/ui/act/reboot", "act.html", wishes.REBOOT, wishes.reboot),
    "power": Action("Power", "/ui/act/power", "act.html", wishes.POWER, wishes.power),
}
"""What `Acting` offers, by the last word of its path."""
Kind = Literal["reboot", "power"]


class Acting(Controller):
    """Reboots, and switching on and off."""

    path = "/ui/act/{kind:str}"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def form(self, visit: NamedDependency[Visit], kind: FromPath[Kind], nodes: Nodes = None) -> Response[str]:
        """What is to be done, and with which nodes."""
        return ACTIONS[kind].form(visit, {"nodes": " ".join(nodes or ())})

    @post("/", sync_to_thread=True, status_code=200)
    def act(self, visit: NamedDependency[Visit], form: NamedDependency[Form], kind: FromPath[Kind]) -> Answer:
        """Show the plan, or begin."""
        return ACTIONS[kind].answer(visit, form)


class Cancelling(Controller):
    """The end of operations before their time."""

    path = "/ui/runs/{wid:str}/cancel"
    include_in_schema = False

    @post("/", sync_to_thread=True, status_code=303)
    def cancel(
        self,
        visit: NamedDependency[Visit],
        form: NamedDependency[Form],  # noqa: ARG002 - checked by being asked for
        wid: FromPath[str],
    ) -> Redirect:
        """Have one's own end within seconds; administrators may end everybody's."""
        visit.served.note(wid)
        visit.served.cancel(wid)
        return see(f"/ui/runs/{wid}")
