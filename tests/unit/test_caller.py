"""Who calls: the real user, or who called sudo."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from kadeploy.caller import caller
from kadeploy.errors import OptionError

ME = pwd.getpwuid(os.getuid())
NOBODY = pwd.getpwnam("nobody")


def test_without_sudo_it_is_the_real_user() -> None:
    assert caller({}) == (ME.pw_name, ME.pw_uid, ME.pw_gid, Path(ME.pw_dir))


def test_under_sudo_it_is_who_called_sudo_and_only_root_is_believed() -> None:
    expected = NOBODY if os.getuid() == 0 else ME
    assert caller({"SUDO_UID": str(NOBODY.pw_uid)}).name == expected.pw_name


@pytest.mark.parametrize("text", ["", "root", "-1", "1; id"])
def test_a_sudo_uid_that_is_no_number_does_not_count(text: str) -> None:
    assert caller({"SUDO_UID": text}).uid == os.getuid()


def test_a_user_without_account_is_refused() -> None:
    if os.getuid() != 0:  # nobody else can be called by another user
        assert caller({"SUDO_UID": "54321"}).uid == os.getuid()
        return
    with pytest.raises(OptionError, match="54321 has no account"):
        caller({"SUDO_UID": "54321"})
