"""``kadeploy-site workers``: the machines that carry out parts of operations, and what each does now."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from kadeploy.admin import standing
from kadeploy.cli import shell
from kadeploy.cli.display import duration
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.printable import printable
from kadeploy.workers import presence
from kadeploy.workers.presence import Seen


def workers(*, form: shell.Format = "text") -> int:
    """Show the workers of the last day: which clusters they serve, what they do, and which say nothing any more.

    The exit status is 1 when a cluster that only workers reach has none.
    """
    configuration = load_configuration()
    standing.require_keeper(configuration, "kanodes3 -y")
    found = presence.seen(configuration.site)
    if form == "text":
        print("\n".join(printable(line) for line in _lines(found, configuration)))
    else:
        shell.emit([_plain(each) for each in found], form)
    return 1 if _unserved(configuration) else 0


def _plain(worker: Seen) -> dict[str, object]:
    told: dict[str, object] = msgspec.to_builtins(worker.presence)
    return {**told, "user": worker.user, "at": round(worker.at), "is_alive": worker.is_alive}


def _lines(found: list[Seen], configuration: Configuration) -> Iterator[str]:
    if not found:
        yield "No worker was seen within the last day."
    for each in found:
        said = each.presence
        serves = f"{', '.join(said.clusters)}; {len(said.busy)} of {said.shards} shards; Kadeploy {said.version}"
        yield f"{said.name} ({each.user}), {_standing(each)}: {serves}"
        yield from (f"    {name}" for name in said.busy if each.is_alive)
    for name in _unserved(configuration):
        yield f"Nobody serves cluster {name}, which only workers reach: start kadeploy-worker on such a machine."
    if found and configuration.site.service.workers is None:
        yield "Nobody may work any more: there is no `service.workers` in site.yml."


def _standing(worker: Seen) -> str:
    if worker.is_alive:
        return "leaving" if worker.presence.leaves else "serving"
    ago = duration(time.time() - worker.at)
    return f"ended {ago} ago" if worker.presence.leaves else f"silent for {ago}"


def _unserved(configuration: Configuration) -> list[str]:
    """Clusters whose nodes only workers reach, and no worker does."""
    clusters = (cluster for cluster in configuration.clusters.values() if cluster.workers == "only")
    return [cluster.name for cluster in clusters if not presence.serves(configuration.site, cluster.name)]
