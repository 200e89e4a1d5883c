"""What this machine says of itself: room, ports, clock, programs, and the service."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from kadeploy import __version__
from kadeploy.admin.check import clock, ports, programs, room, service
from kadeploy.state import database
from tests.unit.admin.sound_site import ADDRESS, SoundSite
from tests.unit.admin.test_check_database import recorded
from tests.unit.serving import served as serving

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# --- room ---------------------------------------------------------------------------------------------------------


def test_a_site_with_room_has_nothing_to_tell_of_it(sound: SoundSite) -> None:
    assert sound.levels(room.check) == dict.fromkeys(("state", "boot", "temporary"), "ok")


def test_promises_that_the_disk_cannot_keep_are_told_with_figures(sound: SoundSite) -> None:
    sound.change("site", runs__max_mb=10**9, service__quota__files_mb=10**9, boot__uploads_max_mb=10**9)
    found = {each.name: each for each in sound.found(room.check) if each.level == "warn"}
    assert set(found) == {"runs", "quota", "boot"}
    assert "976562 GB" in found["runs"].text
    assert "runs.max_mb to" in found["runs"].advice


@as_root
def test_a_full_disk_is_told(sound: SoundSite, tmp_path: Path) -> None:
    """On a small file system of its own."""
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M,nr_inodes=500", "none", tmp_path / "disk"], check=True)
    try:
        (tmp_path / "disk/state").mkdir(mode=0o700)
        sound.change("site", state_dir=f"{tmp_path}/disk/state")
        levels = sound.levels(room.check)
        assert (levels["state"], levels["files"]) == ("fail", "fail")
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


@as_root
def test_an_image_that_is_larger_than_the_room_is_told(sound: SoundSite, tmp_path: Path) -> None:
    with (tmp_path / "big.tgz").open("wb") as image:
        image.truncate(400 << 20)
    recorded(sound, tmp_path / "big.tgz")
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300M", "none", tmp_path / "disk"], check=True)
    try:
        shutil.copytree(sound.folder / "state", tmp_path / "disk/state")
        sound.change("site", state_dir=f"{tmp_path}/disk/state")
        assert "big.tgz, has 400 MB" in sound.one(room.check, "image", "warn").text
    finally:
        database.disconnect()
        subprocess.run(["umount", tmp_path / "disk"], check=True)


# --- ports --------------------------------------------------------------------------------------------------------


@as_root
def test_a_boot_server_that_runs_has_its_ports_open(served: SoundSite) -> None:
    levels = served.levels(ports.check)
    assert (levels["tftp"], levels["http"]) == ("ok", "ok")


def test_ports_at_which_nobody_listens_are_told(sound: SoundSite) -> None:
    sound.change("site", boot__http_url=f"http://{ADDRESS}:2/")
    sound.change("site", service__https={"certificate": "/c", "private_key": "/k", "port": 3})
    levels = sound.levels(ports.check)
    assert (levels["http"], levels["https"]) == ("fail", "fail")
    with suppress(OSError):  # another test may have the port on another address
        assert (69 in ports.listening("udp")) == (levels["tftp"] == "ok")


def test_a_boot_server_elsewhere_has_ports_elsewhere(sound: SoundSite) -> None:
    sound.change("site", server_address="198.51.100.1", boot__http_url="http://198.51.100.1/")
    assert set(sound.levels(ports.check)) == {"firewall"}


def test_listening_ports_are_those_of_sockets_that_listen() -> None:
    with (
        socket.create_server((ADDRESS, 0)) as open_one,
        socket.create_connection(open_one.getsockname()) as connected,
    ):
        found = ports.listening("tcp")
        assert open_one.getsockname()[1] in found
        assert connected.getsockname()[1] not in found


def listed(table: str) -> str:
    """What nftables itself says of these rules, in a network of their own."""
    script = "nft -f - && nft -j list ruleset"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], input=table, capture_output=True, text=True, check=True
    )
    return done.stdout


def dropping(*rules: str, family: str = "inet", policy: str = "drop") -> str:
    head = f"type filter hook input priority 0; policy {policy};"
    return f"table {family} filter {{\n chain input {{ {head}\n{chr(10).join(rules)}\n}}\n}}\n"


TRACKED = "ct state established,related accept"
OTHERS = "table inet filter {\n chain boot { udp dport 69 accept; }\n}\n"


@as_root
@pytest.mark.parametrize(
    ("table", "is_shut"),
    [
        (dropping(policy="accept"), False),
        (dropping(), True),
        (dropping(family="ip"), True),
        (dropping(family="ip6"), False),
        (dropping(TRACKED, 'iifname "lo" accept'), True),
        (dropping("ct state vmap { established : accept, related : accept, invalid : drop }"), True),
        (dropping(TRACKED, "ct state new accept"), False),
        (dropping("ct state != invalid accept"), False),
        (dropping("udp dport 53 accept"), True),
        (dropping("udp dport 69 accept"), False),
        (dropping("tcp dport 69 accept"), True),
        (dropping("udp dport { 53, 69 } accept"), False),
        (dropping('udp dport { 53, 69 comment "boot" } accept'), False),
        (dropping("udp dport 60-70 accept"), False),
        (dropping("udp dport != 53 accept"), False),
        (dropping("udp dport 69 drop"), True),
        (dropping("udp dport vmap { 53 : accept, 69 : accept }"), False),
        (dropping("udp dport vmap { 53 : accept, 69 : drop }"), True),
        (dropping("ct state new udp dport 53 accept"), True),
        (dropping("ip saddr 10.0.0.0/8 accept"), False),
        (OTHERS + dropping("ip saddr 10.0.0.0/8 goto boot"), False),
        (OTHERS + dropping("udp dport 53 jump boot"), False),
        ("table inet filter {\n set open { type inet_service; }\n}\n" + dropping("udp dport @open accept"), False),
        (dropping() + OTHERS.replace("inet", "ip6"), True),
    ],
)
def test_a_firewall_that_drops_what_nodes_need_is_seen(table: str, is_shut: bool) -> None:
    assert ports.shut(listed(table), [("udp", 69)]) == ["69/udp"] * is_shut


def test_what_is_no_ruleset_shuts_nothing() -> None:
    assert ports.shut("no JSON", [("udp", 69)]) == []


RULES = """{"nftables": [{"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1, "type": "filter",
"hook": "input", "prio": 0, "policy": "POLICY"}}]}"""


@pytest.mark.parametrize(
    ("programs_there", "level"),
    [
        ({}, "ok"),
        ({"iptables": "exit 0"}, "warn"),
        ({"nft": "echo Operation not permitted >&2; exit 1"}, "warn"),
        ({"nft": f"echo '{RULES.replace('POLICY', 'accept')}'"}, "ok"),
        ({"nft": f"echo '{RULES.replace('POLICY', 'drop')}'"}, "warn"),
    ],
)
def test_a_firewall_that_cannot_be_seen_is_told_as_such(
    sound: SoundSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs_there: dict[str, str], level: str
) -> None:
    for name, text in programs_there.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert sound.levels(ports.check)["firewall"] == level


# --- the clock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("programs_there", "level"),
    [
        ({}, "warn"),
        ({"timedatectl": "echo yes"}, "ok"),
        ({"timedatectl": "echo no"}, "warn"),
        ({"timedatectl": "exit 1", "chronyc": "echo 'Leap status     : Normal'"}, "ok"),
        ({"chronyc": "echo 'Leap status     : Not synchronised'"}, "warn"),
        ({"ntpq": "echo leap=00"}, "ok"),
        ({"ntpq": "echo leap=11"}, "warn"),
    ],
)
def test_who_knows_about_the_clock_is_asked(
    sound: SoundSite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs_there: dict[str, str],
    level: str,
) -> None:
    for name, text in programs_there.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert sound.levels(clock.check) == {"synchronised": level}


# --- programs -----------------------------------------------------------------------------------------------------


def test_programs_that_are_there_are_told_in_one_line(sound: SoundSite) -> None:
    assert set(sound.levels(programs.check).values()) == {"ok"}


def test_programs_that_are_missing_are_told_with_their_packages(
    sound: SoundSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gzip").symlink_to(shutil.which("gzip") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [each for each in sound.found(programs.check) if each.level != "ok"]
    assert {each.text.split(" ")[0] for each in found} == {"bzip2", "xz", "zstd", "ssh-keygen", "ssh-keyscan", "cpio"}
    assert "apt install xz-utils" in {each.advice for each in found}


def test_libraries_are_looked_for_where_the_site_needs_them(sound: SoundSite, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "libraries" not in sound.levels(programs.check)
    sound.change("site", database="mysql://k@127.9.9.9/k", service__htpasswd="/etc/kadeploy/htpasswd")
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "pymysql" else name)
    found = sound.one(programs.check, "libraries", "fail")
    assert (found.text.split(" ")[0], found.advice) == ("pymysql", "pip install 'kadeploy[mysql]'")


def test_ansible_of_another_python_is_told(sound: SoundSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "executable", f"{tmp_path}/bin/python")
    assert "not beside" in sound.one(programs.check, "needed", "warn").text
    monkeypatch.setenv("PATH", "/nowhere")
    assert any("ansible-playbook is not installed" in each.text for each in sound.found(programs.check))


# --- the service --------------------------------------------------------------------------------------------------


def test_a_service_that_answers_is_told_with_who_you_are(sound: SoundSite) -> None:
    path = sound.folder / "state/kadeploy3d.sock"
    with serving(sound.folder, path):
        found = sound.found(service.check)
    assert [(each.name, each.level) for each in found] == [("answers", "ok")]
    assert "you are root" in found[0].text or os.geteuid() != 0


def test_a_service_of_another_version_or_site_is_told(sound: SoundSite, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sound.folder / "state/kadeploy3d.sock"
    with serving(sound.folder, path):
        monkeypatch.setattr(service, "__version__", "99.0")
        assert f"{__version__}, and 99.0" in sound.one(service.check, "version", "warn").text
        subject = sound.subject()
        lyon = structs.replace(subject.configuration, site=structs.replace(subject.site, name="lyon"))
        found = {each.name: each for each in service.check(replace(subject, configuration=lyon))}
    assert found["answers"].level == "fail"
    assert "serves site paris, and this configuration is of lyon" in found["answers"].text


def test_a_socket_that_nobody_answers_at_is_told(sound: SoundSite) -> None:
    path = sound.folder / "state/kadeploy3d.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert "does not answer" in sound.one(service.check, "answers", "fail").text
    path.unlink()
    path.touch()
    assert "is no socket" in sound.one(service.check, "answers", "fail").text


def test_a_service_that_is_not_there_is_wrong_only_where_there_should_be_one(sound: SoundSite, units: Path) -> None:
    assert sound.levels(service.check) == {"answers": "ok"}
    (units / "kadeploy3d.service").touch()
    assert "units are installed" in sound.one(service.check, "answers", "fail").text


def test_consoles_need_their_helper(sound: SoundSite) -> None:
    sound.change("gdx", console="cat HOSTNAME_FQDN")
    helper = sound.folder / "consoles.sock"
    sound.change("site", service__console_socket=str(helper))
    with serving(sound.folder, sound.folder / "state/kadeploy3d.sock"):
        assert "nobody can open a console" in sound.one(service.check, "consoles", "fail").text
        helper.touch()
        assert sound.levels(service.check)["consoles"] == "ok"
        sound.change("site", service__consoles_as_service=True)
        assert "passwords" in sound.one(service.check, "consoles", "warn").text


@pytest.mark.parametrize(
    ("state", "level", "said"),
    [
        ({"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active"}, "ok", "runs"),
        ({"LoadState": "loaded", "UnitFileState": "disabled", "ActiveState": "active"}, "warn", "after a reboot"),
        ({"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "failed"}, "fail", "is failed"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "fail", "not installed"),
        ({"LoadState": "bad-setting", "ActiveState": "inactive"}, "fail", "bad-setting"),
    ],
)
def test_what_systemd_says_of_a_unit_is_understood(state: dict[str, str], level: str, said: str) -> None:
    found = service.unit_found("kadeploy3d.service", state)
    assert found.level == level
    assert said in found.text


def test_units_are_asked_for_where_systemd_runs(
    sound: SoundSite, units: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (units / "kadeploy3d.service").touch()
    (tmp_path / "systemctl").write_text(
        "#!/bin/sh\nprintf 'LoadState=loaded\\nUnitFileState=enabled\\nActiveState=active\\n'\n"
    )
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setattr(service, "SYSTEMD", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = [each.text for each in sound.found(service.check) if each.name == "units"]
    assert found == ["kadeploy3d.socket is enabled and runs", "kadeploy3d.service is enabled and runs"]
    for name in ("kadeploy-bootserver.service", "kadeploy-purge.timer", "kadeploy-backup.timer"):
        (units / name).touch()
    assert "kadeploy-bootserver.service is enabled and runs" in {each.text for each in sound.found(service.check)}
    (tmp_path / "systemctl").write_text(
        "#!/bin/sh\ncase $4 in kadeploy3d*) word=enabled state=active ;; *) word=disabled state=inactive ;; esac\n"
        'printf "LoadState=loaded\\nUnitFileState=$word\\nActiveState=$state\\n"\n'
    )
    assert "kadeploy-purge.timer is not enabled" in sound.one(service.check, "units", "warn").text
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    assert "no bus" in sound.one(service.check, "units", "warn").text
