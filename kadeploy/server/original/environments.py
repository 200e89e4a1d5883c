"""Recorded environments in the original's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from litestar import Controller, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody

from kadeploy.environments import document
from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import EnvironmentRefusedError, NothingChangedError, OptionError
from kadeploy.server.original import asked
from kadeploy.server.original.asked import Toggle
from kadeploy.server.original.forms import rendered
from kadeploy.server.original.operations import TAG, Answer, Asked, Here
from kadeploy.server.served import Served
from kadeploy.state import environments
from kadeploy.state.environments import Part
from kadeploy.state.fingerprints import RemoteUser
from kadeploy.state.rights import require_almighty

_ALWAYS: dict[str, Any] = {"alias": "", "arch": "", "description": "", "author": "", "boot": {}, "filesystem": ""}
"""What clients look for in each environment."""


class Changes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PUT /environments/…``."""

    visibility: Literal["private", "shared", "public"] | None = None
    toggle_destructive: Toggle = None
    update_image_checksum: Toggle = None
    update_preinstall_checksum: Toggle = None
    update_postinstalls_checksum: Toggle = None
    last: Toggle = None
    client: Any = None


class Moved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PUT /environments``: paths, old and new."""

    update_files: dict[str, str]
    client: Any = None


class EnvironmentController(Controller):
    """``/environments``."""

    path = "/environments"
    tags = (TAG,)

    @get("/", sync_to_thread=True)
    def listed(
        self,
        served: Here,
        request: Asked,
        username: FromQuery[str | None] = None,
        user: FromQuery[str | None] = None,
        name: FromQuery[str | None] = None,
        version: FromQuery[int | None] = None,
        arch: FromQuery[str | None] = None,
        last: FromQuery[str | None] = None,
    ) -> Answer:
        """Those that you see: with *last* the highest version of each alone."""
        newest = asked.is_on(last)
        found = served.environments(username or user, all_versions=not newest or version is not None)
        fitting = [each for each in found if name in (None, each.name, each.alias)]
        fitting = [each for each in fitting if version in (None, each.version) and arch in (None, each.arch)]
        return rendered(request, [told(each) for each in fitting])

    @post("/", sync_to_thread=True, status_code=200)
    def add(self, served: Here, request: Asked, data: JSONBody[dict[str, Any]]) -> Answer:
        """Record an environment: its description in the later form, or that as ``environment``."""
        found = data.get("environment", data)
        if not isinstance(found, dict):
            raise EnvironmentRefusedError("environment: expected a description, with name, os and image.")
        owner = found.get("user") or served.user
        described = asked.described({key: value for key, value in found.items() if key != "client"})
        served.note(described.name)
        if owner != served.user:
            require_almighty(served.site, served.user)
            return rendered(request, told(environments.add(served.site, described, RemoteUser(str(owner)))))
        return rendered(request, told(served.add_environments([described])[0]))

    @get("/{user:str}", sync_to_thread=True)
    def of_user(self, served: Here, request: Asked, user: FromPath[str], last: FromQuery[str | None] = None) -> Answer:
        """Those of one user that you see."""
        return rendered(request, [told(each) for each in served.environments(user, not asked.is_on(last))])

    @get("/{user:str}/{name:str}", sync_to_thread=True)
    def one(
        self,
        served: Here,
        request: Asked,
        user: FromPath[str],
        name: FromPath[str],
        last: FromQuery[str | None] = None,
    ) -> Answer:
        """All versions of an environment, or with *last* the highest."""
        found = served.versions(Reference(name, None, user), not asked.is_on(last))
        return rendered(request, [told(each) for each in found])

    @get("/{user:str}/{name:str}/{version:int}", sync_to_thread=True)
    def version(
        self, served: Here, request: Asked, user: FromPath[str], name: FromPath[str], version: FromPath[int]
    ) -> Answer:
        """One version of an environment."""
        return rendered(request, [told(each) for each in served.versions(Reference(name, version, user))])

    @put("/{user:str}/{name:str}", sync_to_thread=True)
    def change(
        self, served: Here, request: Asked, user: FromPath[str], name: FromPath[str], data: JSONBody[Changes]
    ) -> Answer:
        """Say who sees it, take its destructive tag off, or record the checksums of its files anew."""
        return rendered(request, _changed(served, Reference(name, None, user), data))

    @put("/{user:str}/{name:str}/{version:int}", sync_to_thread=True)
    def change_version(
        self,
        served: Here,
        request: Asked,
        user: FromPath[str],
        name: FromPath[str],
        version: FromPath[int],
        data: JSONBody[Changes],
    ) -> Answer:
        """The same with one version."""
        return rendered(request, _changed(served, Reference(name, version, user), data))

    @put("/", sync_to_thread=True)
    def move(self, served: Here, request: Asked, data: JSONBody[Moved]) -> Answer:
        """Rewrite paths in all environments; for administrators."""
        moved = served.move_files(list(data.update_files.items()))
        if not moved:
            raise NothingChangedError("No environment has a file that begins so.")
        return rendered(request, msgspec.to_builtins(moved))

    @delete("/{user:str}/{name:str}", sync_to_thread=True, status_code=200)
    def remove(
        self,
        served: Here,
        request: Asked,
        user: FromPath[str],
        name: FromPath[str],
        last: FromQuery[str | None] = None,
    ) -> Answer:
        """Delete all versions of an environment, or with *last* the highest."""
        wanted = Reference(name, None, user)
        if asked.is_on(last):
            wanted = wanted._replace(version=served.versions(wanted, all_versions=False)[0].version)
        return rendered(request, [told(each) for each in served.delete_environments(wanted)])

    @delete("/{user:str}/{name:str}/{version:int}", sync_to_thread=True, status_code=200)
    def remove_version(
        self, served: Here, request: Asked, user: FromPath[str], name: FromPath[str], version: FromPath[int]
    ) -> Answer:
        """Delete one version of an environment."""
        gone = served.delete_environments(Reference(name, version, user))
        return rendered(request, [told(each) for each in gone])


def _changed(served: Served, wanted: Reference, data: Changes) -> dict[str, Any]:
    parts: dict[Part, object] = {
        "tarball": data.update_image_checksum,
        "preinstall": data.update_preinstall_checksum,
        "postinstalls": data.update_postinstalls_checksum,
    }
    marked: list[Part] = [part for part, toggle in parts.items() if asked.is_on(toggle)]
    toggles = asked.is_on(data.toggle_destructive)
    if not (marked or toggles or data.visibility):
        raise NothingChangedError("Nothing is to be changed: name visibility, toggle_destructive or a checksum.")
    if data.visibility:
        served.set_visibility(wanted, data.visibility)
    if toggles:
        if not served.versions(wanted, all_versions=False)[0].demolishing_env:
            raise OptionError("toggle_destructive: the tag is taken off here; it is put on by its description.")
        served.reset_demolishing(wanted)
    for part in marked:
        served.update_checksums(wanted, part)
    return told(served.versions(wanted, all_versions=False)[0])


def told(environment: Environment) -> dict[str, Any]:
    """An environment as the original tells it: its description, whose it is, and the checksums of its files."""
    found: dict[str, Any] = msgspec.json.decode(document.to_json([environment]))
    _with_checksums([found["image"]], [environment.image.md5])
    _with_checksums(found.get("postinstalls", []), [each.md5 for each in environment.postinstalls])
    if environment.preinstall:
        _with_checksums([found["preinstall"]], [environment.preinstall.md5])
    return {**_ALWAYS, "postinstalls": [], "multipart": False, **found, "user": environment.user}


def _with_checksums(files: Sequence[dict[str, Any]], sums: Sequence[str]) -> None:
    for file, md5 in zip(files, sums, strict=True):
        file["md5"] = md5
