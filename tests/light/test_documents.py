"""The tutorial and the how-tos do what they say: their commands are typed, in order, at a lab.

A block ``console`` of these pages is typed as it stands, all blocks of a page in one shell, at a terminal. What is
shown below a command has to appear in what it leaves there, line by line; ``…`` stands for anything, and numbers may be
others. A comment above a block says more: ``<!-- status 3 -->`` of its last command, ``<!-- file: NAME -->`` that the
block is a file, and ``<!-- not tried: REASON -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyte
import pytest

from kadeploy.lab.lab import saved
from tests.light.conftest import TOOLS, lab_command

DOCS = Path(__file__).parents[2] / "docs"
NAME = "kadeploy-docs"
NODES = "node-[1-4]"
TUTORIALS = sorted((DOCS / "tutorial").glob("*.md"))
HOWTOS = sorted((DOCS / "howto").glob("*.md"))
LIMIT = 300
"""Seconds for one page."""
COLUMNS = 400

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<says>[^\n]*) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_PROMPT = re.compile(r"[$#] ")
_MARK = "@@ status "


class Command(NamedTuple):
    """What is typed, what is shown below it, and how it ends."""

    words: str
    shown: tuple[str, ...]
    status: int


def commands(page: Path) -> Iterator[Command]:
    """What is typed in the page, files that it shows among it."""
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        says, text = block["says"] or "", textwrap.dedent(block["text"])
        if says.startswith("file: "):
            yield Command(f"cat > {says.removeprefix('file: ')} <<'END'\n{text}END", (), 0)
        elif block["kind"] == "console" and not says.startswith("not tried: "):
            found = list(_typed(text))
            status = int(says.removeprefix("status ")) if says.startswith("status ") else 0
            yield from (*found[:-1], found[-1]._replace(status=status))


def _typed(text: str) -> Iterator[Command]:
    for part in re.split(r"^(?=[$#] )", text.replace("\\\n", ""), flags=re.MULTILINE):
        if part:
            words, *shown = part.splitlines()
            yield Command(_PROMPT.sub("", words, count=1), tuple(shown), 0)


def typed(page: Path, folder: Path, variables: Mapping[str, str]) -> list[tuple[Command, int, list[str]]]:
    """Type the page's commands in *folder*, at a terminal: each with its status and what it has left there."""
    todo = list(commands(page))
    script = folder / "typed.sh"
    script.write_text("".join(f"{each.words}\nprintf '\\n{_MARK}%d\\n' $?\n" for each in todo), encoding="utf-8")
    terminal = {"COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm", "HOME": str(folder)}
    environment = {**os.environ, **terminal, "PATH": f"{TOOLS}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["script", "-qec", f"bash {script}", "/dev/null"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    parts = re.split(rf"\r\n{_MARK}(\d+)\r\n", done.stdout.decode())
    assert len(parts) == 2 * len(todo) + 1, done.stdout.decode()[-2000:]
    return list(zip(todo, map(int, parts[1::2]), map(shown_of, parts[0:-1:2]), strict=True))


def shown_of(output: str) -> list[str]:
    """What *output* leaves on a terminal that is high enough for all of it."""
    screen = pyte.Screen(COLUMNS, output.count("\n") + 60)
    pyte.Stream(screen).feed(output)
    return [line.rstrip() for line in screen.display if line.strip()]


def follows(shown: str, line: str) -> bool:
    """Whether a line is as it is *shown*, but for numbers, blanks and what ``…`` stands for."""
    parts = [re.sub(r"\d+(?:\\\.\d+)?", r"[\\d.]+", re.escape(" ".join(part.split()))) for part in shown.split("…")]
    return re.fullmatch(".*".join(parts), " ".join(line.split())) is not None


def require(results: list[tuple[Command, int, list[str]]]) -> None:
    """Check the end of each command, and that what is shown was said, in that order."""
    for command, status, said in results:
        assert status == command.status, f"{command.words}\n" + "\n".join(said)
        rest = iter(said)
        for line in command.shown:
            told = line.strip() in {"", "…"} or any(follows(line, each) for each in rest)
            assert told, f"{command.words}\nis shown to say:\n{line}\nand said:\n" + "\n".join(said)


@pytest.fixture(scope="module")
def site() -> Iterator[Mapping[str, str]]:
    """Variables that lead to a lab in which root may do all, with an environment debian12."""
    lab_command("down", "--name", NAME)
    lab_command("up", "--kind", "sim", "--nodes", "4", "--name", NAME)
    try:
        made = saved(NAME)
        assert made is not None
        variables = {
            "KADEPLOY_CONFIG_DIR": str(made.config),
            "KADEPLOY_LAB_ENVIRONMENTS": str(made.environments_folder),
            "KADEPLOY_LAB_KEY": str(made.private_key),
        }
        described = (made.environments_folder / "sim.dsc").read_text(encoding="utf-8")
        debian = re.sub(r"^name : .*$", "name : debian12", described, flags=re.MULTILINE)
        for words, said in (
            (["karights3", "-a", "-m", "*", "-p", "*", "-u", "root"], ""),
            (["kaenv3", "-a", "-"], debian),
        ):
            subprocess.run(
                [TOOLS / words[0], *words[1:]], env=os.environ | variables, input=said, text=True, check=True
            )
        yield variables
    finally:
        lab_command("down", "--name", NAME)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_tutorial_goes_as_it_says_on_a_machine_without_a_site(page: Path, tmp_path: Path) -> None:
    lab_command("down", "--name", "tutorial")
    try:
        require(typed(page, tmp_path, {}))
        assert saved("tutorial") is None
    finally:
        lab_command("down", "--name", "tutorial")


@pytest.mark.parametrize("page", [page for page in HOWTOS if any(commands(page))], ids=lambda page: page.stem)
def test_what_a_how_to_types_works_at_a_lab(page: Path, site: Mapping[str, str], tmp_path: Path) -> None:
    require(typed(page, tmp_path, site))


@pytest.mark.parametrize(
    ("shown", "line", "expected"),
    [
        ("D-… ended after 4 s: 4 OK", "D-ab12 ended after 61 s: 4 OK", True),
        ("node-1  ok", "node-1 ok", True),
        ("node-1 ok", "node-1 ko", False),
        ("4 OK, …", "3 KO, 1 OK", False),
        ("(…)", "(a.b)", True),
        ("a.b", "axb", False),
    ],
)
def test_a_line_follows_what_is_shown_but_for_numbers_and_what_is_left_out(
    shown: str, line: str, expected: bool
) -> None:
    assert follows(shown, line) is expected
