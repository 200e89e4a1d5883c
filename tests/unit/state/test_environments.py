"""Recorded environments: who sees and changes which, checksums, and moved files; on SQLite and PostgreSQL."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy.caller import Account, caller
from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Environment, FileSystem, Image
from kadeploy.environments.reference import Reference
from kadeploy.errors import EnvironmentRefusedError, FileError, KadeployError, OptionError, RightsError
from kadeploy.files import LocalFile
from kadeploy.state import environments
from kadeploy.state.database import connect
from kadeploy.state.tables import EnvironmentRow, environment_columns
from tests.unit import build

ADMIN = caller()
ALICE = Account("alice", os.getuid(), os.getgid(), Path("/"))
"""She may read what this process may, and is no administrator."""
OTHERS = ("alice", "bob", "carol")
VISIBILITIES: tuple[environments.Visibility, ...] = ("private", "shared", "public")


def put(site: Site, user: str, name: str = "debian", version: int = 1, **fields: object) -> Environment:
    """Record an environment as it stands, its files unread."""
    image = Image(file=f"/{user}.tgz", kind="tgz", md5="0" * 32, sha256="0" * 64)
    environment = Environment(name=name, version=version, user=user, image=image, kernel="/vmlinuz", filesystem="ext4")
    connect(site)
    changed = msgspec.structs.replace(environment, **fields)
    EnvironmentRow.insert(**environment_columns(changed)).execute()
    return changed


def everything(site: Site) -> list[Environment]:
    connect(site)
    return [row.environment for row in EnvironmentRow.select().order_by(EnvironmentRow.id)]


def written(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(build.packed(content))
    return str(path)


def sums(content: str) -> tuple[str, str]:
    packed = build.packed(content)
    return hashlib.md5(packed).hexdigest(), hashlib.sha256(packed).hexdigest()


def on_disk(folder: Path, **fields: object) -> Environment:
    """An environment whose image, preinstall and postinstalls exist."""
    environment = Environment(
        name="debian",
        image=Image(file=written(folder / "image.tgz", "image"), kind="tgz"),
        preinstall=Archive(file=written(folder / "pre.tgz", "pre"), kind="tgz", script="run"),
        postinstalls=(
            Archive(file=written(folder / "post1.tgz", "post1"), kind="tgz"),
            Archive(file=written(folder / "post2.tgz", "post2"), kind="tgz"),
        ),
        kernel="/vmlinuz",
        filesystem="ext4",
    )
    return msgspec.structs.replace(environment, **fields)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Where a web server shows the files of *tmp_path*."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# --- seeing -------------------------------------------------------------------------------------------------------


def test_the_highest_version_is_meant_unless_one_is_given(site: Site) -> None:
    for version in (2, 10, 9):
        put(site, "alice", version=version)
    assert environments.find(site, "alice", Reference("debian")).version == 10
    assert environments.find(site, "alice", Reference("debian", 2)).version == 2
    assert [each.version for each in environments.versions(site, "alice", Reference("debian"))] == [2, 9, 10]


def test_ones_own_come_before_public_ones_even_with_a_lower_version(site: Site) -> None:
    put(site, "bob", version=7, visibility="public")
    assert environments.find(site, "alice", Reference("debian")).user == "bob"
    put(site, "alice", version=1)
    assert environments.find(site, "alice", Reference("debian")).user == "alice"


def test_a_version_that_only_a_public_one_has_is_found_there(site: Site) -> None:
    put(site, "alice", version=1)
    put(site, "bob", version=7, visibility="public")
    assert environments.find(site, "alice", Reference("debian", 7)).user == "bob"


def test_of_public_ones_of_the_same_name_the_first_recorded_wins(site: Site) -> None:
    put(site, "bob", version=1, visibility="public")
    put(site, "carol", version=9, visibility="public")
    put(site, "bob", version=2, visibility="public")
    found = environments.find(site, "alice", Reference("debian"))
    assert (found.user, found.version) == ("bob", 2)


@pytest.mark.parametrize(
    ("visibility", "named", "unnamed"), [("private", False, False), ("shared", True, False), ("public", True, True)]
)
def test_others_see_by_visibility(site: Site, visibility: str, named: bool, unnamed: bool) -> None:
    """Wiki page, "visibility": private for nobody else, shared for who names the owner, public for all."""
    put(site, "bob", visibility=visibility)
    for owner, seen in (("bob", named), (None, unnamed)):
        listed = environments.listed(site, "alice", owner)
        assert [each.user for each in listed] == (["bob"] if seen else [])
        if seen:
            assert environments.find(site, "alice", Reference("debian", owner=owner)).user == "bob"
        else:
            with pytest.raises(EnvironmentRefusedError):
                environments.find(site, "alice", Reference("debian", owner=owner))


# --- how one is named ---------------------------------------------------------------------------------------------


@pytest.fixture
def debians(site: Site) -> None:
    """Of bob, public: version 3 for two architectures, version 4 for one, and a second name."""
    for version, arch in ((3, "x86_64"), (3, "aarch64"), (4, "aarch64")):
        put(site, "bob", "debian", version, arch=arch, alias=f"debian-{arch}", visibility="public")


@pytest.mark.usefixtures("debians")
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("debian%x86_64", (3, "x86_64")),
        ("debian:4", (4, "aarch64")),
        ("debian", (4, "aarch64")),
        ("debian@bob", (4, "aarch64")),
        ("debian@bob:3%aarch64", (3, "aarch64")),
        ("debian:3%x86_64", (3, "x86_64")),
        ("debian-x86_64", (3, "x86_64")),
        ("debian-aarch64", (4, "aarch64")),
        ("debian-aarch64:3", (3, "aarch64")),
    ],
)
def test_owner_version_and_architecture_are_written_behind_the_name(
    site: Site, name: str, found: tuple[int, str]
) -> None:
    environment = environments.find(site, "alice", Reference(name))
    assert (environment.version, environment.arch) == found


@pytest.mark.usefixtures("debians")
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("debian:3", {}, "name debian%aarch64 or debian%x86_64."),
        ("debian%sparc", {}, "is not for sparc, but for aarch64, x86_64"),
        ("debian:9%x86_64", {}, "There is no version 9 of environment 'debian'; there is 3, 4"),
        ("debian@carol", {}, "There is no environment 'debian' of carol for you"),
        ("debian:3", {"version": 4}, "names version 3, and the options 4"),
        ("debian@bob", {"owner": "carol"}, "names owner bob, and the options carol"),
        ("debian%x86_64", {"arch": "aarch64"}, "names arch x86_64, and the options aarch64"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_there_is(
    site: Site, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(KadeployError) as refusal:
        environments.find(site, "alice", Reference(name, **options))
    assert said in str(refusal.value)


@pytest.mark.usefixtures("debians")
def test_the_architecture_of_the_nodes_chooses_where_none_is_named(site: Site) -> None:
    assert environments.find(site, "alice", Reference("debian"), archs={"x86_64"}).version == 3
    assert environments.find(site, "alice", Reference("debian", 3), archs={"x86_64"}).arch == "x86_64"
    assert environments.find(site, "alice", Reference("debian%aarch64"), archs={"x86_64"}).arch == "aarch64"
    assert environments.find(site, "alice", Reference("debian"), archs={"riscv64"}).version == 4


@pytest.mark.parametrize("name", ["a@b", "mail@site.org:25", "100%", "50%off", "x:1", "@", ":", "%", "a b:c@d%e"])
def test_a_name_that_holds_such_signs_is_still_that_name(site: Site, name: str) -> None:
    put(site, "alice", name)
    put(site, "alice", re.split("[@:%]", name)[0] or "other", arch="x86_64")
    assert environments.find(site, "alice", Reference(name)).name == name
    assert [each.name for each in environments.delete(site, "alice", Reference(name))] == [name]


def test_a_name_comes_before_an_alias_and_an_alias_means_one_environment(site: Site) -> None:
    put(site, "alice", "first", alias="debian")
    put(site, "alice", "second", alias="debian", version=9)
    assert environments.find(site, "alice", Reference("debian")).name == "first"
    put(site, "alice", "debian")
    assert environments.find(site, "alice", Reference("debian")).name == "debian"


@pytest.mark.usefixtures("debians")
def test_changes_hit_the_architecture_that_is_named_and_no_other(site: Site) -> None:
    with pytest.raises(EnvironmentRefusedError, match="debian%aarch64 or debian%x86_64"):
        environments.set_visibility(site, "bob", Reference("debian", 3), "shared")
    environments.set_visibility(site, "bob", Reference("debian", 3, arch="x86_64"), "shared")
    environments.add_failure(site, [environments.find(site, "bob", Reference("debian:3%aarch64"))])
    assert [(each.arch, each.visibility, each.demolishing_env) for each in everything(site)] == [
        ("x86_64", "shared", 0),
        ("aarch64", "public", 1),
        ("aarch64", "public", 0),
    ]
    environments.delete(site, "bob", Reference("debian%aarch64"))
    assert [each.arch for each in everything(site)] == ["x86_64"]


@pytest.mark.usefixtures("debians")
def test_the_list_holds_the_highest_version_of_each_architecture(site: Site) -> None:
    listed = environments.listed(site, "alice")
    assert [(each.version, each.arch) for each in listed] == [(4, "aarch64"), (3, "x86_64")]


# --- whose are seen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [None, "bob"])
def test_an_owner_sees_all_of_their_own(site: Site, owner: str | None) -> None:
    for version, visibility in enumerate(VISIBILITIES):
        put(site, "bob", version=version, visibility=visibility)
    assert len(environments.listed(site, "bob", owner, all_versions=True)) == 3
    assert len(environments.versions(site, "bob", Reference("debian", owner=owner))) == 3


def test_everybodys_list_holds_what_is_not_private(site: Site) -> None:
    for user, visibility in zip(OTHERS, VISIBILITIES, strict=True):
        put(site, user, visibility=visibility)
    listed = environments.listed(site, "alice", environments.EVERYBODY)
    assert [each.user for each in listed] == ["bob", "carol"]


def test_a_list_is_ordered_and_holds_the_highest_version_per_name_and_owner(site: Site) -> None:
    for name, user, version in (("b", "alice", 1), ("a", "bob", 2), ("a", "bob", 10), ("a", "alice", 3)):
        put(site, user, name, version, visibility="public")
    keys = [(each.name, each.user, each.version) for each in environments.listed(site, "carol")]
    assert keys == [("a", "alice", 3), ("a", "bob", 10), ("b", "alice", 1)]
    assert len(environments.listed(site, "carol", all_versions=True)) == 4


def test_a_list_does_not_tell_that_a_higher_version_is_private(site: Site) -> None:
    put(site, "bob", version=1, visibility="public")
    put(site, "bob", version=2, visibility="private")
    assert [each.version for each in environments.listed(site, "alice")] == [1]
    assert environments.find(site, "alice", Reference("debian", owner="bob")).version == 1


def test_names_are_data(site: Site) -> None:
    """Quotes and wildcards of SQL find nothing but themselves."""
    put(site, "alice", "debian")
    put(site, "alice", "%' OR '1'='1")
    assert environments.find(site, "alice", Reference("%' OR '1'='1")).name == "%' OR '1'='1"
    for name in ("%", "debia_", "Debian", "x' OR '1'='1"):
        with pytest.raises(EnvironmentRefusedError):
            environments.find(site, "alice", Reference(name))


def test_a_refusal_tells_the_versions_there_are_or_where_to_look(site: Site) -> None:
    put(site, "alice", version=1)
    put(site, "alice", version=3)
    with pytest.raises(EnvironmentRefusedError, match=r"no version 2 of environment 'debian'; there is 1, 3\."):
        environments.find(site, "alice", Reference("debian", 2))
    with pytest.raises(EnvironmentRefusedError, match=r"`kaenv3 -l` lists .* -u USER"):
        environments.find(site, "alice", Reference("ubuntu"))
    with pytest.raises(EnvironmentRefusedError, match=r"'debian' of bob for you; `kaenv3 -l -u bob`"):
        environments.find(site, "alice", Reference("debian", owner="bob"))


def test_a_refusal_does_not_tell_the_versions_of_private_ones(site: Site) -> None:
    put(site, "bob", version=4711)
    for owner in (None, "bob"):
        with pytest.raises(EnvironmentRefusedError) as refused:
            environments.find(site, "alice", Reference("debian", 1, owner))
        assert "4711" not in str(refused.value)


def test_a_recorded_one_is_found_whoever_asks_until_it_is_deleted(site: Site) -> None:
    private = put(site, "bob", version=2)
    assert environments.recorded(site, Reference("debian", 2, "bob", "")) == private
    environments.delete(site, "bob", Reference("debian"))
    assert environments.recorded(site, Reference("debian", 2, "bob", "")) is None


# --- adding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["image.tgz", "pre.tgz", "post1.tgz"])
@pytest.mark.parametrize("web", [False, True], ids=["local", "http"])
def test_a_file_that_nodes_could_not_unpack_is_not_recorded(
    site: Site, tmp_path: Path, part: str, web: bool, request: pytest.FixtureRequest
) -> None:
    environment = on_disk(tmp_path)
    packed = build.packed("whole" * 1000)
    (tmp_path / part).write_bytes(packed[:-20])
    if web:
        url = request.getfixturevalue("url")
        environment = environments._map_files(
            environment, lambda file: msgspec.structs.replace(file, file=f"{url}/{Path(file.file).name}")
        )
    with pytest.raises(FileError, match=rf"{part}: is not a sound file of kind tgz: gzip says: stdin: unexpected end"):
        environments.add(site, environment, ALICE)
    assert everything(site) == []
    (tmp_path / part).write_bytes(packed)
    environments.add(site, environment, ALICE)
    (tmp_path / part).write_bytes(build.packed("", "txz"))
    which = {"image.tgz": "tarball", "pre.tgz": "preinstall", "post1.tgz": "postinstalls"}[part]
    with pytest.raises(FileError, match=rf"{part}: is not of kind tgz: it is compressed by xz: say txz"):
        environments.update_checksums(site, ALICE, Reference("debian"), which)  # type: ignore[arg-type]
    assert everything(site) != []
    assert not list(site.state.glob("kaenv3-*"))


def test_an_added_one_belongs_to_who_adds_it_and_has_checksums(site: Site, tmp_path: Path) -> None:
    added = environments.add(site, on_disk(tmp_path, user="bob"), ALICE)
    assert added.user == "alice"
    assert (added.image.md5, added.image.sha256) == sums("image")
    assert added.preinstall is not None
    assert (added.preinstall.md5, added.preinstall.sha256) == sums("pre")
    assert [each.md5 for each in added.postinstalls] == [sums("post1")[0], sums("post2")[0]]
    assert everything(site) == [added]


def test_a_version_is_added_once_per_owner(site: Site, tmp_path: Path) -> None:
    environments.add(site, on_disk(tmp_path), ALICE)
    with pytest.raises(
        EnvironmentRefusedError, match="delete the old one first with: kaenv3 -d debian --env-version 1"
    ):
        environments.add(site, on_disk(tmp_path), ALICE)
    environments.add(site, on_disk(tmp_path, version=2), ALICE)
    environments.add(site, on_disk(tmp_path), ADMIN)
    assert [(each.user, each.version) for each in everything(site)] == [("alice", 1), ("alice", 2), (ADMIN.name, 1)]


def test_only_administrators_publish(site: Site, tmp_path: Path) -> None:
    with pytest.raises(RightsError, match="Only administrators make environments public"):
        environments.add(site, on_disk(tmp_path, visibility="public"), ALICE)
    assert everything(site) == []
    assert environments.add(site, on_disk(tmp_path, visibility="public"), ADMIN).visibility == "public"


def test_a_second_public_one_of_the_same_name_and_version_is_refused(site: Site, tmp_path: Path) -> None:
    put(site, "bob", visibility="public")
    with pytest.raises(EnvironmentRefusedError, match="bob has a public environment 'debian' version 1"):
        environments.add(site, on_disk(tmp_path, visibility="public"), ADMIN)
    environments.add(site, on_disk(tmp_path, visibility="shared"), ADMIN)


@pytest.mark.parametrize("missing", ["image.tgz", "pre.tgz", "post2.tgz"])
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_recorded(site: Site, tmp_path: Path, missing: str) -> None:
    environment = on_disk(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileError, match=missing):
        environments.add(site, environment, ALICE)
    assert everything(site) == []


@pytest.mark.parametrize("archive", ["pre.tgz", "post1.tgz"])
def test_archives_are_held_to_the_sites_limits(site: Site, tmp_path: Path, archive: str) -> None:
    environment = on_disk(tmp_path)
    small = msgspec.structs.replace(site.limits, preinstall=1, postinstall=1)
    (tmp_path / archive).write_bytes(bytes(1024 * 1024 + 1))
    with pytest.raises(FileError, match=r"too big: the limit is 1 MB"):
        environments.add(msgspec.structs.replace(site, limits=small), environment, ALICE)


def test_several_are_added_together_or_not_at_all(site: Site, tmp_path: Path) -> None:
    both = [on_disk(tmp_path), on_disk(tmp_path, name="ubuntu")]
    put(site, "alice", "ubuntu")
    with pytest.raises(EnvironmentRefusedError, match="'ubuntu'"):
        environments.add_all(site, both, ALICE)
    assert [each.name for each in everything(site)] == ["ubuntu"]
    assert len(environments.add_all(site, both, ADMIN)) == 2


def test_several_may_not_be_the_same(site: Site, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentRefusedError, match="'debian' version 1 is described twice"):
        environments.add_all(site, [on_disk(tmp_path), on_disk(tmp_path)], ALICE)
    assert everything(site) == []


def test_of_two_who_add_the_same_at_once_one_is_refused(site: Site, tmp_path: Path) -> None:
    environment, together = on_disk(tmp_path), threading.Barrier(4)
    outcomes: list[Environment | KadeployError] = []
    connect(site)

    def add() -> None:
        together.wait()
        try:
            outcomes.append(environments.add(site, environment, ALICE))
        except KadeployError as error:
            outcomes.append(error)
        finally:
            connect(site).close()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(each).__name__ for each in outcomes) == ["Environment", *["RecordedAlreadyError"] * 3]
    assert len(everything(site)) == 1


# --- taking away --------------------------------------------------------------------------------------------------


def test_all_versions_are_deleted_unless_one_is_given(site: Site) -> None:
    for version in (3, 1, 2):
        put(site, "alice", version=version)
    put(site, "bob")
    assert [each.version for each in environments.delete(site, "alice", Reference("debian", 2))] == [2]
    assert [each.version for each in environments.delete(site, "alice", Reference("debian"))] == [1, 3]
    assert [each.user for each in everything(site)] == ["bob"]


def test_administrators_delete_what_others_own_when_they_name_the_owner(site: Site) -> None:
    put(site, "bob")
    with pytest.raises(EnvironmentRefusedError):
        environments.delete(site, ADMIN.name, Reference("debian"))
    assert len(environments.delete(site, ADMIN.name, Reference("debian", owner="bob"))) == 1


# --- changing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("owner", [None, "bob"])
def test_nobody_changes_what_others_own(site: Site, visibility: str, owner: str | None) -> None:
    before = [put(site, "bob", visibility=visibility)]
    changes = (
        lambda: environments.delete(site, "alice", Reference("debian", owner=owner)),
        lambda: environments.reset_demolishing(site, "alice", Reference("debian", owner=owner)),
        lambda: environments.set_visibility(site, "alice", Reference("debian", 1, owner), "private"),
        lambda: environments.update_checksums(site, ALICE, Reference("debian", owner=owner), "tarball"),
    )
    for change in changes:
        with pytest.raises((RightsError, EnvironmentRefusedError)):
            change()
    assert everything(site) == before


def test_who_wants_to_change_a_public_one_is_told_whose_it_is(site: Site) -> None:
    put(site, "bob", visibility="public")
    with pytest.raises(RightsError, match=r"'debian' belongs to bob; administrators add -u bob\."):
        environments.delete(site, "alice", Reference("debian"))


def test_owners_share_and_administrators_publish(site: Site) -> None:
    put(site, "bob", version=1)
    put(site, "bob", version=2)
    assert environments.set_visibility(site, "bob", Reference("debian", 1), "shared").visibility == "shared"
    with pytest.raises(RightsError):
        environments.set_visibility(site, "bob", Reference("debian", 1), "public")
    environments.set_visibility(site, ADMIN.name, Reference("debian", 2, "bob"), "public")
    assert [each.visibility for each in everything(site)] == ["shared", "public"]


def test_publishing_is_refused_while_another_one_of_that_name_and_version_is_public(site: Site) -> None:
    put(site, "bob", visibility="public")
    put(site, "carol")
    with pytest.raises(EnvironmentRefusedError, match="bob has a public environment 'debian' version 1"):
        environments.set_visibility(site, ADMIN.name, Reference("debian", 1, "carol"), "public")
    assert environments.set_visibility(site, ADMIN.name, Reference("debian", 1, "bob"), "public").visibility == "public"


def test_the_visibility_of_a_version_that_is_not_there_is_refused(site: Site) -> None:
    put(site, "bob", version=1)
    with pytest.raises(EnvironmentRefusedError, match="there is 1"):
        environments.set_visibility(site, "bob", Reference("debian", 2), "shared")


def test_failures_are_counted_up_to_demolishing_and_reset(site: Site) -> None:
    """The counter of the highest version, or of the given one, compared with > to the site's threshold."""
    low, high = put(site, "bob", version=1), put(site, "bob", version=2)
    gone = msgspec.structs.replace(high, version=3)
    for _ in range(site.demolishing.threshold + 1):
        assert not environments.is_demolishing(site, environments.find(site, "bob", Reference("debian")))
        environments.add_failure(site, [high, high, gone])
    assert environments.is_demolishing(site, environments.find(site, "bob", Reference("debian")))
    environments.add_failure(site, [low])
    assert environments.reset_demolishing(site, "bob", Reference("debian")).demolishing_env == 0
    assert [each.demolishing_env for each in everything(site)] == [1, 0]
    environments.reset_demolishing(site, "bob", Reference("debian", 1))
    assert [each.demolishing_env for each in everything(site)] == [0, 0]


# --- checksums ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "files"),
    [("tarball", ["image.tgz"]), ("preinstall", ["pre.tgz"]), ("postinstalls", ["post1.tgz", "post2.tgz"])],
)
def test_checksums_of_one_kind_of_files_are_recorded_anew(
    site: Site, tmp_path: Path, part: environments.Part, files: list[str]
) -> None:
    before = environments.add(site, on_disk(tmp_path), ALICE)
    for name in ("image.tgz", "pre.tgz", "post1.tgz", "post2.tgz"):
        written(tmp_path / name, "new")
    changes = environments.update_checksums(site, ALICE, Reference("debian"), part)
    assert [Path(change.after.file).name for change in changes] == files
    assert {(change.after.md5, change.after.sha256) for change in changes} == {sums("new")}
    assert sums("new") not in {(change.before.md5, change.before.sha256) for change in changes}
    [after] = everything(site)
    kept = {"image", "preinstall", "postinstalls"} - {"image" if part == "tarball" else part}
    assert {name: getattr(after, name) for name in kept} == {name: getattr(before, name) for name in kept}


def parted(folder: Path) -> Environment:
    """An environment with a second partition, which has an image of its own."""
    own = FileSystem(id=1, device="/dev/sda5", filesystem="ext4", image=Image(file=str(folder / "own.tgz"), kind="tgz"))
    written(folder / "own.tgz", "own")
    return on_disk(
        folder,
        multipart=True,
        partitions=(FileSystem(id=0, device="/dev/sda3"), own),
        block_device="/dev/sda",
        boot_partition=3,
    )


def test_images_of_partitions_are_measured_as_the_environments_own(site: Site, tmp_path: Path) -> None:
    added = environments.add(site, parted(tmp_path), ALICE)
    own = added.images[1]
    assert (own.md5, own.sha256) == sums("own")
    other = LocalFile(tmp_path, 1, *sums("new"))
    with pytest.raises(EnvironmentRefusedError, match="--update-tarball-md5"):
        environments.require_unchanged(added, own, other)
    written(tmp_path / "own.tgz", "new")
    changes = environments.update_checksums(site, ALICE, Reference("debian"), "tarball")
    assert [change.after.md5 for change in changes] == [sums("image")[0], sums("new")[0]]
    [after] = everything(site)
    environments.require_unchanged(after, after.images[1], other)
    written(tmp_path / "new" / "own.tgz", "moved")
    environments.move_files(site, ADMIN, [(f"{tmp_path}/own.tgz", f"{tmp_path}/new/own.tgz")])
    [moved] = everything(site)
    assert (moved.images[1].file, moved.images[1].md5) == (f"{tmp_path}/new/own.tgz", sums("moved")[0])
    assert moved.image == after.image


def test_an_unsound_image_of_a_partition_is_not_recorded(site: Site, tmp_path: Path) -> None:
    environment = parted(tmp_path)
    (tmp_path / "own.tgz").write_bytes(b"no archive")
    with pytest.raises(FileError, match=r"own\.tgz: is not of kind tgz"):
        environments.add(site, environment, ALICE)


def test_the_highest_version_is_updated_unless_one_is_given(site: Site, tmp_path: Path) -> None:
    for version in (1, 2):
        environments.add(site, on_disk(tmp_path, version=version), ALICE)
    written(tmp_path / "image.tgz", "new")
    environments.update_checksums(site, ALICE, Reference("debian"), "tarball")
    assert [each.image.md5 == sums("new")[0] for each in everything(site)] == [False, True]
    environments.update_checksums(site, ALICE, Reference("debian", version=1), "tarball")
    assert [each.image.md5 == sums("new")[0] for each in everything(site)] == [True, True]


@pytest.mark.parametrize("part", ["preinstall", "postinstalls"])
def test_updating_files_that_an_environment_does_not_have_is_refused(site: Site, part: environments.Part) -> None:
    put(site, "alice")
    with pytest.raises(EnvironmentRefusedError, match=f"has no {part} to update"):
        environments.update_checksums(site, ALICE, Reference("debian"), part)


def test_a_file_that_has_changed_is_refused_with_the_command_that_records_it(site: Site, tmp_path: Path) -> None:
    environment = environments.add(site, on_disk(tmp_path), ALICE)
    for file, option in (
        (environment.image, "--update-tarball-md5"),
        (environment.preinstall, "--update-preinstall-md5"),
        (environment.postinstalls[1], "--update-postinstalls-md5"),
    ):
        assert file is not None
        same = LocalFile(Path(file.file), 5, file.md5, file.sha256)
        environments.require_unchanged(environment, file, same)
        for other in (msgspec.structs.replace(same, md5="1" * 32), msgspec.structs.replace(same, sha256="1" * 64)):
            with pytest.raises(EnvironmentRefusedError, match=f"kaenv3 {option} debian --env-version 1"):
                environments.require_unchanged(environment, file, other)


def test_a_file_without_checksums_may_be_anything(site: Site, tmp_path: Path) -> None:
    environment = on_disk(tmp_path)
    environments.require_unchanged(environment, environment.image, LocalFile(tmp_path, 1, *sums("x")))


# --- moved files --------------------------------------------------------------------------------------------------


def test_files_and_folders_are_moved_in_all_environments(site: Site, tmp_path: Path) -> None:
    environments.add(site, on_disk(tmp_path / "old"), ALICE)
    environments.add(site, on_disk(tmp_path / "old", version=2), ADMIN)
    environments.add(site, on_disk(tmp_path / "older", version=3), ADMIN)
    for name in ("image.tgz", "pre.tgz", "post1.tgz", "post2.tgz"):
        written(tmp_path / "new" / name, f"new {name}")
    single = written(tmp_path / "single.tgz", "single")
    changes = environments.move_files(
        site, ADMIN, [(f"{tmp_path}/old/pre.tgz", single), (f"{tmp_path}/old/", f"{tmp_path}/new")]
    )
    assert len(changes) == 8
    for each in everything(site)[:2]:
        assert (each.image.file, each.image.md5) == (f"{tmp_path}/new/image.tgz", sums("new image.tgz")[0])
        assert each.preinstall is not None
        assert (each.preinstall.file, each.preinstall.sha256) == (single, sums("single")[1])
        assert [Path(file.file).parent.name for file in each.postinstalls] == ["new", "new"]
    untouched = everything(site)[2]
    assert untouched.image.file == f"{tmp_path}/older/image.tgz"


def test_when_one_new_file_is_missing_nothing_is_moved(site: Site, tmp_path: Path) -> None:
    environments.add(site, on_disk(tmp_path / "old"), ALICE)
    before = everything(site)
    written(tmp_path / "new" / "image.tgz", "image")
    with pytest.raises(FileError, match=r"pre\.tgz"):
        environments.move_files(site, ADMIN, [(f"{tmp_path}/old", f"{tmp_path}/new")])
    assert everything(site) == before


def test_files_that_did_not_move_need_not_be_there(site: Site, tmp_path: Path) -> None:
    environments.add(site, on_disk(tmp_path / "old"), ALICE)
    for name in ("pre.tgz", "post1.tgz", "post2.tgz"):
        (tmp_path / "old" / name).unlink()
    new = written(tmp_path / "new.tgz", "image")
    [change] = environments.move_files(site, ADMIN, [(f"{tmp_path}/old/image.tgz", new)])
    assert (change.before.file, change.after.file) == (f"{tmp_path}/old/image.tgz", new)


def test_only_administrators_move_files(site: Site) -> None:
    with pytest.raises(RightsError, match="Only administrators move"):
        environments.move_files(site, ALICE, [("/a", "/b")])


@pytest.mark.parametrize("move", [("a", "/b"), ("/a", "b"), ("", "/b"), ("/a", "ftp://host/b")])
def test_a_move_is_between_absolute_places(site: Site, move: tuple[str, str]) -> None:
    with pytest.raises(OptionError, match="absolute path, an http"):
        environments.move_files(site, ADMIN, [move])
