"""Macro-steps, their implementations and their micro-steps: the playbooks are the register.

An implementation is a playbook named after it, ours or the site's; its micro-steps are the ``roles:`` of that playbook.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kadeploy.config.file import read_yaml
from kadeploy.config.folder import collection, places
from kadeploy.errors import ConfigError, OptionError
from kadeploy.hints import did_you_mean
from kadeploy.runner import roles

MACRO_STEPS = ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
"""In the order in which a deployment goes through them."""

NEVER_IMPLEMENTED = {"BootNewEnvPivotRoot": "PivotRoot has never been implemented, neither here nor before."}
"""Names that users may know from documentation, and what to tell them."""


TODAY = {"BroadcastEnvKascade": "BroadcastEnvChain"}
"""Implementations of other times, and what does their work today."""


def named_today(where: str) -> str:
    """*where*, ``Implementation`` or ``Implementation:micro-step``, with the implementation's name of today."""
    macro, colon, micro = where.partition(":")
    return f"{TODAY.get(macro, macro)}{colon}{micro}"


def implementations(config_dir: Path) -> dict[str, Path]:
    """Every implementation of a macro-step and its playbook; the file's name registers it."""
    return {name: path for name, path in by_name(config_dir).items() if generic(name)}


def by_name(config_dir: Path) -> dict[str, Path]:
    """Every playbook, by its file's name; those of the site hide ours."""
    folders = reversed(places(config_dir, "playbooks"))
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yml"))}


Register = Mapping[str, tuple[str, ...]]
"""Micro-steps, in order, by implementation."""


def register(config_dir: Path) -> dict[str, tuple[str, ...]]:
    """Every implementation with its micro-steps.

    Raises:
        ConfigError: see `micro_steps`.
    """
    return {name: micro_steps(path, config_dir) for name, path in implementations(config_dir).items()}


def generic(implementation: str) -> str:
    """The macro-step that *implementation* implements; empty when it is none."""
    return next((step for step in MACRO_STEPS if implementation.startswith(step) and implementation != step), "")


def micro_steps(playbook: Path, config_dir: Path) -> tuple[str, ...]:
    """Names of the micro-steps of a playbook, in order, each once; roles of collections by their last word.

    Raises:
        ConfigError: the file is no playbook, or what a role says of itself is malformed.
    """
    names = dict.fromkeys(map(role, _roles(playbook)))
    return tuple(name for name in names if name and not roles.find(name, config_dir).silent)


def left_out(playbook: Path, wants: Mapping[str, bool]) -> frozenset[str]:
    """Micro-steps of a playbook that will not run, by their condition ``when: kadeploy_wants.NAME``.

    Raises:
        ConfigError: the file is no playbook.
    """
    conditions = {
        role(entry): str(entry.get("when", "")).removeprefix("kadeploy_wants.")
        for entry in _roles(playbook)
        if isinstance(entry, dict)
    }
    return frozenset(role for role, condition in conditions.items() if not wants.get(condition, True))


def before(playbook: Path, micro_step: str, config_dir: Path) -> tuple[str, ...]:
    """Micro-steps of a playbook in front of *micro_step*; none when it is empty.

    Raises:
        ConfigError: see `micro_steps`.
    """
    names = micro_steps(playbook, config_dir)
    return names[: names.index(micro_step)] if micro_step in names else ()


def reboots(playbook: Path, config_dir: Path) -> bool:
    """Whether a playbook boots its nodes, so that it can begin on nodes that are down.

    Raises:
        ConfigError: see `micro_steps`.
    """
    return any(roles.find(name, config_dir).reboots for name in micro_steps(playbook, config_dir))


def is_ours(playbook: Path, config_dir: Path) -> bool:
    """Whether a playbook and all its roles are ours: then all that it does to nodes goes by `kadeploy.remote`.

    Raises:
        ConfigError: the file is no playbook.
    """
    own = config_dir / "roles"
    return playbook.parent == collection() / "playbooks" and not any(
        (own / role(entry)).is_dir() for entry in _roles(playbook)
    )


def can_be_cut(playbook: Path, config_dir: Path) -> bool:
    """Whether several runs of a playbook, each on some of the nodes, do what one does on all of them.

    That is so of ours, but for those that say otherwise (``kadeploy_in_shards: false``).

    Raises:
        ConfigError: the file is no playbook.
    """
    said = (play.get("vars") or {} for play in plays(playbook))
    return is_ours(playbook, config_dir) and all(each.get("kadeploy_in_shards", True) for each in said)


def boots(playbook: Path, config_dir: Path) -> tuple[str, ...]:
    """What the boot profiles that a playbook writes make nodes boot: a variable of the role that writes them.

    Raises:
        ConfigError: see `micro_steps`.
    """
    entries = [entry for entry in _roles(playbook) if isinstance(entry, dict)]
    variables = [roles.find(role(entry), config_dir).boot_profile for entry in entries]
    return tuple(str(entry[name]) for entry, name in zip(entries, variables, strict=True) if name in entry)


def _roles(playbook: Path) -> list[Any]:
    return [entry for play in plays(playbook) for entry in play.get("roles") or ()]


def plays(playbook: Path) -> list[dict[str, Any]]:
    """The plays of a playbook.

    Raises:
        ConfigError: the file is no playbook.
    """
    found = read_yaml(playbook) or []
    if not isinstance(found, list) or not all(isinstance(play, dict) for play in found):
        raise ConfigError(f"{playbook}: expected a playbook, which is a list of plays.")
    return found


def role(entry: Any) -> str:
    """The name of the role that *entry* of ``roles:`` is; of one of a collection, its last word."""
    name = entry.get("role", entry.get("name", "")) if isinstance(entry, dict) else entry
    return str(name).rsplit(".", 1)[-1]


def require_implementation(name: str, config_dir: Path, others: Sequence[str] = ()) -> None:
    """Check that *name* is an implementation whose playbook and roles can be read; *others* would do as well.

    Raises:
        OptionError: it is none; lists those that there are.
        ConfigError: see `micro_steps`.
    """
    known = implementations(config_dir)
    if name in known:
        micro_steps(known[name], config_dir)
    else:
        require_known(name, known, others)


def require_known(name: str, known: Collection[str], others: Sequence[str] = ()) -> None:
    """Check that *name* is among the implementations *known*; *others* would do as well.

    Raises:
        OptionError: it is none; lists those that there are.
    """
    if name in known:
        return
    if name in NEVER_IMPLEMENTED:
        raise OptionError(NEVER_IMPLEMENTED[name])
    step = generic(name)
    choices = [other for other in known if generic(other) == step] or list(known)
    hint = did_you_mean(name, (*choices, *others))
    raise OptionError(f"Unknown implementation {name!r}; there are: {', '.join(sorted(choices))}.{hint}")
