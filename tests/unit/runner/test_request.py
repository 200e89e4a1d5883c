"""A request on disk: everything comes back, as text, and nobody else can read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kadeploy.config.inventory import Inventory, Variables
from kadeploy.errors import ConfigError
from kadeploy.runner.request import (
    FILE_NAME,
    CustomOperation,
    LocalArchive,
    LocalImage,
    Options,
    Request,
    read,
    write,
)
from tests.unit import build
from tests.unit.runner.test_inventory import environment, request

ANY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40) | st.sampled_from(
    ["{{ 1 + 1 }}", "$(id)", "'; reboot #", "a\nb: c", "!!python/name:os.system", "yes", "012", "../..", "null", "~"]
)


def stored(tmp_path: Path, **changes: object) -> Request:
    return request(run_dir=str(tmp_path), **changes)


def test_a_request_reads_back_as_it_was_written(tmp_path: Path) -> None:
    before = stored(tmp_path)
    assert read(write(before)) == before


def test_a_request_for_nodes_of_an_inventory_reads_back_as_it_was_written(tmp_path: Path) -> None:
    inventory = Inventory(source="hosts.yml", variables=Variables(mac="interfaces[0].mac"))
    nodes = build.nodes(build.cluster())
    before = stored(tmp_path, cluster=build.cluster(nodes=(), inventory=inventory), nodes=nodes)
    assert read(write(before)) == before


def test_its_first_line_tells_ansible_which_plugin_reads_it(tmp_path: Path) -> None:
    assert write(stored(tmp_path)).read_text().startswith("plugin: kadeploy.core.kadeploy\n")


def test_a_file_of_before_that_names_no_plugin_is_read(tmp_path: Path) -> None:
    before = stored(tmp_path)
    path = write(before)
    path.write_text(path.read_text().split("\n", 1)[1])
    assert read(path) == before


def test_a_file_that_names_another_plugin_is_refused(tmp_path: Path) -> None:
    path = write(stored(tmp_path))
    path.write_text(path.read_text().replace("kadeploy.core.kadeploy", "amazon.aws.aws_ec2"))
    with pytest.raises(ConfigError, match=r"amazon\.aws\.aws_ec2.*plugin"):
        read(path)


def test_an_edit_by_hand_counts_at_once_though_size_and_time_stay_the_same(tmp_path: Path) -> None:
    path = write(stored(tmp_path))
    read(path)
    times = path.stat()
    path.write_text(path.read_text().replace("user: ", "user: x", 1))
    user = read(path).user
    path.write_text(path.read_text().replace("user: x", "user: y", 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (user[0], read(path).user) == ("x", "y" + user[1:])


# --- wherever the folder is -----------------------------------------------------------------------------------------


def carried(before: Request, to: Path) -> Request:
    """*before*, written into its folder and read in another one; the first is gone."""
    write(before)
    to.parent.mkdir(parents=True, exist_ok=True)
    Path(before.run_dir).rename(to)
    return read(to / FILE_NAME)


def test_a_folder_that_is_carried_elsewhere_names_what_lies_in_it(tmp_path: Path) -> None:
    home = tmp_path / "home" / "D-1" / "01-Test"
    home.mkdir(parents=True)

    def archive(name: str) -> LocalArchive:
        return LocalArchive(path=str(home / "files" / name), kind="tgz", script="run")

    operation = CustomOperation(implementation="X", micro_step="y", action="send", file=str(home / "files/op"))
    before = build.request(
        home,
        workflow_dir=str(home.parent),
        preinstall=archive("a b"),
        postinstalls=(archive("c"),),
        admin_preinstalls=(LocalArchive(path="/elsewhere/e", kind="tgz", script=""),),
        admin_postinstalls=(archive("d"),),
        options=Options(custom_operations=(operation,)),
    )
    there = tmp_path / "there" / "D-1" / "01-Test"
    after = carried(before, there)
    assert (after.run_dir, after.workflow_dir) == (str(there), str(there.parent))
    assert after.preinstall
    archives = (after.preinstall, *after.postinstalls, *after.admin_postinstalls, *after.admin_preinstalls)
    assert [each.path for each in archives] == [
        *(f"{there}/files/{name}" for name in ("a b", "c", "d")),
        "/elsewhere/e",
    ]
    assert after.options.custom_operations[0].file == f"{there}/files/op"


def test_what_comes_without_its_workflows_folder_writes_nothing_above_itself(tmp_path: Path) -> None:
    home = tmp_path / "D-1" / "01-Test"
    home.mkdir(parents=True)
    after = carried(build.request(home, workflow_dir=str(home.parent)), tmp_path / "tmp" / "x3f")
    assert after.workflow_dir == after.run_dir == str(tmp_path / "tmp" / "x3f")


def test_an_image_that_lies_in_the_folder_by_its_checksum_is_taken_from_there(tmp_path: Path) -> None:
    image = LocalImage(path="/home/alice/image.tgz", size=1, sha256="ab" * 32, lent=True)
    before = stored(tmp_path, image=image, partition_images=(image,))
    assert read(write(before)).image == image
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / image.sha256).touch()
    here = LocalImage(path=f"{tmp_path}/files/{image.sha256}", size=1, sha256=image.sha256)
    assert read(write(before)).image == here
    assert read(write(before)).partition_images == (here,)


def test_the_sites_key_is_where_this_machine_keeps_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(build.request(tmp_path))
    assert read(path).site.ssh.private_key == f"{tmp_path}/key"
    monkeypatch.setenv("KADEPLOY_SECRETS", "/run/secrets")
    assert read(path).site.ssh.private_key == "/run/secrets/key"


@settings(max_examples=60)
@given(params=ANY, name=ANY)
def test_user_text_comes_back_letter_by_letter(
    tmp_path_factory: pytest.TempPathFactory, params: str, name: str
) -> None:
    folder = tmp_path_factory.mktemp("request")
    before = stored(folder, environment=environment(kernel_params=params, name=name))
    assert read(write(before)) == before


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    assert stat.S_IMODE(write(stored(tmp_path)).stat().st_mode) == 0o600


def test_a_file_that_is_not_a_request_is_refused_by_key(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text("workflow: 3\n")
    with pytest.raises(ConfigError, match="workflow"):
        read(path)


def test_a_partition_asked_for_by_number_decides_the_device(tmp_path: Path) -> None:
    options = msgspec.structs.replace(request().options, partition=2, block_device="/dev/nvme1n1")
    assert stored(tmp_path, options=options).deploy_part == "/dev/nvme1n1p2"
