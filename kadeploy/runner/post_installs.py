"""Post-installs by Ansible: roles and playbooks of the cluster file, as hooks behind the micro-steps where they run.

An archive of ``post_installs`` is the business of a micro-step. A role or a playbook becomes plays in the playbook of
an attempt: behind that micro-step, in the new system, by the connection ``new_root``; or behind the first boot. Which
micro-steps these are they say themselves (`roles.Role`). To Ansible a role is a playbook with this role alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kadeploy.config import content, trust
from kadeploy.config.cluster import Cluster
from kadeploy.config.file import refusal
from kadeploy.config.installs import PostInstall
from kadeploy.config.rules import Wrong
from kadeploy.errors import ConfigError
from kadeploy.hints import did_you_mean
from kadeploy.runner import hooks, inventory, playbooks, roles
from kadeploy.runner.hooks import Hook
from kadeploy.runner.request import Assignment

FOLDER = "post_installs"
"""In a run folder: of each playbook what lies beside it."""


_OF_FACTS = frozenset({"gather_subset", "gather_timeout"})
"""What a play says of how facts are gathered."""
_MACRO_STEPS = {"new_root": "BroadcastEnv", "booted": "BootNewEnv"}
"""Where post-installs are expected to run, by their ``where``."""


@dataclass(frozen=True)
class PlayedPostInstall(Hook):
    """A role or a playbook of the cluster file, behind a micro-step of an implementation."""

    post_install: PostInstall
    rank: int
    """Among all post-installs, from 0."""
    addresses: Mapping[str, str]
    """By node where it is not where it was, because it is in a VLAN."""

    @property
    def called(self) -> str:
        """How it is told from hooks and other post-installs."""
        return f"post-install {self.post_install.name}"

    @property
    def step(self) -> str:
        """What its tasks are called in messages."""
        return self.called

    @property
    def play(self) -> str:
        """Name of its plays."""
        return f"{self.implementation}-{self.called}"

    def is_left_out(self, micro_steps: frozenset[str]) -> bool:  # noqa: ARG002 - hooks look at them
        """Whether it goes with its micro-step: never, since that is about archives."""
        return False

    def bring(self, run_dir: Path, secrets: Iterable[Path]) -> None:
        """Copy what lies beside a playbook, but *secrets*, into *run_dir*."""
        ignored = content.without(secrets)
        for path in self.files if self.post_install.playbook else ():
            shutil.copytree(path.parent, run_dir / self._folder, ignore=ignored, ignore_dangling_symlinks=True)

    def plays(self, run_dir: Path, around: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What runs it, with the settings of the play *around* it."""
        if self.post_install.role:
            entry = {"role": self.post_install.role, "vars": self.post_install.vars}
            return [self._play({"roles": [entry], "gather_facts": self.post_install.facts}, around, {})]
        (path,) = self.files
        written = self._folder / path.name
        plays = [self._play(play, around, self.post_install.vars) for play in hooks.read(path)]
        (run_dir / written).write_text(hooks.as_yaml(plays), encoding="utf-8")
        return [{"import_playbook": str(written)}]

    @property
    def _folder(self) -> Path:
        return Path(FOLDER, str(self.rank))

    def _play(self, own: Mapping[str, Any], around: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        """A play of the site, on the nodes of the attempt that are not KO.

        Facts are gathered behind the role that leaves the others out; Ansible would do so in front of it.
        """
        tags = hooks.tags(self.micro_step, self.when)
        begin = [{"ansible.builtin.import_role": {"name": hooks.FIRST}, "run_once": True}]
        if own.get("gather_facts", True):
            wanted = {key: value for key, value in own.items() if key in _OF_FACTS}
            begin.append({"name": "Gather facts", "ansible.builtin.setup": wanted, "tags": "always"})
        found = {key: value for key, value in around.items() if key not in hooks.WORK | {"run_once"}} | {
            **own,
            "name": self.play,
            "hosts": around["hosts"],
            "gather_facts": False,
            "vars": _merged(around.get("vars"), own.get("vars"), self._moved(), variables),
            "tags": [*_listed(own.get("tags")), *tags],
            "pre_tasks": [*begin, *(own.get("pre_tasks") or ())],
        }
        return found | ({"connection": "new_root"} if self.post_install.where == "new_root" else {})

    def _moved(self) -> dict[str, Any]:
        return {"ansible_host": f"{{{{ {dict(self.addresses)!r}[inventory_hostname] }}}}"} if self.addresses else {}


def of(playbook: Path, assignment: Assignment) -> tuple[PlayedPostInstall, ...]:
    """The post-installs by Ansible of a deployment that run in the implementation whose *playbook* this is, in order.

    Those for a system that cannot be mounted are left out, as archives are.

    Raises:
        ConfigError: one of them cannot be found or read, or is no playbook for the nodes of a deployment.
    """
    cluster, config_dir = assignment.cluster, Path(assignment.config_dir)
    given = [(rank, each) for rank, each in enumerate(cluster.post_installs) if each.name]
    if not given or assignment.operation != "deploy":
        return ()
    if wrong := list(_wrong(cluster, config_dir)):
        raise _refusal(cluster, config_dir, wrong)
    anchors = _anchors(playbook, config_dir)
    known = {node.name: node.vlan_address for node in assignment.nodes}
    found = []
    for rank, each in given:
        booted = each.where == "booted"
        if each.where in anchors and (booted or inventory.is_mountable(assignment)):
            addresses = known if booted and any(known.values()) else {}
            place = _place(each, config_dir)
            files = (place,) if place else ()
            found.append(PlayedPostInstall(playbook.stem, anchors[each.where], "post", files, each, rank, addresses))
    return tuple(found)


def mistakes(cluster: Cluster, config_dir: Path) -> Iterator[str]:
    """What is wrong with the post-installs of *cluster*, a line each."""
    with suppress(ConfigError):  # of the settings of the estate, which are looked at for themselves
        yield from _mistakes(cluster, config_dir)


def _mistakes(cluster: Cluster, config_dir: Path) -> Iterator[str]:
    if wrong := list(_wrong(cluster, config_dir)):
        yield from str(_refusal(cluster, config_dir, wrong)).splitlines()


def homeless(cluster: Cluster, config_dir: Path) -> Iterator[tuple[str, str]]:
    """Implementations of *cluster* that have no place for one of its post-installs, and that post-install."""
    known = playbooks.implementations(config_dir)
    names = [name for name in cluster.implementations if name in known]
    anchors = {name: _anchors(known[name], config_dir) for name in names}
    for each in cluster.post_installs:
        for name in names if each.name else ():
            if playbooks.generic(name) == _MACRO_STEPS[each.where] and each.where not in anchors[name]:
                yield name, each.name


def _anchors(playbook: Path, config_dir: Path) -> dict[str, str]:
    """Micro-steps of a playbook behind which post-installs run, by their ``where``."""
    said = {roles.find(name, config_dir).post_installs: name for name in playbooks.micro_steps(playbook, config_dir)}
    is_boot = playbooks.generic(playbook.stem) == _MACRO_STEPS["booted"]
    return {where: name for where, name in said.items() if where and (where != "booted" or is_boot)}


def _merged(*variables: Any) -> dict[str, Any]:
    """Variables of plays in one mapping, the last word first; Ansible allows a list of mappings too."""
    found: dict[str, Any] = {}
    for each in variables:
        for part in each if isinstance(each, list) else [each or {}]:
            found |= part
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else str(value).split(",") if value else []


# --- what is wrong ------------------------------------------------------------------------------------------------


def _refusal(cluster: Cluster, config_dir: Path, wrong: Sequence[Wrong]) -> ConfigError:
    path = config_dir / cluster.file
    if path.is_file():
        return refusal(path, wrong)
    return ConfigError("\n".join(f"{path}: {each.said}" for each in wrong))


def _wrong(cluster: Cluster, config_dir: Path) -> Iterator[Wrong]:
    for rank, each in enumerate(cluster.post_installs):
        if each.name:
            said = _role_wrong(each.role, config_dir) if each.role else _playbook_wrong(each.playbook, config_dir)
            if said:
                yield Wrong(("post_installs", rank, "role" if each.role else "playbook"), said)


def _place(each: PostInstall, config_dir: Path) -> Path | None:
    return content.role(each.role, config_dir) if each.role else config_dir / each.playbook


def _role_wrong(name: str, config_dir: Path) -> str:
    place = content.role(name, config_dir)
    if place is None:
        hint = did_you_mean(name, content.roles(config_dir))
        return f"there is no role {name}; expected one in {config_dir / 'roles'}, or of a collection.{hint}"
    if closed := _closed(place):
        return f"{closed} cannot be read: let the account read it that runs deployments."
    return ""


def _playbook_wrong(name: str, config_dir: Path) -> str:
    path = config_dir / name
    if not path.is_file():
        return f"there is no file {path}; expected a playbook, relative to the configuration folder."
    if closed := _closed(path.parent):
        return f"{closed} cannot be read: let the account read it that runs deployments."
    try:
        trust.require_all_roots([*path.parent.rglob("*")], "post-install")
        plays = hooks.read(path) or []
    except ConfigError as error:
        return f"{str(error).rstrip('.')}."
    if not isinstance(plays, list) or not all(isinstance(play, dict) for play in plays):
        return f"{path}: expected a playbook, which is a list of plays."
    for play in plays:
        if play.get("hosts") not in ("all", inventory.GROUP):
            said = f"{path}: hosts is {play['hosts']}" if "hosts" in play else f"{path}: an entry has no hosts"
            return f"{said}; expected plays for hosts: all, which are the nodes of the deployment."
    return "" if plays else f"{path} has no plays."


def _closed(folder: Path) -> Path | None:
    """What this account cannot read in *folder*, if there is something."""
    for place, folders, files in os.walk(folder, followlinks=True):
        for path in (Path(place), *(Path(place, name) for name in (*folders, *files))):
            wanted = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
            if path.exists() and not os.access(path, wanted, effective_ids=True):
                return path
    return None
