"""Front ends: who may name a user in a header, and what becomes of the others who try."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.caller import is_user_name
from kadeploy.config.service import FrontEnd
from kadeploy.errors import AuthenticationError, ConfigError
from kadeploy.server.front_ends import FrontEnds

FRONT_ENDS = FrontEnds(
    [
        FrontEnd(sources=("10.1.0.4", "10.2.0.0/16", "2001:db8:1::/48")),
        FrontEnd(sources=("::ffff:10.3.0.0/112",), header="X-Api-User-Cn"),
    ]
)
IDENT, CN = "x-remote-ident", "x-api-user-cn"


@pytest.mark.parametrize(
    ("address", "header"),
    [
        ("10.1.0.4", IDENT),
        ("::ffff:10.1.0.4", IDENT),
        ("10.2.255.1", IDENT),
        ("2001:db8:1:2::3", IDENT),
        ("10.3.1.1", CN),
        ("::ffff:a03:101", CN),
    ],
)
def test_a_front_end_is_believed_whichever_way_its_address_is_written(address: str, header: str) -> None:
    assert FRONT_ENDS.asserted(address, {header: ["alice"]}) == "alice"
    assert FRONT_ENDS.asserted(address, {"accept": ["*/*"]}) == ""


@pytest.mark.parametrize("header", [IDENT, CN, "x-kadeploy-user"])
@pytest.mark.parametrize(
    "address",
    ["10.1.0.5", "10.10.2.1", "::ffff:10.1.0.5", "2001:db8:2::1", "fe80::1%eth0", "127.0.0.1", "", "10.1.0.4 "],
)
def test_a_header_that_names_a_user_is_refused_from_anywhere_else(address: str, header: str) -> None:
    with pytest.raises(AuthenticationError, match=f"The header {header} is not believed from .*service.front_ends"):
        FRONT_ENDS.asserted(address, {header: ["root"]})


def test_each_front_end_is_believed_for_its_own_header_alone() -> None:
    with pytest.raises(AuthenticationError, match=f"{CN} is not believed from 10.1.0.4"):
        FRONT_ENDS.asserted("10.1.0.4", {CN: ["alice"]})
    with pytest.raises(AuthenticationError, match=f"{IDENT} is not believed from 10.3.0.4"):
        FRONT_ENDS.asserted("10.3.0.4", {CN: ["alice"], IDENT: ["alice"]})


def test_a_site_without_front_ends_refuses_the_headers_of_other_sites() -> None:
    with pytest.raises(AuthenticationError, match="not believed"):
        FrontEnds([]).asserted("10.1.0.4", {IDENT: ["root"]})


def test_a_header_that_comes_twice_or_not_at_all_is_refused() -> None:
    for values in (["alice", "alice"], ["alice", "root"], []):
        with pytest.raises(AuthenticationError, match=f"comes {len(values)} times: send it once"):
            FRONT_ENDS.asserted("10.1.0.4", {IDENT: values})


def test_two_headers_have_to_name_the_same_user() -> None:
    both = FrontEnds([FrontEnd(sources=("10.1.0.4",)), FrontEnd(sources=("10.1.0.4",), header="X-Api-User-CN")])
    assert both.asserted("10.1.0.4", {IDENT: ["alice"], CN: ["alice"]}) == "alice"
    with pytest.raises(AuthenticationError, match="name different users"):
        both.asserted("10.1.0.4", {IDENT: ["alice"], CN: ["root"]})


@given(st.text(st.characters(codec=None), max_size=8) | st.text("ab.-/: \t,", max_size=4) | st.just("x" * 256))
def test_what_is_believed_is_always_the_name_of_a_user(text: str) -> None:
    try:
        found = FRONT_ENDS.asserted("10.1.0.4", {IDENT: [text]})
    except AuthenticationError as refusal:
        assert not is_user_name(text)
        assert str(refusal).isprintable()  # noqa: PT017 - both ends of the property
        return
    assert found == text
    assert text.isprintable()
    assert text
    assert len(text) <= 255
    assert not set(text) & set(" \t/:")
    assert text[0] not in ".-"


@pytest.mark.parametrize("source", ["10.2.0.5/16", "gateway.site", "10.1", "", "10.0.0.0/33", "10.1.0.4-10"])
def test_a_source_that_is_no_address_is_refused_when_the_service_starts(source: str) -> None:
    with pytest.raises(ConfigError, match=r"service.front_ends\[1\].sources: .*: expected an address such as 10.1.0.4"):
        FrontEnds([FrontEnd(sources=("10.1.0.4",)), FrontEnd(sources=(source,))])


@pytest.mark.parametrize(
    ("source", "is_own"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("0.0.0.0/0", True),
        ("::/0", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.0/8", False),
        ("2001:db8::/32", False),
    ],
)
def test_a_source_that_is_this_machine_is_known_as_such(source: str, is_own: bool) -> None:
    assert FrontEnds([FrontEnd(sources=(source,))]).on_this_machine == is_own
