"""The lease of a shard: who may do what with it, and when it is over; reports that come twice, in halves or never."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.errors import OptionError
from kadeploy.events import StepStarted
from kadeploy.workers import lease
from kadeploy.workers.lease import Lease, Report, Reports
from kadeploy.workflow import Attempt, Outcome, Verdict

ATTEMPT = Attempt("BootNewEnv", "BootNewEnvKexec", 1, 60, 7)
NODES = ("gdx-1.site", "gdx-2.site")
KEY = "k" * 43
OURS = Lease(key=KEY, cluster="gdx", nodes=NODES, attempt=ATTEMPT, images={"0" * 64: "image"})
OVER = msgspec.structs.replace(OURS, is_over=True)


def aged(folder: Path, seconds: float) -> None:
    """As if the controller had last been heard so long ago."""
    then = time.time() - seconds
    os.utime(folder / lease.FILE, (then, then))


@pytest.fixture
def claimed(tmp_path: Path) -> Path:
    lease.write(tmp_path, OURS)
    lease.claim(tmp_path, KEY, "w1")
    return tmp_path


def test_a_lease_reads_back_as_it_was_written_and_is_its_owners_alone(tmp_path: Path) -> None:
    assert lease.read(tmp_path) is None
    for written in (OURS, msgspec.structs.replace(OURS, taken={"gdx-1.site": "quarantine"}), OVER):
        lease.write(tmp_path, written)
        assert lease.read(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [lease.FILE]
    assert (tmp_path / lease.FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", ["", "k", KEY + "k", KEY.upper(), "ü", "\x00"])
def test_another_key_opens_nothing(claimed: Path, key: str) -> None:
    with pytest.raises(OptionError, match="not yours"):
        lease.shown(claimed, key)
    with pytest.raises(OptionError, match="not yours"):
        lease.shown(claimed, key, also_over=True)
    assert lease.shown(claimed, KEY) == OURS


@pytest.mark.parametrize("content", [b"", b"{}", b'{"key": 1}', b"\xff"])
def test_a_lease_that_is_damaged_is_nobodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / lease.FILE).write_bytes(content)
    with pytest.raises(OptionError, match="not yours"):
        lease.shown(tmp_path, "")


def test_one_that_was_withdrawn_will_do_for_last_words_until_its_worker_must_have_ended(claimed: Path) -> None:
    lease.write(claimed, OVER)
    with pytest.raises(OptionError, match="not yours"):
        lease.shown(claimed, KEY)
    assert lease.shown(claimed, KEY, also_over=True) == OVER
    aged(claimed, lease.FENCED + 1)
    with pytest.raises(OptionError, match="not yours"):
        lease.shown(claimed, KEY, also_over=True)


def test_a_controller_that_says_nothing_has_abandoned_its_lease(tmp_path: Path) -> None:
    assert lease.is_abandoned(tmp_path)
    lease.write(tmp_path, OURS)
    assert not lease.is_abandoned(tmp_path)
    aged(tmp_path, lease.ABANDONED + 1)
    assert lease.is_abandoned(tmp_path)
    with pytest.raises(OptionError, match="not yours"):
        lease.claim(tmp_path, KEY, "w1")
    lease.touch(tmp_path)
    assert not lease.is_abandoned(tmp_path)
    lease.touch(tmp_path / "gone")


# --- who claims it ----------------------------------------------------------------------------------------------------


def test_a_shard_is_claimed_once_and_its_controller_hears_by_whom(tmp_path: Path) -> None:
    lease.write(tmp_path, OURS)
    assert not lease.is_claimed(tmp_path)
    assert lease.claim(tmp_path, KEY, "w1") == OURS
    assert lease.is_claimed(tmp_path)
    for worker in ("w1", "w2"):
        with pytest.raises(OptionError, match="not yours"):
            lease.claim(tmp_path, KEY, worker)
    assert list(lease.reports(tmp_path)) == [Report(number=0, worker="w1")]


@pytest.mark.parametrize("key", [KEY, "another"])
def test_what_is_over_or_anothers_cannot_be_claimed(tmp_path: Path, key: str) -> None:
    lease.write(tmp_path, OVER if key == KEY else OURS)
    with pytest.raises(OptionError, match="not yours"):
        lease.claim(tmp_path, key, "w1")
    assert not lease.is_claimed(tmp_path)


def test_nothing_is_reported_of_what_nobody_has_claimed(tmp_path: Path) -> None:
    lease.write(tmp_path, OURS)
    with pytest.raises(OptionError, match="not yours"):
        lease.keep(tmp_path, Report(number=1, worker="w1"))
    assert list(lease.reports(tmp_path)) == []


# --- what is reported -------------------------------------------------------------------------------------------------


def test_a_report_that_comes_twice_or_late_counts_once(claimed: Path) -> None:
    told = StepStarted(attempt=ATTEMPT, micro_step="kexec", nodes=NODES)
    ended = Report(number=3, worker="w1", outcomes={"gdx-1.site": Outcome(Verdict.OK)})
    sent = [Report(number=1, worker="w1", events=(told,)), Report(number=2, worker="w1"), ended]
    for report in (sent[0], sent[0], sent[1], sent[0], sent[2], sent[1], sent[2]):
        lease.keep(claimed, report)
    assert list(lease.reports(claimed))[1:] == sent


def test_half_a_line_of_a_full_disk_costs_no_report_that_comes_after_it(claimed: Path) -> None:
    first, again = Report(number=1, worker="w1"), Report(number=2, worker="w1", let_go=NODES)
    lease.keep(claimed, first)
    with (claimed / lease.REPORTS).open("ab") as file:
        file.write(msgspec.json.encode(again)[:20])
    lease.keep(claimed, again)
    assert list(lease.reports(claimed))[1:] == [first, again]


@given(st.lists(st.integers(1, 400), max_size=30))
def test_who_follows_gets_each_report_whole_wherever_a_look_cuts_the_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("lease")
    lease.write(folder, OURS)
    lease.claim(folder, KEY, "w")
    sent = [Report(number=number, worker="w", let_go=("ä\n" * number,)) for number in range(1, 12)]
    for report in sent:
        lease.keep(folder, report)
    content = (folder / lease.REPORTS).read_bytes()
    (folder / lease.REPORTS).write_bytes(b"")
    followed, found, place = Reports(folder), [], 0
    for cut in [*cuts, len(content)]:
        with (folder / lease.REPORTS).open("ab") as file:
            file.write(content[place : place + cut])
        place += cut
        found += followed.new()
    assert found[1:] == sent
    assert not list(followed.new())


def test_what_is_no_report_is_passed_over(claimed: Path) -> None:
    with (claimed / lease.REPORTS).open("ab") as file:
        file.write(b'nonsense\n[]\n{"number": "1"}\n\xff\n{"number":1,"worker":"w1","events":[{"type":"nothing"}]}\n')
    lease.keep(claimed, Report(number=1, worker="w1"))
    assert [report.number for report in lease.reports(claimed)] == [0, 1]
    assert list(lease.reports(claimed / "nowhere")) == []


# --- a controller that has died ---------------------------------------------------------------------------------------


def shard(folder: Path, name: str, given: Lease = OURS, *told: Report, age: float = 0.0) -> Path:
    path = folder / name
    path.mkdir()
    lease.write(path, OURS)
    if told:
        lease.claim(path, KEY, "w1")
    for report in told:
        lease.keep(path, report)
    lease.write(path, given)
    aged(path, age)
    return path


def test_leases_of_a_dead_controller_are_withdrawn_and_waited_for_where_a_worker_may_be_at_work(tmp_path: Path) -> None:
    open_one = shard(tmp_path, "01-A", OURS, Report(number=1, worker="w1"))
    (tmp_path / "02-B").mkdir()
    assert lease.withdraw_all(tmp_path)
    assert lease.read(open_one) == OVER
    assert lease.withdraw_all(tmp_path), "it was withdrawn a moment ago"
    aged(open_one, lease.LOST + 1)
    assert not lease.withdraw_all(tmp_path)


@pytest.mark.parametrize("last", [{"outcomes": {}}, {"fault": "no room"}])
def test_a_shard_whose_worker_is_through_is_not_waited_for(tmp_path: Path, last: dict[str, object]) -> None:
    path = shard(tmp_path, "01-A", OURS, Report(number=1, worker="w1", **last))
    assert not lease.withdraw_all(tmp_path)
    assert lease.read(path) == OVER


def test_one_that_was_withdrawn_long_ago_is_not_waited_for(tmp_path: Path) -> None:
    shard(tmp_path, "01-A", OVER, Report(number=1, worker="w1"), age=lease.LOST + 1)
    assert not lease.withdraw_all(tmp_path)
