"""A cluster file with a mistake, as people meet it: its nodes are left alone, and those of others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.config.site import Site
from tests.unit.conftest import Tool

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def mistake(site: Site, site_folder: Path, tool: Tool) -> str:
    """How the mistake in clusters/nvm.yml is told; everybody here may use all nodes."""
    given = tool("karights3", "-a", "-m", "*", "-p", "*", "-u", "root")
    assert given.returncode == 0, given.stderr
    path = site_folder / "clusters/nvm.yml"
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["micro_timeouts"] = {"format_tmp_prat": 3}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    line = path.read_text(encoding="utf-8").splitlines().index("  format_tmp_prat: 3") + 1
    return f"{path}:{line}: micro_timeouts.format_tmp_prat: unknown micro-step format_tmp_prat"


@pytest.mark.parametrize("command", [("kareboot3", "-r", "simple_reboot"), ("kapower3", "--off")])
def test_nodes_of_other_clusters_are_worked_on_and_these_are_left_alone(
    mistake: str, tool: Tool, command: tuple[str, ...]
) -> None:
    done = tool(*command, "-m", "gdx-1.site", "--dry-run")
    assert done.returncode == 0, done.stderr
    for nodes in (["-m", "nvm-1.site"], ["-m", "gdx-1.site", "-m", "nvm-1.site"]):
        refused = tool(*command, *nodes, "--dry-run")
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"ERROR: {mistake}")
        assert "Did you mean format_tmp_part?" in refused.stderr
        assert "Nothing is done with nvm until this is corrected." in refused.stderr


def test_all_nodes_are_listed_and_the_mistake_is_a_finding(mistake: str, tool: Tool) -> None:
    listed = tool("kanodes3", "-l")
    assert listed.returncode == 0, listed.stderr
    assert {"gdx-1.site", "nvm-1.site"} <= {*listed.stdout.replace(",", " ").split()}
    checked = tool("kadeploy-site", "check", "--topic", "configuration")
    assert checked.returncode == 1
    assert f"fail  configuration  {mistake}" in checked.stdout
    assert "→ did you mean format_tmp_part?" in checked.stdout


@pytest.mark.parametrize("command", [("dhcp", "--server", "isc"), ("loaders",), ("try", "nvm-1.site"), ("upgrade",)])
def test_tools_of_administrators_that_need_it_say_what_is_wrong(
    mistake: str, tool: Tool, command: tuple[str, ...]
) -> None:
    done = tool("kadeploy-site", *command)
    assert done.returncode == 1
    assert mistake in done.stderr
