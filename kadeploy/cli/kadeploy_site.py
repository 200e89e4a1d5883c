"""``kadeploy-site``: what administrators do for a site besides operating it; one command per file of `cli.site`."""

from __future__ import annotations

import sys

from kadeploy.cli import shell
from kadeploy.cli.site import (
    backup,
    build,
    capture,
    check,
    dhcp,
    init,
    inspect,
    loaders,
    nodes,
    purge,
    quarantine,
    restore,
    rights,
    try_,
    upgrade,
    workers,
)

NAME = "kadeploy-site"

app = shell.Tool(
    "Set up a site, find out what is wrong with it before a node is lost, and look after it.",
    examples={
        "kadeploy-site init --cluster gdx --from dhcpd:/etc/dhcp/dhcpd.conf": "Begin a site, or add a "
        "cluster of the nodes that a DHCP server knows.",
        "kadeploy-site check": "Find out what is wrong before a node is lost; each line says what to do.",
        "kadeploy-site check --topic bmc --topic names -m 'gdx-[1-97]'": "Some topics, and some nodes, alone.",
        "kadeploy-site inspect 'gdx-[1-97]'": "What nodes are, written into the cluster file once you have seen the "
        "difference.",
        "kadeploy-site inspect --sweep '10.0.3.[1-254]' --cluster gdx": "BMCs there that no cluster file names.",
        "kadeploy-site try gdx-1": "One node from its BMC to a login: where it breaks, and what to do.",
        "kadeploy-site nodes --held": "All nodes that operations hold, by whom and since when.",
        "kadeploy-site rights 'gdx-[1-97]'": "Who may use these nodes, and until when.",
        "kadeploy-site quarantine add gdx-7 --reason 'its disk is being replaced'": "Have operations leave a node out, "
        "until kadeploy-site quarantine release gdx-7.",
        "kadeploy-site workers": "The machines that carry out parts of operations, and what each does now.",
        "kadeploy-site build --package firmware-bnx2x": "Build the deployment system for the hardware of the nodes.",
        "kadeploy-site build env debian12-hpc --package openmpi-bin": "Build an environment for the users.",
        "kadeploy-site build env team --from oci://registry.example/debian:12": "The same from a container image.",
        "kadeploy-site capture gdx-1.paris.example mine": "Make an environment of the system that runs on a node.",
        "kadeploy-site dhcp --server isc --output /etc/dhcp/kadeploy.conf": "What the DHCP server has to answer.",
        "kadeploy-site dhcp --server dnsmasq --proxy": "The same beside a DHCP server that stays as it is.",
        "kadeploy-site loaders": "The boot loaders that DHCP names, where the boot servers find them.",
        "kadeploy-site backup /var/backups/kadeploy --keep 30": "Back up the site while it runs, from a timer for "
        "instance.",
        "kadeploy-site restore paris-20270131-020000.tar.zst --dry-run": "Show what would be put "
        "back, here or on a new machine.",
        "kadeploy-site purge --dry-run": "Tell what is old and of no use.",
        "kadeploy-site upgrade": "Bring the database to a new version's schema, with a backup first.",
    },
    statuses={
        0: shell.STATUSES[0],
        1: shell.STATUSES[1],
        2: "inspect: the cluster file would have to be changed as shown, and nobody agreed.",
        3: "inspect: finished, and some nodes are KO.",
        130: shell.STATUSES[130],
    },
    about="It is for administrators: most of it needs root, on the controller.",
)


@app.callback()
def kadeploy_site(_version: shell.Version = False, _completion: shell.Completion = None) -> None:
    """Options of the command itself."""


app.add_typer(build.build, name="build")
app.command("init")(init.init)
app.command("loaders")(loaders.loaders)
app.command("dhcp")(dhcp.dhcp)
app.command("check")(check.check)
app.command("inspect")(inspect.inspect)
app.command("try")(try_.try_)
app.command("nodes")(nodes.nodes)
app.command("rights")(rights.rights)
app.add_typer(quarantine.quarantine, name="quarantine")
app.command("workers")(workers.workers)
app.command("capture")(capture.capture)
app.command("backup")(backup.backup)
app.command("restore")(restore.restore)
app.command("upgrade")(upgrade.upgrade)
app.command("purge")(purge.purge)


def main() -> int:
    """Entry point; exit status 0 done, 1 refused or something is wrong, 130 interrupted; see `inspect` for its own."""
    return shell.run(app, NAME)


if __name__ == "__main__":
    sys.exit(main())
