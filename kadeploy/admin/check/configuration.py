"""Settings that are legal, and odd; whether the configuration can be read at all is told by `checking`."""

from __future__ import annotations

import ipaddress
import os
import pwd
import shlex
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from kadeploy.admin import initial, restore
from kadeploy.admin.check import site_commands
from kadeploy.admin.check.site_commands import SiteCommand
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.config import content, installs, listing
from kadeploy.config.cluster import Cluster
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, KadeployError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import told
from kadeploy.runner import hooks, post_installs

LOADS = Look("configuration", "loads")
HALF_WAY = restore.HALF_WAY
IGNORED = Look("configuration", "ignored-files")
RIGHTS = Look("configuration", "rights")
TLS = Look("configuration", "verify-tls")
TRIES = Look("configuration", "tries")
TIME = Look("configuration", "timeouts")
FIRST_REBOOT = Look("configuration", "first-reboot")
REBOOTS = Look("configuration", "reboot-commands")
ADDRESSES = Look("configuration", "addresses")
BMC = Look("configuration", "bmc-addresses")
LOGIN = Look("configuration", "bmc-login")
BOOT_LOG = Look("configuration", "boot-log")
INVENTORY = Look("configuration", "inventory")
PROGRAMS = Look("configuration", "commands")
ARCHIVES = Look("configuration", "archives")
SERVER = Look("configuration", "server-address")
URL = Look("configuration", "http-url")
HOOKS = Look("configuration", "hooks")
CONTENT = Look("configuration", "ansible-cfg")
POST_INSTALLS = Look("configuration", "post-installs")
ADMINISTRATORS = Look("configuration", "administrators")
WORKERS = Look("configuration", "workers")

_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


def check(subject: Subject) -> Iterator[Finding]:
    """What is odd about the settings."""
    site, clusters = subject.site, subject.configuration.clusters
    nodes = len(subject.configuration.cluster_of)
    yield from restore.half_way(subject.configuration.folder)
    for fault in subject.configuration.faults.values():
        yield from mistakes(fault)
    yield LOADS.ok(f"{subject.configuration.folder}: {_count(len(clusters), 'cluster')}, {_count(nodes, 'node')}")
    yield from _ignored(subject.configuration.folder)
    yield from _content(subject.configuration.folder)
    for mistake in hooks.mistakes(subject.configuration.folder):
        yield HOOKS.fail(mistake, "correct it: deployments that would run it are refused")
    yield from _of_site(site, clusters)
    for cluster in clusters.values():
        yield from _of_cluster(cluster, site)
        yield from _post_installs(cluster, subject.configuration.folder)


def mistakes(said: str) -> Iterator[Finding]:
    """A finding for each line of what is *said* of a file."""
    for line in said.splitlines():
        text, _, meant = line.partition(" Did you mean ")
        yield LOADS.fail(text, f"did you mean {meant}" if meant else "correct it, then check again")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ignored(folder: Path) -> Iterator[Finding]:
    """Files that somebody takes for clusters, and no tool reads."""
    for path in sorted((folder / "clusters").glob("*")):
        if path.suffix == ".yaml":
            yield IGNORED.warn(f"{path} is not read", f"rename it {path.stem}.yml, or move it away")
    for name in ("site.yaml", "cluster", "client.yaml"):
        if (folder / name).exists():
            meant = {"site.yaml": "site.yml", "cluster": "clusters", "client.yaml": "client.yml"}[name]
            yield IGNORED.warn(f"{folder / name} is not read", f"call it {meant}, or move it away")


def _content(folder: Path) -> Iterator[Finding]:
    """What the settings of the estate say that does not count, or is not there."""
    try:
        found = content.settings(folder)
    except ConfigError as error:
        yield CONTENT.fail(str(error), "correct it: what would run tasks of the site is refused")
        return
    if found.ignored:
        yield CONTENT.warn(
            f"{found.path}: {', '.join(found.ignored)} does not count in deployments",
            f"take it out, if you like; of [defaults] {', '.join(content.TAKEN)} count",
        )
    for path in sorted(found.secrets):
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and not os.access(path, os.X_OK):
            advice = f"chmod 600 {shlex.quote(str(path))}, as a file of the account that runs deployments"
            yield CONTENT.warn(f"{path}: others can read this password of a vault", advice)
    for key, path in found.missing:
        yield CONTENT.warn(f"{found.path}: {key}: there is no folder {path}", "correct it, or take it out")


# --- the site ---------------------------------------------------------------------------------------------------


def _of_site(site: Site, clusters: dict[str, Cluster]) -> Iterator[Finding]:
    if site.rights == "dummy":
        yield RIGHTS.warn(
            "rights: dummy lets every user deploy on every node",
            "set rights: db in site.yml and give rights (karights3)",
        )
    yield from _boot_log(site)
    yield from _server_address(site, clusters)
    yield from _http_url(site)
    unknown = [name for name in site.almighty_users if not _has_account(name)]
    if unknown:
        yield ADMINISTRATORS.warn(
            f"almighty_users: {', '.join(unknown)} has no account on this machine",
            f"correct almighty_users in site.yml, unless they call over HTTPS.{_meant(unknown[0])}",
        )
    yield from _workers(site, clusters)
    yield from _commands(site_commands.of_site(site, "node"))


def _workers(site: Site, clusters: dict[str, Cluster]) -> Iterator[Finding]:
    """What workers need of the site beside their accounts."""
    if site.service.workers is None:
        return
    if not site.database.startswith(("postgresql://", "postgres://")):
        yield WORKERS.fail(
            "service.workers is given, and the database is not PostgreSQL, in which workers find what there is to do",
            "set database: postgresql://… in site.yml, or take service.workers out",
        )
    if all(cluster.workers == "never" for cluster in clusters.values()):
        yield WORKERS.warn(
            "service.workers is given, and no cluster has work for them",
            "set workers: prefer or only in the file of a cluster",
        )


def _meant(name: str) -> str:
    return did_you_mean(name, [each.pw_name for each in pwd.getpwall()])


def _has_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _boot_log(site: Site) -> Iterator[Finding]:
    log = site.boot.log
    if not log:
        yield BOOT_LOG.warn(
            "boot.log is not set: when a node does not come back, what it asked the boot server for is not told",
            "name the log of the boot server as boot.log in site.yml; kadeploy-bootserver.service writes "
            f"{initial.OUR_BOOT_LOG}",
        )
    elif not os.path.exists(log):  # noqa: PTH110 - a text of the configuration
        yield BOOT_LOG.warn(
            f"boot.log: there is no file {log}", "start the boot server, or name its log as boot.log in site.yml"
        )
    elif not os.access(log, os.R_OK):
        yield BOOT_LOG.warn(f"boot.log: {log} cannot be read", "let the account of the service read it")
    else:
        yield BOOT_LOG.ok(f"boot.log: {log}")


def _server_address(site: Site, clusters: dict[str, Cluster]) -> Iterator[Finding]:
    try:
        where = ipaddress.ip_address(site.server_address)
    except ValueError:  # a name: `names` resolves it
        if secure := [cluster.name for cluster in clusters.values() if cluster.loader.secure_boot]:
            yield SERVER.warn(
                f"server_address: {site.server_address} is a name, and nodes with loader.secure_boot "
                f"({', '.join(secure)}) fetch their kernels from there: GRUB resolves names only where DHCP tells it a "
                "DNS server",
                "write the controller's address",
            )
        return
    ours = [node.address for cluster in clusters.values() for node in cluster.members.values() if node.address]
    if where in _LOOPBACK and not all(address.startswith("127.") for address in ours):
        yield SERVER.fail(
            f"server_address: {where} is this machine for itself alone: nodes would look for the site on themselves",
            "give the address that the controller has in the nodes' network",
        )
    if where.is_unspecified:
        yield SERVER.fail(
            f"server_address: {where} is no address that nodes can reach", "give the controller's own one"
        )


def _http_url(site: Site) -> Iterator[Finding]:
    parts = urlsplit(site.boot.http_url)
    if parts.scheme == "https":
        yield URL.warn(
            f"boot.http_url: {site.boot.http_url} is https, which PXELINUX and GRUB cannot fetch",
            "serve the files by http, unless all nodes boot by an iPXE that trusts the certificate",
        )
    try:
        ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        yield URL.warn(
            f"boot.http_url names the server as {parts.hostname or 'nothing'}, and loaders resolve names only where "
            "DHCP tells them a DNS server",
            "write its address",
        )


# --- clusters ---------------------------------------------------------------------------------------------------


def _of_cluster(cluster: Cluster, site: Site) -> Iterator[Finding]:
    where = cluster.file
    yield from _inventory(cluster, where)
    yield from _macro_steps(cluster, where)
    yield from _addresses(cluster, site, where)
    yield from _power(cluster, site, where)
    yield from _commands(site_commands.of_cluster(cluster))
    for archive in (*cluster.pre_installs, *installs.archives(cluster.post_installs)):
        if "://" not in archive.file and not Path(archive.file).is_file():
            yield ARCHIVES.fail(
                f"{where}: there is no file {archive.file}", "correct the path, or put the archive there"
            )


def _post_installs(cluster: Cluster, folder: Path) -> Iterator[Finding]:
    for mistake in post_installs.mistakes(cluster, folder):
        yield POST_INSTALLS.fail(mistake, "correct it: deployments of this cluster are refused")
    for implementation, name in post_installs.homeless(cluster, folder):
        yield POST_INSTALLS.warn(
            f"{cluster.file}: the post-install {name} does not run in {implementation}, which has no micro-step for it",
            "add the micro-step to the playbook, or use another implementation",
        )


def _macro_steps(cluster: Cluster, where: str) -> Iterator[Finding]:
    ways = [way for tried in cluster.macro_steps.values() for way in tried]
    if all(len(tried) == 1 and not tried[0].retries for tried in cluster.macro_steps.values()):
        yield TRIES.warn(
            f"{where}: no macro-step has a second try, by retries or by another implementation: one lost packet at the "
            "wrong moment fails a node",
            "set retries: 1 in macro_steps",
        )
    for way in ways:
        if way.timeout == 0:
            yield TIME.warn(
                f"{where}: {way.name} has no time limit: a node that hangs in it is waited for, for ever",
                f"give {way.name} a timeout in macro_steps",
            )
    for name, seconds in cluster.micro_timeouts.items():
        if seconds == 0:
            yield TIME.warn(
                f"{where}: micro_timeouts.{name} is 0: a node that hangs in it is waited for until its macro-step ends",
                "leave the line out, or give seconds",
            )


def _addresses(cluster: Cluster, site: Site, where: str) -> Iterator[Finding]:
    without = [node.name for node in cluster.members.values() if not node.address]
    if without and site.use_address:
        yield ADDRESSES.warn(
            f"{where}: {told(without)} has no address, though use_address is set: its name is resolved each time",
            _advice(cluster, "address", "give nodes their address")
            + ", from which their boot profile gets its name as well",
        )


def _advice(cluster: Cluster, key: str, otherwise: str) -> str:
    """What gives nodes a value: a variable of the hosts, where an inventory tells them."""
    known = cluster.inventory
    return f"set {getattr(known.variables, key)} of these hosts in {known.source}" if known else otherwise


def _power(cluster: Cluster, site: Site, where: str) -> Iterator[Finding]:
    power = cluster.power
    if power.driver == "command":
        yield from _power_commands(cluster, site, where)
        return
    without = [node.name for node in cluster.members.values() if not node.bmc]
    if without:
        yield BMC.fail(
            f"{where}: {told(without)} has no BMC: it cannot be reset when its system hangs",
            _advice(cluster, "bmc", "give nodes a bmc, or set power.address"),
        )
    if not power.user and not _has_logins(cluster):
        yield LOGIN.warn(f"{where}: power.user is not set: few BMCs let anybody in without", "set power.user")
    if power.driver == "redfish" and not power.verify_tls:
        yield TLS.warn(
            f"{where}: power.verify_tls is false: whoever stands between can read the BMCs' password",
            "have the certificates of the BMCs signed by an authority that this machine trusts, and take the line out",
        )


def _has_logins(cluster: Cluster) -> bool:
    known = listing.of(cluster)
    return known is not None and not known.stranger


def _inventory(cluster: Cluster, where: str) -> Iterator[Finding]:
    known = listing.of(cluster)
    if known is None:
        return
    read = time.strftime("%Y-%m-%d %H:%M", time.localtime(known.read))
    if known.failure:
        yield INVENTORY.warn(
            f"{where}: its inventory cannot be read, and the nodes of {read} go on counting: {known.failure}",
            "see whether its source answers: ansible-inventory -i SOURCE --graph",
        )
    else:
        count = _count(len(cluster.members), "node")
        yield INVENTORY.ok(f"{where}: {count} of {known.wish.inventory.source}, read {read}")


def _power_commands(cluster: Cluster, site: Site, where: str) -> Iterator[Finding]:
    given = cluster.power.commands
    if site.first_reboot == "soft" and not given.soft_reboot and (given.hard_reboot or given.very_hard_reboot):
        yield FIRST_REBOOT.warn(
            f"{where}: first_reboot is soft, and power.commands.soft_reboot is not set: each deployment begins hard",
            "set power.commands.soft_reboot, or first_reboot: hard in site.yml to say that it is meant",
        )
    if not given.hard_reboot and not given.very_hard_reboot:
        yield REBOOTS.fail(
            f"{where}: neither power.commands.hard_reboot nor very_hard_reboot is set: a node that hangs stays so",
            "set power.commands.hard_reboot",
        )


# --- commands ---------------------------------------------------------------------------------------------------


def _commands(named: Iterable[SiteCommand]) -> Iterator[Finding]:
    """Programs of the site that are not there."""
    for each in named:
        try:
            program = each.argv()[0]
        except KadeployError as error:
            yield PROGRAMS.fail(str(error), "write it as a shell would split it")
            continue
        if shutil.which(program) is None:
            yield PROGRAMS.fail(
                f"{each.place}: {shlex.quote(program)} is no program of this machine",
                "correct it, install it, or make it executable (chmod +x)",
            )
