"""The user's own files that a request names: what a client has to send to the service of a site."""

from __future__ import annotations

from collections.abc import Iterable

from kadeploy import files
from kadeploy.environments.environment import Environment
from kadeploy.operations.requests import DeployRequest, Described, PowerRequest, RebootRequest, Wish


def named(request: Wish, environment: Environment | None = None) -> list[str]:
    """Every file of the user's own that carrying out *request* may need, once, by the name that the request has for it.

    *environment* is the recorded one that it asks for, if it does. URLs and ``server:///PATH`` are not among them: the
    service has these itself. A reboot needs the image alone, and that only where nodes boot its kernel over the network
    and nobody has taken it out of the image yet.
    """
    if isinstance(request, PowerRequest):
        return []
    operations = [each.file for each in request.options.custom_operations if each.file]
    return own([*_of_environment(request, environment), *operations, *request.uploads])


def may_name(request: Wish) -> bool:
    """Whether *request* may need any file."""
    if isinstance(request, PowerRequest):
        return False
    return bool(request.environment or request.options.custom_operations or request.uploads)


def _of_environment(request: DeployRequest | RebootRequest, environment: Environment | None) -> list[str]:
    if isinstance(request.environment, Described):
        environment = request.environment.environment
    if environment is None or request.environment is None:
        return []
    needed = environment.files if isinstance(request, DeployRequest) else environment.images[:1]
    return [file.file for file in needed]


def own(names: Iterable[str]) -> list[str]:
    """Those of *names* that are the user's own files, each once."""
    return [name for name in dict.fromkeys(names) if not files.is_url(name) and not files.is_server(name)]
