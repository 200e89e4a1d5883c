"""Which workers there are: what each says of itself stays apart, and is not believed for ever."""

from __future__ import annotations

import time

import msgspec
import pytest

from kadeploy import __version__
from kadeploy.config.site import Site
from kadeploy.workers import presence
from kadeploy.workers.presence import Presence, Seen

sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
pytestmark = sqlite_alone

W1 = Presence(name="w1", clusters=("gdx",), shards=2, version=__version__)


def said_before(site: Site, seconds: float, said: Presence = W1, user: str = "alice") -> None:
    presence.note(site, said, user)
    path = presence._path(site.state / presence.FOLDER, user, said.name)
    path.write_bytes(msgspec.json.encode(Seen(presence=said, user=user, at=time.time() - seconds)))


def names(site: Site) -> list[tuple[str, str]]:
    return [(each.presence.name, each.user) for each in presence.seen(site)]


def test_nobody_has_said_anything_yet(site: Site) -> None:
    assert presence.seen(site) == []
    assert not presence.serves(site, "gdx")


def test_a_worker_that_was_heard_serves_its_clusters_and_no_other(site: Site) -> None:
    presence.note(site, W1, "alice")
    [seen] = presence.seen(site)
    assert (seen.presence, seen.user, seen.is_alive) == (W1, "alice", True)
    assert presence.serves(site, "gdx")
    assert not presence.serves(site, "nvm")
    files = list((site.state / presence.FOLDER).iterdir())
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600]


def test_the_last_word_of_a_worker_counts(site: Site) -> None:
    presence.note(site, W1, "alice")
    presence.note(site, msgspec.structs.replace(W1, leaves=True), "alice")
    assert names(site) == [("w1", "alice")]
    assert not presence.serves(site, "gdx")


def test_one_that_is_silent_serves_nothing_and_is_forgotten_after_a_day(site: Site) -> None:
    said_before(site, presence.ALIVE + 1)
    assert names(site) == [("w1", "alice")]
    assert not presence.serves(site, "gdx")
    said_before(site, presence.FORGOTTEN + 1)
    assert presence.seen(site) == []
    assert not list((site.state / presence.FOLDER).iterdir())


@pytest.mark.parametrize("name", ["../../../etc/evil", "/etc/evil", ".", "w1\n", "a\0b", "ü" * 80])
def test_a_name_is_a_word_and_no_path(site: Site, name: str) -> None:
    presence.note(site, msgspec.structs.replace(W1, name=name), "alice")
    assert names(site) == [(name, "alice")]
    assert len(list((site.state / presence.FOLDER).iterdir())) == 1


def test_workers_of_one_name_and_two_users_are_two_and_none_speaks_for_the_other(site: Site) -> None:
    presence.note(site, W1, "alice")
    presence.note(site, msgspec.structs.replace(W1, leaves=True), "bob")
    assert names(site) == [("w1", "alice"), ("w1", "bob")]
    assert presence.serves(site, "gdx")


def test_a_file_that_is_damaged_hides_no_other(site: Site) -> None:
    presence.note(site, W1, "alice")
    (site.state / presence.FOLDER / "x.json").write_bytes(b"\xff")
    (site.state / presence.FOLDER / "y.json").write_bytes(b"{}")
    assert names(site) == [("w1", "alice")]
