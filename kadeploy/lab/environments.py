"""The environments that a lab offers to deploy, and their descriptions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.images import BuiltEnvironment, build_debian, build_tiny
from kadeploy.lab.lab import Lab
from kadeploy.lab.sim import environment as sim
from kadeploy.lab.virtual import Say

BUILDERS: Mapping[str, Callable[[Path, Say], BuiltEnvironment]] = {
    "tiny": lambda cache, say: build_tiny(cache, say=say),
    "debian12-min": lambda cache, say: build_debian(cache, say=say),
    "sim": lambda cache, _: sim.build(cache),
}
"""Environment → what builds it, or finds it in the cache."""


def chosen(text: str) -> tuple[str, ...]:
    """Names in a comma-separated list; raises OptionError for an unknown one.

    >>> chosen("tiny"), chosen("")
    (('tiny',), ())
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in BUILDERS:
            hint = did_you_mean(name, BUILDERS)
            raise OptionError(f"--environments {name}: expected a list of {', '.join(BUILDERS)}.{hint}")
    return names


def build(names: Sequence[str], cache: Path, say: Say) -> dict[str, BuiltEnvironment]:
    """Build the environments that the cache does not hold yet."""
    return {name: BUILDERS[name](cache, say) for name in names}


def describe(lab: Lab, environments: Mapping[str, BuiltEnvironment]) -> None:
    """Put the descriptions where users look for them: ``NAME.dsc``, for ``kaenv3 -a`` and ``kadeploy3 -a``."""
    lab.environments_folder.mkdir(exist_ok=True, mode=0o755)
    for name, environment in environments.items():
        shutil.copyfile(environment.description_file, lab.environments_folder / f"{name}.dsc")
