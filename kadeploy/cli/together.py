"""Several servers in one call of a tool: ``--multi-server`` and ``--all-or-nothing``."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import Any

from kadeploy.cli import shell
from kadeploy.client import sites
from kadeploy.client.several import Several
from kadeploy.errors import KadeployError, OptionError
from kadeploy.operations.service import Service
from kadeploy.state.rights import ANY


def asked(server: str | None, multi_server: bool, all_or_nothing: bool = False) -> Service:
    """Whom these options name.

    Raises:
        KadeployError: they contradict each other, or nobody can be asked.
    """
    if server and multi_server:
        raise OptionError(f"--multi-server asks all servers of client.yml, --server {server} one: leave one out.")
    if all_or_nothing and not multi_server:
        raise OptionError("--all-or-nothing is about several servers: add --multi-server.")
    return sites.every(all_or_nothing, shell.warn) if multi_server else sites.service(server)


def words(server: str | None, multi_server: bool) -> list[str]:
    """The same options for another process."""
    return ["--multi-server"] if multi_server else ["--server", server] if server else []


def begun(service: Service) -> dict[str, list[str]]:
    """The workflows that were begun, by server; empty where it is one."""
    if not isinstance(service, Several):
        return {}
    return {name: [wid for wid, server in service.server_of.items() if server == name] for name in service.services}


def told(service: Service, wids: str) -> list[str]:
    """Lines with the ids that `Service.start` answers; of several servers each behind the name of its own."""
    return [f"[{server}] {wid}" for server, own in begun(service).items() for wid in own] or [wids]


def status(service: Service, found: int = 0) -> int:
    """Exit status of a list: *found*, unless a server is missing from it."""
    return found or int(isinstance(service, Several) and service.is_partial)


def answers(service: Service, question: Callable[[Service], Any]) -> Any:
    """What *question* answers; of several servers a mapping by their names."""
    return service.each(question) if isinstance(service, Several) else question(service)


def apart(service: Service, act: Callable[[Service, Sequence[str]], int], nodes: Sequence[str] = (ANY,)) -> int:
    """Have *act* done at each of several servers, with those of *nodes* that are its own; the worst exit status.

    What it prints begins with the name of the server. One that refuses does not hold up the others, unless it is all or
    nothing.
    """
    if not isinstance(service, Several) or not nodes:
        return act(service, nodes)
    statuses = [
        _at(server, partial(act, service.services[server], share), service.all_or_nothing)
        for server, share in service.shares(nodes).items()
    ]
    return status(service, max(statuses))


def _at(server: str, act: Callable[[], int], is_strict: bool) -> int:
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            return act()
    except KadeployError as error:
        if is_strict:
            raise type(error)(f"{server}: {error} Servers before it are done, those behind it are not.") from error
        return shell.refuse(f"{server}: {error}", error.exit_code)
    finally:
        for line in said.getvalue().splitlines():
            print(f"[{server}] {line}")
