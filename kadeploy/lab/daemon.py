"""The lab's `kadeploy3d`, which lets every account of this machine use the tools.

It has no privilege, as on a real site: it runs under an account of its own, to which the state, the keys and the boot
folders of the lab belong.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from kadeploy import caller
from kadeploy.caller import Account
from kadeploy.errors import KadeployError, OptionError
from kadeploy.lab.lab import Lab, existing
from kadeploy.lab.machine import DIE_WITH_PARENT
from kadeploy.lab.service import Service

ACCOUNT = "kadeploy-lab"
"""Made by the first lab of this machine, and removed with the last one."""
_COMMENT = "Service of virtual clusters"
"""What tells that the account is ours."""
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def require_library() -> None:
    """Raise KadeployError when what the service is made of is not installed."""
    if find_spec("litestar") is None:
        raise KadeployError(
            "The lab's service needs more Python packages: pip install 'kadeploy[server]'. With --no-service root "
            "alone can use the tools."
        )


def prepare(lab: Lab) -> str:
    """Give the service what belongs to it, and say as whom it will run."""
    found = _account()
    if not _can_run(found):
        return f"the service runs as root: {ACCOUNT} cannot run the tools in {_program().parent}"
    lab.socket.parent.mkdir(exist_ok=True, mode=0o755)
    served = [inner for folder in (lab.tftp, lab.http) for inner in (folder, *folder.rglob("*")) if inner.is_dir()]
    for path in (lab.state, lab.private_key, lab.bmc_password, lab.socket.parent, *served):
        os.chown(path, found.uid, found.gid)
    return f"the service runs as {ACCOUNT}"


def services(lab: Lab) -> list[Service]:
    """The service, where the lab has one."""
    if not lab.service or lab.bare:
        return []
    return [Service("kadeploy3d", command(lab), socket=lab.socket)]


def command(lab: Lab) -> list[str]:
    """What runs the service as the owner of the lab's state."""
    owner = caller.account(pwd.getpwuid(lab.state.stat().st_uid).pw_name)
    return [*_as(owner, HOME=str(lab.state), KADEPLOY_CONFIG_DIR=str(lab.config)), str(_program()), "run"]


def remove_account() -> bool:
    """Remove the account if no lab is left that needs it; whether it was there."""
    if existing() or not _is_ours():
        return False
    subprocess.run(["userdel", ACCOUNT], capture_output=True, check=False)
    return True


def _program() -> Path:
    return Path(sys.executable).with_name("kadeploy3d")


def _account() -> Account:
    """The service's account, made if it is not there.

    Raises:
        KadeployError: it cannot be made.
    """
    with contextlib.suppress(OptionError):
        return caller.account(ACCOUNT)
    home = ["--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    done = subprocess.run(
        ["useradd", "--system", *home, "--comment", _COMMENT, ACCOUNT], capture_output=True, text=True, check=False
    )
    try:
        return caller.account(ACCOUNT)
    except OptionError as error:
        raise KadeployError(
            f"useradd {ACCOUNT}: {done.stderr.strip()}. With --no-service the lab needs no account."
        ) from error


def _is_ours() -> bool:
    try:
        return pwd.getpwnam(ACCOUNT).pw_gecos == _COMMENT
    except KeyError:
        return False


def _can_run(who: Account) -> bool:
    """Whether *who* may read what the tools are made of, which may be in somebody's home folder."""
    words = [*_as(who), str(_program()), "--version"]
    done = subprocess.run(words, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0


def _as(who: Account, **variables: str) -> list[str]:
    """In front of a command: *who* runs it with these *variables*, without privileges, and it ends with its parent."""
    fresh = {"PATH": f"{_program().parent}:{_PATH}", "LANG": "C.UTF-8", "USER": who.name, "LOGNAME": who.name}
    clean = ["env", "--ignore-environment", *(f"{name}={value}" for name, value in (fresh | variables).items())]
    if who.uid == os.geteuid():
        return [*DIE_WITH_PARENT, *clean]
    ids = ["--reuid", str(who.uid), "--regid", str(who.gid), "--init-groups"]
    return [*DIE_WITH_PARENT, *ids, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", *clean]
