"""The secret of a try: the same for all who ask about the same try, and for nobody else."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from kadeploy.boot import secret
from kadeploy.workflow import Attempt, GoesOn

TRY = Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted")


def test_a_try_has_one_secret_and_each_of_its_nodes_a_part_of_its_own(tmp_path: Path) -> None:
    """Nodes that are late go on in an attempt with another number, which is the same try."""
    made = secret.make(tmp_path, TRY)
    late = replace(TRY, number=7, goes_on=GoesOn("wait_reboot", 0.0, 5.0))
    assert secret.make(tmp_path, TRY) == secret.find(tmp_path, late) == made
    assert made.parameter("node-1") == f"kadeploy.attempt={made.of('node-1')}"
    assert made.of("node-1") != made.of("node-2")
    assert len(made.of("node-1")) == 32


def test_another_try_has_another_secret(tmp_path: Path) -> None:
    tries = [TRY, replace(TRY, retry=1), replace(TRY, implementation="SetDeploymentEnvKexec")]
    assert len({secret.make(tmp_path, each).key for each in tries}) == 3


def test_where_nothing_was_booted_with_a_secret_there_is_none_to_ask_for(tmp_path: Path) -> None:
    assert secret.find(tmp_path, TRY) is None


def test_those_who_make_it_at_the_same_time_have_the_same_and_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = set(pool.map(lambda _: secret.make(tmp_path, TRY).key, range(200)))
    assert len(made) == 1
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
