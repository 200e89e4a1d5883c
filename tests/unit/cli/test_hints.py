"""What is mistyped: the refusal names the word that was meant, and no word that the user may not see."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from kadeploy.config.folder import load_configuration, load_site
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError
from kadeploy.state import database, rights
from kadeploy.state.tables import EnvironmentRow

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

IMAGE = '{"file": "/srv/image.tgz", "kind": "tgz"}'


@pytest.fixture
def recorded(site: Site) -> Site:
    """Environments of the caller and of bob, who shows others some of his; and a user with rights."""
    database.connect(site)
    me = load_site().almighty_users[0]
    for name, user, visibility in (
        ("debian12", me, "private"),
        ("rocky9", "bob", "public"),
        ("gentoo", "bob", "shared"),
        ("secret-project", "bob", "private"),
        ("hidden", "carol", "private"),
    ):
        about = {"visibility": visibility, "version": 1, "image": IMAGE, "filesystem": "ext4"}
        EnvironmentRow.insert(name=name, user=user, **about).execute()
    rights.add(site, "johnsmith", ["gdx-1.site"], ["/dev/sda3"])
    rights.add(site, me, ["*"], ["*"])
    return site


STEPS = (
    "SetDeploymentEnv|SetDeploymentEnvUntrusted:1:9&BroadcastEnv|BroadcastEnvChian:1:9&BootNewEnv|BootNewEnvKexec:1:9"
)
D = "kadeploy3 -m gdx-1.site -e debian12 --dry-run"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kadeploy3 -m gxd-1.site -e debian12", "Unknown node: gxd-1.site. Did you mean gdx-1.site?"),
        ("kanodes3 -d -m gxd-[1-3]", "Unknown node: gxd-[1-3]. Did you mean gdx-[1-3]?"),
        ("kapower3 --on -m gdx-21.site", "Unknown node: gdx-21.site. There are gdx-[1-20].site."),
        ("kareboot3 -m gdx-l.site", "Unknown node: gdx-l.site. There are gdx-[1-20].site."),
        ("kastat3 -d -m nwm-1.site", "Did you mean nvm-1.site?"),
        ("kaconsole3 nvmm-1.site", "Did you mean nvm-1.site?"),
        ("karights3 -a -u root -p * -m gdx-1.siet", "Did you mean gdx-1.site?"),
        ("kadeploy3 -m gdx-1.site -e debain12", "Did you mean debian12?"),
        ("kadeploy3 -m gdx-1.site -e rocky8", "Did you mean rocky9?"),
        ("kadeploy3 -m gdx-1.site -e rocky8@bob", "Did you mean rocky9?"),
        ("kareboot3 -m gdx-1.site -r env_recorded -p 3 -e genttoo -u bob", "Did you mean gentoo?"),
        ("kadeploy3 -m gdx-1.site -e gentoo -u bobb", "Did you mean bob?"),
        ("kaenv3 -p debian21", "Did you mean debian12?"),
        ("kaenv3 -d debian21", "Did you mean debian12?"),
        (f"{D} --breakpoint BroadcastEnv:snyc", "Did you mean sync?"),
        (f"{D} --breakpoint BroadcastEnvChian", "Did you mean BroadcastEnvChain?"),
        (f"{D} --breakpoint BrodcastEnv:sync", "Did you mean BroadcastEnv?"),
        (f"{D} --force-steps '{STEPS}'", "Did you mean BroadcastEnvChain?"),
        (
            f"{D} --force-steps '{STEPS.replace('SetDeploymentEnv|', 'SetDeploymnetEnv|')}'",
            "Did you mean SetDeploymentEnv?",
        ),
        (f"{D} --set-custom-operations macro", "Did you mean BroadcastEnvChain?"),
        (f"{D} --set-custom-operations micro", "Did you mean send_environment?"),
        (f"{D} --set-custom-operations yaml", "unknown word sned; expected one of exec, run, send. Did you mean send?"),
        ("kastat3 -d -f hostnam", "Did you mean hostname?"),
        ("kastat3 -d -F user,hosntame", "Did you mean hostname?"),
        ("kastat3 -d --sort -strat", "Did you mean start?"),
        ("kastat3 -d -o deplyo", "expected one of deploy, reboot, power, all. Did you mean deploy?"),
        ("kareboot3 -m gdx-1.site -r simpel_reboot", "Did you mean simple_reboot?"),
        ("kareboot3 -m gdx-1.site -l hrad", "expected one of soft, hard, very_hard. Did you mean hard?"),
        ("kapower3 -m gdx-1.site statsu", "Did you mean status?"),
        ("kaenv3 --set-visibility-tag debian12 -t pubic", "Did you mean public?"),
        ("kaenv3 -a typo.dsc", "Did you mean tarball?"),
        ("kaenv3 -a kind.dsc", "unknown kind 'tgzz' (tgz?); expected one of"),
        ("kadeploy3 --mashine gdx-1.site", "There is no option --mashine. Did you mean --machine?"),
        ("kanodes3 -d --format jsn", "expected one of text, json, yaml. Did you mean json?"),
        ("kanodes3 --show-completion bsh", "Did you mean bash?"),
        ("kadeploy-lab upp", "There is no command upp. The commands are up, down,"),
        ("kadeploy-lab logs --folow node-1", "Did you mean --follow? See kadeploy-lab logs --help"),
        ("kadeploy-lab up --kind lihgt", "Did you mean light?"),
    ],
)
def test_the_refusal_names_what_was_meant(tool: Any, recorded: Site, tmp_path: Path, line: str, said: str) -> None:
    files = {
        "macro": "BroadcastEnvChian,sync@exec%true%\n",
        "micro": "BroadcastEnvChain,send_enviroment@exec%true%\n",
        "yaml": "BroadcastEnvChain:\n  sync:\n    pre-ops: [{action: sned}]\n",
        "typo.dsc": "name : a\ntarbal : /srv/image.tgz|tgz\n",
        "kind.dsc": "name : a\ntarball : /srv/image.tgz|tgzz\nenvironment_kind : linux\nfdisktype : 83\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    words = [str(tmp_path / word) if word in files else word for word in shlex.split(line)]
    done = tool(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("kadeploy3 -m gdx-1.site -e secret-projekt", "secret-project"),
        ("kadeploy3 -m gdx-1.site -e secret-projekt -u bob", "secret-project"),
        ("kadeploy3 -m gdx-1.site -e hiden -u carol", "hidden"),
        ("kadeploy3 -m gdx-1.site -e gentooo", "gentoo?"),
        ("kadeploy3 -m gdx-1.site -e a -u carrol", "carol"),
        ("kaenv3 -p secret-projekt@bob", "secret-project"),
        ("kaenv3 -d secret-projekt -u bob", "secret-project"),
    ],
)
@pytest.mark.skipif(os.getuid() != 0, reason="takes another user's place")
def test_names_that_the_user_may_not_see_are_not_suggested(tool: Any, recorded: Site, line: str, hidden: str) -> None:
    done = tool(*shlex.split(line), SUDO_UID="65534")
    assert done.returncode == 1
    assert hidden not in done.stderr.replace("secret-projekt", "").replace("gentooo", "")


def test_environments_of_administrators_are_suggested_as_they_are_listed(tool: Any, recorded: Site) -> None:
    assert "secret-project" not in tool("kaenv3", "-l", "-u", "*").stdout
    assert "secret-project" not in tool("kaenv3", "-p", "secret-projec", "-u", "bob").stderr


# --- karights3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        (
            "-u johnsmit -p /dev/sda3",
            "johnsmit has no account on this machine: see that the name is right. Did you mean johnsmith?",
        ),
        (
            "-u rooot -p /dev/sda3",
            "rooot has no account on this machine: see that the name is right. Did you mean root?",
        ),
        (
            "-u root -p /dev/sda4",
            "/dev/sda4 is not a partition of gdx: there are /dev/sda1, /dev/sda2, /dev/sda3, /dev/sda5.",
        ),
        ("-u root -p /dev/sad3", "Did you mean /dev/sda3?"),
    ],
)
def test_a_right_that_is_rarely_meant_is_given_with_a_warning(tool: Any, site: Site, line: str, warning: str) -> None:
    database.connect(site)
    rights.add(site, "johnsmith", ["gdx-9.site"], ["/dev/sda3"])
    done = tool("karights3", "-a", "-m", "gdx-1.site", *line.split())
    assert done.returncode == 0
    assert warning in done.stderr


@pytest.mark.parametrize(
    "part", ["/dev/sda3", "/dev/sdb", "/dev/sdb1", "/dev/nvme1n1p2", "/dev/disk/by-id/wwn-0x5-part3", "*"]
)
def test_a_right_on_another_disk_is_nothing_to_warn_of(tool: Any, site: Site, part: str) -> None:
    database.connect(site)
    assert tool("karights3", "-a", "-u", "root", "-m", "gdx-1.site", "-p", part).stderr == ""


def test_rights_of_a_mistyped_user_are_looked_for_elsewhere(tool: Any, recorded: Site) -> None:
    shown = tool("karights3", "-s", "-u", "jonsmith")
    assert (shown.returncode, shown.stderr) == (1, "Did you mean johnsmith?\n")
    gone = tool("karights3", "-d", "-u", "jonsmith", "-m", "gdx-1.site", "-p", "/dev/sda3")
    assert "The user jonsmith has no rights at all. Did you mean johnsmith?" in gone.stdout


# --- configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "disk:\n",
            "power:\n  driver: ipmii\ndisk:\n",
            "power.driver: unknown word ipmii; expected one of command, ipmi, redfish. Did you mean ipmi?",
        ),
        (
            "role: swap",
            "role: swop",
            "disk.partitions[0].role: unknown word swop; expected one of deploy, efi, other, prod, swap, tmp. "
            "Did you mean swap?",
        ),
        (
            "  device:",
            "  devise:",
            "disk: unknown key devise; the keys here are device, firmware_number, table, partitions. Did you mean "
            "device?",
        ),
        ("disk:\n", "diks:\n", "unknown key diks. Did you mean disk?"),
        (
            "address:",
            "adress:",
            "nodes[0]: unknown key adress; the keys here are name, address, bmc, mac. Did you mean address?",
        ),
        ("disk:\n", "loader: {zzz: 1}\ndisk:\n", "loader: unknown key zzz; the keys here are firmware,"),
    ],
)
def test_a_wrong_key_or_word_of_the_configuration_is_told_with_those_there_are(
    site_folder: Path, before: str, after: str, said: str
) -> None:
    file = site_folder / "clusters" / "gdx.yml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_configuration(site_folder)
    assert re.match(rf"{re.escape(str(file))}:\d+: {re.escape(said)}", str(refusal.value))
