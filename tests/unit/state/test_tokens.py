"""Tokens: created, found by their text alone, ended, and of no use to whoever reads the database."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.config.site import Site
from kadeploy.errors import AuthenticationError, DatabaseError
from kadeploy.state import database, tokens
from kadeploy.state.database import DB
from kadeploy.state.tables import Token

DAY = 86_400


def tomorrow() -> int:
    return int(time.time()) + DAY


def test_a_token_is_found_by_its_text_and_tells_its_user(site: Site) -> None:
    alice, bob = tokens.create(site, "alice", tomorrow()), tokens.create(site, "bob", tomorrow(), "backup script")
    assert re.fullmatch(r"kd3_[a-z2-7]{16}_[a-z2-7]{52}", alice)
    assert (tokens.find(site, alice), tokens.find(site, bob)) == ("alice", "bob")


def test_the_database_holds_nothing_of_a_token_that_would_let_anybody_in(site: Site) -> None:
    text = tokens.create(site, "alice", tomorrow())
    _, name, secret = text.split("_")
    row = str(DB.execute_sql("SELECT * FROM tokens").fetchall())
    assert name in row
    assert secret not in row
    assert tokens.find(site, f"kd3_{name}_{Token.get().digest}") is None


def test_another_secret_id_case_or_length_is_no_token(site: Site) -> None:
    text = tokens.create(site, "alice", tomorrow())
    _, name, secret = tokens.create(site, "bob", tomorrow()).split("_")
    swapped = f"{text[:20]}_{secret}"
    last = "a" if text[-1] != "a" else "b"
    for wrong in (swapped, text[:-1], f"{text}a", text[:-1] + last, text.upper(), f" {text}", f"{text}\n", name, ""):
        assert tokens.find(site, wrong) is None, wrong


@given(st.text(max_size=90))
def test_no_text_at_all_is_taken_for_a_token(text: str) -> None:
    nowhere: Site = None  # type: ignore[assignment] # what is no token is refused without a look at any database
    assert tokens.find(nowhere, text) is None


def test_a_token_that_has_ended_or_was_revoked_is_refused_and_told_apart_from_a_wrong_one(site: Site) -> None:
    over = tokens.create(site, "alice", int(time.time()))
    revoked = tokens.create(site, "alice", tomorrow())
    assert tokens.revoke(site, tokens.id_of(revoked))
    with pytest.raises(AuthenticationError, match=r"token of alice ended on \d{4}-.*: ask an administrator"):
        tokens.find(site, over)
    with pytest.raises(AuthenticationError, match="token of alice was revoked"):
        tokens.find(site, revoked)
    for text in (over, revoked):  # whoever has the id alone learns nothing
        assert tokens.find(site, f"{text[:-2]}{'aa' if not text.endswith('aa') else 'bb'}") is None


def test_revoking_is_done_once_by_id_and_with_a_user_only_for_their_own(site: Site) -> None:
    text = tokens.create(site, "alice", tomorrow())
    name = tokens.id_of(text)
    assert not tokens.revoke(site, name, "bob")
    assert not tokens.revoke(site, "nothing")
    assert tokens.find(site, text) == "alice"
    assert tokens.revoke(site, name, "alice")
    assert not tokens.revoke(site, name)


def test_the_last_use_is_written_at_most_once_a_minute(site: Site) -> None:
    text = tokens.create(site, "alice", tomorrow())
    assert tokens.listed(site)[0].used is None
    tokens.find(site, text)
    first = tokens.listed(site)[0].used
    assert first is not None
    assert abs(first - time.time()) < 30
    for before, is_written in ((first - 30, False), (first - 61, True)):
        Token.update(used=before).execute()
        tokens.find(site, text)
        assert (tokens.listed(site)[0].used != before) == is_written


def test_tokens_are_listed_by_user_and_those_that_ended_long_ago_are_forgotten(site: Site) -> None:
    tokens.create(site, "bob", tomorrow(), "b")
    tokens.create(site, "alice", tomorrow(), "a")
    assert [(token.user, token.note) for token in tokens.listed(site)] == [("alice", "a"), ("bob", "b")]
    assert [token.user for token in tokens.listed(site, "bob")] == ["bob"]
    Token.update(until=int(time.time()) - 89 * DAY).where(Token.user == "alice").execute()
    Token.update(revoked=int(time.time()) - 91 * DAY).where(Token.user == "bob").execute()
    tokens.create(site, "carol", tomorrow())
    assert [token.user for token in tokens.listed(site)] == ["alice", "carol"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("column", "value"), [("until", "'tomorrow'"), ("revoked", "''"), ("digest", "X'FF'")])
def test_a_token_whose_row_is_damaged_lets_nobody_in(site: Site, column: str, value: str) -> None:
    """To SQLite any text is later than any date."""
    text = tokens.create(site, "alice", tomorrow())
    DB.execute_sql(f"UPDATE tokens SET {column} = {value}")
    with pytest.raises(DatabaseError, match=f"of the table tokens .* cannot be read: {column} is"):
        tokens.find(site, text)


def test_a_token_works_though_its_use_cannot_be_written(site: Site) -> None:
    text = tokens.create(site, "alice", tomorrow())
    if site.database.startswith("sqlite"):
        DB.execute_sql("PRAGMA query_only = 1")
    else:
        DB.execute_sql("SET default_transaction_read_only = on")
    assert tokens.find(site, text) == "alice"
    assert tokens.listed(site)[0].used is None
    database.disconnect()
