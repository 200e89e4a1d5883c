"""Bringing a lab up, step by step."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from kadeploy.errors import KadeployError
from kadeploy.lab import console, control, daemon, environments, network, site, virtual
from kadeploy.lab.down import down, halt, remove_files
from kadeploy.lab.kinds import KINDS
from kadeploy.lab.lab import CACHE, MARKER, Lab, saved
from kadeploy.lab.virtual import Say


def up(lab: Lab, say: Say, cache: Path = CACHE) -> bool:
    """Bring *lab* up; False when it was up already.

    What a killed or crashed ``up`` left is replaced; disks of a lab of the same size are kept. When a step fails or the
    user interrupts, everything is taken down again.

    Raises:
        KadeployError: something is missing on this machine, another lab has this name, or a daemon does not start.
    """
    check_requirements(lab)
    before = saved(lab.name, lab.folder)
    if before and control.running(before):
        if before != lab:
            raise KadeployError(f"{lab.name} is up with other settings: `kadeploy-lab down --name {lab.name}` first.")
        control.wait_ready(lab)
        return False
    fresh = not (lab.root / MARKER).exists()
    if fresh and lab.root.exists() and any(lab.root.iterdir()):
        raise KadeployError(f"{lab.root} holds files that are no lab's: choose another --folder.")
    if before and halt(before, say):
        say("the rest of an earlier lab is gone")
    if before and before.root != lab.root:
        remove_files(before, keep_disks=False)
    try:
        _build(lab, say, cache)
    except BaseException:
        say("interrupted or failed: taking it down again")
        down(lab.name, lab.folder, say, keep_disks=not fresh)
        raise
    return True


def _build(lab: Lab, say: Say, cache: Path) -> None:
    lab.save()
    lab.keys.mkdir(exist_ok=True, mode=0o711)  # everybody may have the public key
    lab.logs.mkdir(exist_ok=True, mode=0o755)
    make_bmc_password(lab)
    if lab.bare:
        virtual.prepare_bare(lab)
    else:
        _build_site(lab, say, cache)
    if lab.kind == "vm":
        console.make_locks(lab)
    network.create(lab)
    say(f"network namespace {lab.name} ready")
    supervisor = start(lab)
    control.wait_ready(lab, alive=lambda: supervisor.poll() is None)
    say("services ready")


def _build_site(lab: Lab, say: Say, cache: Path) -> None:
    lab.state.mkdir(exist_ok=True, mode=0o700)
    make_key(lab, cache)
    payload = KINDS[lab.kind].prepare(lab, cache, say)
    environments.describe(lab, environments.build(lab.environments, cache, say))
    say(f"environments ready: {', '.join(lab.environments) or 'none'}")
    site.write(lab, payload)
    say(f"configuration written to {lab.config}")
    if lab.service:
        say(daemon.prepare(lab))


def check_requirements(lab: Lab) -> None:
    """Raise KadeployError that names the packages this machine lacks."""
    if os.geteuid() != 0:
        raise KadeployError("kadeploy-lab makes network namespaces: run it as root.")
    needs = KINDS[lab.kind].requirements
    missing = sorted({package for what, package in needs.items() if not _present(what)})
    if missing:
        raise KadeployError(f"This machine lacks {', '.join(missing)}: `apt-get install {' '.join(missing)}`.")
    if lab.service and not lab.bare:
        daemon.require_library()
    if lab.kvm and not os.access("/dev/kvm", os.W_OK):
        raise KadeployError("--kvm: /dev/kvm cannot be opened; leave the option out, emulation works everywhere.")


def _present(what: str) -> bool:
    return Path(what).exists() if what.startswith("/") else shutil.which(what) is not None


def make_key(lab: Lab, cache: Path) -> None:
    """Put the site's deployment key in place, unless it is there.

    The key is made once per cache folder: it is part of the deployment system, which would be built anew for another.
    """
    if not lab.private_key.exists():
        made = deployment_key(cache)
        lab.private_key.touch(mode=0o600)
        lab.private_key.write_bytes(made.read_bytes())
        lab.public_key.write_bytes(made.with_suffix(".pub").read_bytes())


def make_bmc_password(lab: Lab) -> None:
    """Put the BMCs' password in place, unless it is there."""
    if not lab.bmc_password.exists():
        lab.bmc_password.touch(mode=0o600)
        lab.bmc_password.write_text(secrets.token_hex(8) + "\n")  # 16 characters: IPMI 1.5's limit


def deployment_key(cache: Path) -> Path:
    """The private key that enters the deployment systems of this cache, made if it is not there."""
    path = cache / "id_ed25519"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True, mode=0o755)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "deployment key of labs", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def start(lab: Lab) -> subprocess.Popen[bytes]:
    """Start the supervisor in the lab's namespace, on its own."""
    command = network.inside(lab.name, [sys.executable, "-I", "-m", "kadeploy.lab.supervisor", lab.name])
    with lab.log("supervisor").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=lab.root, start_new_session=True
        )
