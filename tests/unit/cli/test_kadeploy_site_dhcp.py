"""kadeploy-site dhcp and loaders: lines for DHCP servers, and the loaders that they name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.boot import loader_files

TAIL = "disk: {device: /dev/sda, partitions: [{number: 1, size: 4GiB, role: deploy}]}\n"
LACKING = loader_files.missing_packages([loader_files.UNDIONLY, loader_files.PXELINUX])


@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """None is asked for anything."""
    return f"sqlite://{tmp_path}/kadeploy.db"


@pytest.fixture
def folder(site_folder: Path) -> Path:
    """A site with nodes that have MAC addresses, and one that has none."""
    for path in (site_folder / "clusters").iterdir():
        path.unlink()
    nodes = (
        'nodes:\n  - {name: "gdx-[1-2].site", address: "127.9.1.[1-2]", mac: "52-54-00-00-00-0[1-2]"}\n'
        "  - {name: gdx-3.site, address: 127.9.1.3}\n"
    )
    (site_folder / "clusters" / "gdx.yml").write_text(nodes + TAIL)
    return site_folder


def test_lines_are_printed_and_nodes_that_no_server_recognises_named(tool: Any, folder: Path) -> None:
    done = tool("kadeploy-site", "dhcp", "--server", "isc")
    assert done.returncode == 0
    assert "hardware ethernet 52:54:00:00:00:02;" in done.stdout
    assert done.stderr.startswith("WARNING: gdx-3.site has no MAC address in the cluster file")


def test_a_file_is_written_whole_and_again(tool: Any, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "kadeploy.conf"
    output.write_text("old")
    for _ in range(2):
        done = tool("kadeploy-site", "dhcp", "--server", "dnsmasq", "--output", str(output))
        assert (done.returncode, done.stdout) == (0, f"{output}: 2 nodes.\n")
        assert output.read_text() == tool("kadeploy-site", "dhcp", "--server", "dnsmasq").stdout
    assert output.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".new")] == []


def test_a_folder_that_is_not_there_is_named(tool: Any, folder: Path, tmp_path: Path) -> None:
    done = tool("kadeploy-site", "dhcp", "--server", "kea", "--output", str(tmp_path / "none" / "kadeploy.json"))
    assert done.returncode == 1
    assert f"ERROR: {tmp_path}/none/kadeploy.json: No such file or directory. Name a file" in done.stderr


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_the_lines_and_what_they_say(form: str, read: Any, tool: Any, folder: Path) -> None:
    found = read(tool("kadeploy-site", "dhcp", "--server", "dnsmasq", "--proxy", "--format", form).stdout)
    assert (found["server"], found["proxy"]) == ("dnsmasq", True)
    assert "dhcp-range=127.0.0.1,proxy" in found["text"]
    (group,) = found["wanted"]["groups"]
    assert [host["mac"] for host in group["hosts"]] == ["52:54:00:00:00:01", "52:54:00:00:00:02"]
    assert group["without_mac"] == ["gdx-3.site"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "Which DHCP server? --server dnsmasq, isc, kea."),
        (["--server", "iscdhcp"], "expected one of dnsmasq, isc, kea."),
        (["--server", "kea", "--proxy"], "kea cannot stand beside another DHCP server"),
        (["--server", "kea", "--cluster", "gxd"], "There is no cluster gxd; there are gdx. Did you mean gdx?"),
    ],
)
def test_what_cannot_be_answered_is_refused(words: list[str], reason: str, tool: Any, folder: Path) -> None:
    done = tool("kadeploy-site", "dhcp", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr


@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {LACKING}")
def test_loaders_are_installed_once_and_all_that_dhcp_names_is_there(tool: Any, folder: Path) -> None:
    (folder / "tftp").mkdir()
    done = tool("kadeploy-site", "loaders")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder}/tftp: undionly.kpxe, pxelinux.0: 10 files new.\n"
    assert "10 files unchanged" in tool("kadeploy-site", "loaders").stdout
    shown = json.loads(tool("kadeploy-site", "dhcp", "--server", "kea", "--format", "json").stdout)
    named = [answer["file"] for group in shown["wanted"]["groups"] for answer in group["answers"]]
    assert named == ["undionly.kpxe", "pxelinux.0"]
    assert all((folder / "tftp" / name).is_file() for name in named)


@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {LACKING}")
def test_a_default_of_the_site_s_own_is_told_and_stays(tool: Any, folder: Path) -> None:
    default = folder / "tftp" / "pxelinux.cfg" / "default"
    default.parent.mkdir(parents=True)
    default.write_text("LABEL mine\n")
    done = tool("kadeploy-site", "loaders")
    assert f"{default}: is your own, and stays.\n" in done.stdout
    assert default.read_text() == "LABEL mine\n"


@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {LACKING}")
def test_a_folder_of_loaders_that_is_not_there_is_named(tool: Any, folder: Path) -> None:
    done = tool("kadeploy-site", "loaders")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"ERROR: {folder}/tftp: No such file or directory. Make this folder" in done.stderr


def test_a_device_is_not_replaced_by_the_lines(folder: Path, tool: Any, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = tool("kadeploy-site", "dhcp", "--server", "isc", "--output", str(pipe))
    assert done.returncode == 1
    assert f"{pipe} is no regular file: name another" in done.stderr
    assert pipe.is_fifo()
