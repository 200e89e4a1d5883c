"""Where the content of files comes from: an account here, what a client has sent, what the administrator offers."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest

from kadeploy.caller import Account
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.service import Service
from kadeploy.config.site import Site
from kadeploy.environments import description
from kadeploy.environments.environment import Archive, Environment, FileSystem, Image
from kadeploy.errors import EnvironmentRefusedError, FileError
from kadeploy.files import MEGA
from kadeploy.operations import admission, launch, sources, staging
from kadeploy.operations.named_files import named
from kadeploy.operations.requests import Described
from kadeploy.operations.sources import OfAccount, OfSent, Sources
from kadeploy.runner.request import Assignment, CustomOperation, Options
from kadeploy.state import environments, sent
from kadeploy.state.environments import RemoteUser
from kadeploy.state.fingerprints import Fingerprint
from tests.descriptors import descriptors
from tests.unit import build

NOBODY = Account("nobody", 65534, 65534, Path("/nonexistent"))
SECRET = b"root's own"


@pytest.fixture
def offering(open_folder: Path) -> Site:
    """A site that offers the files below ``srv``; beside it is something that it does not offer."""
    folder = open_folder / "srv"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a b.tgz").write_bytes(b"offered")
    (folder / "images" / "a b.tgz").chmod(0o600)
    (folder / "within").symlink_to("images/a b.tgz")
    (folder / "absolute").symlink_to(folder / "images")
    (folder / "out-and-in").symlink_to("../srv")
    for place in (open_folder, open_folder / "srv-of-others"):
        place.mkdir(exist_ok=True)
        (place / "secret").write_bytes(SECRET)
        (place / "secret").chmod(0o600)
    return build.site(open_folder, service=Service(folders=("/nonexistent", str(folder))))


def send(site: Site, user: str, content: bytes) -> str:
    """Have *content* among the user's files; its SHA-256."""
    sha256 = hashlib.sha256(content).hexdigest()
    if sent.begin(site, user, sha256, len(content)) < len(content):
        sent.append(site, user, sha256, 0, [content])
    return sha256


def content_of(files: Sources, name: str, into: Path) -> bytes:
    """What all three ways to a file say of it."""
    stream, local = files.hold(name, into)
    with stream:
        held = os.pread(stream.fileno(), local.size + 1, 0)
    with files.opened(name, into) as again:
        assert again.read() == held
    copy = files.copy(name, into)
    assert copy.path.read_bytes() == held
    assert local.sha256 == copy.sha256 == hashlib.sha256(held).hexdigest()
    assert local.md5 == copy.md5 == hashlib.md5(held, usedforsecurity=False).hexdigest()
    assert local.size == copy.size == len(held)
    return held


# --- what the administrator offers --------------------------------------------------------------------------------


def both(site: Site) -> list[Sources]:
    """A user who has an account here and one whose client sends files; neither may read what is root's."""
    return [OfAccount(site, NOBODY), OfSent(site, "alice")]


@pytest.mark.parametrize(
    "name",
    [
        "images/a b.tgz",
        "images/a%20b.tgz",
        "within",
        "absolute/a b.tgz",
        "./images//a b.tgz",
        "images/a b.tgz/",
        "out-and-in/images/a b.tgz",
    ],
)
def test_a_file_that_the_administrator_offers_is_everybodys(offering: Site, open_folder: Path, name: str) -> None:
    for files in both(offering):
        source = f"server://{open_folder}/srv/{name}"
        assert content_of(files, source, open_folder / "run") == b"offered"
        assert files.copy(source, open_folder / "run").path.name in ("a b.tgz", "within")


def plant(folder: Path) -> None:
    """What an enemy with write access to an offered folder would put there."""
    srv = folder / "srv"
    (srv / "straight").symlink_to(folder / "secret")
    (srv / "relative").symlink_to("../secret")
    (srv / "up").symlink_to("..")
    (srv / "chain").symlink_to("chain2")
    (srv / "chain2").symlink_to("up/secret")
    (srv / "images" / "deep").symlink_to("../../secret")
    (srv / "dangling").symlink_to(folder / "nonesuch")
    (srv / "loop").symlink_to("loop")
    (srv / "process").symlink_to(f"/proc/self/root{folder}/secret")
    (srv / "device").symlink_to("/dev/zero")
    (srv / "zigzag").symlink_to(folder / "srv-of-others" / ".." / "secret")
    os.mkfifo(srv / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(srv / "socket"))


TRICKS = [
    "{srv}/../secret",
    "{srv}/images/../../secret",
    "{srv}/%2e%2e/secret",
    "{srv}/..%2fsecret",
    "{srv}/images/../images/a b.tgz",
    "{folder}/secret",
    "{folder}/srv-of-others/secret",
    "/{srv}/images/a b.tgz",
    "/proc/self/root{srv}/images/a b.tgz",
    "{srv}/straight",
    "{srv}/relative",
    "{srv}/up/secret",
    "{srv}/chain",
    "{srv}/images/deep",
    "{srv}/dangling",
    "{srv}/loop",
    "{srv}/process",
    "{srv}/device",
    "{srv}/zigzag",
    "{srv}/fifo",
    "{srv}/socket",
    "{srv}/images",
    "{srv}",
    "{srv}/",
    "{srv}/images/a b.tgz%00",
    "{srv}/images/a b.tgz/..",
    "{srv}/nonesuch/a",
    "{srv}/" + "a" * 5000,
    "",
    "host{srv}/images/a b.tgz",
    "/etc/shadow",
]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("scheme", ["server", "SERVER"])
def test_no_path_leads_out_of_what_the_administrator_offers(
    offering: Site, open_folder: Path, scheme: str, trick: str
) -> None:
    plant(open_folder)
    source = f"{scheme}://" + trick.format(folder=open_folder, srv=open_folder / "srv")
    before = descriptors()
    for files in both(offering):
        for way in (files.hold, files.copy, lambda *a, files=files: files.opened(*a).__enter__()):
            with pytest.raises(FileError) as refused:
                way(source, open_folder / "run")
            assert SECRET.decode() not in str(refused.value)
    assert not list((open_folder / "run").rglob("*"))
    assert descriptors() <= before


def test_who_asks_is_not_told_what_there_is_outside(offering: Site, open_folder: Path) -> None:
    (open_folder / "srv" / "there").symlink_to(open_folder / "secret")
    (open_folder / "srv" / "not").symlink_to(open_folder / "nonesuch")
    told = []
    for name in ("there", "not"):
        with pytest.raises(FileError) as refused:
            OfSent(offering, "alice").hold(f"server://{open_folder}/srv/{name}", open_folder)
        told.append(str(refused.value).replace(f"srv/{name}", "srv/NAME"))
    assert told[0] == told[1]
    assert "a link leads out of" in told[0]


def test_a_folder_that_becomes_a_link_meanwhile_opens_nothing_outside(offering: Site, open_folder: Path) -> None:
    """Two names change places as fast as they can; only what is offered is ever opened."""
    srv, over = open_folder / "srv", threading.Event()
    (srv / "now").mkdir()
    (srv / "now" / "secret").write_bytes(b"offered")
    (srv / "link").symlink_to(open_folder)

    def swap() -> None:
        while not over.is_set():
            for one, other in (("now", "aside"), ("link", "now"), ("now", "link"), ("aside", "now")):
                (srv / one).rename(srv / other)

    thread = threading.Thread(target=swap)
    thread.start()
    seen: list[bytes] = []
    refused = 0
    try:
        while len(seen) < 300 or refused < 100:
            try:
                with OfSent(offering, "alice").opened(f"server://{srv}/now/secret", open_folder) as stream:
                    seen.append(stream.read())
            except FileError:
                refused += 1
    finally:
        over.set()
        thread.join()
    assert set(seen) == {b"offered"}


def test_a_site_that_offers_nothing_says_how_it_would(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"service\.folders in site\.yml names no folder\. Give a file of your own"):
        OfSent(build.site(tmp_path), "alice").hold("server:///etc/passwd", tmp_path)


# --- what a client has sent ---------------------------------------------------------------------------------------


def test_a_path_that_a_client_names_is_never_opened(tmp_path: Path) -> None:
    site, path = build.site(tmp_path), tmp_path / "image"
    path.write_bytes(SECRET)
    for name in (str(path), f"file://{path}", f"local://{path}", "~/.ssh/id_rsa", "image", "/dev/fd/0", "-"):
        for way in (OfSent(site, "alice").hold, OfSent(site, "alice").copy):
            with pytest.raises(FileError, match="the client did not send this file"):
                way(name, tmp_path / "run")
    sha256 = send(site, "alice", b"what alice has")
    assert content_of(OfSent(site, "alice", {str(path): sha256}), str(path), tmp_path / "run") == b"what alice has"


def test_a_file_that_was_sent_is_not_read_again_for_its_checksums(tmp_path: Path) -> None:
    site = build.site(tmp_path)
    files = OfSent(site, "alice", {"image": send(site, "alice", b"content")})
    path = sent.find(site, "alice", files.sent["image"])
    assert path is not None
    path.write_bytes(b"CONTENT")  # nobody else can: it tells whether it is read
    stream, local = files.hold("image", tmp_path)
    stream.close()
    assert local.sha256 == hashlib.sha256(b"content").hexdigest()
    assert not files.lends("image")


def test_the_hash_of_somebody_elses_file_is_not_the_file(tmp_path: Path) -> None:
    site = build.site(tmp_path)
    sha256 = send(site, "bob", SECRET)
    files = OfSent(site, "alice", {"image": sha256})
    with pytest.raises(FileError, match="what the client has sent of it is no longer here"):
        files.hold("image", tmp_path)
    with pytest.raises(FileError, match="is no SHA-256"):
        OfSent(site, "alice", {"image": f"../bob/{sha256}"}).hold("image", tmp_path)


def test_a_file_of_a_shared_environment_is_there_when_its_owner_has_sent_exactly_what_was_recorded(
    tmp_path: Path,
) -> None:
    site = build.site(tmp_path)
    image, other = send(site, "bob", b"image"), send(site, "bob", b"other")
    shared = build.environment(user="bob", image=Image(file="/home/bob/i.tgz", kind="tgz", sha256=image))
    files = OfSent(site, "alice", recorded=shared)
    assert content_of(files, "/home/bob/i.tgz", tmp_path / "run") == b"image"
    assert files.missing(["/home/bob/i.tgz", "/home/bob/other"]) == ["/home/bob/other"]
    with pytest.raises(FileError, match="did not send"):
        files.hold("/home/bob/other", tmp_path)
    for sha256 in ("0" * 64, ""):
        changed = msgspec.structs.replace(shared, image=msgspec.structs.replace(shared.image, sha256=sha256))
        with pytest.raises(FileError, match="did not send"):
            OfSent(site, "alice", recorded=changed).hold("/home/bob/i.tgz", tmp_path)
    mine = {"/home/bob/i.tgz": other}  # names bob's other file by its hash
    assert content_of(OfSent(site, "alice", mine, shared), "/home/bob/i.tgz", tmp_path / "run") == b"image"


# --- a whole deployment -------------------------------------------------------------------------------------------


def everywhere(folder: Path) -> tuple[Environment, tuple[CustomOperation, ...], dict[str, bytes]]:
    """An environment and operations with files of every kind, which are nowhere on this machine, and their contents."""
    contents = {f"/home/alice/{name}.tgz": build.packed(name) for name in ("image", "own", "pre", "post1", "post2")}
    contents |= {"/home/alice/run.sh": b"#!/bin/sh\n", "~/vmlinuz": b"kernel"}
    image, own, pre, *posts = list(contents)[:5]
    places = (
        FileSystem(id=0, device="/dev/sda3"),
        FileSystem(id=1, device="/dev/sda5", filesystem="xfs", image=Image(file=own, kind="tgz")),
    )
    environment = build.environment(
        image=Image(file=image, kind="tgz"),
        preinstall=Archive(file=pre, kind="tgz", script="go"),
        postinstalls=tuple(Archive(file=each, kind="tgz", script="go") for each in posts),
        multipart=True,
        partitions=places,
        block_device="/dev/sda",
        boot_partition=3,
    )
    operation = CustomOperation(
        implementation="SetDeploymentEnv", micro_step="reboot", action="run", file="/home/alice/run.sh"
    )
    assert not any(Path(name).exists() for name in contents)
    return environment, (operation,), contents


def deployment(folder: Path) -> tuple[Assignment, dict[str, bytes]]:
    environment, operations, contents = everywhere(folder)
    options = Options(custom_operations=operations, pxe_profile="x")
    return build.assignment(folder, environment=environment, options=options), contents


def test_a_deployment_gets_every_file_from_what_its_users_client_has_sent(tmp_path: Path) -> None:
    assignment, contents = deployment(tmp_path)
    site = assignment.site
    files = OfSent(site, "alice", {name: send(site, "alice", content) for name, content in contents.items()})
    with closing(staging.stage({"gdx": assignment}, tmp_path / "run", files, ["~/vmlinuz"])) as staged:
        found = staged.assignments["gdx"]
        assert found.image is not None
        assert found.preinstall is not None
        images = [found.image, *found.partition_images]
        streams = [staged.images[each.path] for each in images]
        assert [os.pread(each.fileno(), MEGA, 0) for each in streams] == list(contents.values())[:2]
        assert [each.lent for each in images] == [False, False]
        archives = [found.preinstall, *found.postinstalls]
        assert [Path(each.path).read_bytes() for each in archives] == list(contents.values())[2:5]
        assert all(Path(each.path).is_relative_to(tmp_path / "run") for each in archives)
        (operation,) = found.options.custom_operations
        assert (Path(operation.file).name, Path(operation.file).read_bytes()) == ("run.sh", b"#!/bin/sh\n")
    assert (tmp_path / "http" / "kernels" / "pxe-alice--vmlinuz").read_bytes() == b"kernel"
    assert Path(found.image.path).exists(), "an image of the user's is not removed with what came over http"
    assert staging.dry_run({"gdx": assignment}, files, ["~/vmlinuz"])["gdx"].image == found.image


@pytest.mark.parametrize("left_out", range(7))
def test_a_deployment_is_refused_by_the_name_of_the_file_that_was_not_sent(tmp_path: Path, left_out: int) -> None:
    assignment, contents = deployment(tmp_path)
    name = list(contents)[left_out]
    known = {each: send(assignment.site, "alice", contents[each]) for each in contents if each != name}
    files = OfSent(assignment.site, "alice", known)
    assert files.missing(contents) == [name]
    with pytest.raises(FileError, match=f"{name}: the client did not send this file"):
        staging.stage({"gdx": assignment}, tmp_path / "run", files, ["~/vmlinuz"])


def test_an_image_in_use_by_a_deployment_makes_no_room(tmp_path: Path) -> None:
    assignment, contents = deployment(tmp_path)
    site = assignment.site
    files = OfSent(site, "alice", {name: send(site, "alice", content) for name, content in contents.items()})
    path = sent.find(site, "alice", files.sent["/home/alice/image.tgz"])
    assert path is not None
    with closing(staging.stage({"gdx": assignment}, tmp_path / "run", files, ["~/vmlinuz"])):
        assert not sent._remove_unused(path)
    assert sent._remove_unused(path)


def test_an_image_that_the_administrator_offers_is_lent_and_not_opened_by_its_path(
    offering: Site, open_folder: Path
) -> None:
    (open_folder / "srv" / "image.tgz").write_bytes(build.packed("image"))
    source = f"server://{open_folder}/srv/image.tgz"
    environment = build.environment(image=Image(file=source, kind="tgz"))
    assignment = build.assignment(open_folder, site=offering, environment=environment)
    for files in both(offering):
        with closing(staging.stage({"gdx": assignment}, open_folder / "run", files)) as staged:
            found = staged.assignments["gdx"].image
            assert found is not None
            assert (found.path, found.lent, list(staged.images)) == (source, True, [source])
            assert os.pread(staged.images[source].fileno(), MEGA, 0) == build.packed("image")


# --- from the request to the nodes --------------------------------------------------------------------------------


def remote_deployment(configuration: Configuration, **changes: object) -> tuple[Sources, Callable[[], int]]:
    """Where the files of alice's request come from, and what carries it out; returns how many nodes are OK."""
    request = build.deploy_request(**changes)
    work = admission.deploy(request, configuration)

    def run() -> int:
        return len(launch.carry_out(request, configuration, None, lambda _: None, threading.Event()).ok)

    return sources.of(work, None), run


def test_an_account_that_this_machine_does_not_have_deploys_what_it_has_sent(
    site: Site, configuration: Configuration
) -> None:
    content = build.packed("image")
    described = Described(environment=build.environment(image=Image(file="/far/away/i.tgz", kind="tgz")))
    _, refused = remote_deployment(configuration, environment=described)
    with pytest.raises(FileError, match=r"/far/away/i\.tgz: the client did not send"):
        refused()
    known = {"/far/away/i.tgz": send(site, "root", content)}
    _, run = remote_deployment(configuration, environment=described, files=known)
    assert run() == len(build.NAMES)


def test_an_environment_that_says_itself_that_it_is_somebody_elses_opens_nothing_of_theirs(
    site: Site, configuration: Configuration
) -> None:
    sha256 = send(site, "bob", build.packed("bob's"))
    forged = build.environment(user="bob", image=Image(file="/home/bob/i.tgz", kind="tgz", sha256=sha256))
    _, run = remote_deployment(configuration, environment=Described(environment=forged))
    with pytest.raises(FileError, match=r"/home/bob/i\.tgz: the client did not send"):
        run()


def test_a_shared_environment_is_deployed_by_others_from_what_its_owner_has_sent(
    site: Site, configuration: Configuration
) -> None:
    content = build.packed("shared")
    sha256 = send(site, "bob", content)
    fingerprint = Fingerprint(len(content), hashlib.md5(content, usedforsecurity=False).hexdigest(), sha256)
    described = build.environment(image=Image(file="/home/bob/i.tgz", kind="tgz"), visibility="shared")
    recorded = environments.add(site, described, RemoteUser("bob", {"/home/bob/i.tgz": fingerprint}))
    assert (recorded.image.md5, recorded.image.sha256) == (fingerprint.md5, fingerprint.sha256)
    by_name = msgspec.convert({"type": "recorded", "name": "tiny@bob"}, type=admission.Recorded)
    files, run = remote_deployment(configuration, environment=by_name)
    assert isinstance(files, OfSent)
    assert files.missing(named(build.deploy_request(environment=by_name), recorded)) == []
    assert run() == len(build.NAMES)
    other = {"/home/bob/i.tgz": send(site, "root", build.packed("another"))}
    _, changed = remote_deployment(configuration, environment=by_name, files=other)
    with pytest.raises(EnvironmentRefusedError, match="has changed since bob recorded"):
        changed()
    path = sent.find(site, "bob", sha256)
    assert path is not None
    with suppress(FileNotFoundError):
        path.unlink()
    with pytest.raises(FileError, match="the client did not send"):
        run()


def test_an_environment_with_a_file_of_the_server_is_recorded_printed_and_deployed(
    site_folder: Path, configuration: Configuration, tmp_path: Path
) -> None:
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv" / "i.tgz").write_bytes(build.packed("image"))
    with (site_folder / "site.yml").open("a", encoding="utf-8") as text:
        text.write(f"service:\n  folders: [{tmp_path}/srv]\n")
    source, offering = f"server://{tmp_path}/srv/i.tgz", load_configuration(site_folder)
    described = description.parse(f"name : tiny\ntarball : {source}|tgz\n{LINUX}", source="e")
    with pytest.raises(FileError, match="names no folder"):
        environments.add(configuration.site, described, RemoteUser("root"))
    recorded = environments.add(offering.site, described, RemoteUser("root"))
    assert recorded.image.sha256 == hashlib.sha256(build.packed("image")).hexdigest()
    assert f"tarball : {source}|tgz\n" in description.write([recorded], "wiki")
    assert named(build.deploy_request(), recorded) == []
    _, run = remote_deployment(offering)
    assert run() == len(build.NAMES)
    (tmp_path / "srv" / "i.tgz").write_bytes(build.packed("another"))
    with pytest.raises(EnvironmentRefusedError, match=rf"{source} has changed"):
        run()


LINUX = "kernel : /vmlinuz\nfdisktype : 83\nfilesystem : ext4\nenvironment_kind : linux\n"
