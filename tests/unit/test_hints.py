"""What a refused word was meant to be."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy import hints

SITE = [f"gdx-{number}.site" for number in range(1, 21)] + [f"nvm-{number}.site" for number in range(1, 5)]


@pytest.mark.parametrize(
    ("word", "meant"),
    [("debain12", "debian12"), ("DEBIAN12", "debian12"), ("deb12", "debian12"), ("zzz", ""), ("", "")],
)
def test_the_nearest_name_is_found_whatever_its_case(word: str, meant: str) -> None:
    assert hints.nearest(word, ["rocky9", "debian12", "FreeBSD"]) == meant


@given(st.text(), st.lists(st.text()))
def test_nothing_but_a_known_name_is_ever_suggested(word: str, known: list[str]) -> None:
    assert hints.nearest(word, known) in {"", *known}


def test_a_word_without_end_costs_nothing() -> None:
    start = time.monotonic()
    assert hints.did_you_mean("a" * 1_000_000, ["a" * 1_000, "b"]) == ""
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        (["gxd-5.site"], " Did you mean gdx-5.site?"),
        (["gdx-5.sit"], " Did you mean gdx-5.site?"),
        (["gdx-05.site"], " Did you mean gdx-5.site?"),
        (["gxd-1.site", "gxd-2.site", "gxd-30.site"], " Did you mean gdx-[1-2].site?"),
        (["gdx-21.site"], " There are gdx-[1-20].site."),
        (["nwm-9.site"], " There are nvm-[1-4].site."),
        (["gdx.site"], " There are gdx-[1-20].site."),
        (["azur-1.lille.grid"], ""),
    ],
)
def test_a_node_is_looked_for_by_its_name_and_its_number(unknown: list[str], hint: str) -> None:
    assert hints.of_nodes(unknown, SITE) == hint


def test_the_nodes_of_a_large_site_are_looked_through_quickly() -> None:
    known = [f"rack-{rack}-node-{number}.site" for rack in range(200) for number in range(100)]
    start = time.monotonic()
    assert hints.of_nodes(["rakc-7-node-8.site"], known) == " Did you mean rack-7-node-8.site?"
    assert time.monotonic() - start < 1
