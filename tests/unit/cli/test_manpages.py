"""Help, man pages and docs/commands.md: they say the same, and nothing is missing in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pexpect
import pytest

from kadeploy.cli import TOOLS, manpages, usage
from kadeploy.errors import KadeployError, UserInterruptError

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "man"
DOCUMENT = ROOT / "docs" / "commands.md"
MAKE = "run: python -m kadeploy.cli.manpages docs/man docs/commands.md"
LINES = 24
"""Of the smallest screen."""
DAILY = {
    "kadeploy3": "-m -f -e -a -k",
    "kareboot3": "-m -f -r -l -k",
    "kaenv3": "-l -p -a -d",
    "kanodes3": "-d -y -l -m -f",
    "kastat3": "-d -m -b -c -f -x -y",
    "kapower3": "-m -f --on --off --status -l",
    "kaconsole3": "-m",
    "karights3": "-a -d -s -u -m -f -p",
    "kaenv2to3": "-e -f -k",
}
"""What each tool is used with day by day."""

COMMON = "-v --version --server"
NODES = "-f --file -m --machine"
LISTS = "-n --output-ko-nodes -o --output-ok-nodes --multi-server -V --verbose-level"
PXE = "-w --set-pxe-profile --set-pxe-pattern -x --upload-pxe-files"
WIKI = {
    "kadeploy3": f"{COMMON} {NODES} {LISTS} {PXE} -a --env-file -b --block-device -d --debug-mode -e --env-name -k "
    "--key -p --partition-number -r --reformat-tmp -s --script -u --user --vlan --env-version --write-workflow-id "
    "--ignore-nodes-deploying --disable-bootloader-install --disable-disk-partitioning --breakpoint "
    "--set-custom-operations --reboot-classical-timeout --reboot-kexec-timeout --force-steps",
    "kareboot3": f"{COMMON} {NODES} {LISTS} {PXE} -b --block-device -c --check-prod-env -e --env-name -k --key "
    "-l --reboot-level -p --partition-number -r --reboot-kind -u --user --env-version --no-wait "
    "--reboot-classical-timeout",
    "kaenv3": "--server -a --add -d --delete -l --list -m --files-to-move -p --print -s --show-all-versions "
    "-t --visibility-tag -u --user --env-version --remove-demolishing-tag --set-visibility-tag --update-tarball-md5 "
    "--update-preinstall-md5 --update-postinstalls-md5 --move-files",
    "kaconsole3": "-m -v",
    "kastat3": f"{COMMON} -m --machine -a --list-min-retries -b --list-failure-rate -c --list-min-failure-rate "
    "-d --list-all -f --field -s --step -x --date-min -y --date-max",
    "kanodes3": f"{COMMON} {NODES} -d --get-deploy-state -w --workflow-id -y --get-yaml-dump",
    "kapower3": f"{COMMON} {NODES} {LISTS} -d --debug-mode -l --level --off --on --status --no-wait",
    "karights3": f"{COMMON} {NODES} -a --add -d --delete -o --overwrite-rights -p --part -s --show-rights -u --user",
    "kaenv2to3": "-e --env-name -f --env-file -k --env-kind",
}
"""Options of each tool's help on the wiki page."""


def options(name: str) -> set[str]:
    """Every spelling of every option that the tool *name* shows."""
    shown = [words for each in manpages.described(name) for words, _ in manpages.records(*each)]
    return {word for words in shown for word in re.findall(r"(?<![\w-])--?\w[\w-]*", words)}


def sections() -> dict[str, str]:
    """Text of docs/commands.md by heading."""
    parts = re.split(r"^## (.*)\n", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_that_is_installed_is_a_tool() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {name: f"kadeploy.cli.{name.replace('-', '_')}:main" for name in TOOLS}


@pytest.mark.parametrize("name", WIKI)
def test_every_option_of_the_wiki_page_exists(name: str) -> None:
    assert set(WIKI[name].split()) <= options(name)


@pytest.mark.parametrize("name", DAILY)
def test_the_first_screen_of_help_has_examples_and_what_is_needed_every_day(tool: Any, name: str) -> None:
    first = tool(name, "-h", KADEPLOY_CONFIG_DIR="/nowhere", COLUMNS="80").stdout.splitlines()[:LINES]
    assert first.index("Examples:") < first.index("Options:")
    assert f"  {next(iter(manpages.tool(name).examples))}" in first
    for option in DAILY[name].split():
        assert any(re.match(rf"  {option}\b", line) for line in first), option


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", TOOLS)
def test_help_shows_all_examples_and_every_option_in_a_group(tool: Any, name: str, columns: int) -> None:
    done = tool(name, "-h", KADEPLOY_CONFIG_DIR="/nowhere", COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert {f"  {line}" for line in manpages.tool(name).examples} <= set(lines)
    headings = [line.rstrip(":") for line in lines if re.fullmatch(r"\w[\w ]*:", line) and "xamples" not in line]
    assert [name for name in headings if name != "Commands"] == [name for name in usage.GROUPS if name in headings]
    command, context = manpages.described(name)[0]
    assert set(headings) - {"Commands"} == set(usage.groups(command, context))


@pytest.mark.parametrize("name", TOOLS)
def test_no_option_of_a_tool_is_wrapped_on_a_wide_terminal(tool: Any, name: str) -> None:
    """A description that needs two lines begins the second one where descriptions begin."""
    shown = tool(name, "-h", KADEPLOY_CONFIG_DIR="/nowhere", COLUMNS="130").stdout
    assert not re.search(r"^ {8}", shown.replace("--check-demolishing-tag\n", ""), re.MULTILINE)


def test_headings_stand_out_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    program = str(Path(sys.executable).parent / "kanodes3")
    assert "\x1b[1mOptions:\x1b[0m" in pexpect.run(f"{program} -h", encoding="utf-8")
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = pexpect.run(f"{program} -h", encoding="utf-8", env=os.environ | variables)
        assert "Options:" in plain
        assert "\x1b" not in plain


@pytest.mark.parametrize("name", TOOLS)
def test_the_examples_use_options_that_exist(name: str) -> None:
    for example in manpages.tool(name).examples:
        ours = example.split("|")[0]
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", ours)) <= options(name)


# --- man pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOOLS)
def test_the_man_page_is_up_to_date(name: str) -> None:
    written = (PAGES / f"{name}.1").read_text(encoding="utf-8")
    assert written == manpages.page(name), MAKE


@pytest.mark.parametrize("name", TOOLS)
def test_the_man_page_is_clean_and_shows_every_option_and_status(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=200n", PAGES / f"{name}.1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    headings = [line for line in done.stdout.splitlines() if re.fullmatch("[A-Z][A-Z ]+", line)]
    assert headings[:4] == ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"]
    assert headings[-5:] == ["EXIT STATUS", "EXAMPLES", "ENVIRONMENT", "FILES", "SEE ALSO"]
    words = set(re.findall(r"(?<![\w-])--?\w[\w-]*", done.stdout))
    assert options(name) <= words
    app = manpages.tool(name)
    assert {0, KadeployError.exit_code, UserInterruptError.exit_code} <= set(app.statuses)
    for text in (*app.examples, *map(str, app.statuses)):
        assert text in done.stdout


@pytest.mark.parametrize("words", [".so /etc/passwd", "'nroff", "a\\fBb", "-k - 'x' \\n"])
def test_text_is_never_a_request(words: str) -> None:
    page = f".TH X 1\n.SH NAME\n{manpages.literal(words)}\n"
    command = ["groff", "-man", "-Tascii", "-P-cbou"]
    shown = subprocess.run(command, input=page, capture_output=True, text=True, check=True)
    assert words in shown.stdout


def test_pages_are_written_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "users.md").write_text("", encoding="utf-8")
    assert manpages.main([str(tmp_path), str(tmp_path / "users.md")]) == 0
    assert {page.name for page in tmp_path.glob("*.1")} == {f"{name}.1" for name in TOOLS}


# --- docs/commands.md -------------------------------------------------------------------------------------------


def test_the_tables_for_users_are_up_to_date() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == manpages.with_tables(text), MAKE


def test_a_table_is_made_anew_under_the_heading_of_its_tool_alone() -> None:
    text = "## All\n\n| option | meaning |\n|---|---|\n| `-z` | Old. |\n\n## kaconsole3\n\n```\n# Open one.\n```\n\n"
    text += "| option | meaning |\n|---|---|\n| `-z` | Old. |\n\n### kadeploy-lab logs\n\nNo table.\n"
    before, made = manpages.with_tables(text).split("## kaconsole3")
    assert before == text.split("## kaconsole3")[0]
    assert "| `-m, --machine MACHINE` | Node whose console is opened. |" in made.splitlines()
    assert "-z" not in made
    assert made.endswith(" |\n\n### kadeploy-lab logs\n\nNo table.\n")


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_for_users_tells_every_exit_status(name: str) -> None:
    statuses = manpages.tool(name).statuses
    told = " · ".join(f"{status} {statuses[status].rstrip('.')}" for status in sorted(statuses))
    assert f"Exit status: {told}." in sections()[name].splitlines()


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_for_users_names_every_option(name: str) -> None:
    found = sections()
    words = set(re.findall(r"(?<![\w-])--?\w[\w-]*", found[name] + found["All tools"]))
    assert options(name) <= words


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_for_users_names_no_option_that_does_not_exist(name: str) -> None:
    lines = [line for line in sections()[name].splitlines() if line.startswith("| `-")]
    words = {word for line in lines for word in re.findall(r"(?<![\w-])--?\w[\w-]*", line.split("|")[1])}
    assert words <= options(name)


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_for_users_runs_no_option_that_does_not_exist(name: str) -> None:
    text = sections()[name].replace("\\\n", "")
    commands = re.findall(rf"^\$ (?:.*[|&] )?{name} ([^|&\n]*)", text, flags=re.MULTILINE)
    assert commands
    words = {word for command in commands for word in re.findall(r"(?<=\s)--?[a-z][\w-]*", f" {command}")}
    assert words <= options(name)


# --- all pages --------------------------------------------------------------------------------------------------

PAGES_OF_COMMANDS = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def typed(page: Path) -> list[str]:
    """What is typed in blocks of a page, without comments behind it."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    return [re.sub(r"\s# .*|\s#$", "", line.strip()[2:]) for line in lines if re.match(r" *[$#] ", line)]


@cache
def known_options() -> dict[str, set[str]]:
    """Every command, those of groups too, with the options that it has."""
    return {
        context.command_path: set(re.findall(r"(?<![\w-])--?\w[\w-]*", " ".join(words for words, _ in records)))
        for name in TOOLS
        for command, context in manpages.described(name)
        if (records := manpages.records(command, context))
    }


@pytest.mark.parametrize("page", PAGES_OF_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_types_a_command_with_an_option_that_it_does_not_have(page: Path) -> None:
    known = known_options()
    wrong = set()
    for words in (re.split(r"\s+", part) for line in typed(page) for part in re.split(r"[|;&]+ *|\$\(", line)):
        starts = [" ".join(words[:length]) for length in range(len(words), 0, -1)]
        path = next((each for each in starts if each in known), "")
        if path and path != "kadeploy-lab ssh":  # of which the rest is for the node
            given = {word for word in words if re.fullmatch(r"--?[a-zA-Z][\w-]*", word)}
            wrong |= {f"{path}: {word}" for word in given - known[path] - known.get(words[0], set())}
    assert wrong == set()
