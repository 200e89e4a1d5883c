"""Write the request to deploy ``tiny`` on all nodes of a lab: ``write_request.py LAB FOLDER``."""

import sys
from pathlib import Path

from kadeploy import checksums
from kadeploy.caller import Account
from kadeploy.config.folder import load_configuration
from kadeploy.environments import description
from kadeploy.lab.lab import saved
from kadeploy.runner import known_hosts, request
from kadeploy.runner.request import Attempt, LocalImage, Options, Request, RequestNode


def main(name: str, folder: Path) -> None:
    """Make *folder* the run folder of one attempt."""
    lab = saved(name)
    if lab is None:
        sys.exit(f"There is no lab {name}.")
    configuration = load_configuration(lab.config)
    root = Account("root", 0, 0, Path("/root"))
    (environment,) = description.load(str(lab.environments_folder / "tiny.dsc"), root, print)
    with Path(environment.image.file).open("rb") as image:
        found = checksums.of(image)
    cluster = configuration.clusters["lab"]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    asked = Request(
        wid="molecule",
        operation="deploy",
        user="root",
        config_dir=str(lab.config),
        run_dir=str(folder),
        workflow_dir=str(folder),
        attempt=Attempt(macro_step="SetDeploymentEnv", implementation="SetDeploymentEnvUntrusted"),
        site=configuration.site,
        cluster=cluster,
        environment=environment,
        image=LocalImage(path=environment.image.file, size=found.size, sha256=found.sha256),
        options=Options(authorized_keys=lab.public_key.read_text()),
        nodes=tuple(RequestNode(name=node.name, address=node.address) for node in lab.members.values()),
    )
    request.write(asked)
    known_hosts.write(asked)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
