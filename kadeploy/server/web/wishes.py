"""What forms ask for: the requests that the tools would send, read from fields of a page.

A form has what fits into fields. Files of the user's own (``-a``, ``-x``, ``--set-custom-operations``,
``--set-pxe-pattern``, and those that results are written to) are named to the tools alone.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from kadeploy import files
from kadeploy.errors import FileError, MissingOptionError, NodeListError, OptionError
from kadeploy.nodeset import expand, require_few
from kadeploy.operations import plan
from kadeploy.operations.requests import (
    DeployRequest,
    Level,
    PowerOperation,
    PowerRequest,
    RebootKind,
    RebootRequest,
    Recorded,
)
from kadeploy.runner.request import Options
from kadeploy.server.served import Served
from kadeploy.server.web.forms import Form

_COMMON = ("nodes", "ignore_nodes_deploying", "no_hook", "debug")
_BOOT = ("environment", "partition", "key", "block_device", "vlan", "pxe_profile", "reboot_timeout")
DEPLOY = (
    *_COMMON,
    *_BOOT,
    "reformat_tmp",
    "disable_bootloader_install",
    "disable_disk_partitioning",
    "boot_partition",
    "kexec_timeout",
    "no_kexec",
    "breakpoint",
    "force_steps",
)
REBOOT = (*_COMMON, *_BOOT, "kind", "level", "no_wait", "check_production")
POWER = (*_COMMON, "operation", "level", "no_wait")
"""Names of the fields of each form."""
_DIGITS = 5


def deploy(form: Form, served: Served) -> DeployRequest:
    """What ``kadeploy3`` would ask for.

    Raises:
        KadeployError: a field is missing or malformed; the rest is found out when the request is admitted.
    """
    names = _nodes(form, served)
    environment = _environment(form)
    if environment is None:
        raise MissingOptionError("No environment: choose one of those that you see.")
    steps = form.text("force_steps")
    return DeployRequest(
        nodes=names,
        environment=environment,
        options=msgspec.structs.replace(
            _options(form),
            reformat_tmp=form.text("reformat_tmp"),
            boot_partition=_number(form, "boot_partition", "Boot partition (-c)", 0),
            disable_bootloader_install=form.has("disable_bootloader_install"),
            disable_disk_partitioning=form.has("disable_disk_partitioning"),
            breakpoint=form.text("breakpoint"),
            kexec_timeout=form.text("kexec_timeout"),
            no_kexec=form.has("no_kexec"),
        ),
        force_steps=plan.parse_force_steps(steps, served.register) if steps else None,
        ignore_nodes_deploying=form.has("ignore_nodes_deploying"),
        hook=not form.has("no_hook"),
    )


def reboot(form: Form, served: Served) -> RebootRequest:
    """What ``kareboot3`` would ask for; raises as `deploy` does."""
    return RebootRequest(
        nodes=_nodes(form, served),
        kind=_choice(form, "kind", "Kind (-r)", RebootKind),
        level=_choice(form, "level", "Level (-l)", Level),
        wait=not form.has("no_wait"),
        environment=_environment(form),
        check_production=form.has("check_production"),
        options=_options(form),
        ignore_nodes_deploying=form.has("ignore_nodes_deploying"),
        hook=not form.has("no_hook"),
    )


def power(form: Form, served: Served) -> PowerRequest:
    """What ``kapower3`` would ask for; raises as `deploy` does."""
    return PowerRequest(
        nodes=_nodes(form, served),
        operation=_choice(form, "operation", "Operation", PowerOperation),
        level=_choice(form, "level", "Level (-l)", Level),
        wait=not form.has("no_wait"),
        ignore_nodes_deploying=form.has("ignore_nodes_deploying"),
        debug=form.has("debug"),
        hook=not form.has("no_hook"),
    )


# --- fields -----------------------------------------------------------------------------------------------------------


def _nodes(form: Form, served: Served) -> tuple[str, ...]:
    """The nodes of names and ranges, each once, by their whole names."""
    most = served.site.limits.nodes
    words = [word.strip(",") for word in form.text("nodes").split()]
    names = dict.fromkeys(name for word in words if word for name in expand(word, most))
    if not names:
        raise NodeListError("No node: name nodes or ranges, such as gdx-[5-12].site.")
    require_few(len(names), most, "All of the nodes")
    return tuple(served.configuration.full_names(names))


def _environment(form: Form) -> Recorded | None:
    name = form.text("environment")
    return Recorded(name=name) if name else None


def _options(form: Form) -> Options:
    """What deployments and reboots have in common."""
    return Options(
        authorized_keys=_keys(form),
        block_device=form.text("block_device"),
        partition=_number(form, "partition", "Partition (-p)", 1),
        vlan=form.text("vlan"),
        pxe_profile=_lines(form, "pxe_profile"),
        reboot_timeout=form.text("reboot_timeout"),
        debug=form.has("debug"),
    )


def _keys(form: Form) -> str:
    text = _lines(form, "key")
    if files.looks_like_private_key(text):
        raise FileError("Key (-k): this is a private key. Paste the public one, whose file ends in .pub.")
    return files.public_keys(text, "Key (-k)") if text else ""


def _lines(form: Form, name: str) -> str:
    """Several lines: browsers end them as MIME does (HTML, section 4.10.22)."""
    text = form.text(name).replace("\r\n", "\n")
    return f"{text}\n" if text else ""


def _number(form: Form, name: str, label: str, least: int) -> int | None:
    text = form.text(name)
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS and int(text) >= least):
        raise OptionError(f"{label}: {text!r} is no number from {least} on. Correct it, or leave it empty.")
    return int(text)


def _choice(form: Form, name: str, label: str, kind: Any) -> Any:
    """One of the words of the `Literal` *kind*."""
    text, known = form.text(name), get_args(kind)
    if text not in known:
        raise OptionError(f"{label}: {text!r} is none of {', '.join(known)}. Choose one of them.")
    return text
