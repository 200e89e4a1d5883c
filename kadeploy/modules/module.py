"""The frame of every module: whom it asks, what Ansible gets of a refusal, and the nodes that a task names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Protocol

from kadeploy.client import sites
from kadeploy.errors import KadeployError, NodeListError
from kadeploy.nodeset import expand, require_few
from kadeploy.operations.service import Service


class Module(Protocol):
    """What is used of Ansible's ``AnsibleModule``."""

    params: dict[str, Any]
    check_mode: bool

    def exit_json(self, **result: Any) -> NoReturn:
        """End well."""

    def fail_json(self, msg: str, **result: Any) -> NoReturn:
        """End with a failure, and say why."""

    def warn(self, warning: str) -> None:
        """Tell what should be looked at."""


def run(module: Module, act: Callable[[Module, Service], Mapping[str, Any]]) -> NoReturn:
    """Have *act* done with the site that the option ``server`` names, and end the module with what it answers.

    An answer that is ``failed`` ends it as a failure; so does a refusal, with the words that the tools have for it.
    """
    try:
        answer = dict(act(module, sites.service(module.params["server"])))
    except KadeployError as error:
        module.fail_json(msg=str(error))
    if answer.pop("failed", False):
        module.fail_json(**answer)
    module.exit_json(**answer)


def nodes_of(service: Service, patterns: Iterable[str], required: bool = True) -> dict[str, str]:
    """The site's name of each node that *patterns* name, by the name that they have for it.

    Raises:
        NodeListError: a pattern is malformed, a node is unknown, there are too many, or none where it is *required*.
    """
    most = service.site.limits.nodes
    names = list(dict.fromkeys(name for pattern in patterns for name in expand(pattern, most)))
    require_few(len(names), most, "All of nodes")
    if required and not names:
        raise NodeListError("nodes: the list is empty.")
    configuration = service.configuration
    found = {name: whole for name in names for whole in configuration.full_names([name])}
    configuration.cluster_nodes(list(found.values()))
    return found
