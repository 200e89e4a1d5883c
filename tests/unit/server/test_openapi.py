"""The page for programmers has every resource of the service, by the schema that programs get."""

from __future__ import annotations

from pathlib import Path

import pytest

from kadeploy.server import openapi

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
MAKE = "run: python -m kadeploy.server.openapi docs/api.md"


def test_the_table_on_the_page_is_what_the_schema_says() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert openapi.page(written) == written, MAKE


def test_making_the_page_again_changes_the_table_alone() -> None:
    before, after = "# A page\n\n", "\nMore.\n\n- and more\n"
    made = openapi.page(f"{before}{openapi.HEAD}| GET `/v1/gone` | | | |\n{after}")
    assert made == before + openapi.table() + after
    with pytest.raises(ValueError, match="no table"):
        openapi.page("# Another page\n")


def test_each_resource_says_what_it_is_for() -> None:
    paths = openapi.schema()["paths"]
    assert {"/v1/deployments", "/deployment", "/power/{wid}/state"} <= set(paths)
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path}"


def test_each_resource_tells_how_it_refuses_in_its_own_form() -> None:
    for path, methods in openapi.schema()["paths"].items():
        form = "application/json" if path.startswith("/v1") else "text/plain"
        for operation in methods.values():
            refusals = {status: each for status, each in operation["responses"].items() if status >= "400"}
            assert {"400", "401", "403", "429"} <= set(refusals), path
            assert {kind for each in refusals.values() for kind in each["content"]} == {form}, path
