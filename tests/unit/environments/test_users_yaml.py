"""YAML of users: whatever is written, it costs little and ends as data or as a refusal."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.caller import caller
from kadeploy.environments import description, users_yaml
from kadeploy.errors import EnvironmentRefusedError, OptionError
from kadeploy.operations import custom
from kadeploy.runner import playbooks

WHO = caller()
NAMES = st.text("abc", min_size=1, max_size=3)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab c\n:-", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
)


def doubled(levels: int, link: str) -> str:
    """Each level holds the one before twice; *link* says how."""
    lines = [f"a{level}: &a{level} {link.replace('A', f'*a{level - 1}')}" for level in range(1, levels)]
    return "\n".join(["a0: &a0 {k: v}", *lines, ""])


HOSTILE = {
    "aliases in mappings": doubled(40, "{p: A, q: A}"),
    "aliases in lists": doubled(40, "[A, A]"),
    "merge keys": doubled(40, "{<<: [A, A]}"),
    "itself in a mapping": "image: &a {file: /x, more: *a}\n",
    "itself in a list": "a: &a [1, *a]\n",
    "deep": f"a: {'[' * 100_000}{']' * 100_000}\n",
    "deep blocks": f"a: {'- ' * 100_000}x\n",
    "deep JSON": '{"a":' * 900 + "1" + "}" * 900,
}


@given(st.lists(DATA, max_size=3))
def test_documents_are_read_as_plain_data(documents: list[object]) -> None:
    text = yaml.safe_dump_all(documents, explicit_start=True)
    assert [each.content for each in users_yaml.read(text)] == documents


def test_a_part_that_is_repeated_a_few_times_is_no_harm() -> None:
    (document,) = users_yaml.read("a: &a {b: 1}\nc: [*a, *a]\n")
    assert document.content == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_description_is_refused_in_no_time(kind: str, tmp_path: Path) -> None:
    begun = time.process_time()
    with pytest.raises(EnvironmentRefusedError):
        description.parse_all("os: linux\n" * (not kind.endswith("JSON")) + HOSTILE[kind], source=str(tmp_path / "x"))
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_custom_operations_are_refused_in_no_time(kind: str, tmp_path: Path) -> None:
    begun = time.process_time()
    with pytest.raises(OptionError):
        custom.parse(HOSTILE[kind], source=str(tmp_path / "x"), who=WHO, known=playbooks.register(tmp_path))
    assert time.process_time() - begun < 2


def test_an_operation_that_is_repeated_by_the_million_is_refused(tmp_path: Path) -> None:
    steps = "".join(f"  step-{number}: *many\n" for number in range(1000))
    entries = "&one {action: exec, name: x, command: ls}, " + "*one, " * 1000
    text = f"BroadcastEnv:\n  send_environment: &many\n    pre-ops: [{entries}]\n{steps}"
    with pytest.raises(OptionError, match="more than 100000 values"):
        custom.parse(text, source="x", who=WHO, known=playbooks.register(tmp_path))
