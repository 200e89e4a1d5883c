"""Descriptions of Kadeploy 2: whatever is in them, the outcome is an environment that can be written, or a refusal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kadeploy.environments import description
from kadeploy.environments.kadeploy2 import Kind, translate
from kadeploy.errors import EnvironmentRefusedError

KINDS: list[Kind] = ["linux", "xen", "other"]
LINES = [
    "name = old",
    "filebase = file:///i.tgz",
    "filebase = /i.dd.gz",
    "filesite = /p.tgz",
    "filesite = /p,q|r.tgz",
    "kernelpath = /vmlinuz",
    "initrdpath = /xen a=b --- /vmlinuz c --- /initrd",
    "fdisktype = 83",
    "filesystem = ext3",
    "kernelparam = a=b",
    "version = 2",
]


@given(
    st.lists(st.sampled_from(LINES), unique=True).map("\n".join)
    | st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=15).map("\n".join),
    st.sampled_from(KINDS),
)
def test_the_outcome_can_be_written_and_read_or_is_a_refusal_on_one_line(text: str, kind: Kind) -> None:
    try:
        environment = translate(text, kind, "/old").environment
        written = description.write([environment], "wiki")
    except EnvironmentRefusedError as error:
        refusal = str(error)
    else:
        assert description.parse(written, source="/new") == environment
        return
    assert "\n" not in refusal


def test_every_line_ends_up_in_the_environment_or_is_named() -> None:
    text = "\n".join(["# comment", "", *LINES[:1], *LINES[2:4], *LINES[5:], "optsupport = 0", "odd"])
    translated = translate(text, "linux", "/old")
    assert translated.left_out == ["optsupport", "line 13"]
    written = description.write([translated.environment], "wiki")
    for value in ("old", "/i.dd.gz", "/p.tgz", "/vmlinuz", "83", "ext3", "a=b", "2"):
        assert value in written
