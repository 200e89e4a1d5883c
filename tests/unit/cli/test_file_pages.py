"""Man pages of section 5: up to date, clean, complete, and their examples are read as the files themselves are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kadeploy.admin import commented
from kadeploy.cli import file_pages, reference
from kadeploy.client.servers import Client
from kadeploy.config.file import Struct, as_struct
from kadeploy.environments import description
from kadeploy.environments.document import FORM
from kadeploy.workers.settings import Worker

PAGES = Path(__file__).parents[3] / "docs" / "man5"
MAKE = "run: python -m kadeploy.cli.file_pages docs/man5"


@pytest.mark.parametrize("name", file_pages.PAGES)
def test_the_page_is_up_to_date(name: str) -> None:
    assert (PAGES / f"{name}.5").read_text(encoding="utf-8") == file_pages.page(name), MAKE


@pytest.mark.parametrize("name", file_pages.PAGES)
def test_the_page_is_clean_and_has_every_key(name: str) -> None:
    command = ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=200n", PAGES / f"{name}.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for place, section in reference.sections(file_pages.PAGES[name].kind):
        shown = done.stdout.partition(f"\n   {place}\n")[2] if place else done.stdout
        for key in commented.keys(section):
            assert re.search(rf"(?m)^ +{re.escape(key.name)} \(", shown), (place, key.name)


def test_there_is_no_other_page() -> None:
    assert {path.name for path in PAGES.iterdir()} == {f"{name}.5" for name in file_pages.PAGES}


@pytest.mark.parametrize("name", file_pages.PAGES)
def test_the_example_is_a_file_that_is_read(name: str, tmp_path: Path) -> None:
    found = file_pages.PAGES[name]
    if found.kind is FORM:
        environment = description.parse(found.example, source=str(tmp_path / "mine.yml"))
        assert environment.name == "debian12"
        return
    assert issubclass(found.kind, Struct)
    defaults = {} if found.kind in (Client, Worker) else {"name": "gdx"}
    assert as_struct(tmp_path / "file.yml", found.example, found.kind, **defaults)


@pytest.mark.parametrize("name", file_pages.PAGES)
def test_the_example_stands_in_the_page_as_it_is_typed(name: str) -> None:
    page = PAGES / f"{name}.5"
    command = ["groff", "-man", "-Tutf8", "-P-cbou", "-rLL=200n", page]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in shown.splitlines()]
    assert all(line.strip() in lines for line in file_pages.PAGES[name].example.splitlines())
