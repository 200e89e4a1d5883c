"""What every tool shares with its shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kadeploy import __version__, dates
from kadeploy.cli import shell
from kadeploy.config.site import Site
from kadeploy.errors import DestructiveEnvironmentError, FileError, NodeListError, OptionError
from kadeploy.state import database

READING_TOOLS = ("kaenv2to3", "kaenv3", "kanodes3", "kastat3", "karights3")


def app_that(action: Any) -> shell.Tool:
    """A tool with one option, ``-k FILE``, and the shared ones; *action* gets the option's value."""
    app = shell.Tool("A tool for tests.")

    @app.command()
    def command(
        *,
        key: Annotated[str | None, typer.Option("-k", "--key", metavar="[FILE]")] = None,
        _machines: shell.Machines = None,
        _server: shell.Server = None,
        _multi_server: shell.MultiServer = False,
        _version: shell.Version = False,
    ) -> int | None:
        return action(key)  # type: ignore[no-any-return]

    return app


def fail(error: BaseException) -> Any:
    def action(_: object) -> None:
        raise error

    return action


# --- exit statuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 3])
def test_the_exit_status_is_what_the_command_returns(status: int) -> None:
    assert shell.run(app_that(lambda _: status), "tool3", []) == status


def test_a_command_that_returns_nothing_went_well() -> None:
    assert shell.run(app_that(lambda _: None), "tool3", []) == 0


@pytest.mark.parametrize(("error", "status"), [(OptionError("No."), 1), (DestructiveEnvironmentError("No."), 2)])
def test_a_refusal_is_one_line_and_its_own_status(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.run(app_that(fail(error)), "tool3", []) == status
    assert capsys.readouterr() == ("", "ERROR: No.\n")


@pytest.mark.parametrize("argv", [["--nope"], ["stray"], ["-m"]])
def test_wrong_usage_is_one_line_that_says_where_to_look(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run(app_that(lambda _: 0), "tool3", argv) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("ERROR: ")
    assert err.endswith("See tool3 --help\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupted_tool_ends_with_130(error: BaseException) -> None:
    assert shell.run(app_that(fail(error)), "tool3", []) == 130


def test_an_error_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        shell.run(app_that(lambda _: 1 // 0), "tool3", [])


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    code = """
import sys
from kadeploy.cli import shell
app = shell.Tool("Writes a lot.")
@app.command()
def write():
    for _ in range(100_000):
        print("a line of text")
sys.exit(shell.run(app, "write3", []))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == shell.BROKEN_PIPE


@pytest.mark.parametrize("lines", [1, 100_000])
def test_an_output_that_cannot_be_written_is_a_refusal(lines: int) -> None:
    code = f"""\
import sys
from kadeploy.cli import shell
app = shell.Tool("Writes.")
@app.command()
def write():
    for _ in range({lines}):
        print("a line of text")
sys.exit(shell.run(app, "write3", []))
"""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "ERROR: The output cannot be written: No space left on device.\n"
    assert done.returncode == 1


# --- common options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("tool_name", READING_TOOLS)
def test_help_is_plain_text_without_configuration(tool: Any, tool_name: str, option: str) -> None:
    done = tool(tool_name, option, KADEPLOY_CONFIG_DIR="/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {tool_name} [OPTIONS]\n")
    assert "--version" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("option", ["-v", "--version"])
@pytest.mark.parametrize("tool_name", READING_TOOLS)
def test_the_version_is_printed_whatever_else_is_wrong(tool: Any, tool_name: str, option: str) -> None:
    done = tool(tool_name, option, KADEPLOY_CONFIG_DIR="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Kadeploy version: {__version__}\n", "")


@pytest.mark.parametrize("option", ["--multi-server", "-M"])
def test_several_servers_are_the_one_there_is(option: str) -> None:
    assert shell.run(app_that(lambda _: 0), "tool3", [option]) == 0


@pytest.mark.parametrize("tool_name", READING_TOOLS)
def test_tools_that_only_read_do_not_load_what_they_do_not_use(tool_name: str) -> None:
    code = f"""
import sys
from kadeploy.cli import {tool_name}, shell
shell.run({tool_name}.app, "{tool_name}", ["--help"])
print(sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    for package in ("ansible", "ansible_runner", "asyncssh", "rich", "matplotlib", "pyghmi"):
        assert f"'{package}'" not in loaded


# --- an option whose value may be left out ----------------------------------------------------------------------


def test_a_value_in_brackets_may_be_left_out() -> None:
    seen: list[str | None] = []
    for argv in ([], ["-k", "-m", "n-1"], ["-k"], ["-k", "keys.pub"]):
        shell.run(app_that(seen.append), "tool3", argv)
    assert seen == [None, "", "", "keys.pub"]


# --- nodes ------------------------------------------------------------------------------------------------------


def test_nodes_of_ranges_and_files_each_once_in_order(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("# two racks\ngdx-[2-3].site\n\nnvm-1.site  # new\ngdx-1.site\n", encoding="utf-8")
    names = shell.node_names(["gdx-2.site", "gdx-1.site"], [str(file)])
    assert names == ["gdx-2.site", "gdx-1.site", "gdx-3.site", "nvm-1.site"]


def test_no_option_means_no_node() -> None:
    assert shell.node_names(None, None) == []


def test_nodes_come_from_standard_input(tool: Any, site: Site) -> None:
    database.connect(site)
    done = tool("kanodes3", "-d", "-f", "-", stdin="gdx-99.site\n")
    assert done.returncode == 1
    assert "Unknown node: gdx-99.site" in done.stderr


def test_a_file_without_node_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(NodeListError, match="no node in this file"):
        shell.node_names(None, [str(tmp_path / "nodes")])


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        shell.node_names(None, [str(tmp_path / "none")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="not a text file"):
        shell.node_names(None, [str(tmp_path / "binary")])


def test_a_list_of_nodes_that_has_no_end_is_refused(tmp_path: Path) -> None:
    """A FIFO that nobody writes, a device, and more than a site's nodes would ever take."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"n-1\n" * (shell.NODE_FILE_BYTES // 4 + 1))
    for path, said in (("fifo", "not a regular file"), ("long", "too big"), ("/dev/zero", "not a regular file")):
        with pytest.raises(FileError, match=said):
            shell.node_names(None, [str(tmp_path / path)])


def test_a_list_may_be_what_the_shell_has_opened(tool: Any, site: Site) -> None:
    database.connect(site)
    lines = ["kanodes3 -d -f <(echo gdx-99.site)", "echo gdx-99.site | kanodes3 -d -f /dev/stdin"]
    for line in lines:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", line], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        assert "Unknown node: gdx-99.site" in done.stderr


def test_files_are_opened_with_the_rights_of_who_called_sudo(tmp_path: Path) -> None:
    """A file that root alone may read stays unread, and none of it is in the message; root gets its rights back."""
    secret = tmp_path / "shadow"
    secret.write_text("root:x:0\n", encoding="utf-8")
    secret.chmod(0o000 if os.getuid() else 0o600)
    code = """
import os, sys
from kadeploy.cli import shell
try:
    shell.node_names(None, [sys.argv[1]])
except shell.FileError as refusal:
    print(refusal, os.geteuid() == os.getuid())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(secret)],
        env=os.environ | {"SUDO_UID": "65534"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Permission denied" in done.stdout
    assert "root:x" not in done.stdout
    assert done.stdout.endswith("True\n")


# --- dates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["Z", "UTC", " GMT", "+00:00", " -0000"])
@pytest.mark.parametrize("text", ["2026-02-12T08:00:00", "2026-02-12 08:00:00", "2026:02:12:08:00:00"])
def test_a_date_may_say_its_zone(text: str, zone: str) -> None:
    assert dates.moment("-x", f"{text}{zone}") == 1770883200


def test_a_zone_moves_a_date_and_a_days_two_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dates.moment("-x", "2026-02-12 08:00+01:00") == 1770883200 - 3600
    assert dates.moment("-x", "2026-02-12-0530") == 1770854400 + 5 * 3600 + 1800
    assert dates.moment("-y", "2026-02-12Z", day_ends=True) == 1770854400 + 86399


@pytest.mark.parametrize("text", ["2026-02-12T08:00:00+99:99", "2026-02-12T08:00:00 CET", "Z", "+01:00", "9999-99-99"])
def test_what_is_no_zone_makes_no_date(text: str) -> None:
    with pytest.raises(OptionError, match="not a date"):
        dates.moment("-x", text)


# --- files for names --------------------------------------------------------------------------------------------


def test_name_files_are_made_empty_at_once(tmp_path: Path) -> None:
    ok, ko = tmp_path / "ok", tmp_path / "ko"
    ok.write_text("old\n", encoding="utf-8")
    shell.create_name_files(str(ok), str(ko))
    assert (ok.read_bytes(), ko.read_bytes()) == (b"", b"")


def test_one_file_for_both_is_refused_however_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="same file"):
        shell.create_name_files(str(tmp_path / "names"), str(tmp_path / ".." / tmp_path.name / "names"))


def test_a_name_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="Name a file that you can write"):
        shell.create_name_files(str(tmp_path / "none" / "ok"), None)


def test_names_are_written_one_per_line_in_natural_order(tmp_path: Path) -> None:
    shell.write_names(str(tmp_path / "ok"), ["gdx-10.site", "gdx-2.site"])
    assert (tmp_path / "ok").read_text(encoding="utf-8") == "gdx-2.site\ngdx-10.site\n"


# --- dates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "day_ends", "seconds"),
    [
        ("2009:02:12:08:00:00", False, 1234425600),
        ("2009-02-12 08:00:00", True, 1234425600),
        ("2009-02-12T08:00:00", False, 1234425600),
        ("2009-02-12 08:00", True, 1234425600),
        ("2009-02-12T08:00", False, 1234425600),
        ("2009-02-12", False, 1234396800),
        ("2009-02-12", True, 1234396800 + 86399),
    ],
)
def test_dates_are_read_as_local_time(text: str, day_ends: bool, seconds: int) -> None:
    code = f"from kadeploy import dates; print(dates.moment('-x', {text!r}, {day_ends}))"
    variables = os.environ | {"TZ": "UTC"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == f"{seconds}\n"


@pytest.mark.parametrize("text", ["", "yesterday", "2009:02:30:08:00:00", "2009:02:12"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="-x .*not a date"):  # noqa: RUF043 - a pattern
        dates.moment("-x", text)


# --- output -----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), st.lists(st.integers() | st.text() | st.none() | st.booleans())))
def test_json_and_yaml_come_back_as_they_were(data: dict[str, Any]) -> None:
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        code_output = shell.document(data, form)  # type: ignore[arg-type]
        assert read(code_output) == data


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_for_terminals_that_want_them(variables: dict[str, str]) -> None:
    code = "import sys; from kadeploy.cli import shell; sys.stdout.write(repr(shell.coloured('x', 'red')))"
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    assert in_terminal(code, plain) == "'\\x1b[31mx\\x1b[0m'"
    assert in_terminal(code, plain | variables) == "'x'"
    piped = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert piped.stdout == "'x'"


def in_terminal(code: str, variables: dict[str, str]) -> str:
    """What *code* writes to a pseudo-terminal."""
    controller, terminal = os.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=terminal, env=variables):
        os.close(terminal)
        text = b""
        while True:
            try:
                part = os.read(controller, 1024)
            except OSError:  # Linux says EIO when the other end is closed
                break
            if not part:
                break
            text += part
    os.close(controller)
    return text.decode()
