"""What clients learn of the configuration: what their tools need, without secrets, paths and commands."""

from __future__ import annotations

import msgspec

from kadeploy.config.cluster import Cluster, NodeRange, Power
from kadeploy.config.folder import Configuration
from kadeploy.config.notifications import Notifications
from kadeploy.config.service import Service
from kadeploy.config.site import BootFolders, Hooks, Site, Ssh
from kadeploy.nodeset import fold

_NOWHERE = "/nonexistent"


def site(known: Site) -> Site:
    """*known* without what is the server's business."""
    return msgspec.structs.replace(
        known,
        state_dir=_NOWHERE,
        database="",
        ssh=Ssh(private_key=_NOWHERE, host_key=known.ssh.host_key, port=known.ssh.port),
        boot=BootFolders(tftp_root=_NOWHERE, http_root=_NOWHERE, http_url=known.boot.http_url),
        hooks=Hooks(),
        vlan=None,
        quarantine=None,
        service=Service(),
        notifications=Notifications(),
        kept_variables=(),
        network_namespace="",
    )


def clusters(configuration: Configuration) -> dict[str, Cluster]:
    """Those of *configuration*, without how their machines are switched and their consoles opened."""
    return {
        name: msgspec.structs.replace(
            cluster,
            power=Power(driver=cluster.power.driver),
            nodes=_names(cluster),
            inventory=None,
            broadcast_command="",
            console_log="",
            console="console" if cluster.console else "",
            console_account="",
            pre_installs=(),
            post_installs=(),
        )
        for name, cluster in configuration.clusters.items()
    }


def _names(cluster: Cluster) -> tuple[NodeRange, ...]:
    names = [part.name for part in cluster.nodes] or [fold(cluster.members)]
    return tuple(NodeRange(name=name) for name in names)
