"""How options may be spelt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.cli.spelling import Spelling
from kadeploy.errors import OptionError

SPELLING = Spelling(
    {
        **dict.fromkeys(("-k", "--key"), "optional"),
        **dict.fromkeys(("-m", "--machine"), "needed"),
        **dict.fromkeys(("-d", "--debug-mode", "--dry-run", "--wait", "--no-wait"), "none"),
    },
    aliases={"--debug": "--debug-mode", "--host": "--machine"},
    gone={"--secure": "", "--no-secure": "", "--password": "there is none."},
)


@pytest.mark.parametrize(
    ("argv", "today"),
    [
        ([], []),
        (["-k"], ["-k", ""]),
        (["--key", "-m", "n-1"], ["--key", "", "-m", "n-1"]),
        (["-k", "keys.pub", "-m", "n-1"], ["-k", "keys.pub", "-m", "n-1"]),
        (["--key=keys.pub"], ["--key=keys.pub"]),
        (["-kkeys.pub"], ["-kkeys.pub"]),
        (["-dk"], ["-dk", ""]),
        (["-k", "-"], ["-k", "-"]),
        (["-dm", "--mach"], ["-dm", "--mach"]),
        (["-m", "n-1", "-k"], ["-m", "n-1", "-k", ""]),
        (["-k", "--", "-k"], ["-k", "", "--", "-k"]),
        (["--mach", "--mach"], ["--machine", "--mach"]),
        (["--ma=x=y"], ["--machine=x=y"]),
        (["--host", "n-1"], ["--machine", "n-1"]),
        (["--ho=n-1"], ["--machine=n-1"]),
        (["--deb"], ["--debug-mode"]),
        (["--no-w"], ["--no-wait"]),
        (["--no-secure", "-d", "--sec"], ["-d"]),
        (["--", "--mach"], ["--", "--mach"]),
        (["--nope", "x"], ["--nope", "x"]),
        (["-m"], ["-m"]),
    ],
)
def test_an_option_is_called_by_its_name_of_today(argv: list[str], today: list[str]) -> None:
    assert SPELLING.today(argv) == today


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--d"], "--d may be --debug, --debug-mode or --dry-run: write more of it"),
        (["--passw", "secret"], "--passw: there is none"),
    ],
)
def test_what_can_mean_two_things_or_nothing_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        SPELLING.today(argv)


@given(
    st.lists(st.sampled_from(["-k", "--key", "-m", "n-1", "--", "keys.pub", "-d", "--mach", "--ke", "-dm"]), max_size=8)
)
def test_what_is_spelt_by_names_of_today_is_left_as_it_is(argv: list[str]) -> None:
    today = SPELLING.today(argv)
    assert SPELLING.today(today) == today
    assert len([word for word in today if word]) == len(argv)
