"""Hooks: a site's own Ansible tasks in front of, behind or in place of a micro-step, on every node by itself.

Files ``hooks/MACRO/MICRO.WHEN.d/*.yml`` of the configuration folder are lists of tasks. MACRO is a macro-step, for all
its implementations, or one implementation or reboot; WHEN is ``pre``, ``post`` or ``instead``. An attempt's playbook is
put together from them and the implementation's own, whose plays are parted at the micro-steps that have hooks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import yaml

from kadeploy.config import content
from kadeploy.errors import ConfigError
from kadeploy.hints import did_you_mean
from kadeploy.runner import playbooks

When = Literal["pre", "instead", "post"]

FOLDER = "hooks"
FIRST = "drop_failed_nodes"
"""The role that leaves out nodes which are KO: an ordinary task would work on them."""


@dataclass(frozen=True)
class Hook:
    """The files of tasks at one place of an implementation."""

    implementation: str
    micro_step: str
    when: When
    files: tuple[Path, ...]
    """In the order in which they run."""

    @property
    def step(self) -> str:
        """What its tasks are called in messages; in place of a micro-step they are that micro-step."""
        return self.micro_step if self.when == "instead" else tag(self.micro_step, self.when)

    @property
    def called(self) -> str:
        """What it is, for people."""
        return "hook"

    @property
    def play(self) -> str:
        """Name of the play in which they run."""
        return f"{self.implementation}-{tag(self.micro_step, self.when)}"

    def is_left_out(self, micro_steps: frozenset[str]) -> bool:
        """Whether it does not run where *micro_steps* do not."""
        return self.micro_step in micro_steps

    def bring(self, run_dir: Path, secrets: Iterable[Path]) -> None:
        """Copy what its folders hold, but *secrets*, into *run_dir*, where it has them under their own names."""
        ignored = content.without(secrets)
        for folder in {path.parent for path in self.files}:
            into = run_dir / _copy(folder)
            shutil.copytree(folder, into, ignore=ignored, ignore_dangling_symlinks=True, dirs_exist_ok=True)

    def plays(self, run_dir: Path, around: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002 - others write
        """What runs it, with the settings of the play *around* it.

        Who has been KO before is left out by a role that asks once for all nodes; the tasks are for each node.
        """
        mine = tags(self.micro_step, self.when)
        files = [str(_copy(path.parent) / path.name) for path in self.files]
        play = {key: value for key, value in around.items() if key not in WORK} | {
            "name": self.play,
            "run_once": True,
            "roles": [{"role": FIRST, "tags": mine}],
            "tasks": [{"ansible.builtin.import_tasks": file, "run_once": False, "tags": mine} for file in files],
        }
        return [play]


def tag(micro_step: str, when: When) -> str:
    """A tag of the tasks of a hook; they have that of the micro-step as well."""
    return f"{micro_step}.{when}"


def tags(micro_step: str, when: When) -> list[str]:
    """All tags of such tasks."""
    return [tag(micro_step, when), micro_step]


def of(playbook: Path, config_dir: Path) -> tuple[Hook, ...]:
    """The hooks of the implementation or reboot whose *playbook* this is: those of its macro-step first.

    Raises:
        ConfigError: a file is no list of tasks, or belongs to a micro-step that there is not.
    """
    places = (config_dir / FOLDER / name for name in (playbooks.generic(playbook.stem), playbook.stem) if name)
    found: dict[tuple[str, When], list[Path]] = {}
    for place in places:
        for micro_step, when, files in _at(place, config_dir):
            found.setdefault((micro_step, when), []).extend(files)
    return tuple(Hook(playbook.stem, micro, when, tuple(files)) for (micro, when), files in found.items() if files)


def mistakes(config_dir: Path) -> Iterator[str]:
    """What is wrong in the folder of hooks, a line each."""
    try:
        places = _inside(config_dir / FOLDER)
    except ConfigError as error:
        yield str(error)
        return
    for place in places:
        try:
            list(_at(place, config_dir))
        except ConfigError as error:
            yield str(error)


def write(
    run_dir: Path, playbook: Path, hooks: Sequence[Hook], left_out: frozenset[str], secrets: Iterable[Path] = ()
) -> Path:
    """Write the playbook of an attempt: *playbook* with *hooks*, but those of micro-steps that are *left_out*.

    Those of one place run in their order. What they consist of is copied into *run_dir*, which tells what has run and
    can be carried elsewhere; *secrets* are not.

    Raises:
        ConfigError: *playbook* is none.
        OSError: it cannot be written.
    """
    used: dict[tuple[str, When], list[Hook]] = {}
    for each in hooks:
        if not each.is_left_out(left_out):
            each.bring(run_dir, secrets)
            used.setdefault((each.micro_step, each.when), []).append(each)
    plays = [part for play in playbooks.plays(playbook) for part in _parts(play, used, run_dir)]
    written = run_dir / "playbook.yml"
    written.write_text(as_yaml(plays), encoding="utf-8")
    return written


def as_yaml(plays: Sequence[Mapping[str, Any]]) -> str:
    """Text of a playbook; the dumper names nothing twice (by an alias), which people would have to look up."""
    return yaml.dump(list(plays), Dumper=_Plain, sort_keys=False, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """Writes what is there twice as often."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - of no object
        """Whether *data* has no name of its own in the text."""
        return True


def _copy(folder: Path) -> Path:
    """Where a run folder has a folder of hooks: ``hooks/MACRO/MICRO.WHEN.d``."""
    return Path(*folder.parts[-3:])


_FIRST_ONLY = frozenset({"pre_tasks"})
_LAST_ONLY = frozenset({"tasks", "post_tasks"})
WORK = _FIRST_ONLY | _LAST_ONLY | {"roles", "handlers"}
"""What a play does; all else says how."""


def _parts(
    play: Mapping[str, Any], hooks: Mapping[tuple[str, When], Sequence[Hook]], run_dir: Path
) -> Iterator[dict[str, Any]]:
    """One play as several: hooks between the roles in front of them and the roles behind."""
    groups: list[list[Any] | Hook] = [[]]
    for entry in play.get("roles") or ():
        for when in get_args(When):
            here = hooks.get((playbooks.role(entry), when), ())
            if here:
                groups += [*here, []]
            elif when == "instead":
                cast("list[Any]", groups[-1]).append(entry)
    last = len(groups) - 1
    for place, group in enumerate(groups):
        if isinstance(group, Hook):
            yield from group.plays(run_dir, play)
            continue
        others = (_FIRST_ONLY if place else frozenset()) | (_LAST_ONLY if place < last else frozenset())
        part = {key: value for key, value in play.items() if key not in others} | {"roles": group}
        if group or part.keys() & (_FIRST_ONLY | _LAST_ONLY):
            yield part


# --- files ------------------------------------------------------------------------------------------------------------


def _at(place: Path, config_dir: Path) -> Iterator[tuple[str, When, list[Path]]]:
    """The files of each folder in *place*, which is called as a macro-step or a playbook is."""
    folders = [path for path in _inside(place) if path.is_dir()]
    known = playbooks.by_name(config_dir)
    mine = [path for name, path in known.items() if place.name in (name, playbooks.generic(name))]
    if not mine:
        hint = did_you_mean(place.name, (*playbooks.MACRO_STEPS, *known))
        if not hint and not any(path.suffix == ".d" for path in folders):
            return  # what hooks use: roles, collections
        raise ConfigError(f"{place}: there is no macro-step and no playbook {place.name!r}.{hint}")
    steps = dict.fromkeys(step for path in mine for step in playbooks.micro_steps(path, config_dir))
    for folder in folders:
        micro_step, _, rest = folder.name.partition(".")
        when = rest.removesuffix(".d")
        if when not in get_args(When) or not rest.endswith(".d"):
            raise ConfigError(f"{folder}: expected MICRO-STEP.pre.d, MICRO-STEP.instead.d or MICRO-STEP.post.d.")
        if micro_step not in steps:
            hint = did_you_mean(micro_step, steps)
            raise ConfigError(
                f"{folder}: {place.name} has no micro-step {micro_step!r}; it has {', '.join(steps)}.{hint}"
            )
        yield micro_step, cast("When", when), _files(folder)


def _inside(folder: Path) -> list[Path]:
    """What is in *folder*, if there is one, in the order of names; what is hidden is an editor's.

    Raises:
        ConfigError: it cannot be read: what is in it would be left out unnoticed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}: let the account read it that runs deployments.") from error


def _files(folder: Path) -> list[Path]:
    """The files of tasks in *folder*, in the order of their names."""
    files = [path for path in _inside(folder) if path.suffix in (".yml", ".yaml")]
    for path in files:
        tasks = read(path)
        if isinstance(tasks, str) and tasks.startswith(_VAULTED):
            continue  # Ansible alone can look into it
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise ConfigError(f"{path}: expected a list of Ansible tasks.")
        if any("hosts" in task or "import_playbook" in task for task in tasks):
            raise ConfigError(f"{path}: expected tasks, not plays; their nodes are those of the attempt.")
    return files


_VAULTED = "$ANSIBLE_VAULT;"


def read(path: Path) -> Any:
    """A file of Ansible's; what it has tags for, such as ``!vault``, is `Tagged`.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _AnyTag)  # noqa: S506 - it makes no objects
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: it cannot be read: {' '.join(str(error).split())}") from error


class Tagged(NamedTuple):
    """A text with a tag, which Ansible understands."""

    tag: str
    text: str


class _AnyTag(yaml.SafeLoader):
    """Reads texts with any tag; lists and mappings with one as if they were empty."""


def _tagged(_loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Tagged | None:
    return Tagged(node.tag, node.value) if isinstance(node, yaml.ScalarNode) else None


_AnyTag.add_multi_constructor("!", _tagged)
_Plain.add_representer(Tagged, lambda dumper, data: dumper.represent_scalar(data.tag, data.text, style="|"))
