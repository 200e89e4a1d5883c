"""The lab's service: for every account of this machine, under an account of its own, and gone with its lab."""

from __future__ import annotations

import pwd
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kadeploy import process
from kadeploy.caller import Account
from kadeploy.lab import control, daemon, network
from kadeploy.lab.lab import Lab, existing, saved
from tests.accounts import Installation

NAME = "kadeploy-daemon"
ROOT = Account("root", 0, 0, Path("/root"))
PATIENCE = 60.0


def lab_command(installation: Installation, verb: str, *options: str) -> str:
    done = installation.tool("kadeploy-lab", verb, "--name", NAME, *options, account=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lab(installation: Installation) -> Iterator[Lab]:
    """A lab of tools that all accounts can run."""
    lab_command(installation, "down")
    lab_command(installation, "up", "--kind", "sim", "--nodes", "2")
    try:
        made = saved(NAME)
        assert made is not None
        yield made
    finally:
        lab_command(installation, "down")


def served(lab: Lab) -> list[process.Process]:
    """The service's process, where there is one."""
    command = b"kadeploy3d\0run\0"
    return [each for each in network.processes(lab.name) if _read(each.pid, "cmdline").endswith(command)]


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def soon(condition: Callable[[], bool]) -> bool:
    """Whether this is so before long."""
    limit = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < limit:
        time.sleep(0.05)
    return condition()


def test_an_ordinary_account_deploys_where_it_has_the_right_to(installation: Installation, lab: Lab) -> None:
    variables = {"KADEPLOY_CONFIG_DIR": str(lab.config)}
    words = ["-a", lab.environments_folder / "sim.dsc", "-k", lab.public_key]
    refused = installation.tool("kadeploy3", "-m", "node-1", *words, account=installation.bob, env=variables)
    assert (refused.returncode, "does not have the right" in refused.stderr) == (1, True), refused.stderr
    given = ["-a", "-m", "node-1", "-p", "*", "-u", installation.bob.name]
    assert installation.tool("karights3", *given, account=ROOT, env=variables).returncode == 0
    done = installation.tool("kadeploy3", "-m", "node-1", *words, account=installation.bob, env=variables, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_has_an_account_and_no_privilege(lab: Lab) -> None:
    (found,) = served(lab)
    status = dict(line.split(":\t", 1) for line in _read(found.pid, "status").decode().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(pwd.getpwnam(daemon.ACCOUNT).pw_uid)] * 4
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def test_other_accounts_read_no_secret(installation: Installation, lab: Lab) -> None:
    secrets = [lab.private_key, lab.bmc_password, lab.state, lab.keys]
    for path in secrets:
        assert installation.tool("ls" if path.is_dir() else "cat", path, account=installation.bob).returncode != 0
    assert installation.tool("cat", lab.public_key, account=installation.bob).returncode == 0


def test_a_killed_service_is_started_again(lab: Lab) -> None:
    (before,) = served(lab)
    before.send(signal.SIGKILL)
    assert soon(lambda: served(lab) not in ([], [before]))
    control.wait_ready(lab, PATIENCE)


def test_up_with_other_settings_is_refused_also_for_the_service(installation: Installation, lab: Lab) -> None:
    words = ["up", "--name", lab.name, "--kind", "sim", "--nodes", "2", "--no-service"]
    refused = installation.tool("kadeploy-lab", *words, account=ROOT)
    assert (refused.returncode, "other settings" in refused.stderr) == (1, True), refused.stderr


def test_it_ends_with_a_killed_supervisor_and_down_leaves_no_account(installation: Installation, lab: Lab) -> None:
    supervisor = control.running(lab)
    assert supervisor is not None
    supervisor.send(signal.SIGKILL)
    assert soon(lambda: served(lab) == [])
    lab_command(installation, "down")
    assert existing() != [] or daemon.ACCOUNT not in {each.pw_name for each in pwd.getpwall()}


def test_without_a_service_root_works_alone(installation: Installation) -> None:
    lab_command(installation, "up", "--kind", "sim", "--nodes", "1", "--no-service")
    try:
        made = saved(NAME)
        assert made is not None
        assert served(made) == []
        variables = {"KADEPLOY_CONFIG_DIR": str(made.config)}
        done = installation.tool("kapower3", "--status", "-m", "node-1", account=ROOT, env=variables)
        assert "karights3 -a -m node-1" in done.stderr  # asked of its own database, and root has no right yet
    finally:
        lab_command(installation, "down")


def test_where_the_account_cannot_run_the_tools_the_service_runs_as_root(
    installation: Installation, tmp_path: Path
) -> None:
    hidden = tmp_path / "venv"  # below a folder of root's alone
    hidden.symlink_to(installation.tools.parent)
    tool = hidden / "bin" / "kadeploy-lab"
    words = ["--name", NAME]
    try:
        python = hidden / "bin" / "python"
        done = installation.tool(str(python), tool, "up", "--kind", "sim", "--nodes", "1", *words, account=ROOT)
        assert "the service runs as root" in done.stdout, done.stdout + done.stderr
        made = saved(NAME)
        assert made is not None
        (found,) = served(made)
        assert Path(f"/proc/{found.pid}").stat().st_uid == 0
    finally:
        lab_command(installation, "down")
