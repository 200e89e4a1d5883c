"""Files of an operation: all are there, unchanged and not too big, before any node is touched."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from kadeploy import checksums
from kadeploy.caller import Account
from kadeploy.config.cluster import Loader
from kadeploy.config.installs import AdminArchive, PostInstall
from kadeploy.config.site import Limits
from kadeploy.environments.environment import Archive, Environment, FileSystem, Image
from kadeploy.errors import EnvironmentRefusedError, FileError
from kadeploy.files import MEGA
from kadeploy.operations import staging
from kadeploy.operations.sources import OfAccount
from kadeploy.runner.request import Assignment, CustomOperation, LocalArchive, LocalImage, NextBoot, Options
from tests.unit import build

ME = Account("alice", os.geteuid(), os.getegid(), Path("/root"))
NOBODY = Account("nobody", 65534, 65534, Path("/nonexistent"))
INSTALLS = pytest.mark.parametrize("which", ["preinstall", "postinstall"])


def stage(assignment: Assignment, account: Account = ME, uploads: tuple[str, ...] = ()) -> Assignment:
    """*assignment* with its files."""
    folder = Path(assignment.workflow_dir) / "run"
    with closing(staging.stage({"gdx": assignment}, folder, OfAccount(assignment.site, account), uploads)) as staged:
        return staged.assignments["gdx"]


def sums(path: Path) -> tuple[str, str]:
    """MD5 and SHA-256."""
    with path.open("rb") as stream:
        found = checksums.of(stream)
    return found.md5, found.sha256


def archive(path: Path, content: bytes = b"archive") -> Archive:
    """A recorded archive: with the checksums that it has now."""
    path.write_bytes(build.packed(content))
    md5, sha256 = sums(path)
    return Archive(file=str(path), kind="tgz", script="go", md5=md5, sha256=sha256)


def environment(folder: Path, **changes: Any) -> Environment:
    """A recorded environment that holds a kernel."""
    (folder / "tree").mkdir()
    (folder / "tree" / "vmlinuz").write_bytes(b"kernel")
    path = folder / "image.tgz"
    subprocess.run(["tar", "-C", folder / "tree", "-czf", path, "."], check=True)
    md5, sha256 = sums(path)
    return build.environment(image=Image(file=str(path), kind="tgz", md5=md5, sha256=sha256), **changes)


def with_install(folder: Path, which: str, content: bytes = b"archive", **changes: Any) -> tuple[Assignment, Path]:
    """A deployment with a pre- or a post-install, and the archive's file."""
    found = archive(folder / "install.tgz", content)
    installs = {"preinstall": found} if which == "preinstall" else {"postinstalls": (found,)}
    return build.assignment(folder, environment=environment(folder, **installs), **changes), folder / "install.tgz"


# --- what nodes get ---------------------------------------------------------------------------------------------


def test_a_deployment_gets_its_image_with_size_and_checksum(tmp_path: Path) -> None:
    recorded = environment(tmp_path)
    path = tmp_path / "image.tgz"
    assert stage(build.assignment(tmp_path, environment=recorded)).image == LocalImage(
        path=str(path), size=path.stat().st_size, sha256=recorded.image.sha256, lent=True
    )


def test_images_of_partitions_are_opened_and_lent_like_the_environments_own(tmp_path: Path) -> None:
    archive(tmp_path / "own.tgz", b"own")
    own = Image(file=str(tmp_path / "own.tgz"), kind="tgz")
    places = (FileSystem(id=0, device="/dev/sda3"), FileSystem(id=1, device="/dev/sda5", filesystem="xfs", image=own))
    parted = environment(tmp_path, multipart=True, partitions=places, block_device="/dev/sda", boot_partition=3)
    assignment = build.assignment(tmp_path, environment=parted)
    with closing(staging.stage({"gdx": assignment}, tmp_path / "run", OfAccount(assignment.site, ME))) as staged:
        (found,) = staged.assignments["gdx"].partition_images
        assert (found.path, found.lent, found.size) == (own.file, True, (tmp_path / "own.tgz").stat().st_size)
        assert set(staged.images) == {parted.image.file, own.file}
    (tmp_path / "own.tgz").write_bytes(b"no archive")
    with pytest.raises(FileError, match=r"own\.tgz: is not of kind tgz"):
        stage(assignment)


def test_an_image_stays_the_file_that_was_checked_whatever_its_name_stands_for_later(tmp_path: Path) -> None:
    assignment = build.assignment(tmp_path, environment=environment(tmp_path))
    path, secret = tmp_path / "image.tgz", tmp_path / "secret"
    content = path.read_bytes()
    secret.write_bytes(b"of the administrator")
    with closing(staging.stage({"gdx": assignment}, tmp_path / "run", OfAccount(assignment.site, ME))) as staged:
        path.unlink()
        path.symlink_to(secret)
        assert os.pread(staged.images[str(path)].fileno(), len(content) + 1, 0) == content
    assert staged.images[str(path)].closed


@INSTALLS
def test_an_archive_that_is_as_it_was_recorded_is_sent(tmp_path: Path, which: str) -> None:
    assignment, file = with_install(tmp_path, which)
    staged = stage(assignment)
    (sent,) = filter(None, (staged.preinstall, *staged.postinstalls))
    assert (bool(staged.preinstall), len(staged.postinstalls)) == ((True, 0) if which == "preinstall" else (False, 1))
    assert sent == LocalArchive(path=sent.path, kind="tgz", script="go")
    content = file.read_bytes()
    file.unlink()
    assert Path(sent.path).read_bytes() == content
    assert Path(sent.path).is_relative_to(tmp_path / "run")


@pytest.mark.parametrize("action", ["send", "run"])
def test_a_file_of_a_custom_operation_is_copied_with_the_rights_of_its_user(open_folder: Path, action: str) -> None:
    path = open_folder / "payload.sh"
    path.write_bytes(b"checked")
    where = {"implementation": "SetDeploymentEnv", "micro_step": "reboot"}
    operation = msgspec.convert({**where, "action": action, "file": str(path)}, CustomOperation)
    assignment = build.assignment(open_folder, operation="reboot", options=Options(custom_operations=(operation,)))
    (found,) = stage(assignment, NOBODY).options.custom_operations
    path.unlink()
    path.symlink_to(open_folder / "secret")
    (open_folder / "secret").write_bytes(b"root's")
    (open_folder / "secret").chmod(0o600)
    assert (Path(found.file).read_bytes(), Path(found.file).name) == (b"checked", "payload.sh")
    with pytest.raises(FileError, match=r"payload\.sh.*nobody can read"):
        stage(assignment, NOBODY)


def test_a_file_of_a_custom_operation_has_a_limit_of_size(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(MEGA + 1))
    operation = CustomOperation(
        implementation="SetDeploymentEnv", micro_step="reboot", action="send", file=str(tmp_path / "big")
    )
    site = build.site(tmp_path, limits=Limits(custom_operation=1))
    with pytest.raises(FileError, match=r"big.*1 MB"):
        stage(build.assignment(tmp_path, site=site, options=Options(custom_operations=(operation,))))


@INSTALLS
def test_an_archive_that_has_changed_is_refused_with_the_command_that_records_it_anew(
    tmp_path: Path, which: str
) -> None:
    assignment, file = with_install(tmp_path, which)
    file.write_bytes(b"changed")
    with pytest.raises(EnvironmentRefusedError, match=rf"{file} has changed.*kaenv3 --update-{which}s?-md5 tiny"):
        stage(assignment)


@INSTALLS
def test_an_archive_that_is_too_big_is_refused(tmp_path: Path, which: str) -> None:
    """Each kind has a limit of its own; what is just small enough is taken."""
    limits = Limits(**{"preinstall": 9, "postinstall": 9} | {which: 1})
    site = build.site(tmp_path, limits=limits)
    assignment, file = with_install(tmp_path, which, os.urandom(MEGA - 20_000), site=site)
    stage(assignment)
    file.write_bytes(bytes(MEGA + 1))
    with pytest.raises(FileError, match=rf"{file}.*1 MB"):
        stage(assignment)


def test_an_image_that_has_changed_is_refused(tmp_path: Path) -> None:
    assignment = build.assignment(tmp_path, environment=environment(tmp_path))
    (tmp_path / "image.tgz").write_bytes(b"another image")
    with pytest.raises(EnvironmentRefusedError, match="kaenv3 --update-tarball-md5 tiny"):
        stage(assignment)


@INSTALLS
def test_an_archive_that_nodes_could_not_unpack_is_refused(tmp_path: Path, which: str) -> None:
    assignment, file = with_install(tmp_path, which)
    broken = build.packed(os.urandom(10_000))[:-100]
    file.write_bytes(broken)
    md5, sha256 = sums(file)
    recorded = msgspec.structs.replace(archive(file), md5=md5, sha256=sha256)
    installs = {"preinstall": recorded} if which == "preinstall" else {"postinstalls": (recorded,)}
    file.write_bytes(broken)
    environment = msgspec.structs.replace(cast("Environment", assignment.environment), **installs)
    with pytest.raises(FileError, match=rf"{file}: is not a sound file of kind tgz: gzip says: "):
        stage(msgspec.structs.replace(assignment, environment=environment))


@pytest.mark.parametrize(
    ("content", "deployed", "rehearsed"),
    [
        (build.packed("x", "txz"), "it is compressed by xz: say txz", "it is compressed by xz: say txz"),
        (build.packed(os.urandom(10_000))[:-100], "", "gzip says: stdin: unexpected end of file"),
        (build.packed("x", "ddgz"), "", "what it holds is no tar archive; if it is a disk, say ddgz"),
    ],
    ids=["another kind", "truncated", "no archive"],
)
def test_an_image_is_looked_at_before_a_deployment_and_looked_through_by_a_dry_run(
    tmp_path: Path, content: bytes, deployed: str, rehearsed: str
) -> None:
    path = tmp_path / "broken.tgz"
    path.write_bytes(content)
    image = Image(file=str(path), kind="tgz")
    assignment = build.assignment(tmp_path, environment=build.environment(image=image))
    for said, act in (
        (deployed, lambda: stage(assignment)),
        (rehearsed, lambda: staging.dry_run({"gdx": assignment}, OfAccount(assignment.site, ME))),
    ):
        if not said:
            act()
            continue
        with pytest.raises(FileError) as refusal:
            act()
        assert f"{path}: is not" in str(refusal.value)
        assert said in str(refusal.value)


def test_the_administrators_archives_are_found_from_the_configuration_folder(tmp_path: Path) -> None:
    """They are as big as they like."""
    (tmp_path / "site.tgz").write_bytes(build.packed(os.urandom(MEGA)))
    cluster = build.cluster(pre_installs=(AdminArchive(file="site.tgz"),), post_installs=(PostInstall(file="no.tgz"),))
    site = build.site(tmp_path, limits=Limits(preinstall=1, postinstall=1))
    assignment = build.assignment(tmp_path, environment=environment(tmp_path), cluster=cluster, site=site)
    with pytest.raises(FileError, match=rf"clusters/gdx\.yml: .*{tmp_path}/no\.tgz"):
        stage(assignment)
    (tmp_path / "no.tgz").write_bytes(build.packed("now it is there"))
    staged = stage(assignment)
    sent = [Path(each.path) for each in (*staged.admin_preinstalls, *staged.admin_postinstalls)]
    assert [path.name for path in sent] == ["site.tgz", "no.tgz"]
    assert sent[1].read_bytes() == (tmp_path / "no.tgz").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root opens files as somebody else")
def test_files_of_users_are_opened_with_their_rights_and_the_sites_own_are_not(open_folder: Path) -> None:
    assignment, file = with_install(open_folder, "postinstall")
    cluster = build.cluster(pre_installs=(AdminArchive(file="site.tgz"),))
    (open_folder / "site.tgz").write_bytes(build.packed("the site's own"))
    (open_folder / "site.tgz").chmod(0o600)
    assignment = msgspec.structs.replace(assignment, cluster=cluster)
    assert stage(assignment, NOBODY).admin_preinstalls
    for named in (open_folder / "image.tgz", file):
        named.chmod(0o600)
        with pytest.raises(FileError, match=rf"{named.name}: Permission denied.*nobody can read"):
            stage(assignment, NOBODY)
        named.chmod(0o644)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root opens files as somebody else")
def test_what_the_site_reads_for_itself_is_not_lent_to_a_user_who_names_it(open_folder: Path) -> None:
    """The administrator's archive has been read by then; the user's operation asks for the same path."""
    secret = open_folder / "site.tgz"
    secret.write_bytes(build.packed("the site's own"))
    secret.chmod(0o600)
    operation = CustomOperation(implementation="SetDeploymentEnv", micro_step="reboot", action="send", file=str(secret))
    cluster = build.cluster(pre_installs=(AdminArchive(file="site.tgz"),))
    options = Options(custom_operations=(operation,))
    assignment = build.assignment(open_folder, environment=environment(open_folder), cluster=cluster, options=options)
    with pytest.raises(FileError, match=r"site\.tgz: Permission denied.*nobody can read"):
        stage(assignment, NOBODY)


def test_what_all_clusters_need_is_the_same_for_all(tmp_path: Path) -> None:
    assignment, _ = with_install(tmp_path, "postinstall")
    with closing(
        staging.stage({"gdx": assignment, "nvm": assignment}, tmp_path / "run", OfAccount(assignment.site, ME))
    ) as opened:
        staged = opened.assignments
    assert staged["gdx"] == staged["nvm"]


# --- what nodes boot --------------------------------------------------------------------------------------------

PURE_PXE = build.cluster(loader=Loader(method="pure_pxe"))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"cluster": PURE_PXE}, True),
        ({"cluster": PURE_PXE, "operation": "reboot", "boot": NextBoot(kind="deployed")}, True),
        ({"cluster": PURE_PXE, "operation": "reboot", "boot": NextBoot(kind="deploy")}, False),
        ({"cluster": PURE_PXE, "options": Options(pxe_profile="mine\n")}, False),
        ({}, False),
    ],
    ids=["deployed", "rebooted into it", "rebooted into another", "by the user's own profile", "from the disk"],
)
def test_the_kernel_is_where_loaders_find_it_when_the_deployed_system_is_booted_over_the_network(
    tmp_path: Path, changes: dict[str, Any], wanted: bool
) -> None:
    staged = stage(build.assignment(tmp_path, environment=environment(tmp_path), **changes))
    assert set(staged.boot_files) == ({"kernel"} if wanted else set())
    if wanted:
        assert (tmp_path / "http" / staged.boot_files["kernel"]).read_bytes() == b"kernel"


def test_a_reboot_needs_no_image(tmp_path: Path) -> None:
    assignment = build.assignment(tmp_path, operation="reboot", environment=environment(tmp_path))
    (tmp_path / "image.tgz").unlink()
    assert stage(assignment) == assignment


def test_uploads_are_where_loaders_find_them(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"mine")
    stage(build.assignment(tmp_path, operation="reboot"), uploads=(str(tmp_path / "vmlinuz"),))
    assert (tmp_path / "http" / "kernels" / "pxe-alice--vmlinuz").read_bytes() == b"mine"


# --- dry run ----------------------------------------------------------------------------------------------------


def test_a_dry_run_finds_the_same_and_leaves_no_file(tmp_path: Path) -> None:
    assignment = build.assignment(tmp_path, environment=environment(tmp_path), cluster=PURE_PXE)
    upload = tmp_path / "vmlinuz"
    upload.write_bytes(b"mine")
    tried = staging.dry_run({"gdx": assignment}, OfAccount(assignment.site, ME), [str(upload)])
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(("env-", "pxe-", "dry-run-"))]
    assert tried == {"gdx": stage(assignment, uploads=(str(upload),))}


def test_a_dry_run_refuses_what_the_operation_would_refuse(tmp_path: Path) -> None:
    assignment, file = with_install(tmp_path, "postinstall")
    with pytest.raises(FileError, match="nonesuch"):
        staging.dry_run({"gdx": assignment}, OfAccount(assignment.site, ME), [str(tmp_path / "nonesuch")])
    file.write_bytes(b"changed")
    with pytest.raises(EnvironmentRefusedError, match="has changed"):
        staging.dry_run({"gdx": assignment}, OfAccount(assignment.site, ME))
