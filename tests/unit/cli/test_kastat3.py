"""kastat3: every use case of the wiki page, to the letter, and the picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.cli import kastat3, shell
from kadeploy.config.site import Site
from kadeploy.state import database
from kadeploy.state.history import FIELDS
from kadeploy.state.tables import Log, Workflow

pytestmark = pytest.mark.usefixtures("way")

NINE = 1234515600  # 2009-02-13 09:00:00 UTC
MIDNIGHT = NINE + 15 * 3600
ROWS = (
    # hostname, start, retries, success, error
    ("gdx-1.site", NINE - 86400, (0, 0, 0), True, ""),
    ("gdx-1.site", NINE, (3, 0, 1), False, "SetDeploymentEnvUntrusted-reboot: no answer\r\nBMC: off, or dead"),
    ("gdx-1.site", NINE + 60, (1, 0, 0), True, ""),
    ("gdx-2.site", NINE, (0, 3, 0), False, "é"),
    ("gdx-10.site", NINE + 3600, (0, 0, 0), True, ""),
)


def row(hostname: str, start: int, retries: tuple[int, int, int], success: bool, error: str) -> dict[str, Any]:
    return {
        "wid": f"D-{start}",
        "operation": "deploy",
        "user": "alice",
        "hostname": hostname,
        "step1": "SetDeploymentEnvUntrusted",
        "step2": "BroadcastEnvChain",
        "step3": "BootNewEnvClassical",
        "timeout_step1": 600,
        "timeout_step2": 900,
        "timeout_step3": 300,
        **{f"retry_step{step}": count for step, count in enumerate(retries, 1)},
        "start": start,
        "step1_duration": 101,
        "step2_duration": 52,
        "step3_duration": 63,
        "env": "debian:12",
        "anonymous_env": False,
        "md5": "d41d8cd98f00b204e9800998ecf8427e",
        "success": success,
        "error": error,
    }


@pytest.fixture
def past(site: Site) -> Site:
    """A site with five deployments and a reboot behind it."""
    database.connect(site)
    database.insert(Log, [row(*values) for values in ROWS])
    reboot = row("gdx-1.site", NINE, (0, 0, 0), False, "") | {"operation": "reboot", "step1": "Simple"}
    database.insert(Log, [reboot])
    return site


def run(*argv: str) -> int:
    return shell.run(kastat3.app, "kastat3", argv)


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("kastat3-d.txt", ["-d"]),
        ("kastat3-d-m.txt", ["-d", "-m", "gdx-[2-130].site"]),
        ("kastat3-d-f.txt", ["-d", "-f", "hostname", "-f", "env", "-f", "success"]),
        ("kastat3-b.txt", ["-b"]),
        ("kastat3-b-x-y.txt", ["-b", "-x", "2009:02:13:08:00:00", "-y", "2009:02:13:09:30:00"]),
        ("kastat3-c.txt", ["-c", "25", "-x", "2009:02:12:08:00:00"]),
        ("kastat3-a.txt", ["-a", "3"]),
        ("kastat3-a-s.txt", ["-a", "3", "-s", "1"]),
    ],
)
def test_the_use_cases_of_the_wiki_page(
    tool: Any, past: Site, golden: Callable[[str], str], name: str, argv: list[str]
) -> None:
    done = tool("kastat3", *argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, golden(name), "")


def test_several_steps_must_all_have_needed_the_retries(past: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-a", "1", "-s", "1", "-s", "3") == 0
    assert capsys.readouterr().out == f"{NINE},gdx-1.site,3,0,1\n"


@pytest.mark.parametrize(
    ("since", "until", "count"),
    [
        ("2009:02:13:09:00:00", "2009:02:13:09:00:00", 2),
        ("2009:02:13:09:00:01", "2009:02:13:09:01:00", 1),
        ("2009-02-13", "2009-02-13", 4),
    ],
)
def test_a_period_has_both_its_ends(tool: Any, past: Site, since: str, until: str, count: int) -> None:
    done = tool("kastat3", "-d", "-f", "start", "-x", since, "-y", until)
    assert len(done.stdout.splitlines()) == count


def test_nodes_may_come_from_standard_input(tool: Any, past: Site) -> None:
    done = tool("kastat3", "-d", "-F", "hostname", "-f", "-", stdin="gdx-2.site\n")
    assert (done.returncode, done.stderr, set(done.stdout.split())) == (0, "", {"gdx-2.site"})


LATER = ["-F", "hostname,start", "--sort", "-start,hostname"]


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["-a", *LATER, "-l", "2"], [f"gdx-10.site,{NINE + 3600}", f"gdx-1.site,{NINE + 60}"]),
        (["--all", *LATER, "--limit", "0"], ["No information is available"]),
        (
            ["-d", "-w", f"D-{NINE}", "-F", "hostname,operation", "--sort", "operation,-hostname"],
            ["gdx-2.site,deploy", "gdx-1.site,deploy", "gdx-1.site,reboot"],
        ),
        (["-d", "-w", f"D-{NINE}", "-o", "reboot", "-f", "hostname"], ["gdx-1.site"]),
        (["-a", "-f", "./nodes", "-f", "hostname"], ["gdx-2.site", "gdx-10.site"]),
        (["-r", "1", "-s", "1,3", "-F", "hostname"], ["gdx-1.site"]),
        (["-b", "0.35"], ["gdx-2.site: 100%"]),
        (["--failure-rate", ".3", "-m", "gdx-1"], ["gdx-1.site: 34%"]),
    ],
)
def test_the_options_of_later_versions(
    argv: list[str],
    lines: list[str],
    past: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nodes").write_text("gdx-[2,10]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 0
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-b", "1.5"], "expected a rate from 0 to 1"),
        (["-d", "--sort", "nothing"], "--sort nothing: no such field"),
        (["-b", "-l", "3"], "-l goes with -a and -d"),
        (["-d", "-f", "hostnam"], "-f hostnam: no such field, nor ./FILE of nodes"),
        (["-d", "-f", "./none"], "none: No such file"),
    ],
)
def test_what_is_wrong_about_them_is_told(
    argv: list[str], said: str, past: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 1
    assert said in capsys.readouterr().err


def test_a_node_that_neither_the_site_nor_the_log_knows_is_refused(
    past: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-d", "-m", "gdx-[1-2].site", "-m", "gdx-99.site") == 1
    assert "Unknown node: gdx-99.site" in capsys.readouterr().err


def test_a_workflow_that_never_was_is_refused_and_the_nearest_named(
    past: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    controller = {"host": "here", "pid": 1, "process_start": "1", "boot_id": "b", "seen": NINE}
    columns = {"wid": "D-9xfnm17rxv", "operation": "deploy", "user": "root", "started": NINE}
    database.insert(Workflow, [columns | controller])
    assert run("-d", "-w", "D-9xfnm17rxw") == 1
    assert "-w D-9xfnm17rxw: no workflow is or was called so." in (err := capsys.readouterr().err)
    assert "Did you mean D-9xfnm17rxv?" in err
    assert run("-d", "-w", "D-9xfnm17rxv") == 0
    assert capsys.readouterr().out == "No information is available\n"


def test_a_node_that_the_site_has_no_more_still_has_its_past(past: Site, capsys: pytest.CaptureFixture[str]) -> None:
    database.insert(Log, [row("old-1.site", NINE, (0, 0, 0), True, "")])
    assert run("-b", "-m", "old-1.site") == 0
    assert capsys.readouterr().out == "old-1.site: 0%\n"


def test_nothing_found_is_said_and_no_error(past: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for operation in (["-d"], ["-b"], ["-c", "0"], ["-a", "0"]):
        assert run(*operation, "-y", "2001:01:01:00:00:00") == 0
        assert capsys.readouterr().out == "No information is available\n"


def test_other_operations_are_counted_when_asked_for(past: Site, capsys: pytest.CaptureFixture[str]) -> None:
    run("-b", "--operation", "reboot")
    run("-d", "-f", "operation", "-f", "step1", "--operation", "all", "-m", "gdx-1.site", "-x", "2009-02-13")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "gdx-1.site: 100%"
    assert sorted(out[1:]) == ["deploy,SetDeploymentEnvUntrusted"] * 2 + ["reboot,Simple"]


def test_every_field_can_be_asked_for_alone(past: Site, capsys: pytest.CaptureFixture[str]) -> None:
    run("-d", "-m", "gdx-1.site", "-y", "2009-02-12")
    whole = capsys.readouterr().out.strip().split(",")
    for name, value in zip(FIELDS, whole, strict=True):
        run("-d", "-f", name, "-m", "gdx-1.site", "-y", "2009-02-12")
        assert capsys.readouterr().out == f"{value}\n"


@pytest.mark.parametrize(("day", "found"), [("2009-02-12", [NINE - 86400]), ("2009-02-13", [MIDNIGHT - 1])])
def test_a_day_alone_ends_with_its_last_second(
    past: Site, day: str, found: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    late = [row("nvm-1.site", start, (0, 0, 0), True, "") for start in (MIDNIGHT - 1, MIDNIGHT)]
    database.insert(Log, late)
    assert run("-d", "-f", "start", "-y", day, "-m", "gdx-1.site" if day == "2009-02-12" else "nvm-1.site") == 0
    assert capsys.readouterr().out == "".join(f"{start}\n" for start in found)


def test_other_formats_hold_the_same(past: Site, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["-d", "-f", "hostname", "-f", "success", "-f", "error", "-y", "2009:02:13:09:00:00", "--format"]
    expected = [
        {"hostname": "gdx-1.site", "success": True, "error": ""},
        {"hostname": "gdx-1.site", "success": False, "error": ROWS[1][4]},
        {"hostname": "gdx-2.site", "success": False, "error": "é"},
    ]
    assert run(*argv, "json") == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert run(*argv, "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == expected


def test_failure_rates_in_other_formats_say_how_many(past: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-c", "50", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"hostname": "gdx-2.site", "operations": 1, "successes": 0, "failure_rate": 100}
    ]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_nothing_found_is_an_empty_document_in_other_formats(
    past: Site, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-d", "-y", "2001:01:01:00:00:00", "--format", form) == 0
    assert yaml.safe_load(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "Choose one of -a"),
        (["-b", "-d"], "Choose one of -a"),
        (["-c", "101"], "'-c'"),
        (["-a", "many"], "-a many: expected the number of retries"),
        (["-d", "-f", "nope"], "-f nope: no such field"),
        (["-b", "-f", "env"], "-f goes with -a and -d"),
        (["-d", "-s", "1"], "-s goes with -a"),
        (["-a", "1", "-s", "4"], "-s 4: the macro-steps are 1, 2 and 3"),
        (["-d", "-x", "2009/02/12"], "-x 2009/02/12: not a date"),
        (["--plot", "picture.gif"], "ends in .png or .svg"),
        (["--plot", ""], "ends in .png or .svg"),
        (["--plot", "picture.png", "--format", "json"], "--format goes with -a, -b, -c and -d"),
        (["--plot", "picture.png", "-d"], "Choose one of -a"),
    ],
)
def test_senseless_requests_are_refused(
    site: Site, argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 1
    assert reason in capsys.readouterr().err


# --- the picture ------------------------------------------------------------------------------------------------


def test_a_png_is_written(past: Site, tmp_path: Path) -> None:
    assert run("--plot", str(tmp_path / "past.png")) == 0
    assert (tmp_path / "past.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_an_svg_names_the_nodes_and_the_macro_steps(past: Site, tmp_path: Path) -> None:
    assert run("--plot", str(tmp_path / "past.svg")) == 0
    text = (tmp_path / "past.svg").read_text(encoding="utf-8")
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    for word in ("gdx-1", "gdx-10", "SetDeploymentEnv", "BroadcastEnv", "BootNewEnv", "paris", "Nodes at work"):
        assert word in text  # matplotlib keeps the words in comments when it draws letters as paths


def test_nothing_to_draw_is_said_and_no_file_is_made(
    past: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--plot", str(tmp_path / "past.png"), "-y", "2001-01-01") == 0
    assert capsys.readouterr().out == "No information is available\n"
    assert not (tmp_path / "past.png").exists()


def test_without_matplotlib_a_plot_says_what_to_install_and_the_rest_works(
    tool: Any, past: Site, tmp_path: Path
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    done = tool("kastat3", "--plot", str(tmp_path / "past.png"), PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ERROR: --plot needs matplotlib: pip install 'kadeploy[plot]'.\n"
    assert not (tmp_path / "past.png").exists()
    assert tool("kastat3", "-b", PYTHONPATH=str(tmp_path)).returncode == 0


def test_a_picture_that_cannot_be_written_is_refused(tool: Any, past: Site, tmp_path: Path) -> None:
    done = tool("kastat3", "--plot", str(tmp_path / "nowhere" / "past.png"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "past.png: No such file or directory. Name a file that you can write." in done.stderr
