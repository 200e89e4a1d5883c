"""What goes of a site because it is old and of no use, and what stays however old it is."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from kadeploy.admin import purge
from kadeploy.admin.purge import Wish
from kadeploy.boot import profile
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import FileError
from kadeploy.events import FILE_NAME
from kadeploy.state import database, history, rights, sent, tokens
from kadeploy.state.database import connect
from kadeploy.state.history import Selection
from kadeploy.state.tables import Log, Token
from tests.unit.admin import keeping

DAY = 86_400
OLD = 40
KERNEL = "env-0123456789abcdef0123-vmlinuz"
ADDRESS = "127.9.1.1"
"""Of the node gdx-1."""
GONE = "127.9.77.1"


@pytest.fixture
def lived(site: Site, site_folder: Path) -> Site:
    for name in ("tftp", "http"):
        (site_folder / name).mkdir()
    return keeping.furnish(site, site_folder)


def old(path: Path, days: float = OLD, content: bytes = b"x" * 1000) -> Path:
    """A file that was last read and written so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(content)
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def numbers(folder: Path, wish: Wish | None = None) -> dict[str, int]:
    """What goes, by kind, as far as anything does."""
    return {each.kind: each.number for each in purge.purge(folder, wish or Wish()) if each.number}


def generated(configuration: Configuration, loader: str) -> str:
    """A profile as our templates make it."""
    cluster = next(iter(configuration.clusters.values()))
    sources = profile.Sources(
        site=configuration.site,
        cluster=cluster,
        config_dir=configuration.folder,
        user="alice",
        device="/dev/sda",
        partition=3,
    )
    boots = {
        "boots": "linux",
        "kernel": f"http://x/kernels/{KERNEL}",
        "initrd": "",
        "params": "",
        "tell_interface": False,
    }
    return profile._filled(sources, loader, boots)  # type: ignore[arg-type]


# --- files --------------------------------------------------------------------------------------------------------


def test_run_folders_go_by_the_rules_of_the_site_and_those_of_running_operations_stay(
    lived: Site, site_folder: Path
) -> None:
    keeping.begin(lived, "D-runs")
    gone = keeping.finished(lived, "D-old")
    old(lived.run_folders / "D-runs" / "workflow.json")
    for path in (gone, lived.run_folders / "D-runs"):
        old(path)
    database.disconnect()
    shown = purge.purge(site_folder, Wish(dry_run=True))
    assert gone.exists()
    assert [each for each in shown if each.number] == [purge.Gone(kind="runs", number=1, bytes=13)]
    assert [each for each in purge.purge(site_folder, Wish()) if each.number] == [each for each in shown if each.number]
    assert {path.name for path in lived.run_folders.iterdir()} == {"D-ended", "D-runs"}


def test_events_of_runs_stay_when_their_folders_go_until_their_own_days_are_over(
    lived: Site, site_folder: Path
) -> None:
    gone = keeping.finished(lived, "D-old")
    old(gone / FILE_NAME, content=b'{"event":"note","text":"x"}\n')
    old(gone)
    kept = lived.kept_events / "D-old.jsonl.xz"
    assert numbers(site_folder) == {"runs": 1}
    assert (gone.exists(), kept.stat().st_mode & 0o777) == (False, 0o600)
    assert numbers(site_folder) == {}
    old(kept, 91)
    old(lived.kept_events / ".new-killed", 2)
    assert numbers(site_folder, Wish(dry_run=True)) == {"events": 2}
    assert kept.exists()
    assert numbers(site_folder) == {"events": 2}
    assert {path.name for path in lived.kept_events.iterdir()} == {"D-gone.jsonl.xz"}
    assert numbers(site_folder) == {}


def test_recordings_and_notes_and_what_was_interrupted_go_when_they_are_old(lived: Site, site_folder: Path) -> None:
    state = lived.state
    gone = [
        old(state / "consoles" / "gdx-1.site" / "a.cast"),
        old(state / "cache" / "checksums" / "a"),
        old(state / "cache" / "beginnings" / "a"),
        old(state / "dry-run-a" / "files" / "image", 2),
        old(state / ".kadeploy.db.copy-a", 2),
    ]
    old(state / "dry-run-a", 2)
    kept = [
        old(state / "consoles" / "gdx-1.site" / "b.cast", 20),
        old(state / "cache" / "checksums" / "b", 20),
        old(state / "dry-run-b" / "files" / "image", 0.5),
        old(state / "backups" / "paris-20200101-000000.tar.zst", 400),
        old(state / "keys" / "bmc-gdx", 400),
        old(state / "audit.jsonl", 400),
    ]
    assert numbers(site_folder) == {"recordings": 1, "cache": 2, "leftovers": 2}
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
    assert numbers(site_folder, Wish(days=10)) == {"cache": 1}


def put(site: Site, content: bytes, days: float) -> Path:
    """A file that alice has sent, and used last so many days ago."""
    sha256 = hashlib.sha256(content).hexdigest()
    sent.begin(site, "alice", sha256, len(content))
    sent.append(site, "alice", sha256, 0, [content])
    path = sent.find(site, "alice", sha256)
    assert path
    return old(path, days)


def test_files_that_users_have_sent_go_unless_an_operation_holds_them(lived: Site, site_folder: Path) -> None:
    unused, fresh, used = (put(lived, content, days) for content, days in ((b"a", OLD), (b"b", 5), (b"c", OLD)))
    part = old(unused.with_name(f"{'0' * 64}-10.part"), 2)
    sending = old(unused.with_name(f"{'1' * 64}-10.part"), 0.5)
    with sent.held(used):
        assert numbers(site_folder, Wish(dry_run=True)) == {"sent": 2}
        assert unused.exists()
        assert numbers(site_folder) == {"sent": 2}
        assert [path.exists() for path in (unused, fresh, used, part, sending)] == [False, True, True, False, True]
    old(used)
    assert numbers(site_folder) == {"sent": 1}


def test_profiles_of_nodes_that_are_gone_go_and_then_what_they_alone_mentioned(lived: Site, site_folder: Path) -> None:
    configuration = load_configuration(site_folder)
    tftp, kernels = site_folder / "tftp", site_folder / "http" / "kernels"
    texts = {each: generated(configuration, each).encode() for each in ("pxelinux", "grub", "ipxe")}
    gone = [old(tftp / profile.file_name(each, GONE), 2, text) for each, text in texts.items()]  # type: ignore[arg-type]
    used = "env-aaaaaaaaaaaaaaaaaaaa-vmlinuz"
    mine = texts["pxelinux"].replace(KERNEL.encode(), used.encode()) + b"# kernels/pxe-alice--used"
    young = texts["grub"].replace(KERNEL.encode(), used.encode())
    kept = [
        old(tftp / profile.file_name("pxelinux", ADDRESS), OLD, mine),
        old(
            tftp / profile.file_name("pxelinux", "127.9.77.2"), OLD, b"DEFAULT memtest\nLABEL memtest\nKERNEL memtest\n"
        ),
        old(tftp / profile.file_name("grub", "127.9.77.3"), 0.1, young),
        old(tftp / "pxelinux.cfg" / "default", OLD, mine),
        old(tftp / "grub" / "grub.cfg", OLD, young),
        old(kernels / used),
        old(kernels / "pxe-alice--used"),
        old(kernels / "pxe-alice--fresh", 5),
        old(kernels / "deploy-vmlinuz"),
    ]
    extracted, upload = old(kernels / KERNEL), old(kernels / "pxe-alice--old")
    assert numbers(site_folder, Wish(dry_run=True))["profiles"] == 3
    assert numbers(site_folder) == {"profiles": 3, "kernels": 1, "uploads": 1}
    assert not any(path.exists() for path in (*gone, extracted, upload))
    assert all(path.exists() for path in kept)


def test_where_nodes_may_be_in_vlans_all_profiles_stay(lived: Site, site_folder: Path) -> None:
    with (site_folder / "site.yml").open("a") as file:
        file.write("vlan: {hostname_suffix: -kavlan-VLAN_ID, set_command: kavlan NODES VLAN_ID}\n")
    path = site_folder / "tftp" / profile.file_name("pxelinux", GONE)
    old(path, OLD, generated(load_configuration(site_folder), "pxelinux").encode())
    assert numbers(site_folder) == {}


# --- rows ---------------------------------------------------------------------------------------------------------


def test_rights_and_tokens_go_when_their_end_is_long_past(lived: Site, site_folder: Path) -> None:
    now = int(time.time())
    connect(lived)
    rights.add(lived, "bob", ["gdx-1.site"], ["/dev/sda3"], until=now - OLD * DAY)
    rights.add(lived, "bob", ["gdx-2.site"], ["/dev/sda3"], until=now - 5 * DAY)
    rights.add(lived, "bob", ["gdx-3.site"], ["/dev/sda3"])
    for days in (OLD, 5, -5):
        tokens.create(lived, "bob", now - days * DAY)
    revoked = tokens.id_of(tokens.create(lived, "bob", now + DAY))
    tokens.revoke(lived, revoked)
    Token.update(revoked=now - OLD * DAY).where(Token.id == revoked).execute()
    assert numbers(site_folder, Wish(dry_run=True)) == {"rights": 1, "tokens": 2}
    assert numbers(site_folder) == {"rights": 1, "tokens": 2}
    assert [right.node for right in rights.show(lived, "bob")] == ["gdx-3.site"]
    assert len(tokens.listed(lived, "bob")) == 2
    assert numbers(site_folder, Wish(days=1)) == {"rights": 1, "tokens": 1}


def test_statistics_go_on_demand_alone(lived: Site, site_folder: Path) -> None:
    connect(lived)
    row = {"wid": "D-1", "operation": "deploy", "user": "alice", "hostname": "gdx-1.site", "success": True}
    for days in (400, 100):
        Log.insert(**row, start=int(time.time()) - days * DAY).execute()
    assert numbers(site_folder, Wish(days=1)) == {}
    assert numbers(site_folder, Wish(statistics_days=365, dry_run=True)) == {"statistics": 1}
    assert numbers(site_folder, Wish(statistics_days=365)) == {"statistics": 1}
    assert len(list(history.rows(lived, Selection(), ["start"]))) == 1


# --- whose --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="the suite runs as root")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_whoever_keeps_the_state_cannot_have_root_remove_what_is_closed_to_them(
    lived: Site, site_folder: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeping.given_away(site_folder, open_folder, monkeypatch)
    victim = open_folder / "roots"
    old(victim / "checksums" / "precious")
    (kept / "state" / "cache").symlink_to(victim)
    with pytest.raises(FileError, match="Permission denied"):
        purge.purge(kept, Wish())
    assert (victim / "checksums" / "precious").exists()


def test_a_site_that_nobody_has_used_has_nothing_to_remove(site: Site, site_folder: Path) -> None:
    assert numbers(site_folder) == {}
    assert not (site_folder / "http").exists()
