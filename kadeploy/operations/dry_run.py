"""``--dry-run``: what would be done, once everything about the request has been found good."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import cast

from kadeploy.boot import loaders, profile
from kadeploy.environments.reference import Reference
from kadeploy.nodeset import fold
from kadeploy.operations import custom, plan, reasons, staging
from kadeploy.operations.sources import Sources
from kadeploy.operations.work import Work
from kadeploy.runner import hooks, inventory, playbooks, post_installs
from kadeploy.runner.player import find
from kadeploy.runner.request import Assignment, profile_sources
from kadeploy.workflow import Plan


def lines(work: Work, files: Sources) -> list[str]:
    """The plan and the boot profiles, cluster by cluster; nothing is kept, no node is touched.

    Raises:
        KadeployError: a file of the request is not good (see `staging.dry_run`).
    """
    asked, kinds = work.assignments, reasons.kinds(work.quarantined)
    work = work.only(work.admitted)
    work = replace(work, assignments=staging.dry_run(work.assignments, files, work.uploads))
    told: list[str] = []
    for cluster, names in work.groups.items():
        details = _details(work, cluster, asked[cluster])
        told += [f"cluster {cluster}: {', '.join(names)}", *(f"    {line}".rstrip() for line in details)]
    left_out = [f"left out: {fold(names)}: {reason}" for reason, names in kinds.items()]
    return [*told, *left_out, *work.notes, "Nothing was done (--dry-run)."]


def _details(work: Work, cluster: str, asked: Assignment) -> list[str]:
    assignment, steps = work.assignments[cluster], work.plans[cluster]
    return [
        *_target(work, assignment),
        *plan.lines(steps),
        *_hooks(assignment, steps),
        *_operations(asked),
        *_profiles(assignment, steps),
    ]


def _target(work: Work, assignment: Assignment) -> list[str]:
    """Which environment goes or is where, and how it is booted; nothing where there is none."""
    environment = assignment.environment
    if environment is None:
        return []
    if work.anonymous:
        name = f"{environment.name} (not recorded)"
    else:
        name = str(Reference(environment.name, environment.version, environment.user, environment.arch))
    told = [f"environment {name} {'to' if work.operation == 'deploy' else 'on'} {assignment.deploy_part}"]
    if not assignment.options.pxe_profile:
        told.append(f"boots: {loaders.how(assignment.cluster.loader, environment)}")
    return told


def _hooks(assignment: Assignment, steps: Plan) -> list[str]:
    """The site's own tasks and post-installs, and where they run; those of micro-steps that are left out do not."""
    config_dir, wants = Path(assignment.config_dir), inventory.wants(assignment)
    known = [path for _, ways in steps for way in ways if (path := find(way.name, config_dir))]
    return [
        f"{each.called} {_WORDS[each.when]} {each.implementation}:{each.micro_step}: {', '.join(map(str, each.files))}"
        for path in known
        for each in (*post_installs.of(path, assignment), *hooks.of(path, config_dir))
        if not each.is_left_out(playbooks.left_out(path, wants))
    ]


_WORDS = {"pre": "before", "substitute": "in place of", "instead": "in place of", "post": "after"}


def _operations(asked: Assignment) -> list[str]:
    """The custom operations with the files as the user named them, and where they happen."""
    return [
        f"custom operation {_WORDS[each.when]} {each.implementation}:{each.micro_step}: {custom.told(each)}"
        for each in asked.options.custom_operations
    ]


def _profiles(assignment: Assignment, steps: Plan) -> list[str]:
    """The boot profiles that *steps* would write, nodes with the same text together."""
    config_dir = Path(assignment.config_dir)
    known = (find(way.name, config_dir) for _, ways in steps for way in ways)
    kinds = dict.fromkeys(kind for path in known if path for kind in playbooks.boots(path, config_dir))
    sources = profile_sources(assignment)
    return [
        line
        for kind in kinds
        for text, names in profile.alike(sources, cast("profile.ProfileKind", kind), assignment.nodes).items()
        for line in (f"boot profile ({kind}) of {fold(names)}:", *textwrap.indent(text, "    ").splitlines())
    ]
