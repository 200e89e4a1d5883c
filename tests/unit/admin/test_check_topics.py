"""The topics together: each finding is documented, one that breaks ends none of the others."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.admin import check
from kadeploy.admin.check import topics
from kadeploy.admin.check.subject import Subject, is_local, local_addresses
from kadeploy.admin.findings import Finding, Look
from kadeploy.errors import ConfigError, KadeployError
from tests.unit.admin.sound_site import SoundSite

FOLDER = Path(check.__path__[0])
PAGE = Path(__file__).parents[3] / "docs" / "check.md"


def looks() -> set[tuple[str, str]]:
    """Whatever the code can find, by topic and name."""
    modules = [
        importlib.import_module(f"{check.__name__}.{each.name}") for each in pkgutil.iter_modules(check.__path__)
    ]
    return {(each.topic, each.name) for module in modules for each in vars(module).values() if isinstance(each, Look)}


def documented() -> dict[tuple[str, str], list[str]]:
    """What the page lists: the cells behind topic and name."""
    topic, found = "", {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = re.fullmatch(r"### `([a-z]+)`.*", line)
            topic = heading[1] if heading else ""
        elif topic and (row := re.match(r"\| `([a-z0-9-]+)` \|", line)):
            found[topic, row[1]] = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    return found


def test_each_thing_that_is_looked_at_is_in_the_page_with_what_to_do_and_nothing_else_is() -> None:
    found = documented()
    assert set(found) == looks()
    assert all(len(cells) == 2 and all(cells) for cells in found.values())


def test_topics_are_documented_in_their_order() -> None:
    headings = re.findall(r"^### `([a-z]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == list(topics.TOPICS)


def test_findings_are_made_by_what_is_documented_alone() -> None:
    """No topic makes a finding without a name, or for a name that is not a constant of its module."""
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "kadeploy.admin.findings":
                assert not {alias.name for alias in node.names} & {"ok", "warn", "fail"}, path.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Look":
                assert path.name == "topics.py" or all(isinstance(each, ast.Constant) for each in node.args), path.name


def test_each_look_belongs_to_the_topic_of_its_file() -> None:
    for topic, function in topics.TOPICS.items():
        module = importlib.import_module(function.__module__)
        own = {each.topic for each in vars(module).values() if isinstance(each, Look)}
        assert own == {topic}


@pytest.mark.parametrize(
    ("error", "level", "said"),
    [
        (RuntimeError("what a pity"), "fail", "RuntimeError: what a pity"),
        (KadeployError("Set it right."), "fail", "Set it right."),
        (PermissionError(13, "Permission denied", "/secret"), "warn", "/secret: Permission denied"),
    ],
)
def test_a_topic_that_breaks_is_told_and_the_others_go_on(
    sound: SoundSite, error: Exception, level: str, said: str
) -> None:
    good, bad = Look("files", "state"), Look("keys", "private")

    def broken(_: Subject) -> Iterator[Finding]:
        yield bad.ok("before")
        raise error

    def sane(_: Subject) -> Iterator[Finding]:
        yield good.ok("after")

    found = list(topics.run(sound.subject(), ["keys", "files"], {"keys": broken, "files": sane}))
    assert [(each.topic, each.name, each.level) for each in found] == [
        ("keys", "private", "ok"),
        ("keys", "check", level),
        ("files", "state", "ok"),
    ]
    assert said in found[1].text
    assert found[1].advice


def test_ctrl_c_is_not_taken_for_a_topic_that_breaks(sound: SoundSite) -> None:
    def interrupted(_: Subject) -> Iterator[Finding]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        list(topics.run(sound.subject(), ["keys"], {"keys": interrupted}))


def test_each_line_of_a_refusal_is_a_finding_with_what_was_meant(tmp_path: Path) -> None:
    error = ConfigError("site.yml:1: unknown key nmae. Did you mean name?\nsite.yml:2: wrong value 0.")
    found = list(topics.refused(error, tmp_path))
    assert [(each.name, each.level) for each in found] == [("loads", "fail"), ("loads", "fail")]
    assert found[0].advice == "did you mean name?"


def test_a_check_of_everything_changes_nothing(sound: SoundSite) -> None:
    def seen() -> dict[Path, tuple[int, int, int]]:
        paths = [path for path in sound.folder.rglob("*") if not stat.S_ISSOCK(path.lstat().st_mode)]
        return {path: (path.stat().st_mode, path.stat().st_size, path.stat().st_mtime_ns) for path in paths}

    before = seen()
    found = list(topics.run(sound.subject("gdx-1.site"), topics.TOPICS))
    assert {each.topic for each in found} == set(topics.TOPICS)
    assert seen() == before


def test_text_of_others_is_shown_as_text() -> None:
    found = Look("bmc", "login").fail("says \x1b[31mred\nand more", "do\nthis")
    assert found.text.isprintable()
    assert (found.text.endswith("red and more"), found.advice) == (True, "do this")


def test_addresses_of_this_machine_are_told_from_others() -> None:
    assert is_local("127.0.0.1")
    assert is_local("127.9.9.9")
    assert not is_local("198.51.100.1")
    assert all(re.fullmatch(r"[\d.]+", each) for each in local_addresses())
