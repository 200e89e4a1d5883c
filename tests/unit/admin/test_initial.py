"""A site's first configuration: whole, with the right owners, and never over what is there."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy.admin import initial, layout, node_ranges
from kadeploy.admin.initial import ClusterWish, SiteWish
from kadeploy.caller import Account, account, own
from kadeploy.config.folder import load_configuration
from kadeploy.errors import ConfigError, FileError, OptionError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it is for root")


@pytest.fixture
def owner() -> Account:
    return account("nobody")


@pytest.fixture
def folder(open_folder: Path) -> Path:
    return open_folder / "etc"


@pytest.fixture
def site(open_folder: Path) -> SiteWish:
    return SiteWish(
        name="paris",
        address="10.0.0.1",
        state_dir=str(open_folder / "state"),
        tftp_root=str(open_folder / "srv" / "tftp"),
        http_root=str(open_folder / "srv" / "http"),
        http_url="http://10.0.0.1/",
    )


def cluster(name: str = "gdx", **changes: Any) -> ClusterWish:
    wish = ClusterWish(
        name=name,
        machines=tuple(node_ranges.entries(f"{name}-[1-100].paris", "10.0.1.[1-100]", "10.0.2.[1-100]")),
        device="/dev/sda",
        table="msdos",
        firmware="bios",
        profiles="pxelinux",
        partitions=tuple(layout.partitions(layout.USUAL["bios"], "msdos", "bios")),
        power="ipmi",
        bmc_user="ADMIN",
        password="s3cret",
    )
    return msgspec.structs.replace(wish, **changes)


def state_of(top: Path) -> dict[str, tuple[str, int, bytes]]:
    """Owner, mode and content of all that is below *top*."""
    return {
        str(path.relative_to(top)): (
            path.owner(),
            stat.S_IMODE(path.stat().st_mode),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(top.rglob("*"))
    }


def test_all_that_is_made_has_the_owner_and_mode_that_its_users_need(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    initial.begin(folder, owner, site, cluster())
    assert {path: state[:2] for path, state in state_of(open_folder).items()} == {
        "etc": ("root", 0o755),
        "etc/clusters": ("root", 0o755),
        "etc/clusters/gdx.yml": ("root", 0o644),
        "etc/site.yml": ("root", 0o644),
        "srv": ("root", 0o755),
        "srv/http": ("nobody", 0o755),
        "srv/tftp": ("nobody", 0o755),
        "state": ("nobody", 0o700),
        "state/keys": ("nobody", 0o700),
        "state/keys/bmc-gdx": ("nobody", 0o600),
        "state/keys/deployment_host_ed25519": ("nobody", 0o600),
        "state/keys/deployment_host_ed25519.pub": ("nobody", 0o644),
        "state/keys/site_ed25519": ("nobody", 0o600),
        "state/keys/site_ed25519.pub": ("nobody", 0o644),
    }


def test_the_configuration_says_what_was_asked_for(folder: Path, site: SiteWish, owner: Account) -> None:
    begun = initial.begin(folder, owner, site, cluster())
    found = load_configuration(folder)
    gdx = found.clusters["gdx"]
    keys = Path(site.state_dir) / "keys"
    assert (found.site.name, found.site.server_address, found.site.boot.http_url) == (
        "paris",
        "10.0.0.1",
        site.http_url,
    )
    assert found.site.ssh.private_key == str(keys / "site_ed25519")
    assert (keys / "deployment_host_ed25519.pub").read_text().startswith(found.site.ssh.host_key)
    assert (gdx.power.driver, gdx.power.user, gdx.power.password_file) == ("ipmi", "ADMIN", str(keys / "bmc-gdx"))
    assert [(gdx.members[name].address, gdx.members[name].bmc) for name in ("gdx-1.paris", "gdx-100.paris")] == [
        ("10.0.1.1", "10.0.2.1"),
        ("10.0.1.100", "10.0.2.100"),
    ]
    assert len(gdx.nodes) == 1
    assert begun.next[0].endswith("kadeploy-site build")


def test_the_keys_are_pairs(folder: Path, site: SiteWish, owner: Account) -> None:
    initial.begin(folder, owner, site, None)
    for name in ("site_ed25519", "deployment_host_ed25519"):
        path = Path(site.state_dir) / "keys" / name
        derived = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True)
        assert derived.stdout.split()[:2] == path.with_name(f"{name}.pub").read_text().split()[:2]


def test_no_secret_is_in_what_everybody_can_read(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    initial.begin(folder, owner, site, cluster(password="unheard-of"))
    readable = [content for _, mode, content in state_of(open_folder).values() if mode & 0o044]
    assert not any(b"PRIVATE KEY" in content or b"unheard-of" in content for content in readable)


def test_a_second_run_changes_nothing(open_folder: Path, folder: Path, site: SiteWish, owner: Account) -> None:
    initial.begin(folder, owner, site, cluster())
    before = state_of(open_folder)
    again = initial.begin(folder, owner, site, cluster())
    assert (again.made, again.changed) == ([], [])
    assert str(folder / "site.yml") in again.unchanged
    assert state_of(open_folder) == before


def test_another_cluster_adds_a_file_and_leaves_the_rest(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    initial.begin(folder, owner, site, cluster())
    before = state_of(open_folder)
    machines = tuple(node_ranges.entries("big-[1-3]", "10.0.3.[1-3]"))
    begun = initial.begin(folder, owner, None, cluster("big", machines=machines))
    assert begun.made == [f"{site.state_dir}/keys/bmc-big", str(folder / "clusters" / "big.yml")]
    assert str(folder / "site.yml") in begun.unchanged
    after = state_of(open_folder)
    assert {path: after[path] for path in before} == before
    assert "3 nodes of big without a BMC: kapower3 cannot switch what has none" in begun.warnings


def test_another_cluster_may_stand_beside_one_whose_nodes_an_inventory_of_the_folder_tells(
    folder: Path, site: SiteWish, owner: Account
) -> None:
    initial.begin(folder, owner, site, None)
    (folder / "hosts.ini").write_text("[computers]\ncomputer-1 ansible_host=10.9.0.1\n")
    (folder / "clusters/computers.yml").write_text(
        "inventory: {source: hosts.ini}\ndisk: {partitions: [{number: 3, role: deploy}]}\n"
    )
    initial.begin(folder, owner, None, cluster())
    assert load_configuration(folder).cluster_of["computer-1"] == "computers"
    assert sorted(each.name for each in folder.iterdir()) == ["clusters", "hosts.ini", "site.yml"]


def test_a_file_that_says_something_else_is_refused_with_the_difference(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    initial.begin(folder, owner, site, cluster())
    path = folder / "clusters" / "gdx.yml"
    path.write_text(path.read_text().replace("device: /dev/sda", "device: /dev/sdb"))
    before = state_of(open_folder)
    with pytest.raises(ConfigError) as refused:
        initial.begin(folder, owner, site, cluster())
    assert f"{path} says something else already: --replace" in str(refused.value)
    assert "\n-  device: /dev/sdb\n+  device: /dev/sda\n" in str(refused.value)
    assert state_of(open_folder) == before


def test_a_file_that_is_replaced_stays_beside(folder: Path, site: SiteWish, owner: Account) -> None:
    initial.begin(folder, owner, site, cluster())
    path = folder / "clusters" / "gdx.yml"
    former = path.read_text()
    begun = initial.begin(folder, owner, None, cluster(device="/dev/sdb"), replace=True)
    [changed] = begun.changed
    assert (changed.path, Path(changed.former).read_text()) == (str(path), former)
    assert "+  device: /dev/sdb\n" in changed.diff
    assert load_configuration(folder).clusters["gdx"].disk.device == "/dev/sdb"


def test_keys_are_never_made_anew(folder: Path, site: SiteWish, owner: Account) -> None:
    initial.begin(folder, owner, site, None)
    keys = Path(site.state_dir) / "keys"
    before = state_of(keys)
    lyon = msgspec.structs.replace(site, name="lyon")
    initial.begin(folder, owner, lyon, None, replace=True)
    assert state_of(keys) == before


def test_half_a_key_is_refused(folder: Path, site: SiteWish, owner: Account) -> None:
    initial.begin(folder, owner, site, None)
    keys = Path(site.state_dir) / "keys"
    (keys / "site_ed25519.pub").unlink()
    with pytest.raises(FileError, match=r"site_ed25519\.pub is missing: ssh-keygen -y"):
        initial.begin(folder, owner, site, None)
    (keys / "site_ed25519.pub").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(FileError, match="is no public key"):
        initial.begin(folder, owner, site, None)
    (keys / "site_ed25519").unlink()
    with pytest.raises(FileError, match=r"site_ed25519 is missing beside its \.pub"):
        initial.begin(folder, owner, site, None)


def test_another_password_is_refused_and_with_replace_the_former_one_stays(
    folder: Path, site: SiteWish, owner: Account
) -> None:
    initial.begin(folder, owner, site, cluster())
    with pytest.raises(ConfigError, match="holds another password") as refused:
        initial.begin(folder, owner, None, cluster(password="other"))
    assert "s3cret" not in str(refused.value)
    begun = initial.begin(folder, owner, None, cluster(password="other"), replace=True)
    [changed] = begun.changed
    assert (Path(changed.path).read_text(), Path(changed.former).read_text()) == ("other\n", "s3cret\n")
    assert stat.S_IMODE(Path(changed.former).stat().st_mode) == 0o600
    assert changed.diff == ""


def test_a_password_file_of_ones_own_is_named_and_looked_at(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    own_file = open_folder / "password"
    own_file.write_text("s3cret\n")
    begun = initial.begin(folder, owner, site, cluster(password=None, password_file=str(own_file)))
    assert any(f"chown nobody: {own_file}" in line for line in begun.warnings)
    assert load_configuration(folder).clusters["gdx"].power.password_file == str(own_file)
    assert not (Path(site.state_dir) / "keys" / "bmc-gdx").exists()
    with pytest.raises(OptionError, match="there is no such file"):
        initial.begin(folder, owner, None, cluster("big", password=None, password_file="/nowhere"))


def test_what_every_tool_would_refuse_is_never_put_into_place(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    initial.begin(folder, owner, site, cluster())
    before = state_of(open_folder)
    machines = tuple(node_ranges.entries("big-[1-3]", "10.0.1.[1-3]"))
    with pytest.raises(ConfigError) as refused:
        initial.begin(folder, owner, None, cluster("big", machines=machines))
    assert f"{folder}/clusters/" in str(refused.value)
    assert "10.0.1.1" in str(refused.value)
    assert state_of(open_folder) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "pa ris"}, "--name 'pa ris': expected a name of letters"),
        ({"address": "10.0.0.300"}, "--address '10.0.0.300': expected the controller's address"),
        ({"state_dir": "var/lib"}, "--state-dir var/lib: expected the whole path of a folder"),
        ({"http_root": "/"}, "--http-root /: expected the whole path"),
        ({"http_url": "ftp://x/"}, "--http-url ftp://x/: expected a URL that ends with /"),
        ({"database": "oracle://x"}, "--database oracle: expected sqlite:///PATH"),
        ({"database": "postgresql://kadeploy:secret@db/kadeploy"}, "into ~kadeploy/.pgpass"),
        ({"state_dir": "{http_root}/state"}, "everybody could fetch its keys"),
    ],
)
def test_answers_that_make_no_sense_are_refused_by_their_option(
    changes: dict[str, str], said: str, open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    filled = {key: text.replace("{http_root}", site.http_root) for key, text in changes.items()}
    with pytest.raises(OptionError) as refused:
        initial.begin(folder, owner, msgspec.structs.replace(site, **filled), None)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
    assert state_of(open_folder) == {}


def test_folders_that_are_there_keep_their_owner_and_it_is_told(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    tftp = Path(site.tftp_root)
    tftp.mkdir(parents=True, mode=0o755)
    tftp.chmod(0o777)
    begun = initial.begin(folder, owner, site, None)
    assert f"{tftp} is there and does not belong to nobody: chown -R nobody: {tftp}" in begun.warnings
    assert f"{tftp} is there and open to others: chmod 755 {tftp}" in begun.warnings
    assert (tftp.owner(), stat.S_IMODE(tftp.stat().st_mode)) == ("root", 0o777)


def test_a_folder_that_others_can_write_to_is_refused(open_folder: Path, site: SiteWish, owner: Account) -> None:
    folder = open_folder / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="could be changed by others than root"):
        initial.begin(folder, owner, site, None)
    os.chown(folder, owner.uid, owner.gid)
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="chown root it"):
        initial.begin(folder / "below", owner, site, None)


def test_a_state_that_is_roots_is_no_place_for_the_services_keys(
    open_folder: Path, folder: Path, site: SiteWish, owner: Account
) -> None:
    Path(site.state_dir).mkdir(mode=0o700)
    before = state_of(open_folder)
    with pytest.raises(FileError, match=f"chown -R nobody: {site.state_dir}, or name another account by --account"):
        initial.begin(folder, owner, site, None)
    assert state_of(open_folder) == before


def test_without_the_service_all_of_it_is_roots(open_folder: Path, folder: Path, site: SiteWish) -> None:
    begun = initial.begin(folder, own(), site, cluster())
    assert {state[0] for state in state_of(open_folder).values()} == {"root"}
    assert load_configuration(folder).clusters.keys() == {"gdx"}
    assert begun.folder == str(folder)
