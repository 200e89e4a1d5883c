"""Dumps of a database: what its programs are told, and what is never an argument of theirs."""

from __future__ import annotations

import pytest

from kadeploy.state import dump


@pytest.mark.parametrize(
    ("url", "without", "password"),
    [
        ("postgresql://kadeploy@db.site/kadeploy", "postgresql://kadeploy@db.site/kadeploy", ""),
        ("postgresql://kadeploy:s%40fe@db.site/kadeploy", "postgresql://kadeploy@db.site/kadeploy", "s@fe"),
        ("postgresql:///kadeploy?host=/run/postgresql", "postgresql:///kadeploy?host=/run/postgresql", ""),
        ("postgresql://db/kadeploy?user=a&password=s%20x", "postgresql://db/kadeploy?user=a", "s x"),
        ("postgresql://a:b@one,two:5433/k?sslmode=require", "postgresql://a@one,two:5433/k?sslmode=require", "b"),
        ("postgresql:///k?options=-csearch_path%3Dmine", "postgresql:///k?options=-csearch_path%3Dmine", ""),
        ("postgresql:///k?options=-c%20a%3Db", "postgresql:///k?options=-c%20a%3Db", ""),
    ],
)
def test_a_url_is_told_apart_from_its_password(url: str, without: str, password: str) -> None:
    assert dump.without_password(url) == (without, password)
