"""The audit log: a line for each event, whatever users send and whatever becomes of the file."""

from __future__ import annotations

import json
import logging
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kadeploy.config.site import Site
from kadeploy.server import audit
from kadeploy.server.audit import Audit, Entry
from kadeploy.server.auth import Caller

ALICE = Caller("alice", "token", "10.0.0.9")
WHAT = "POST /v1/deployments"


@pytest.fixture
def log(site: Site) -> Iterator[Audit]:
    made = Audit(site)
    yield made
    made.close()


def lines(site: Site) -> list[str]:
    return (site.state / audit.NAME).read_text(encoding="ascii").split("\n")[:-1]


def test_a_line_says_who_did_what_from_where_and_what_was_answered(site: Site, log: Audit) -> None:
    log.record(WHAT, 403, ALICE, thing="gdx-[1-2].site", reason="alice lacks the right")
    log.record(WHAT, 401, source="10.0.0.8", reason="Say who you are.")
    known, unknown = map(json.loads, lines(site))
    when = known.pop("time")
    assert known == {
        "user": "alice",
        "how": "token",
        "source": "10.0.0.9",
        "what": WHAT,
        "object": "gdx-[1-2].site",
        "status": 403,
        "reason": "alice lacks the right",
    }
    assert (unknown["user"], unknown["how"], unknown["source"]) == ("", "", "10.0.0.8")
    assert unknown["time"] >= when > 1_600_000_000
    assert (site.state / audit.NAME).stat().st_mode & 0o777 == 0o600


@given(st.text(st.characters(codec=None), max_size=40))
@example("\x7f\x9b2J\u2028\u202e\ud800\r\n\0")
def test_whatever_users_send_is_one_line_without_control_characters(text: str) -> None:
    line = audit._line(Entry(1.5, text, "token", text, text, text, 200, text))
    assert all(" " <= letter <= "~" for letter in line)
    assert audit._entry(line) == Entry(1.5, text, "token", text, text, text, 200, text)


def test_a_long_text_is_cut(site: Site, log: Audit) -> None:
    log.record(WHAT, 200, ALICE, thing="x" * 1_000_000)
    assert len(lines(site)[0]) < 2000


def test_lines_of_several_threads_and_of_another_process_do_not_mix(site: Site, log: Audit) -> None:
    other = Audit(site)

    def write(mine: Audit) -> None:
        for _ in range(100):
            mine.record(WHAT, 200, ALICE, thing="n" * 500)

    work = [threading.Thread(target=write, args=(each,)) for each in (log, log, other)]
    for each in work:
        each.start()
    for each in work:
        each.join()
    other.close()
    assert len(list(audit.read(site))) == len(lines(site)) == 300


def test_a_file_that_was_moved_away_is_left_alone_and_a_new_one_begun(site: Site, log: Audit) -> None:
    log.record("first", 200, ALICE)
    (site.state / audit.NAME).rename(site.state / f"{audit.NAME}.1")
    log.record("second", 200, ALICE)
    (site.state / audit.NAME).unlink()
    log.record("third", 200, ALICE)
    assert [json.loads(line)["what"] for line in lines(site)] == ["third"]
    assert [entry.what for entry in audit.read(site)] == ["first", "third"]


def test_what_is_read_is_of_one_user_and_from_one_time_on(site: Site, log: Audit) -> None:
    log.record("first", 200, ALICE)
    log.record("second", 200, Caller("bob", "socket", "uid:7 pid:8"))
    first, second = audit.read(site)
    assert [entry.user for entry in (first, second)] == ["alice", "bob"]
    assert list(audit.read(site, user="bob")) == [second]
    assert list(audit.read(site, since=second.time + 1)) == []


def test_lines_that_are_damaged_or_of_a_later_kadeploy_do_not_hide_the_others(site: Site, log: Audit) -> None:
    log.record("first", 200, ALICE)
    path = site.state / audit.NAME
    line = path.read_text()
    later = json.dumps(json.loads(line) | {"what": "later", "new": 1})
    path.write_bytes(line.encode() + b"\xff\n[]\n{}\n\n" + later.encode() + b"\n" + line.encode()[:30])
    assert [entry.what for entry in audit.read(site)] == ["first", "later"]
    Audit(site).record("next", 200, ALICE)
    assert [entry.what for entry in audit.read(site)] == ["first", "later", "next"]


def test_no_file_is_no_entry(site: Site) -> None:
    assert list(audit.read(site)) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a write: a part of it is written, then none."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_in_the_log_with_the_line_and_nothing_is_mixed_up_after_it(
    site: Site, log: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    log.record("first", 200, ALICE)
    with files_of_at_most((site.state / audit.NAME).stat().st_size + 20), caplog.at_level(logging.ERROR):
        log.record("second", 200, ALICE)
        log.record("third", 200, ALICE)
    assert [json.loads(record.args[2])["what"] for record in caplog.records] == ["second", "third"]  # type: ignore[index,arg-type]
    assert f"{site.state}/audit.jsonl cannot be written: " in caplog.text
    log.record("fourth", 200, ALICE)
    assert [entry.what for entry in audit.read(site)] == ["first", "fourth"]


def test_a_link_in_the_place_of_the_file_is_not_followed(
    site: Site, log: Audit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    (site.state / audit.NAME).symlink_to(victim)
    log.record(WHAT, 200, ALICE)
    assert victim.read_text() == ""
    assert "cannot be written" in caplog.text
