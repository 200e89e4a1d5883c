"""Recorded environments as kaenv3 lists and prints them, and what their owners may do with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import cast, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Redirect

from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import OptionError
from kadeploy.server.served import Served
from kadeploy.server.web.damaged import readable
from kadeploy.server.web.forms import Form
from kadeploy.server.web.visit import Visit, see
from kadeploy.state.environments import EVERYBODY, Visibility
from kadeploy.state.history import Image
from kadeploy.state.overview import uses

DAYS = 30
"""Days of the log that tell how an environment fares."""
_DIGITS = 18


class Record(msgspec.Struct, frozen=True):
    """How the deployments of an environment went lately."""

    deployments: int = 0
    successes: int = 0
    last: int | None = None
    """When the last one began (Unix)."""

    @property
    def rate(self) -> int:
        """How many of a hundred went well; rounded down, as failure rates are rounded up."""
        return 100 * self.successes // self.deployments if self.deployments else 0


def _records(served: Served, found: Iterable[Environment]) -> dict[str, Record]:
    """By `reference`; the log knows name and version and the checksum of the image, which tells owners apart."""
    by_image: dict[Image, Record] = {}
    by_name: dict[str, Record] = {}
    for use in uses(served.site, DAYS):
        if not use.is_anonymous:
            one = Record(use.deployments, use.successes, use.last)
            by_image[use.image] = one
            by_name[use.image.env] = _both(by_name.get(use.image.env, Record()), one)
    records = {}
    for each in found:
        name = f"{each.name}:{each.version}"
        known = by_image.get(Image(name, each.image.md5)) if each.image.md5 else by_name.get(name)
        records[reference(each)] = known or Record()
    return records


def _both(one: Record, other: Record) -> Record:
    last = max(one.last or 0, other.last or 0)
    return Record(one.deployments + other.deployments, one.successes + other.successes, last or None)


def path_of(environment: Environment, page: str = "one") -> str:
    """The page of an environment; its name may hold any sign."""
    known = {"name": environment.name, "owner": environment.user, "arch": environment.arch}
    return f"/ui/environments/{page}?{urlencode({key: value for key, value in known.items() if value})}"


def reference(environment: Environment) -> str:
    """How forms that deploy name exactly this one."""
    return str(Reference(environment.name, environment.version, environment.user, environment.arch))


def may_change(visit: Visit, environment: Environment) -> bool:
    """Whether the visitor may change it, or delete it."""
    return visit.is_administrator or environment.user == visit.user


def _of_form(form: Form) -> Reference:
    """The version of an environment that a form is about."""
    version, arch = form.text("version"), form.text("arch")
    if not (version.isascii() and version.isdecimal() and len(version) <= _DIGITS):
        raise OptionError(f"{version!r} is no version: load the page again.")
    return Reference(form.text("name"), int(version), form.text("owner"), arch)


def _grouped(found: Sequence[Environment]) -> Mapping[str, list[Environment]]:
    """Versions by architecture, the highest first."""
    groups: dict[str, list[Environment]] = {}
    for each in reversed(found):
        groups.setdefault(each.arch, []).append(each)
    return groups


class Environments(Controller):
    """Environments."""

    path = "/ui/environments"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def all(
        self,
        visit: NamedDependency[Visit],
        name: FromQuery[str] = "",
        owner: FromQuery[str] = "",
        all_versions: FromQuery[bool] = False,
    ) -> Response[str]:
        """Those that the visitor sees: the own and the public ones, or what somebody else lets others see."""
        found, left_out = readable(lambda: visit.served.environments(owner.strip() or None, all_versions))
        pattern = name.strip().replace("[", "[[]").replace("%", "*")
        shown = [each for each in found if not pattern or fnmatchcase(each.name, pattern)]
        return visit.page(
            "environments.html",
            "Environments",
            found=shown,
            records=_records(visit.served, shown),
            left_out=left_out,
            name=name,
            owner=owner,
            all_versions=all_versions,
            everybody=EVERYBODY,
            path_of=path_of,
            reference=reference,
            days=DAYS,
        )

    @get("/one", sync_to_thread=True)
    def one(
        self,
        visit: NamedDependency[Visit],
        name: FromQuery[str],
        owner: FromQuery[str | None] = None,
        arch: FromQuery[str | None] = None,
    ) -> Response[str]:
        """All versions of one environment."""
        found = visit.served.versions(Reference(name, None, owner, arch))
        return visit.page(
            "environment.html",
            found[-1].name,
            versions=found[::-1],
            records=_records(visit.served, found),
            may_change=may_change(visit, found[-1]),
            visibilities=get_args(Visibility),
            reference=reference,
            days=DAYS,
        )

    @post("/visibility", sync_to_thread=True, status_code=303)
    def set_visibility(self, visit: NamedDependency[Visit], form: NamedDependency[Form]) -> Redirect:
        """Say who sees a version."""
        wanted, visibility = _of_form(form), form.text("visibility")
        if visibility not in get_args(Visibility):
            raise OptionError(f"{visibility!r}: expected one of {', '.join(get_args(Visibility))}.")
        visit.served.note(str(wanted))
        return see(path_of(visit.served.set_visibility(wanted, cast("Visibility", visibility))))

    @post("/demolishing", sync_to_thread=True, status_code=303)
    def reset_demolishing(self, visit: NamedDependency[Visit], form: NamedDependency[Form]) -> Redirect:
        """Take its demolishing tag off a version."""
        wanted = _of_form(form)
        visit.served.note(str(wanted))
        return see(path_of(visit.served.reset_demolishing(wanted)))

    @get("/delete", sync_to_thread=True)
    def ask(
        self,
        visit: NamedDependency[Visit],
        name: FromQuery[str],
        version: FromQuery[int],
        owner: FromQuery[str],
        arch: FromQuery[str] = "",
    ) -> Response[str]:
        """Ask again before a version is deleted."""
        (found,) = visit.served.versions(Reference(name, version, owner, arch))
        title = f"Delete {found.name} version {found.version}?"
        return visit.page("environment_delete.html", title, environment=found, back=path_of(found))

    @post("/delete", sync_to_thread=True, status_code=303)
    def delete(self, visit: NamedDependency[Visit], form: NamedDependency[Form]) -> Redirect:
        """Delete a version."""
        wanted = _of_form(form)
        visit.served.note(str(wanted))
        visit.served.delete_environments(wanted)
        return see("/ui/environments")
