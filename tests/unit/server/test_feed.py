"""The events of all workflows in one stream: whose they are, none lost and none twice, and what a client may cost."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy import events
from kadeploy.caller import caller
from kadeploy.client import address
from kadeploy.client.http import Http, Message
from kadeploy.client.remote import Remote
from kadeploy.config.site import Site
from kadeploy.errors import LimitError, RightsError
from kadeploy.events import Began, Ended, EventFile, Note, Report
from kadeploy.operations.requests import PowerRequest
from kadeploy.operations.work import run_folder
from kadeploy.server import feed
from kadeploy.server.feed import Cursor, Feed
from kadeploy.state import journal, rights
from kadeploy.state.tables import Workflow
from tests.unit.plays import write_play

ON = PowerRequest(nodes=("gdx-1.site",), operation="on")


# --- without a connection -------------------------------------------------------------------------------------------


class Told:
    """Workflows of a site that tell what a test says."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.lines: dict[str, list[str]] = {}
        """What each has told."""

    def begin(self, wid: str, user: str = "alice") -> None:
        run_folder(self.site, wid).mkdir(parents=True)
        journal.begin(self.site, wid, "deploy", user, None, {"gdx": ["gdx-1.site"]})
        self._tell(wid, Began(wid=wid, operation="deploy", user=user, groups={}, plans={}))

    def say(self, wid: str, text: str) -> None:
        self._tell(wid, Note(text=text))

    def end(self, wid: str) -> None:
        journal.end(wid, [])
        self._tell(wid, Ended(operation="deploy", groups={}, report=Report(wid)))

    def _tell(self, wid: str, event: events.Told) -> None:
        path = run_folder(self.site, wid) / events.FILE_NAME
        with closing(EventFile(path)) as file:
            file(event)
        self.lines[wid] = path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def told(site: Site) -> Told:
    return Told(site)


def read(messages: Sequence[bytes]) -> list[tuple[str, str, Any]]:
    """Id, workflow and event of each."""
    found = []
    for message in messages:
        fields = dict(line.split(": ", 1) for line in message.decode().strip().split("\n"))
        data = json.loads(fields["data"])
        found.append((fields["id"], data["wid"], data.get("event") or fields["event"]))
    return found


def looked(site: Site, whose: str | None = None, after: str = "") -> list[tuple[str, str, Any]]:
    """What a client is told at once."""
    found = Feed(site, "alice", whose, Cursor.read(after))
    found.look()
    return read(list(found.messages()))


def by_workflow(found: Sequence[tuple[str, str, Any]]) -> dict[str, list[Any]]:
    return {wid: [event for _, each, event in found if each == wid] for wid in {each for _, each, _ in found}}


def lines_of(told: Told) -> dict[str, list[Any]]:
    return {wid: [json.loads(line) for line in lines] for wid, lines in told.lines.items()}


def test_the_events_of_all_that_runs_are_told_from_its_beginning_and_others_join(told: Told) -> None:
    told.begin("D-1")
    told.say("D-1", "one")
    found = Feed(told.site, "alice", None, None)
    found.look()
    heard = read(list(found.messages()))
    told.begin("D-2", "bob")
    told.end("D-1")
    found.look()
    heard += read(list(found.messages()))
    assert by_workflow(heard) == lines_of(told)


def test_from_any_event_on_exactly_the_later_ones_of_each_workflow_are_told(told: Told) -> None:
    """Also of workflows that have ended, or have begun and ended, while nobody listened."""
    told.begin("D-1")
    told.begin("D-2")
    client = Feed(told.site, "alice", None, None)

    def hear() -> list[tuple[str, str, Any]]:
        client.look()
        return read(list(client.messages()))

    heard = hear()
    told.say("D-1", "ü")
    told.begin("D-3")
    told.end("D-3")
    heard += hear()
    told.end("D-1")
    told.say("D-2", "two")
    heard += hear()
    for rank, (number, _, _) in enumerate(heard, start=1):
        again = [each[1:] for each in looked(told.site, after=number)]
        assert sorted(again, key=str) == sorted((each[1:] for each in heard[rank:]), key=str), number
    assert by_workflow(heard) == lines_of(told)
    assert hear() == []


def test_what_ended_before_anybody_asked_is_not_told(told: Told) -> None:
    told.begin("D-1")
    told.end("D-1")
    Workflow.update(ended=Workflow.ended - 60).execute()
    assert looked(told.site) == []


def test_everybody_follows_their_own(told: Told) -> None:
    told.begin("D-1", "alice")
    told.begin("D-2", "bob")
    forged = f"{Cursor(0, {'D-2': 0})}"
    assert {wid for _, wid, _ in looked(told.site, "alice", forged)} == {"D-1"}
    assert {wid for _, wid, _ in looked(told.site, "bob")} == {"D-2"}
    assert looked(told.site, "eve") == []


def test_the_end_is_waited_for_while_the_controller_lives(told: Told) -> None:
    """A hook may be running."""
    told.begin("D-1")
    client = Feed(told.site, "alice", None, None)
    client.look()
    assert len(list(client.messages())) == 1
    journal.end("D-1", [])
    client.look()
    assert list(client.messages()) == []
    told.end("D-1")
    assert [event["event"] for _, _, event in read(list(client.messages()))] == ["ended"]


def test_a_workflow_that_nobody_goes_on_with_is_told_as_gone_once(told: Told) -> None:
    told.begin("D-1")
    told.begin("D-2")
    Workflow.update(boot_id="before").where(Workflow.wid == "D-1").execute()
    heard = looked(told.site)
    assert [(wid, event) for _, wid, event in heard if event == "gone"] == [("D-1", "gone")]
    journal.end("D-1", [], state="aborted")
    assert looked(told.site, after=heard[-1][0]) == []


def test_a_line_that_its_writer_did_not_finish_is_left_out(told: Told) -> None:
    told.begin("D-1")
    path = run_folder(told.site, "D-1") / events.FILE_NAME
    with path.open("ab") as file:
        file.write(b'{"event":"note","at":1.0,"te\n')
    told.say("D-1", "two")
    assert [event["event"] for _, _, event in looked(told.site)] == ["began", "note"]


def test_of_many_workflows_some_are_followed_at_a_time_and_none_is_lost(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "FOLLOWED", 2)
    client = Feed(told.site, "alice", None, None)
    for rank in range(7):
        told.begin(f"D-{rank}")
    client.look()
    heard = read(list(client.messages()))
    assert len({wid for _, wid, _ in heard}) == 2
    for rank in range(7):
        told.end(f"D-{rank}")
        Workflow.update(ended=Workflow.ended + rank).where(Workflow.wid == f"D-{rank}").execute()
    for _ in range(10):
        client.look()
        heard += read(list(client.messages()))
    assert by_workflow(heard) == lines_of(told)


def test_what_is_followed_goes_on_being_followed_whatever_else_begins(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "FOLLOWED", 1)
    client = Feed(told.site, "alice", None, None)
    told.begin("D-2")
    client.look()
    heard = read(list(client.messages()))
    told.begin("D-1")  # by the journal's clock it began in the same second, or before
    Workflow.update(started=Workflow.started - 1).where(Workflow.wid == "D-1").execute()
    for text in ("one", "two"):
        told.say("D-2", text)
        client.look()
        heard += read(list(client.messages()))
    assert by_workflow(heard) == lines_of(told)


@given(
    since=st.integers(0, 10**12 - 1),
    told=st.dictionaries(
        st.from_regex(r"[A-Z]-[0-9a-z]{1,32}", fullmatch=True), st.none() | st.integers(0, 10**15 - 1), max_size=20
    ),
)
def test_a_cursor_is_read_as_it_was_written(since: int, told: dict[str, int | None]) -> None:
    assert Cursor.read(str(Cursor(since, told))) == Cursor(since, told)


@pytest.mark.parametrize("text", ["", "0;", "-1", "1;D-1", "1;D-1:", "1;../x:1", "1;D-1:١", "9" * 13, "1;D-1:1" * 9000])
def test_what_is_no_cursor_is_none(text: str) -> None:
    assert Cursor.read(text) is None


# --- over the service -----------------------------------------------------------------------------------------------


@pytest.fixture
def slow(site: Site, site_folder: Path, tmp_path: Path) -> Path:
    """A power operation that waits for a file, which is this."""
    for user in (caller().name, "alice"):
        rights.add(site, user, ["*"], ["*"])
    wait = f"  tasks:\n    - ansible.builtin.shell: until test -e {tmp_path}/go; do sleep 0.1; done\n"
    write_play(site_folder, "PowerOn", wait)
    return tmp_path / "go"


def as_user(service: Path, user: str = "") -> address.Address:
    return address.of_socket(str(service), {"X-Kadeploy-User": user} if user else {})


def follow(where: address.Address, stopped: Callable[[], bool] = bool, path: str = "/v1/events") -> Iterator[Message]:
    return Http(where).events(path, "", stopped)


def test_an_administrator_is_told_of_all_and_others_of_their_own(slow: Path, service: Path) -> None:
    mine = Remote(as_user(service), caller()).start(ON)
    hers = Remote(as_user(service, "alice"), caller()).start(PowerRequest(nodes=("gdx-2.site",), operation="on"))
    asked = [
        ("", "/v1/events", {mine, hers}),
        ("", "/v1/events?user=alice", {hers}),
        ("alice", "/v1/events", {hers}),
        ("alice", "/v1/events?user=alice", {hers}),
    ]
    streams = [follow(as_user(service, user), path=path) for user, path, _ in asked]
    begun = [next(stream) for stream in streams]
    slow.touch()
    for stream, first, (*_, expected) in zip(streams, begun, asked, strict=True):
        assert told_to_the_end(first, stream, len(expected)).keys() == expected
    with pytest.raises(RightsError):
        next(follow(as_user(service, "alice"), path="/v1/events?user=bob"))


def told_to_the_end(first: Message, stream: Iterator[Message], most: int) -> dict[str, list[str]]:
    """What is told until *most* workflows have ended."""
    heard: dict[str, list[str]] = {}
    for message in itertools.chain([first], stream):
        data = json.loads(message.data)
        heard.setdefault(data["wid"], []).append(data["event"]["event"])
        if sum(each[-1] == "ended" for each in heard.values()) == most:
            break
    assert all(each[0] == "began" for each in heard.values())
    return heard


def test_a_user_has_so_many_streams_and_no_more_until_one_is_closed(
    slow: Path, service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "STREAMS", 3)
    wid = Remote(as_user(service, "alice"), caller()).start(ON)
    streams = [follow(as_user(service, "alice")) for _ in range(3)]
    for stream in streams:
        assert json.loads(next(stream).data)["wid"] == wid
    with pytest.raises(LimitError, match="alice has 3 streams"):
        next(follow(as_user(service, "alice")))
    assert next(follow(as_user(service))), "each has a limit of their own"
    for each in streams:
        each.close()  # type: ignore[attr-defined]
    for _ in range(300):
        try:
            assert next(follow(as_user(service, "alice")))
        except LimitError:
            threading.Event().wait(0.1)
        else:
            break
    else:
        pytest.fail("the service still counts streams that are closed")
    slow.touch()


def test_all_users_together_have_so_many_streams_and_administrators_one_more(
    slow: Path, service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "ALL_STREAMS", 1)
    Remote(as_user(service, "alice"), caller()).start(ON)
    hers = follow(as_user(service, "alice"))
    assert next(hers)
    with pytest.raises(LimitError, match="come again later"):
        next(follow(as_user(service, "bob")))
    assert next(follow(as_user(service)))
    slow.touch()


def test_clients_that_read_nothing_hold_up_nobody(slow: Path, service: Path) -> None:
    wid = Remote(as_user(service), caller()).start(ON)
    with ExitStack() as stack:
        for _ in range(feed.STREAMS):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(str(service))
            silent.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nX-Kadeploy-User: alice\r\n\r\n")
        stream = follow(as_user(service))
        first = next(stream)
        slow.touch()
        assert told_to_the_end(first, stream, 1).keys() == {wid}


def test_a_stream_ends_after_a_while_and_goes_on_with_its_last_id(
    slow: Path, service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LIFE", 1.0)
    wid = Remote(as_user(service), caller()).start(ON)
    first = list(follow(as_user(service)))
    assert first
    slow.touch()
    heard, last = first, first[-1].number
    while json.loads(heard[-1].data)["event"]["event"] != "ended":
        heard += (more := list(Http(as_user(service)).events("/v1/events", last, bool)))
        last = more[-1].number if more else last
    lines = (service.parent / "runs" / wid / events.FILE_NAME).read_text(encoding="utf-8").splitlines()
    assert [json.loads(each.data)["event"] for each in heard] == [json.loads(line) for line in lines]
