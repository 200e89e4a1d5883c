"""A page of another server gets nothing by what its reader's browser shows to us by itself."""

from __future__ import annotations

import pytest

from kadeploy.errors import RightsError
from kadeploy.server.auth import Caller, Method, grouped
from kadeploy.server.front_ends import Headers
from kadeploy.server.pages import require_own

OWN, ELSEWHERE = "https://kadeploy.site:25300", "https://elsewhere.site"


def asked(**headers: str) -> Headers:
    raw = {"Host": "kadeploy.site:25300"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return grouped((name.encode(), value.encode()) for name, value in raw.items())


@pytest.mark.parametrize("how", ["password", "certificate"])
@pytest.mark.parametrize(
    "headers",
    [
        asked(Origin=ELSEWHERE),
        asked(Origin="null"),
        asked(Origin=""),
        asked(Origin="https://kadeploy.site"),
        asked(Sec_Fetch_Site="cross-site"),
        asked(Sec_Fetch_Site="same-site"),
        asked(Origin=OWN, Sec_Fetch_Site="cross-site"),
    ],
)
def test_what_a_page_elsewhere_asks_for_is_refused(how: Method, headers: Headers) -> None:
    with pytest.raises(RightsError, match="may ask for nothing here in the name of alice"):
        require_own(Caller("alice", how, "10.0.0.9"), headers)


@pytest.mark.parametrize(
    "headers",
    [asked(), asked(Origin=OWN), asked(Origin=OWN, Sec_Fetch_Site="same-origin"), asked(Sec_Fetch_Site="none")],
)
def test_programs_pages_of_our_own_and_people_who_type_the_address_are_let_in(headers: Headers) -> None:
    require_own(Caller("alice", "password", "10.0.0.9"), headers)


@pytest.mark.parametrize("how", ["token", "front end", "socket"])
def test_what_no_browser_shows_by_itself_counts_on_any_page(how: Method) -> None:
    require_own(Caller("alice", how, "10.0.0.9"), asked(Origin=ELSEWHERE, Sec_Fetch_Site="cross-site"))
