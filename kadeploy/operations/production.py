"""The production system after somebody's deployment: whether it can have survived (``kareboot3 -c``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import DestructiveEnvironmentError, OptionError
from kadeploy.events import Report
from kadeploy.nodeset import fold
from kadeploy.state import environments, nodes


def check(configuration: Configuration, names: Sequence[str], partition: int | None) -> dict[str, Environment]:
    """The recorded environment on each node that has one, if the production system may have survived them all.

    Raises:
        OptionError: *partition* does not hold the production system.
        DestructiveEnvironmentError: an environment counts as demolishing.
    """
    _require_production(configuration, names, partition)
    before = _last_environments(configuration.site, names)
    _require_harmless(configuration.site, before)
    return before


def count_failures(site: Site, before: Mapping[str, Environment], report: Report) -> None:
    """Count nodes that are KO against the environments that were on them, where the site wants it so."""
    if site.demolishing.auto_tag and not report.aborted:
        environments.add_failure(
            site, [before[name] for name in report.ko if name in before and name not in report.taken]
        )


def _require_production(configuration: Configuration, names: Iterable[str], partition: int | None) -> None:
    for cluster in configuration.cluster_nodes(list(names)):
        number = configuration.clusters[cluster].disk.number("prod")
        if number != partition:
            where = f"partition {number}" if number else "no partition at all (disk.partitions)"
            raise OptionError(f"-c: the production environment of cluster {cluster} is on {where}, not on {partition}.")


def _last_environments(site: Site, names: Iterable[str]) -> dict[str, Environment]:
    found = {}
    for row in nodes.states(site, list(names)):
        if row.env_name and row.env_version is not None:
            environment = environments.recorded(
                site, Reference(row.env_name, row.env_version, row.env_owner, row.env_arch)
            )
            if environment is not None:
                found[row.hostname] = environment
    return found


def _require_harmless(site: Site, before: Mapping[str, Environment]) -> None:
    bad = [name for name, environment in before.items() if environments.is_demolishing(site, environment)]
    if bad:
        which = ", ".join(sorted({before[name].name for name in bad}))
        raise DestructiveEnvironmentError(
            f"{fold(bad)}: the environment deployed there ({which}) is demolishing. Deploy the production system again."
        )
