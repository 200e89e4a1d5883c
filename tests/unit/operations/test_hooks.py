"""The site's command at the end of an operation."""

from __future__ import annotations

from pathlib import Path

from kadeploy.operations import hooks


def test_the_workflow_id_is_put_into_any_word_and_no_shell_is_involved(tmp_path: Path) -> None:
    target = tmp_path / "told"
    assert hooks.run(f"cp /dev/null '{target} $HOME;WORKFLOW_ID'", "D-1", 10) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["told $HOME;D-1"]


def test_no_hook_is_no_problem() -> None:
    assert hooks.run("", "D-1", 10) == ""


def test_what_goes_wrong_is_told_and_nothing_is_raised() -> None:
    assert hooks.run("sh -c 'echo no licence >&2; exit 3'", "D-1", 10) == "the hook sh ended with status 3: no licence"
    assert "cannot be run" in hooks.run("/nonesuch/hook", "D-1", 10)
    assert "malformed" in hooks.run("sh -c 'oops", "D-1", 10)


def test_a_hook_that_takes_too_long_is_ended() -> None:
    assert "was ended after 1 s" in hooks.run("sleep 1000", "D-1", 1)
