"""Keys of forms: how many are known, and what becomes of the others."""

from __future__ import annotations

import pytest

from kadeploy.server.web import once
from kadeploy.server.web.once import Once


def test_the_oldest_keys_of_a_user_make_room_and_those_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "OF_ONE_USER", 3)
    keys = Once()
    others = keys.key("bob")
    mine = [keys.key("alice") for _ in range(4)]
    assert [keys.begin("alice", key, lambda: "P-1") for key in mine] == [None, "P-1", "P-1", "P-1"]
    assert keys.begin("bob", others, lambda: "P-2") == "P-2"


def test_keys_of_all_users_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "MOST", 3)
    keys = Once()
    made = {user: keys.key(user) for user in ("alice", "bob", "carol", "dave")}
    assert [user for user, key in made.items() if keys.begin(user, key, lambda: "P-1") is None] == ["alice"]
