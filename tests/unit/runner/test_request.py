"""A request on disk: everything comes back, as text, and nobody else can read it."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kadeploy.errors import ConfigError
from kadeploy.runner.request import FILE_NAME, Request, read, write
from tests.unit.runner.test_inventory import environment, request

ANY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40) | st.sampled_from(
    ["{{ 1 + 1 }}", "$(id)", "'; reboot #", "a\nb: c", "!!python/name:os.system", "yes", "012", "../..", "null", "~"]
)


def stored(tmp_path: Path, **changes: object) -> Request:
    return request(run_dir=str(tmp_path), **changes)


def test_a_request_reads_back_as_it_was_written(tmp_path: Path) -> None:
    before = stored(tmp_path)
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
