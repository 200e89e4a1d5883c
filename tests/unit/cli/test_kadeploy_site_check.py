"""kadeploy-site check: lines for people, documents for programs, an exit status for both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kadeploy.config.folder import collection

if TYPE_CHECKING:
    from tests.unit.admin.sound_site import SoundSite
    from tests.unit.conftest import Tool

pytest_plugins = ["tests.unit.admin.sound_site"]


def test_a_line_says_how_bad_it_is_the_topic_what_was_seen_and_what_to_do(sound: SoundSite, tool: Tool) -> None:
    (sound.folder / "keys/bmc").chmod(0o644)
    done = tool("kadeploy-site", "check", "--topic", "files", "--topic", "configuration")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok    configuration  ")
    path = f"{sound.folder}/keys/bmc"
    text = f"clusters/gdx.yml: power.password_file: others may read {path} (mode 0644)"
    assert f"fail  files          {text} → chmod 600 {path}" in lines
    assert lines[-1].startswith("1 fail, 0 warn, ")
    assert (done.returncode, done.stderr) == (1, "")


def test_warnings_alone_are_no_failure(sound: SoundSite, tool: Tool) -> None:
    sound.change("site", rights="dummy")
    done = tool("kadeploy-site", "check", "--topic", "configuration")
    assert "warn  configuration" in done.stdout
    assert done.returncode == 0


def test_quiet_says_nothing_where_all_is_well_and_else_only_what_is_not(sound: SoundSite, tool: Tool) -> None:
    done = tool("kadeploy-site", "check", "-q", "--topic", "configuration")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    sound.change("site", rights="dummy")
    (line,) = tool("kadeploy-site", "check", "-q", "--topic", "configuration").stdout.splitlines()
    assert line.startswith("warn")


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_all_findings_as_one_document(sound: SoundSite, tool: Tool, form: str, read: type) -> None:
    found = read(tool("kadeploy-site", "check", "--topic", "configuration", "--format", form).stdout)  # type: ignore[call-arg]
    assert found[0]["topic"] == "configuration"  # type: ignore[index]
    assert set(found[0]) == {"topic", "name", "level", "text", "advice"}  # type: ignore[index]


def test_a_configuration_that_is_refused_is_a_finding_with_its_line(sound: SoundSite, tool: Tool) -> None:
    path = sound.folder / "site.yml"
    path.write_text(path.read_text().replace("almighty_users", "almighty_user"))
    done = tool("kadeploy-site", "check")
    assert done.returncode == 1
    assert "fail  configuration  " in done.stdout
    assert "almighty_user" in done.stdout
    assert "did you mean almighty_users?" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 fail, 0 warn, 0 ok"


def test_no_configuration_at_all_is_told_too(tool: Tool, tmp_path: Path) -> None:
    done = tool("kadeploy-site", "check", KADEPLOY_CONFIG_DIR=str(tmp_path / "nowhere"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "nowhere/site.yml" in done.stdout


def test_topics_and_nodes_that_there_are_not_are_refused_with_those_that_may_be_meant(
    sound: SoundSite, tool: Tool
) -> None:
    done = tool("kadeploy-site", "check", "--topic", "nmaes")
    assert "Did you mean names?" in done.stderr
    assert done.returncode == 1
    done = tool("kadeploy-site", "check", "-m", "gxd-[1-2].site")
    assert "Did you mean gdx-[1-2].site?" in done.stderr
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("option", ["-m", "--nodes", "--machine"])
def test_nodes_alone_are_looked_at(sound: SoundSite, tool: Tool, option: str) -> None:
    done = tool("kadeploy-site", "check", "--topic", "names", option, "gdx-[2-3]")
    assert "gdx-[2-3].site: " in done.stdout
    assert "gdx-[1" not in done.stdout


def test_ctrl_c_ends_it_within_a_moment_though_a_bmc_is_silent(sound: SoundSite) -> None:
    command = [str(Path(sys.executable).parent / "kadeploy-site"), "check", "--topic", "bmc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        while started.poll() is None and not children.read_text():  # BMCs have a process of their own
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, errors = started.communicate(timeout=20)
    assert started.returncode == 130
    assert "Traceback" not in errors
    assert time.monotonic() - begun < 8


def is_open_to_all(path: Path) -> bool:
    """Whether every account may read what is below *path*."""
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (path, *path.parents))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")
@pytest.mark.skipif(not is_open_to_all(collection()), reason="this checkout is closed to other accounts")
def test_an_ordinary_account_is_told_what_it_cannot_see(sound: SoundSite, open_folder: Path) -> None:
    """In a process of nobody's: what is root's alone is told as such, and nothing breaks off."""
    shutil.copytree(sound.folder, open_folder / "site")
    for path in (open_folder / "site", *(open_folder / "site").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (open_folder / "site/keys").chmod(0o700)
    (open_folder / "site/state").chmod(0o700)
    text = (open_folder / "site/site.yml").read_text().replace(str(sound.folder), f"{open_folder}/site")
    (open_folder / "site/site.yml").write_text(text)
    script = (
        "import contextlib, encodings.ascii, encodings.idna, io, os, sys;"
        "from kadeploy.cli import kadeploy_site;"
        "quiet = contextlib.redirect_stdout(io.StringIO());"
        "quiet.__enter__(); kadeploy_site.main(); quiet.__exit__(None, None, None);"  # so that all is imported
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534);"
        "sys.exit(kadeploy_site.main())"
    )
    local = ("configuration", "files", "programs", "keys", "database", "environments", "room", "service", "ports")
    options = [word for topic in local for word in ("--topic", topic)]
    environment = os.environ | {"KADEPLOY_CONFIG_DIR": f"{open_folder}/site", "HOME": "/"}
    done = subprocess.run(
        [sys.executable, "-c", script, "check", *options], env=environment, capture_output=True, text=True, check=False
    )
    assert "broke off" not in done.stdout, done.stdout
    assert "run this as root" in done.stdout, done.stdout + done.stderr
