"""The modules that know recorded environments: ``kadeploy_environment`` and ``kadeploy_environment_info``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kadeploy.caller import caller
from kadeploy.environments import description
from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import EnvironmentRefusedError, OptionError
from kadeploy.modules.module import Module
from kadeploy.operations.service import Service

Answer = dict[str, Any]


def environment(module: Module, service: Service) -> Answer:
    """``kadeploy_environment``: recorded as described, or gone."""
    if module.params["state"] == "absent":
        return _absent(module, service)
    return _present(module, service, _described(module))


def environments(module: Module, service: Service) -> Answer:
    """``kadeploy_environment_info``."""
    params = module.params
    found = service.environments(params["owner"], params["all_versions"])
    named = [each for each in found if params["name"] in (None, each.name, each.alias)]
    return {"changed": False, "environments": msgspec.to_builtins(named)}


def _described(module: Module) -> list[Environment]:
    """What the task describes, in itself or in a file of the account under which the module runs."""
    path, given = module.params["file"], module.params["description"]
    if path:
        return description.load(path, caller(), module.warn)
    return description.parse_all(json.dumps(given), source=str(Path.cwd() / "description"), warn=module.warn)


def _present(module: Module, service: Service, described: Sequence[Environment]) -> Answer:
    wanted = [msgspec.structs.replace(each, **_visibility(module, each)) for each in described]
    known = [(each, _recorded(service, each)) for each in wanted]
    new = [each for each, found in known if found is None]
    published = []
    for each, found in known:
        if found is not None:
            _require_same(each, found)
            published += [(each, found)] if each.visibility != found.visibility else []
    if not module.check_mode:
        if new:
            service.add_environments(new)
        for each, found in published:
            service.set_visibility(_of(found), each.visibility)
    return {
        "changed": bool(new or published),
        "environments": [msgspec.to_builtins(_recorded(service, each) or each) for each in wanted],
    }


def _visibility(module: Module, each: Environment) -> dict[str, Any]:
    return {"visibility": module.params["visibility"] or each.visibility}


def _recorded(service: Service, each: Environment) -> Environment | None:
    """The same version of the user's, if it is recorded."""
    try:
        (found,) = service.versions(Reference(each.name, each.version, service.user, each.arch or None), False)
    except EnvironmentRefusedError:
        return None
    return found


def _of(each: Environment) -> Reference:
    return Reference(each.name, each.version, each.user, each.arch or None)


def _require_same(wanted: Environment, found: Environment) -> None:
    """Refuse another description under a name and version that are taken: what was deployed by it stays repeatable.

    Raises:
        EnvironmentRefusedError: names the fields that differ.
    """
    fields = [field for field in Environment.__struct_fields__ if field not in ("user", "visibility")]
    other = [field for field in fields if _plain(getattr(wanted, field)) != _plain(getattr(found, field))]
    if other:
        raise EnvironmentRefusedError(
            f"{wanted.name} version {wanted.version} is recorded with another {', '.join(other)}: describe another "
            "version, or delete this one first (state: absent)."
        )


def _plain(value: Any) -> Any:
    """*value* without checksums, which a description need not have."""
    built = msgspec.to_builtins(value)
    if isinstance(built, dict):
        return {key: _plain(each) for key, each in built.items() if key not in ("md5", "sha256")}
    return [_plain(each) for each in built] if isinstance(built, list | tuple) else built


def _absent(module: Module, service: Service) -> Answer:
    params = module.params
    wanted = Reference(params["name"], params["version"], params["owner"] or service.user, params["arch"])
    if not wanted.name:
        raise OptionError("name: it is needed with state: absent.")
    try:
        found = service.versions(wanted)
    except EnvironmentRefusedError:
        found = []
    if found and not module.check_mode:
        found = service.delete_environments(wanted)
    return {"changed": bool(found), "environments": msgspec.to_builtins(found)}
