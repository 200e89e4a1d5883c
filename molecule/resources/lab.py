"""Make what the scenarios begin with of a lab that is just up: ``lab.py LAB FOLDER``.

Nodes 1 to 7 are in the deployment system, node-8 and node-9 have real BMCs, which light nodes usually lack, and the
folder holds a request to deploy ``tiny`` on node-10.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kadeploy import checksums
from kadeploy.caller import Account
from kadeploy.config.folder import load_configuration
from kadeploy.environments import description
from kadeploy.lab import bmc, control, network
from kadeploy.lab.lab import Lab, LabNode, saved
from kadeploy.lab.light import profile
from kadeploy.remote import namespace
from kadeploy.runner import known_hosts, request
from kadeploy.runner.request import Attempt, LocalImage, Options, Request, RequestNode

BOOTED = range(1, 8)
ESTATE, ESTATE_PASSWORD = "node-8", "not-a-secret-one"
"""The node of the scenario ``estate``, in whose vault the same password is."""
POWER, POWER_ADDRESS = "node-9", "127.0.9.9"
"""The node of the scenario ``power``. Its BMC is where plays run, outside the network of the lab."""
REQUESTED = "node-10"


def main(name: str, folder: Path) -> None:
    """Go through all of it."""
    lab = saved(name)
    if lab is None:
        sys.exit(f"There is no lab {name}.")
    nodes = [lab.member(f"node-{rank}") for rank in BOOTED]
    for node in nodes:
        boot(lab, node)
    start_bmc(lab, lab.member(ESTATE), ESTATE_PASSWORD, network.inside(lab.name, []))
    outside = msgspec.structs.replace(lab.member(POWER), bmc=POWER_ADDRESS)
    start_bmc(lab, outside, lab.bmc_password.read_text().strip(), ())
    write_request(lab, folder)
    with namespace.inside(lab.name):
        for node in nodes:
            wait_ssh(node)


def boot(lab: Lab, node: LabNode) -> None:
    """Switch *node* on, with the profile that `switch_pxe` would write."""
    path = profile.file(lab, node)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"KERNEL http://{lab.controller}/deploy-vmlinuz\n")
    control.ask(lab, "on", node.name)


def wait_ssh(node: LabNode, seconds: float = 60) -> None:
    """Return once *node* answers."""
    limit = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((node.address, 22), timeout=5).close()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)
        else:
            return


def start_bmc(lab: Lab, node: LabNode, password: str, where: Sequence[str]) -> None:
    """Have a BMC for *node*, at its address; *where* are words before its command."""
    folder = lab.run / f"{node.name}.bmc"
    folder.mkdir(mode=0o700)
    (folder / "lan.conf").write_text(bmc.configuration(lab, node, password))
    (folder / "commands").write_text(bmc.COMMANDS)
    daemon = ["start-stop-daemon", "--start", "--background", "--make-pidfile", "--pidfile", str(folder / "pid")]
    program = ["--startas", "/usr/bin/ipmi_sim", "--", "-n", "-c", "lan.conf", "-f", "commands", "-s", "."]
    subprocess.run([*where, *daemon, "--chdir", str(folder), *program], check=True)


def write_request(lab: Lab, folder: Path) -> None:
    """Make *folder* the run folder of one attempt."""
    configuration = load_configuration(lab.config)
    root = Account("root", 0, 0, Path("/root"))
    (environment,) = description.load(str(lab.environments_folder / "tiny.dsc"), root, print)
    with Path(environment.image.file).open("rb") as image:
        found = checksums.of(image)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    asked = Request(
        wid="molecule",
        operation="deploy",
        user="root",
        config_dir=str(lab.config),
        run_dir=str(folder),
        workflow_dir=str(folder),
        attempt=Attempt(macro_step="BootNewEnv", implementation="BootNewEnvClassical"),
        site=configuration.site,
        cluster=configuration.clusters["lab"],
        environment=environment,
        image=LocalImage(path=environment.image.file, size=found.size, sha256=found.sha256),
        options=Options(authorized_keys=lab.public_key.read_text()),
        nodes=(RequestNode(name=REQUESTED, address=lab.member(REQUESTED).address),),
    )
    request.write(asked)
    known_hosts.write(asked)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
