"""The modules that operate on nodes: ``kadeploy_deploy``, ``kadeploy_reboot`` and ``kadeploy_power``.

An answer has a result per node, under the name by which the task calls it, so that a play can go on with those that are
well. In check mode it has the plan, as ``--dry-run`` shows it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from kadeploy import files
from kadeploy.caller import caller
from kadeploy.environments import description
from kadeploy.errors import OptionError, UserInterruptError
from kadeploy.events import Event, Report
from kadeploy.modules.module import Module, nodes_of
from kadeploy.operations import plan
from kadeploy.operations.requests import DeployRequest, Described, PowerRequest, RebootRequest, Recorded, Wish
from kadeploy.operations.service import Service
from kadeploy.runner.request import Options

Answer = dict[str, Any]


def deploy(module: Module, service: Service) -> Answer:
    """``kadeploy_deploy``."""
    params = module.params
    nodes = nodes_of(service, params["nodes"])
    steps = params["force_steps"]
    wish = DeployRequest(
        user=service.user,
        nodes=tuple(nodes.values()),
        environment=_environment(module),
        options=_options(
            module,
            reformat_tmp=params["reformat_tmp"],
            boot_partition=params["boot_partition"],
            disable_bootloader_install=not params["bootloader"],
            disable_disk_partitioning=not params["partition_disk"],
            kexec_timeout=params["reboot_kexec_timeout"],
            no_kexec=not params["kexec"],
        ),
        force_steps=plan.parse_force_steps(steps, service.register) if steps else None,
        ignore_nodes_deploying=params["force"],
        hook=params["hook"],
        host_keys=True,
    )
    return _operated(module, service, wish, nodes, "host_keys")


def reboot(module: Module, service: Service) -> Answer:
    """``kadeploy_reboot``."""
    params = module.params
    nodes = nodes_of(service, params["nodes"])
    wish = RebootRequest(
        user=service.user,
        nodes=tuple(nodes.values()),
        kind=params["kind"],
        level=params["level"],
        wait=params["wait"],
        environment=_recorded(module) if params["environment"] else None,
        options=_options(module),
        ignore_nodes_deploying=params["force"],
        hook=params["hook"],
    )
    return _operated(module, service, wish, nodes)


def power(module: Module, service: Service) -> Answer:
    """``kadeploy_power``: the nodes are asked first, and those alone are switched that are not yet as they shall be."""
    params, wanted = module.params, module.params["state"]
    nodes = nodes_of(service, params["nodes"])

    def request(operation: Any, names: Mapping[str, str]) -> PowerRequest:
        return PowerRequest(
            user=service.user,
            nodes=tuple(names.values()),
            operation=operation,
            level="soft" if operation == "status" else params["level"],
            wait=operation == "status" or params["wait"],
            ignore_nodes_deploying=params["force"],
            hook=params["hook"],
        )

    found = carry_out(service, request("status", nodes))
    if wanted == "status":
        return {"changed": False, **_results(found, nodes)}
    on = set(found.ok)
    known = on if wanted == "on" else found.answers.keys() - on  # one that says nothing is switched, and KO if need be
    other = {asked: name for asked, name in nodes.items() if name not in known}
    as_wanted = {asked: {"name": name, "status": "ok"} for asked, name in nodes.items() if asked not in other}
    if not other:
        return {"changed": False, "nodes": as_wanted, "ok": list(as_wanted), "ko": {}}
    answer = _operated(module, service, request(wanted, other), other)
    switched = {"nodes": as_wanted | answer["nodes"], "ok": [*as_wanted, *answer["ok"]]} if "nodes" in answer else {}
    return answer | switched


# --- what they have in common -----------------------------------------------------------------------------------


def _recorded(module: Module) -> Recorded:
    params = module.params
    return Recorded(
        name=params["environment"],
        version=params["environment_version"],
        owner=params["environment_owner"],
        arch=params["environment_arch"],
    )


def _environment(module: Module) -> Recorded | Described:
    path = module.params["environment_file"]
    if not path:
        return _recorded(module)
    found = description.load(path, caller(), module.warn)
    if len(found) != 1:
        raise OptionError(f"environment_file {path}: it describes {len(found)} environments; keep one in the file.")
    return Described(environment=found[0])


def _options(module: Module, **own: Any) -> Options:
    """The options that are given, of which nothing stands for those that are not."""
    params = module.params
    common = {
        "authorized_keys": _keys(module),
        "block_device": params["block_device"],
        "partition": params["partition"],
        "vlan": params["vlan"],
        "reboot_timeout": params["reboot_classical_timeout"],
    }
    return Options(**{name: value for name, value in {**common, **own}.items() if value is not None})


def _keys(module: Module) -> str:
    """Lines for ``authorized_keys``: those of the task, and those of the file that it names."""
    path, given = module.params["key"], module.params["authorized_keys"]
    own = files.public_keys("\n".join(given), "authorized_keys") if given else ""
    return own + (files.read_keys(path, caller()) if path else "")


def _operated(module: Module, service: Service, wish: Wish, nodes: Mapping[str, str], *more: str) -> Answer:
    """What came of *wish*, and *more* of its report; in check mode what would be done."""
    if module.check_mode:
        return {"changed": True, "plan": list(service.plan(wish))}
    if not module.params["wait"]:
        return {"changed": True, "workflow": service.start(wish)}
    report = carry_out(service, wish)
    answer = {"changed": True, **_results(report, nodes), **{name: getattr(report, name) for name in more}}
    if report.ko and module.params["fail_on_ko"]:
        named = {asked: report.ko[name] for asked, name in nodes.items() if name in report.ko}
        first = "; ".join(f"{asked}: {reason}" for asked, reason in list(named.items())[:3])
        answer |= {"failed": True, "msg": f"{len(named)} of {len(nodes)} nodes are KO: {first}"}
    return answer


def _results(report: Report, nodes: Mapping[str, str]) -> Answer:
    results = {asked: _result(report, name) for asked, name in nodes.items()}
    return {
        "workflow": report.wid,
        "nodes": results,
        "ok": [asked for asked, each in results.items() if each["status"] in ("ok", "breakpoint")],
        "ko": {asked: each["message"] for asked, each in results.items() if each["status"] in ("ko", "aborted")},
    }


def _result(report: Report, name: str) -> dict[str, str]:
    told = {"answer": report.answers[name]} if name in report.answers else {}
    if name in report.ko:
        status = "aborted" if name in report.aborted or name in report.taken else "ko"
        return {"name": name, "status": status, "message": report.ko[name], **told}
    return {"name": name, "status": "breakpoint" if name in report.at_breakpoint else "ok", **told}


def carry_out(service: Service, wish: Wish) -> Report:
    """Carry *wish* out to its end; a signal ends it as Ctrl-C ends a tool's: its nodes are aborted and free.

    Raises:
        UserInterruptError: by a signal, before it had begun.
    """
    wids: list[str] = []
    stop = threading.Event()
    with _ended_by_signals(stop, service, wids):
        report = service.carry_out(wish, _quiet, stop, wids.append)
    if stop.is_set() and not report.wid:
        raise UserInterruptError("Interrupted before the operation had begun.")
    return msgspec.structs.replace(report, wid=report.wid or next(iter(wids), ""))


def _quiet(_event: Event) -> None:
    """Ansible shows nothing of a module before its end; the service's page and ``kanodes3 -y`` do."""


@contextmanager
def _ended_by_signals(stop: threading.Event, service: Service, wids: list[str]) -> Iterator[None]:
    def handle(_number: int, _frame: object) -> None:
        stop.set()
        for wid in wids:
            service.interrupted(wid)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
