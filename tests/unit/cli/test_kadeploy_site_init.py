"""``kadeploy-site init`` as administrators run it: flags, questions, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml

from kadeploy.config.folder import load_configuration, load_site
from tests.unit.conftest import Tool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it is for root")

PROGRAM = str(Path(sys.executable).with_name("kadeploy-site"))
CLUSTER = ("--cluster", "gdx", "--nodes", "gdx-[1-3].paris", "--addresses", "127.9.1.[1-3]")
BMCS = ("--bmc-user", "ADMIN", "--bmcs", "127.9.2.[1-3]")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KADEPLOY_CONFIG_DIR", "SUDO_UID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


def places(top: Path, account: str = "nobody") -> list[str]:
    """Options that keep all of a site below *top*."""
    named = {"--config": "etc", "--state-dir": "state", "--tftp-root": "tftp", "--http-root": "http"}
    return [*(word for option, name in named.items() for word in (option, str(top / name))), "--account", account]


@pytest.fixture
def init(tool: Tool, open_folder: Path) -> Run:
    """Runs ``kadeploy-site init`` for a site below *open_folder*."""

    def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return tool("kadeploy-site", "init", *places(open_folder), *arguments, **settings)

    return run


def listed(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else b"" for path in sorted(top.rglob("*"))}


SITE = ("--name", "paris", "--address", "127.0.0.1")


def test_flags_alone_make_a_site_that_loads_and_the_next_command_is_told(init: Run, open_folder: Path) -> None:
    done = init(*SITE, *CLUSTER, *BMCS, "--bmc-password-file", "-", stdin="s3cret\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"made       {open_folder}/etc/site.yml\n" in done.stdout
    assert done.stdout.endswith(
        "gdx has 3 nodes: gdx-[1-3].paris\nNext:\n"
        + "".join(
            f"  KADEPLOY_CONFIG_DIR={open_folder}/etc kadeploy-site {verb}\n" for verb in ("build", "dhcp", "check")
        )
    )
    assert list(load_configuration(open_folder / "etc").clusters["gdx"].members) == [
        f"gdx-{n}.paris" for n in (1, 2, 3)
    ]
    password = open_folder / "state" / "keys" / "bmc-gdx"
    assert (password.read_text(), password.owner(), stat.S_IMODE(password.stat().st_mode)) == (
        "s3cret\n",
        "nobody",
        0o600,
    )


def test_the_log_of_the_boot_server_stays_when_something_else_changes(init: Run, open_folder: Path) -> None:
    assert init(*SITE, "--boot-log", "/var/log/boot.log", "--yes").returncode == 0
    changed = init("--name", "lyon", "--replace", "--yes")
    assert changed.returncode == 0, changed.stderr
    site = load_site(open_folder / "etc")
    assert (site.name, site.boot.log) == ("lyon", "/var/log/boot.log")


def test_a_deployment_on_it_is_admitted(init: Run, tool: Tool, open_folder: Path) -> None:
    init("--account", "root", *SITE, *CLUSTER, *BMCS, "--bmc-password-file", "-", stdin="s3cret\n")
    subprocess.run(["tar", "czf", str(open_folder / "image.tgz"), "-T", os.devnull], check=True)
    environment = {
        "name": "tiny",
        "os": "linux",
        "filesystem": "ext4",
        "partition_type": 0x83,
        "image": {"file": str(open_folder / "image.tgz"), "kind": "tar", "compression": "gzip"},
        "boot": {"kernel": "/vmlinuz", "initrd": "/initrd"},
    }
    description = open_folder / "tiny.yml"
    description.write_text(yaml.safe_dump(environment))
    variables = {"KADEPLOY_CONFIG_DIR": str(open_folder / "etc")}
    given = tool("karights3", "-a", "-m", "*", "-p", "*", "-u", "root", **variables)
    assert given.returncode == 0, given.stderr
    done = tool("kadeploy3", "-m", "gdx-[1-3].paris", "-a", str(description), "--dry-run", **variables)
    assert done.returncode == 0, done.stderr
    assert "KERNEL http://127.0.0.1/deploy-vmlinuz" in done.stdout
    assert "to /dev/sda3" in done.stdout


def test_bmcs_that_speak_redfish_are_urls(init: Run, open_folder: Path) -> None:
    done = init(*SITE, *CLUSTER, *BMCS, "--power", "redfish", "--bmc-password-file", "-", stdin="s3cret\n")
    assert done.returncode == 0, done.stderr
    found = load_configuration(open_folder / "etc").clusters["gdx"]
    assert [node.bmc for node in found.members.values()] == [f"https://127.9.2.{number}" for number in (1, 2, 3)]
    assert len(found.nodes) == 1


def test_secure_boot_is_uefi_with_all_that_goes_with_it(init: Run, open_folder: Path) -> None:
    done = init(*SITE, *CLUSTER, "--power", "command", "--power-command", "hard_reboot=true", "--secure-boot")
    assert done.returncode == 0, done.stderr
    found = load_configuration(open_folder / "etc").clusters["gdx"]
    assert (found.loader.firmware, found.loader.profiles, found.loader.secure_boot) == ("uefi", "grub", True)
    assert (found.disk.table, found.disk.number("efi")) == ("gpt", 4)
    assert "\n  secure_boot: true\n" in (open_folder / "etc/clusters/gdx.yml").read_text()


def test_programs_are_told_all_of_it(init: Run, open_folder: Path) -> None:
    table = open_folder / "nodes.csv"
    table.write_text("name;address\ngdx-1;127.9.1.1\ngdx-2;\n")
    power = ("--power", "command", "--power-command", "hard_reboot=true HOSTNAME_SHORT")
    done = init(*SITE, "--cluster", "gdx", "--from", f"csv:{table}", *power, "--format", "json")
    told = json.loads(done.stdout)
    assert told["left_out"] == [{"where": f"{table}:3", "text": "gdx-2 has no address"}]
    assert str(open_folder / "etc" / "clusters" / "gdx.yml") in told["made"]
    assert told["next"][-1].endswith("kadeploy-site check")
    again = json.loads(init(*SITE, "--cluster", "gdx", "--from", f"csv:{table}", *power, "--format", "json").stdout)
    assert (again["made"], again["changed"]) == ([], [])
    assert set(told["made"]) == set(again["unchanged"])


def test_a_difference_is_shown_and_replaced_on_demand_alone(init: Run, open_folder: Path) -> None:
    init(*SITE)
    before = listed(open_folder)
    refused = init("--name", "lyon")
    assert refused.returncode == 1
    assert "\n-name: paris\n+name: lyon\n" in refused.stderr
    assert listed(open_folder) == before
    done = init("--name", "lyon", "--replace")
    assert done.returncode == 0
    assert f"changed    {open_folder}/etc/site.yml, which was kept as {open_folder}/etc/site.yml.before-" in done.stdout
    assert "\n-name: paris\n+name: lyon\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--name is missing: give it, or --yes for "),
        (("--name", "paris"), "--address is missing: give it, or --yes for "),
        ((*SITE, "--nodes", "gdx-1"), "--cluster is missing: --nodes belongs to a cluster"),
        ((*SITE, "--cluster", "gdx"), "--nodes is missing: give it."),
        ((*SITE, *CLUSTER), "--bmc-user is missing: give it."),
        ((*SITE, *CLUSTER, "--yes"), "--bmc-user is missing: give it."),
        ((*SITE, *CLUSTER, *BMCS), "--bmc-password-file is missing: name the file"),
        ((*SITE, *CLUSTER, *BMCS, "--bmc-password-file", "-"), "expected a password on one line, not an empty one"),
        ((*SITE, *CLUSTER, *BMCS, "--bmc-password-file", "/nowhere"), "/nowhere: there is no such file; - takes the"),
        ((*SITE, *CLUSTER, *BMCS, "--bmc-password-file", "/dev/null"), "/dev/null: is no file that stays; - takes the"),
        ((*SITE, *CLUSTER, "--power", "command"), "--power-command is missing"),
        ((*SITE, *CLUSTER, *BMCS, "--power", "command"), "--bmcs goes with --power ipmi or redfish"),
        ((*SITE, *CLUSTER, "--power", "command", "--power-command", "statsu=x"), "Did you mean status?"),
        (
            (*SITE, *CLUSTER, "--power", "impi"),
            "--power impi: expected one of ipmi, redfish, command. Did you mean ipmi?",
        ),
        (
            (*SITE, *CLUSTER, "--firmware", "bios", "--secure-boot"),
            "--secure-boot and --firmware bios contradict each other: it is UEFI's alone.",
        ),
        (
            (*SITE, *CLUSTER, "--secure-boot", "--profiles", "ipxe"),
            "--secure-boot and --profiles ipxe contradict each other: GRUB alone is signed.",
        ),
        ((*SITE, "--secure-boot"), "--cluster is missing: --secure-boot belongs to a cluster"),
        ((*SITE, *CLUSTER, "--disk", "sda"), "--disk sda: expected a disk such as /dev/sda"),
        ((*SITE, *CLUSTER, "--partitions", "deploy:4GB"), "Did you mean 4GiB?"),
        ((*SITE, *CLUSTER, "--macs", "52:54:00:00:00:01,52:54:00:00:00:01,x"), "gdx-2.paris has the MAC address"),
        ((*SITE, "--cluster", "../gdx", "--nodes", "gdx-1"), "--cluster '../gdx': expected a name"),
        ((*SITE, "--cluster", "gdx", "--from", "csv:/nowhere"), "/nowhere: No such file"),
        ((*SITE, "--cluster", "gdx", "--from", "csv:/x", "--macs", "x"), "--macs and --from contradict each other"),
        (("--name", "paris", "--address", "10.0.0"), "--address '10.0.0': expected the controller's address"),
        ((*SITE, "--account", "no-such-user"), "The user no-such-user has no account"),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_refused_and_nothing_is_made(
    arguments: tuple[str, ...], said: str, init: Run, open_folder: Path
) -> None:
    done = init(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert listed(open_folder) == {}


def test_yes_takes_what_the_machine_says_of_itself(init: Run, open_folder: Path) -> None:
    done = init("--yes", "--address", "127.0.0.1")
    assert done.returncode == 0, done.stderr
    site = yaml.safe_load((open_folder / "etc" / "site.yml").read_text())
    assert site["name"] == os.uname().nodename.partition(".")[0]


def test_an_ordinary_account_is_told_to_be_root(open_folder: Path) -> None:
    code = (
        "import contextlib, io, os, sys; from kadeploy.cli import kadeploy_site, shell\n"
        "with contextlib.redirect_stdout(io.StringIO()):  # so that all is imported while it may be read\n"
        "    shell.run(kadeploy_site.app, kadeploy_site.NAME, ['init', '--help'])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(kadeploy_site.main())"
    )
    command = [sys.executable, "-c", code, "init", *places(open_folder), *SITE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"ERROR: kadeploy-site init writes {open_folder}/etc and makes the site's keys: run it as root, by sudo.\n"
    )
    assert listed(open_folder) == {}


# --- questions --------------------------------------------------------------------------------------------------------


def asked(top: Path, answers: Sequence[tuple[str, str]], *arguments: str) -> pexpect.spawn[str]:
    """A run at a terminal that has answered these questions so."""
    child: pexpect.spawn[str] = pexpect.spawn(PROGRAM, ["init", *places(top), *arguments], encoding="utf-8", timeout=60)
    for question, answer in answers:
        child.expect_exact(question)
        child.expect(r": ?$")
        child.sendline(answer)
    return child


DIALOGUE = [
    ("Name of the site [", "pa ris"),
    ("--name 'pa ris': expected a name", "paris"),
    ("Address of this controller", "127.0.0.1"),
    ("URL of that folder [http://127.0.0.1/]", ""),
    ("Name of a cluster (empty: none for now)", "gdx"),
    ("Nodes: a range", "gdx-[1-3].paris"),
    ("Their addresses", "127.9.1.[1-4]"),
    ("4 values for 3 nodes", "127.9.1.[1-3]"),
    ("Firmware of the nodes, bios or uefi [bios]", "uefi"),
    ("Secure Boot, yes or no [no]", "maybe"),
    ("--secure-boot maybe: expected one of yes, no.", "yes"),
    ("Partitions [swap:4GiB,prod:20GiB,deploy:50GiB,efi:512MiB,tmp]", ""),
    ("Disk that deployments go to [/dev/sda]", "/dev/nvme0n1"),
    ("ipmi, redfish, command [ipmi]", ""),
    ("Their BMCs", "HOSTNAME_SHORT-bmc"),
    ("User of the BMCs", "ADMIN"),
]


def test_a_terminal_is_asked_until_the_answers_make_sense(open_folder: Path) -> None:
    child = asked(open_folder, [*DIALOGUE, ("Password of that user", "s3cret")])
    rest = child.read()
    child.close()
    assert child.exitstatus == 0, rest
    assert "s3cret" not in rest
    found = load_configuration(open_folder / "etc").clusters["gdx"]
    assert (found.loader.profiles, found.disk.table, found.disk.device) == ("grub", "gpt", "/dev/nvme0n1")
    assert found.loader.secure_boot
    assert found.members["gdx-3.paris"].bmc == "gdx-3-bmc"
    assert (open_folder / "state" / "keys" / "bmc-gdx").read_text() == "s3cret\n"


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
@pytest.mark.parametrize("asked_so_far", [0, 6, len(DIALOGUE)])
def test_who_leaves_at_a_question_leaves_nothing_behind(key: str, asked_so_far: int, open_folder: Path) -> None:
    child = asked(open_folder, DIALOGUE[:asked_so_far])
    child.expect(r": ?$")
    time.sleep(0.2)
    child.send(key)
    rest = child.read()
    child.close()
    assert child.exitstatus in {1, 130}, rest
    assert "Traceback" not in rest
    assert listed(open_folder) == {}


@pytest.mark.parametrize("arguments", [SITE, ("--yes", "--address", "127.0.0.1")])
def test_nothing_is_asked_where_nothing_is_missing(arguments: tuple[str, ...], open_folder: Path) -> None:
    child = asked(open_folder, [], *arguments)
    rest = child.read()
    child.close()
    assert child.exitstatus == 0
    assert rest.startswith("made ")


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_stops_programs_is_heard_as_ctrl_c(number: signal.Signals, open_folder: Path) -> None:
    command = [PROGRAM, "init", *places(open_folder), *SITE, *CLUSTER, *BMCS, "--bmc-password-file", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wchan = Path(f"/proc/{process.pid}/wchan")
    deadline = time.monotonic() + 60
    while "pipe" not in wchan.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)  # until it waits for the password
    process.send_signal(number)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, b"")
    assert listed(open_folder) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.4, 0.55])
def test_a_run_that_is_ended_leaves_all_or_nothing(number: signal.Signals, delay: float, open_folder: Path) -> None:
    power = ("--power", "command", "--power-command", "hard_reboot=true")
    command = [PROGRAM, "init", *places(open_folder), *SITE, *CLUSTER, *power]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    time.sleep(delay)
    process.send_signal(number)
    process.communicate()
    if number != signal.SIGKILL:
        files = listed(open_folder)
        assert files == {} or (open_folder / "etc" / "site.yml").exists()
        assert not any(".kadeploy-init" in path for path in files)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert list(load_configuration(open_folder / "etc").clusters) == ["gdx"]
    assert not any(".kadeploy-init" in path for path in listed(open_folder))


@pytest.mark.parametrize("size", ["4k", "12k", "20k", "28k", "36k"])
def test_a_full_disk_leaves_nothing_half_written(size: str, open_folder: Path) -> None:
    script = """
        mount -t tmpfs -o size="$1",mode=711 tmpfs "$2" || exit 99
        shift 2
        "$@"; status=$?
        find "$TOP" -mindepth 1 ! -type d -printf '%P\\n'
        find "$TOP" -mindepth 1 -name '.*'
        exit $status
    """
    power = ("--power", "command", "--power-command", "hard_reboot=true")
    command = [PROGRAM, "init", *places(open_folder), *SITE, *CLUSTER, *power]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", size, str(open_folder), *command],
        capture_output=True,
        text=True,
        env=os.environ | {"TOP": str(open_folder)},
        check=False,
    )
    if done.returncode == 99:
        pytest.skip(f"this machine mounts no tmpfs: {done.stderr}")
    if done.returncode == 0:
        assert "etc/site.yml" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
