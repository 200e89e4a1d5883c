"""Power drivers against real BMCs (``ipmi_sim``, a Redfish emulator), a real sshd and real commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bcrypt
import msgspec
import pytest

from kadeploy.config import logins
from kadeploy.config.cluster import Cluster, Node, NodeRange, Power, PowerCommands
from kadeploy.config.inventory import Inventory
from kadeploy.config.logins import Login
from kadeploy.config.site import Site, Windows
from kadeploy.errors import ConfigError
from kadeploy.microsteps import power_nodes
from kadeploy.microsteps.memory import Begun
from kadeploy.microsteps.microstep import MicroStep, perform
from kadeploy.power import bmc, switch
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Credentials
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.unit import build

if TYPE_CHECKING:
    from tests.unit.bmc import Bmc, Redfish

pytest_plugins = ["tests.unit.bmc", "tests.unit.sshd"]

USER, PASSWORD, ADDRESS = "kadeploy", "s3cret-words", "127.9.8.1"
"""What the BMCs of the tests take."""
FROM_NETWORK = "set boot pxe"
OK, KO = Verdict.OK, Verdict.KO


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that no ssh server lets in."""
    return build.site(tmp_path)


@pytest.fixture
def ipmi(tmp_path: Path) -> Power:
    """How the BMCs of the tests are entered."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    (tmp_path / "password").chmod(0o600)
    return Power(user=USER, password_file="password", timeout=20, off_delay=0.01)


def addresses(*bmcs: Bmc | str) -> list[Node]:
    """Nodes ``n-1``, ``n-2``… with these BMCs."""
    return [
        Node(name=f"n-{number}", address="127.9.1.1", bmc=each if isinstance(each, str) else each.address)
        for number, each in enumerate(bmcs, start=1)
    ]


def switched(
    site: Site,
    how: Power,
    nodes: Sequence[Node],
    operation: switch.PowerCommand,
    level: switch.Level = "hard",
    **more: Any,
) -> dict[str, Outcome]:
    cluster = build.cluster(power=how)
    config = site.state.parent
    return asyncio.run(switch.switch(site, cluster, nodes, operation, level, config_dir=config, **more))


def verdicts(outcomes: Mapping[str, Outcome]) -> list[Verdict]:
    return [outcome.verdict for outcome in outcomes.values()]


# --- ipmi -----------------------------------------------------------------------------------------------------------


def test_status_is_ok_for_a_node_that_is_on_and_ko_for_one_that_is_off(
    site: Site, ipmi: Power, bmcs: list[Bmc]
) -> None:
    bmcs[1].turn(on=False)
    outcomes = switched(site, ipmi, addresses(*bmcs), "status")
    assert verdicts(outcomes) == [OK, KO, OK]
    assert [outcome.answer for outcome in outcomes.values()] == ["on", "off", "on"]
    assert [each.done for each in bmcs] == [[], [], []]


def test_a_hard_reboot_resets_a_machine_that_is_on_and_starts_one_that_is_off(
    site: Site, ipmi: Power, bmcs: list[Bmc]
) -> None:
    bmcs[1].turn(on=False)
    assert verdicts(switched(site, ipmi, addresses(*bmcs[:2]), "reboot")) == [OK, OK]
    assert bmcs[0].done == [FROM_NETWORK, "set reset 1"]
    assert bmcs[1].done == [FROM_NETWORK, "set reset 1", "set power 1"]


def test_a_very_hard_reboot_is_off_then_on(site: Site, ipmi: Power, bmcs: list[Bmc]) -> None:
    bmcs[1].turn(on=False)
    assert verdicts(switched(site, ipmi, addresses(*bmcs[:2]), "reboot", "very_hard")) == [OK, OK]
    assert bmcs[0].done == ["set power 0", FROM_NETWORK, "set power 1"]
    assert bmcs[1].done == ["set power 0", FROM_NETWORK, "set power 1"]


def test_the_boot_order_is_told_as_the_firmware_has_it_or_left_alone(site: Site, ipmi: Power, bmcs: list[Bmc]) -> None:
    """Only before reboots: whoever switches a node on may want what its disk has."""
    left = msgspec.structs.replace(ipmi, network_boot="leave")
    assert verdicts(switched(site, left, addresses(bmcs[0]), "reboot")) == [OK]
    assert verdicts(switched(site, ipmi, addresses(bmcs[0]), "off")) == [OK]
    assert verdicts(switched(site, ipmi, addresses(bmcs[0]), "on")) == [OK]
    assert bmcs[0].done == ["set reset 1", "set power 0", "set power 1"]


def test_a_bmc_that_keeps_its_boot_order_is_told_and_the_node_is_rebooted_all_the_same(
    site: Site, ipmi: Power, bmcs: list[Bmc]
) -> None:
    bmcs[0].break_("stubborn")
    for level in ("hard", "very_hard"):
        outcome = switched(site, ipmi, addresses(bmcs[0]), "reboot", level)["n-1"]
        assert outcome.verdict is OK
        assert outcome.stdout == level
        assert outcome.stderr.startswith(f"the BMC was not told to boot from the network: the BMC at {ADDRESS} says: ")


def test_off_and_on_are_sent_to_all_and_end_when_the_machine_is_so(site: Site, ipmi: Power, bmcs: list[Bmc]) -> None:
    bmcs[1].turn(on=False)
    assert verdicts(switched(site, ipmi, addresses(*bmcs[:2]), "off")) == [OK, OK]
    assert [each.on for each in bmcs[:2]] == [False, False]
    assert bmcs[1].done == ["set power 0"]
    assert verdicts(switched(site, ipmi, addresses(*bmcs[:2]), "on", "soft")) == [OK, OK]
    assert [each.on for each in bmcs[:2]] == [True, True]


def test_a_bmc_that_takes_its_machine_for_on_switches_it_on_all_the_same(
    site: Site, ipmi: Power, bmcs: list[Bmc]
) -> None:
    bmcs[0].turn(on=False)
    bmcs[0].claim(on=True)
    assert verdicts(switched(site, ipmi, addresses(bmcs[0]), "on")) == [OK]
    assert bmcs[0].on


def test_a_bmc_that_takes_its_machine_for_off_switches_it_off_and_resets_it_all_the_same(
    site: Site, ipmi: Power, bmcs: list[Bmc]
) -> None:
    bmcs[0].claim(on=False)
    assert verdicts(switched(site, ipmi, addresses(bmcs[0]), "reboot")) == [OK]
    assert bmcs[0].done == [FROM_NETWORK, "set reset 1", "set power 1"]
    assert verdicts(switched(site, ipmi, addresses(bmcs[0]), "off")) == [OK]
    assert not bmcs[0].on


def test_a_bmc_that_never_sees_its_machine_go_off_still_switches_it_on_again(
    site: Site, ipmi: Power, bmcs: list[Bmc]
) -> None:
    """The machine went off: it does not stay dark because its BMC is mistaken."""
    bmcs[0].claim(on=True)
    quick = msgspec.structs.replace(ipmi, timeout=4)
    outcome = switched(site, quick, addresses(bmcs[0]), "reboot", "very_hard")["n-1"]
    assert outcome.message == (
        f"very_hard: the BMC at {ADDRESS} was told to switch the machine off, and still says on after 4 s"
    )
    assert bmcs[0].on
    assert bmcs[0].done == ["set power 0", FROM_NETWORK, "set power 1"]


def test_escalation_goes_on_to_the_level_that_works_and_tells_why_the_others_did_not(
    site: Site, ipmi: Power, bmcs: list[Bmc]
) -> None:
    """No ssh key: soft fails; the second BMC refuses to reset: hard fails there."""
    bmcs[1].break_("refusing")
    outcomes = switched(site, ipmi, addresses(*bmcs[:2]), "reboot", "soft")
    assert verdicts(outcomes) == [OK, OK]
    assert bmcs[0].done == [FROM_NETWORK, FROM_NETWORK, "set reset 1"]
    assert bmcs[1].done == [FROM_NETWORK, FROM_NETWORK, "set reset 1", "set power 0", FROM_NETWORK, "set power 1"]
    assert outcomes["n-1"].stdout.startswith("hard after soft: ")
    assert outcomes["n-2"].stdout.startswith("very_hard after soft: ")
    assert f"; hard: the BMC at {ADDRESS} says: " in outcomes["n-2"].stdout


def test_a_machine_that_does_not_go_off_is_ko_within_its_limit(site: Site, ipmi: Power, bmcs: list[Bmc]) -> None:
    bmcs[0].break_("stuck")
    quick = msgspec.structs.replace(ipmi, timeout=3)
    outcome = switched(site, quick, addresses(bmcs[0]), "off", "very_hard")["n-1"]
    assert outcome.message == (
        f"very_hard: the BMC at {ADDRESS} was told to switch the machine off, and still says on after 3 s"
    )


def test_a_system_that_ignores_its_power_button_is_switched_off_hard(
    site: Site, ipmi: Power, bmcs: list[Bmc], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first machine it does not: the system ends by itself."""
    bmcs[1].break_("deaf")
    monkeypatch.setattr(switch, "SHUTDOWN_TIMES", 0.3)
    outcomes = switched(site, ipmi, addresses(*bmcs[:2]), "off", "soft")
    assert verdicts(outcomes) == [OK, OK]
    assert outcomes["n-1"].stdout == "soft"
    assert bmcs[0].done == ["set shutdown 1"]
    assert outcomes["n-2"].stdout.startswith("hard after soft: ")
    assert bmcs[1].done == ["set shutdown 1", "set power 0"]


def test_a_bmc_that_never_answers_is_ko_alone(site: Site, ipmi: Power, bmcs: list[Bmc], black_hole: str) -> None:
    patient = msgspec.structs.replace(ipmi, timeout=8)
    heard: dict[str, Outcome] = {}
    outcomes = switched(
        site, patient, addresses(bmcs[0], black_hole, bmcs[1]), "reboot", "very_hard", on_outcome=heard.__setitem__
    )
    assert verdicts(outcomes) == [OK, KO, OK]
    assert f"nobody answers at {ADDRESS} port " in outcomes["n-2"].message
    assert heard == outcomes


def of_inventory(site: Site, own: Mapping[str, Login], how: Power) -> Cluster:
    """The cluster of the tests as if an inventory told its nodes, and of some BMCs a user and a password."""
    path = logins.path(site, "gdx")
    path.parent.mkdir(parents=True)
    path.write_bytes(logins.encode(own))
    return build.cluster(nodes=(), inventory=Inventory(source="hosts.yml"), power=how)


def test_users_and_passwords_of_single_bmcs_count_before_those_of_the_cluster(
    site: Site, ipmi: Power, bmcs: list[Bmc], tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("wrong\n", encoding="utf-8")
    own = {"n-1": Login(USER, PASSWORD), "n-2": Login("", PASSWORD), "n-3": Login(USER)}
    cluster = of_inventory(site, own, ipmi)
    nodes = addresses(*bmcs)
    outcomes = asyncio.run(switch.switch(site, cluster, nodes, "reboot", "hard", config_dir=tmp_path))
    assert verdicts(outcomes) == [OK, OK, KO]
    assert [each.done for each in bmcs] == [[FROM_NETWORK, "set reset 1"]] * 2 + [[]]
    assert "password" in outcomes["n-3"].message
    assert PASSWORD not in str(outcomes)


def test_without_the_file_of_single_passwords_nothing_is_switched(
    site: Site, ipmi: Power, bmcs: list[Bmc], tmp_path: Path
) -> None:
    cluster = of_inventory(site, {}, ipmi)
    logins.path(site, "gdx").unlink()
    with pytest.raises(ConfigError, match=r"gdx.secrets.json: No such file or directory: it has the BMCs' passwords"):
        asyncio.run(switch.switch(site, cluster, addresses(*bmcs), "off", "hard", config_dir=tmp_path))
    assert [each.done for each in bmcs] == [[], [], []]


def test_the_file_of_single_passwords_is_in_the_folder_of_secrets_where_there_is_one(
    site: Site, ipmi: Power, bmcs: list[Bmc], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = of_inventory(site, {"n-1": Login(USER, PASSWORD)}, Power(timeout=20))
    (tmp_path / "secrets").mkdir()
    logins.path(site, "gdx").rename(tmp_path / "secrets" / "gdx.secrets.json")
    monkeypatch.setenv("KADEPLOY_SECRETS", str(tmp_path / "secrets"))
    outcomes = asyncio.run(switch.switch(site, cluster, addresses(bmcs[0]), "status", config_dir=tmp_path))
    assert verdicts(outcomes) == [OK]


def test_a_wrong_password_is_ko_and_the_message_tells_to_look_at_it(
    site: Site, ipmi: Power, bmcs: list[Bmc], tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("guessed\n", encoding="utf-8")
    outcome = switched(site, msgspec.structs.replace(ipmi, timeout=6), addresses(bmcs[0]), "off", "very_hard")["n-1"]
    assert outcome.verdict is KO
    assert "password" in outcome.message
    assert bmcs[0].done == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            0x01,
            "Insufficient resources to create new session (wait for existing sessions to timeout): wait until other",
        ),
        (0x0A, "Unauthorized role or privilege level requested: give kadeploy the privilege level administrator"),
        (0x11, "No Cipher suite match with proposed security algorithms: allow cipher suite 3 or 17 on the BMC"),
        (None, "answers, but stays silent when kadeploy logs in: check its user and password"),
    ],
)
def test_why_a_bmc_lets_nobody_in_is_told_once_in_its_own_words_with_the_advice_that_fits(
    status: int | None,
    said: str,
    site: Site,
    ipmi: Power,
    refusing_bmc: Callable[[int | None], contextlib.AbstractContextManager[str]],
) -> None:
    """At all levels: a BMC that cannot be entered is not tried again, for it would say the same."""
    patient = msgspec.structs.replace(ipmi, timeout=10)
    with refusing_bmc(status) as address:
        outcome = switched(site, patient, addresses(address), "on", "soft")["n-1"]
    assert outcome.verdict is KO
    assert outcome.message.startswith(f"soft, hard, very_hard: the BMC at {ADDRESS} port ")
    assert said in outcome.message


def test_a_node_without_a_bmc_is_ko(site: Site, ipmi: Power) -> None:
    outcome = switched(site, ipmi, addresses(""), "status")["n-1"]
    assert outcome == replace(
        Outcome(KO, "n-1 has no BMC address: give it one in the cluster file, or its inventory", 1),
        seconds=outcome.seconds,
    )


def test_the_password_is_in_no_argument_and_no_environment(
    site: Site, ipmi: Power, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMC_PASSWORD", PASSWORD)
    how = msgspec.structs.replace(ipmi, password_file="", password_env="BMC_PASSWORD", timeout=2)
    cluster = build.cluster(power=how)
    seen: list[bytes] = []

    async def main() -> None:
        nodes = addresses(black_hole)
        work = asyncio.create_task(switch.switch(site, cluster, nodes, "status", config_dir=Path("/none")))
        while not work.done():
            for pid in children(os.getpid()):
                with contextlib.suppress(OSError):  # it has ended
                    seen.extend(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
            await asyncio.sleep(0.2)

    asyncio.run(main())
    assert any(b"kadeploy.power.ipmi" in text for text in seen)
    assert not [text for text in seen if PASSWORD.encode() in text]


def children(parent: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "kadeploy.power"], check=False, capture_output=True, text=True
    )
    return [int(word) for word in found.stdout.split()]


def test_a_driver_that_ends_leaves_nobody_waiting() -> None:
    async def main() -> bmc.Answer:
        async with bmc.connect("kadeploy.power.nonesuch", bmc.Credentials("u", "p")) as bmcs:
            return await bmcs.order("127.0.0.1", 623, "status", 60)

    assert asyncio.run(main()).reason.startswith("the process that talks to BMCs has ended")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.2.1", ("10.0.2.1", 623)),
        ("10.0.2.1:6230", ("10.0.2.1", 6230)),
        ("bmc-1.site:7", ("bmc-1.site", 7)),
        ("fe80::1", ("fe80::1", 623)),
    ],
)
def test_a_bmc_may_have_a_port_of_its_own(text: str, found: tuple[str, int]) -> None:
    assert bmc.split_address(text, 623) == found


# --- the node's own system --------------------------------------------------------------------------------------------

RECORDER = """\
#!/bin/sh
echo "${{0##*/}} $*" >>{log}
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[tuple[Connections, int, Path]]:
    """A system whose ``reboot`` and ``poweroff`` only write down that they were called; it answers at 127.9.1.1."""
    from tests.unit import sshd as ssh_servers

    folder = tmp_path / "system"
    folder.mkdir()
    log = folder / "log"
    for name in ("reboot", "poweroff"):
        (folder / name).write_text(RECORDER.format(log=log), encoding="utf-8")
        (folder / name).chmod(0o755)
    known = ssh_servers._keygen(folder / "host_key")
    key = ssh_servers._keygen(folder / "client_key")
    forced = f'command="PATH={folder}:$PATH exec sh -c \\"$SSH_ORIGINAL_COMMAND\\"" {key}\n'
    (folder / "authorized_keys").write_text(forced, encoding="utf-8")
    port = ssh_servers._free_port(["127.9.1.1"])
    server = ssh_servers._start(folder, port, ["127.9.1.1"], folder / "host_key")
    user = Path.home().owner()
    yield Connections(Credentials(folder / "client_key", known, user, connect_timeout=10)), port, log
    server.terminate()
    server.wait()


def test_a_soft_reboot_asks_the_system_itself(
    site: Site, ipmi: Power, bmcs: list[Bmc], system: tuple[Connections, int, Path]
) -> None:
    remote, port, log = system
    site = msgspec.structs.replace(site, ssh=msgspec.structs.replace(site.ssh, port=port))
    outcomes = switched(site, ipmi, addresses(bmcs[0]), "reboot", "soft", remote=remote)
    assert outcomes["n-1"].verdict is OK
    assert outcomes["n-1"].stdout == "soft"
    while not log.exists():
        time.sleep(0.05)
    assert log.read_text(encoding="utf-8") == "reboot \n"
    assert bmcs[0].done == [FROM_NETWORK]


def test_a_soft_reboot_is_one_without_a_bmc_too(
    site: Site, ipmi: Power, black_hole: str, system: tuple[Connections, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "NETWORK_LIMIT", 1.0)
    remote, port, _ = system
    site = msgspec.structs.replace(site, ssh=msgspec.structs.replace(site.ssh, port=port))
    outcomes = switched(site, ipmi, addresses("", black_hole), "reboot", "soft", remote=remote)
    assert verdicts(outcomes) == [OK, OK]
    assert outcomes["n-1"].stderr == ""
    assert f"the BMC was not told to boot from the network: nobody answers at {ADDRESS}" in outcomes["n-2"].stderr


# --- redfish ----------------------------------------------------------------------------------------------------------

UUIDS = ("27946b59-9e44-4fa7-8e91-f3527a1ef094", "27946b59-9e44-4fa7-8e91-f3527a1ef095")
SETTINGS = """\
SUSHY_EMULATOR_STATE_DIR = {state!r}
SUSHY_EMULATOR_FAKE_DRIVER = True
SUSHY_EMULATOR_AUTH_FILE = {users!r}
SUSHY_EMULATOR_FAKE_SYSTEMS = [
    {{"uuid": uuid, "name": uuid[-2:], "power_state": "On", "external_notifier": False, "nics": []}} for uuid in {uuids}
]
"""
EMULATOR = """\
import random
random.randint = lambda low, high: low  # its machines take that many seconds to be switched: the fewest
from sushy_tools.emulator.main import main
main()
"""


@pytest.fixture(scope="module")
def redfish(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a Redfish service with two machines."""
    folder = tmp_path_factory.mktemp("redfish")
    digest = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
    (folder / "users").write_text(f"{USER}:{digest}\n", encoding="utf-8")
    (folder / "settings").write_text(
        SETTINGS.format(state=str(folder), users=str(folder / "users"), uuids=UUIDS), encoding="utf-8"
    )
    with socket.create_server((ADDRESS, 0)) as probe:
        port = probe.getsockname()[1]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", EMULATOR, "--config", folder / "settings", "-i", ADDRESS, "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    while True:
        try:
            socket.create_connection((ADDRESS, port), timeout=1).close()
            break
        except OSError:
            assert process.poll() is None, (folder / "output").read_text()
            time.sleep(0.05)
    yield f"http://{ADDRESS}:{port}"
    process.kill()
    process.wait()


def test_redfish_switches_and_tells(site: Site, ipmi: Power, redfish: str) -> None:
    """One node is the first system of its BMC, the other one is named by its path."""
    how = msgspec.structs.replace(ipmi, driver="redfish")
    nodes = addresses(redfish, f"{redfish}/redfish/v1/Systems/{UUIDS[1]}")
    assert verdicts(switched(site, how, nodes[1:], "off")) == [OK]
    outcomes = switched(site, how, nodes[1:], "status")
    assert [(outcome.verdict, outcome.answer) for outcome in outcomes.values()] == [(KO, "off")]
    assert verdicts(switched(site, how, nodes[1:], "reboot")) == [OK]
    assert verdicts(switched(site, how, nodes[1:], "on")) == [OK]
    assert verdicts(switched(site, how, nodes[1:], "status")) == [OK]
    assert verdicts(switched(site, how, nodes[1:], "reboot", "very_hard")) == [OK]


def test_redfish_tells_a_wrong_password_and_a_bmc_that_is_not_there(
    site: Site, ipmi: Power, redfish: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("guessed\n", encoding="utf-8")
    how = msgspec.structs.replace(ipmi, driver="redfish", timeout=30)
    outcomes = switched(site, how, addresses(redfish, f"http://{ADDRESS}:9"), "status")
    assert verdicts(outcomes) == [KO, KO]
    assert "refuses the user name or the password" in outcomes["n-1"].message
    assert f"nobody answers at http://{ADDRESS}:9" in outcomes["n-2"].message


def test_redfish_sends_orders_whatever_the_bmc_says_of_its_machine(
    site: Site, ipmi: Power, redfish_liar: Redfish
) -> None:
    how = msgspec.structs.replace(ipmi, driver="redfish")
    redfish_liar.on, redfish_liar.claims = False, "On"
    assert verdicts(switched(site, how, addresses(redfish_liar.url), "on")) == [OK]
    assert redfish_liar.done == ["On"]
    redfish_liar.claims = "Off"
    assert verdicts(switched(site, how, addresses(redfish_liar.url), "reboot")) == [OK]
    assert verdicts(switched(site, how, addresses(redfish_liar.url), "off")) == [OK]
    assert redfish_liar.done == ["On", "ForceRestart", "On", "ForceOff"]
    assert redfish_liar.boot == {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}


def test_a_redfish_bmc_that_does_not_follow_is_ko_and_says_what_it_claims(
    site: Site, ipmi: Power, redfish_liar: Redfish
) -> None:
    how = msgspec.structs.replace(ipmi, driver="redfish", timeout=4)
    redfish_liar.claims = "On"
    outcome = switched(site, how, addresses(redfish_liar.url), "off", "very_hard")["n-1"]
    assert outcome.message == (
        f"very_hard: the BMC at {redfish_liar.url} was told to switch the machine off, and still says on after 4 s"
    )


@pytest.mark.parametrize(
    ("refusal", "verdict", "said"),
    [
        ((409, "The server is already powered on."), OK, ""),
        ((403, "There are insufficient privileges."), KO, "give kadeploy the privilege level administrator on the BMC"),
        ((503, "The session limit was exceeded."), KO, "wait until other sessions have ended, or restart the BMC"),
        ((503, "Firmware update in progress."), KO, "says: Firmware update in progress."),
    ],
)
def test_what_a_redfish_bmc_says_is_told_with_the_advice_that_fits(
    refusal: tuple[int, str], verdict: Verdict, said: str, site: Site, ipmi: Power, redfish_liar: Redfish
) -> None:
    """An order that is refused because the machine is so already has been followed."""
    redfish_liar.refuses = refusal
    how = msgspec.structs.replace(ipmi, driver="redfish", off_delay=0)
    outcome = switched(site, how, addresses(redfish_liar.url), "on", "hard")["n-1"]
    assert outcome.verdict is verdict
    if verdict is KO:
        assert refusal[1] in outcome.message
        assert outcome.message.endswith(said)
        assert outcome.message.count(refusal[1]) == 1


# --- commands of the site ---------------------------------------------------------------------------------------------


def commands(**texts: str) -> Power:
    return Power(driver="command", timeout=10, commands=PowerCommands(**texts))


def test_commands_get_the_nodes_name_and_no_shell_sees_them(site: Site, tmp_path: Path) -> None:
    """A node's name cannot add a word, nor a command."""
    strange = Node(name="n-1;touch pwned.site x")
    how = commands(hard_reboot=f"/usr/bin/env -C {tmp_path} touch fqdn-HOSTNAME_FQDN 'a  b HOSTNAME_SHORT'")
    assert verdicts(switched(site, how, [strange], "reboot")) == [OK]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a  b n-1;touch pwned",
        "fqdn-n-1;touch pwned.site x",
        "state",
    ]


def test_a_missing_command_and_a_failing_one_pass_to_the_next_level(site: Site) -> None:
    how = commands(hard_off="sh -c 'echo broken >&2; exit 9'", very_hard_off="true")
    outcome = switched(site, how, addresses(""), "off", "soft")["n-1"]
    assert outcome.verdict is OK
    assert outcome.stdout == (
        "very_hard after soft: power.commands.soft_off is not set in the cluster file; hard: broken"
    )


def test_a_program_that_is_not_there_is_ko_with_its_name(site: Site) -> None:
    outcome = switched(site, commands(status="/no/such/program HOSTNAME_FQDN"), addresses(""), "status")["n-1"]
    assert outcome.verdict is KO
    assert outcome.message.startswith("/no/such/program: No such file")


def test_a_command_that_hangs_is_killed_with_all_that_it_started(site: Site, tmp_path: Path) -> None:
    how = commands(status=f"sh -c 'sleep 987 & echo $! >{tmp_path}/pid; wait'")
    outcome = switched(site, msgspec.structs.replace(how, timeout=1), addresses(""), "status")["n-1"]
    assert outcome.verdict is KO
    assert "did not end within 1 s" in outcome.message
    pid = (tmp_path / "pid").read_text(encoding="utf-8").strip()
    while Path(f"/proc/{pid}/cmdline").exists() and b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.02)


STATUS = "sh -c 'test -e {0}/on'"


def test_a_node_that_does_not_follow_a_command_is_ko_when_the_site_can_ask(site: Site, tmp_path: Path) -> None:
    how = msgspec.structs.replace(commands(hard_on="true", status=STATUS.format(tmp_path)), timeout=2)
    outcome = switched(site, how, addresses(""), "on", "hard")["n-1"]
    assert outcome.verdict is KO
    assert "power.commands.hard_on ended well, but power.commands.status still says off after 2 s" in outcome.message


def test_a_node_that_follows_a_command_later_is_waited_for(site: Site, tmp_path: Path) -> None:
    on = f"sh -c '(sleep 2; touch {tmp_path}/on) >/dev/null 2>&1 &'"
    how = commands(soft_on=on, status=STATUS.format(tmp_path))
    outcome = switched(site, how, addresses(""), "on", "soft")["n-1"]
    assert outcome.verdict is OK
    assert outcome.stdout == "soft"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("/no/such/program", "/no/such/program: No such file or directory: check power.commands"),
        ("sh -c 'echo no answer >&2; exit 2'", "no answer"),
    ],
)
def test_a_status_that_cannot_be_told_is_not_off(site: Site, status: str, said: str) -> None:
    how = commands(very_hard_off="true", status=status)
    outcome = switched(site, how, addresses(""), "off", "very_hard")["n-1"]
    assert outcome.message.startswith(
        f"very_hard: power.commands.very_hard_off ended well, but its end is unknown: {said}"
    )


def test_no_wait_is_a_word_for_on_and_off_only(site: Site) -> None:
    echo = commands(hard_off=f"{sys.executable} -c 'import sys; sys.exit(sys.argv[1:] != [\"--no-wait\"])'")
    assert verdicts(switched(site, echo, addresses(""), "off", wait=False)) == [OK]
    assert verdicts(switched(site, echo, addresses(""), "off")) == [KO]
    plain = commands(hard_reboot=f"{sys.executable} -c 'import sys; sys.exit(len(sys.argv) - 1)'")
    assert verdicts(switched(site, plain, addresses(""), "reboot", wait=False)) == [OK]


# --- the window -------------------------------------------------------------------------------------------------------

ALONE = "sh -c 'mkdir {0}/lock || touch {0}/overlap; sleep 0.1; rmdir {0}/lock'"


def test_operations_side_by_side_never_switch_more_nodes_than_the_window_holds(site: Site, tmp_path: Path) -> None:
    site = msgspec.structs.replace(site, windows=Windows(reboot=1))
    how = commands(hard_reboot=ALONE.format(tmp_path))
    cluster = build.cluster(power=how)

    async def main() -> list[dict[str, Outcome]]:
        work = [
            switch.switch(site, cluster, addresses("", ""), "reboot", "hard", config_dir=tmp_path) for _ in range(2)
        ]
        return await asyncio.gather(*work)

    assert [verdicts(outcomes) for outcomes in asyncio.run(main())] == [[OK, OK], [OK, OK]]
    assert not (tmp_path / "overlap").exists()


# --- the password -----------------------------------------------------------------------------------------------------


def test_the_password_is_the_first_line_of_its_file(tmp_path: Path, ipmi: Power) -> None:
    (tmp_path / "password").write_text("two words \nanother line\n", encoding="utf-8")
    assert switch.password(ipmi, tmp_path) == "two words "


def test_the_password_file_is_in_the_folder_of_secrets_where_there_is_one(
    tmp_path: Path, ipmi: Power, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").rename(tmp_path / "aside")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "aside").rename(tmp_path / "secrets" / "password")
    monkeypatch.setenv("KADEPLOY_SECRETS", str(tmp_path / "secrets"))
    assert switch.password(ipmi, Path("/etc/kadeploy")) == switch.password(ipmi, tmp_path) != ""


def test_a_password_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path: Path, ipmi: Power) -> None:
    (tmp_path / "password").chmod(0o640)
    with pytest.raises(ConfigError, match=f"chmod 600 {tmp_path}/password"):
        switch.password(ipmi, tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Power(password_file="nonesuch"), "nonesuch"),
        (Power(password_env="NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE"),
    ],
)
def test_a_password_that_is_not_there_is_told(how: Power, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        switch.password(how, tmp_path, {})


def test_a_password_may_be_in_the_environment_or_not_needed(tmp_path: Path) -> None:
    assert switch.password(Power(password_env="WORD"), tmp_path, {"WORD": "x"}) == "x"
    assert switch.password(Power(), tmp_path, {}) == ""


# --- the engine -------------------------------------------------------------------------------------------------------


def rebooted_by_engine(
    site: Site, folder: Path, how: Power, members: tuple[str, ...], attempt: Attempt, level: switch.Level = "soft"
) -> dict[str, Outcome]:
    """What the engine of the micro-step ``reboot`` says."""
    cluster = build.cluster(nodes=(NodeRange(name="n-[1-3]"),), power=how)
    request = build.request(folder, operation="reboot", attempt=attempt, site=site, cluster=cluster)
    Path(request.workflow_dir).mkdir(parents=True, exist_ok=True)

    async def main() -> dict[str, Outcome]:
        step = MicroStep(
            request,
            Begun("key", "reboot", attempt.implementation, attempt.macro_step),
            members,
            Connections(Credentials(Path("/none"))),
            args={"operation": "reboot", "level": level},
        )
        return await perform(step, power_nodes.run)

    return asyncio.run(main())


def test_the_engine_switches_the_members_of_the_micro_step_only(site: Site, tmp_path: Path) -> None:
    how = commands(hard_reboot=f"touch {tmp_path}/HOSTNAME_FQDN")
    outcomes = rebooted_by_engine(site, tmp_path, how, ("n-1", "n-3"), Attempt("Reboot", "RebootSimple"))
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == {"n-1": OK, "n-3": OK}
    assert sorted(path.name for path in tmp_path.glob("n-*")) == ["n-1", "n-3"]


def test_each_try_of_a_macro_step_reboots_harder_than_the_one_before(site: Site, tmp_path: Path) -> None:
    """On node 2 the soft reboot fails, so that the first try is a hard one already; another macro-step begins anew."""
    how = commands(soft_reboot="test HOSTNAME_FQDN != n-2", hard_reboot="true", very_hard_reboot="true")
    members = ("n-1", "n-2")

    def levels(*attempt: Any, level: switch.Level = "soft") -> list[str]:
        made = Attempt(*attempt[:2], number=attempt[2])
        outcomes = rebooted_by_engine(site, tmp_path, how, members, made, level)
        return [outcome.stdout.split()[0] for outcome in outcomes.values()]

    assert levels("Reboot", "RebootSimple", 1) == ["soft", "hard"]
    assert levels("Reboot", "RebootSimple", 2) == ["hard", "very_hard"]
    assert levels("Reboot", "RebootSimple", 3) == ["very_hard", "very_hard"]
    assert levels("Reboot", "RebootSimple", 2) == ["hard", "very_hard"], "by hand, an attempt is repeated as it was"
    assert levels("BootNewEnv", "BootNewEnvHardReboot", 4, level="hard") == ["hard", "hard"]
    assert levels("BootNewEnv", "BootNewEnvHardReboot", 5, level="hard") == ["very_hard", "very_hard"]
