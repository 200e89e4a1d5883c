"""Settings that are legal, and odd."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kadeploy.admin.check import configuration
from tests.unit.admin.sound_site import SoundSite

ENDLESS = [{"implementation": "BroadcastEnvDummy"}]
DUMMY = {
    "SetDeploymentEnv": [{"implementation": "SetDeploymentEnvDummy", "timeout": 9}],
    "BroadcastEnv": [{"implementation": "BroadcastEnvDummy", "timeout": 9}],
    "BootNewEnv": [{"implementation": "BootNewEnvDummy", "timeout": 9}],
}


def test_a_sound_site_has_nothing_odd(sound: SoundSite) -> None:
    assert set(sound.levels(configuration.check).values()) == {"ok"}


@pytest.mark.parametrize(
    ("name", "level", "what", "values", "said"),
    [
        ("rights", "warn", "site", {"rights": "dummy"}, "every user"),
        ("boot-log", "warn", "site", {"boot__log": None}, "is not set"),
        ("boot-log", "warn", "site", {"boot__log": "/nowhere/boot.log"}, "no file /nowhere/boot.log"),
        ("server-address", "fail", "site", {"server_address": "0.0.0.0"}, "0.0.0.0 is no address"),
        ("http-url", "warn", "site", {"boot__http_url": "http://boot.site/"}, "boot.site"),
        ("http-url", "warn", "site", {"boot__http_url": "https://10.0.0.1/"}, "PXELINUX and GRUB cannot fetch"),
        ("administrators", "warn", "site", {"almighty_users": ["rooot"]}, "rooot has no account"),
        ("workers", "fail", "site", {"service__workers": {"users": ["worker"]}}, "is not PostgreSQL"),
        ("workers", "warn", "site", {"service__workers": {"users": ["worker"]}}, "no cluster has work"),
        ("commands", "fail", "site", {"hooks__end_of_power": "/no/such WORKFLOW_ID"}, "hooks.end_of_power: /no/such"),
        ("commands", "fail", "gdx", {"console": "/no/such -E HOSTNAME_FQDN"}, "console: /no/such"),
        ("archives", "fail", "gdx", {"pre_installs": [{"file": "/no/such.tgz"}]}, "no file /no/such.tgz"),
        ("archives", "fail", "gdx", {"post_installs": [{"file": "/no/such.tgz"}]}, "no file /no/such.tgz"),
        ("post-installs", "fail", "gdx", {"post_installs": [{"role": "snyc"}]}, "role snyc; expected one in"),
        ("post-installs", "warn", "gdx", {"post_installs": [{"role": "sync"}], "macro_steps": DUMMY},
         "sync does not run in BroadcastEnvDummy"),
        ("addresses", "warn", "gdx", {"nodes": [{"name": "n-1", "bmc": "127.9.8.1"}]}, "n-1 has no address"),
        ("bmc-addresses", "fail", "gdx", {"nodes": [{"name": "n-[1-3]", "address": "127.9.1.[1-3]"}]}, "n-[1-3]"),
        ("bmc-login", "warn", "gdx", {"power__user": ""}, "power.user is not set"),
        ("tries", "warn", "gdx", {"macro_steps": DUMMY}, "no macro-step has a second try"),
        ("timeouts", "warn", "gdx", {"macro_steps": DUMMY | {"BroadcastEnv": ENDLESS}},
         "BroadcastEnvDummy has no time limit"),
        ("timeouts", "warn", "gdx", {"micro_timeouts": {"format_tmp_part": 0}}, "micro_timeouts.format_tmp_part is 0"),
    ],
)  # fmt: skip
def test_what_is_odd_is_told_with_its_value(
    sound: SoundSite, name: str, level: str, what: str, values: dict[str, Any], said: str
) -> None:
    sound.change(what, **values)
    assert said in sound.one(configuration.check, name, level).text


def test_tasks_that_no_deployment_would_run_are_told(sound: SoundSite) -> None:
    for place in ("BroadcastEnv/sink.post.d", "BroadcastEnv/sync.post.d", "PowerOff/power.pre.d"):
        (sound.folder / "hooks" / place).mkdir(parents=True)
    assert "sink.post.d: BroadcastEnv has no micro-step 'sink'" in sound.one(configuration.check, "hooks", "fail").text


def test_settings_of_the_estate_that_do_not_count_or_say_something_wrong_are_told(sound: SoundSite) -> None:
    path = sound.folder / "hooks" / "ansible.cfg"
    path.parent.mkdir()
    (path.parent / "secret").touch(mode=0o644)
    text = "[defaults]\nstdout_callback = json\nvault_password_file = secret\nroles_path = nowhere\n"
    path.write_text(text)
    said = [each.text for each in sound.found(configuration.check) if each.name == "ansible-cfg"]
    assert [each.partition(": ")[2] for each in said] == [
        "stdout_callback does not count in deployments",
        "others can read this password of a vault",
        f"roles_path: there is no folder {path.parent}/nowhere",
    ]
    path.write_text("[defaults]\nvault_password_file = gone\n")
    assert "no file" in sound.one(configuration.check, "ansible-cfg", "fail").text


def test_a_redfish_bmc_whose_certificate_nobody_checks_is_told(sound: SoundSite) -> None:
    nodes = [{"name": "gdx-1.site", "address": "127.9.1.1", "bmc": "https://127.9.8.1"}]
    sound.change("gdx", nodes=nodes, power__driver="redfish", power__verify_tls=False)
    assert "password" in sound.one(configuration.check, "verify-tls", "warn").text
    sound.change("gdx", power__verify_tls=True)
    assert "verify-tls" not in sound.levels(configuration.check)


def test_a_soft_first_reboot_needs_a_command_for_it_and_a_hard_one_in_the_end(sound: SoundSite) -> None:
    power = {"driver": "command", "commands": {"hard_reboot": "true HOSTNAME_FQDN", "status": "true"}}
    sound.change("gdx", power=power)
    assert "soft_reboot is not set" in sound.one(configuration.check, "first-reboot", "warn").text
    sound.change("site", first_reboot="hard")
    assert set(sound.levels(configuration.check).values()) == {"ok"}
    sound.change("gdx", power={"driver": "command", "commands": {"soft_reboot": "true"}})
    assert sound.levels(configuration.check)["reboot-commands"] == "fail"


def test_a_controller_that_calls_itself_localhost_is_nobody_to_real_nodes(sound: SoundSite) -> None:
    nodes = [{"name": "gdx-1.site", "address": "10.0.0.1", "bmc": "10.0.1.1"}]
    sound.change("gdx", nodes=nodes)
    assert "for itself alone" in sound.one(configuration.check, "server-address", "fail").text


def test_a_name_from_which_a_signed_grub_would_fetch_kernels_is_odd(sound: SoundSite) -> None:
    sound.change("site", server_address="localhost")
    assert "server-address" not in sound.levels(configuration.check)
    sound.change("gdx", loader={"firmware": "uefi", "profiles": "grub", "secure_boot": True})
    assert "localhost is a name" in sound.one(configuration.check, "server-address", "warn").text


def test_a_finding_of_a_cluster_names_its_file_whatever_the_cluster_calls_itself(sound: SoundSite) -> None:
    sound.change("gdx", name="other", power__user="", macro_steps=DUMMY)
    found = [each for each in sound.found(configuration.check) if each.level == "warn"]
    assert {each.name for each in found} == {"bmc-login", "tries"}
    assert all(each.text.startswith("clusters/gdx.yml: ") for each in found)


@pytest.mark.parametrize(("name", "meant"), [("clusters/old.yaml", "old.yml"), ("site.yaml", "site.yml")])
def test_a_file_that_no_tool_reads_is_told(sound: SoundSite, name: str, meant: str) -> None:
    (sound.folder / name).write_text("{}")
    assert meant in sound.one(configuration.check, "ignored-files", "warn").advice


def test_bmcs_with_users_of_their_own_need_none_for_all(sound: SoundSite) -> None:
    (sound.folder / "hosts.ini").write_text("[gdx]\ngdx-1.site bmc=10.0.3.1 bmc_user=ada bmc_password=x\n")
    sound.change("gdx", nodes=None, name=None, power={"driver": "ipmi"}, inventory={"source": "hosts.ini"})
    assert "bmc-login" not in sound.levels(configuration.check)
    (sound.folder / "hosts.ini").write_text("[gdx]\ngdx-1.site bmc=10.0.3.1\n")
    assert sound.levels(configuration.check)["loads"] == "fail"


def test_an_inventory_tells_when_it_was_read_and_one_that_is_down_is_odd(sound: SoundSite) -> None:
    program = sound.folder / "hosts"
    program.write_text('#!/bin/sh\n[ ! -e down ] || exit 3\necho \'{"gdx": {"hosts": ["gdx-1.site"]}}\'\n')
    program.chmod(0o755)
    sound.change("gdx", nodes=None, name=None, inventory={"source": "hosts", "seconds": 1})
    fine = [each.text for each in sound.found(configuration.check) if (each.name, each.level) == ("inventory", "ok")]
    assert len(fine) == 1
    assert fine[0].startswith("clusters/gdx.yml: 1 node of hosts, read 2")
    (sound.folder / "down").touch()
    kept = sound.folder / "state/inventories/gdx.json"
    known = msgspec.json.decode(kept.read_bytes())
    kept.write_bytes(msgspec.json.encode({**known, "next": known["read"]}))
    text = sound.one(configuration.check, "inventory", "warn").text
    assert "its inventory cannot be read, and the nodes of 2" in text
    assert "Inventory script returned non-zero exit code 3" in text
