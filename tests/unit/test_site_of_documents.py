"""The pages as a site: built without a warning, nothing fetched from elsewhere, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}
"""What a browser fetches by itself."""


class Page(HTMLParser):
    """What a page of the site links to, what it fetches, and which anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.links |= {found["href"]} if tag == "a" and "href" in found else set()
        self.fetched |= {found[name] for kind, name in FETCHED if kind == tag and name in found}


def build(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build the pages of *folder* as ``scripts/test`` does."""
    return subprocess.run(
        [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", target],
        cwd=folder,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("documents") / "site"
    done = build(ROOT, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert {url for page in pages.values() for url in page.fetched if urlsplit(url).netloc} == set()
    pictures = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.svg"))
    assert re.findall(r"url\([\"']?(https?:[^)]*)", pictures) == []


def test_every_link_leads_to_a_page_or_a_file_and_every_anchor_is_there(pages: dict[Path, Page]) -> None:
    broken = set()
    for path, page in pages.items():
        for link in (each for each in page.links if not urlsplit(each).scheme):
            url = urlsplit(link)
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            if not target.is_file() or (url.fragment and unquote(url.fragment) not in known):
                broken.add(f"{path.name}: {link}")
    assert broken == set()


def test_links_into_the_source_show_the_file_as_text(site: Path, pages: dict[Path, Page]) -> None:
    assert "source/kadeploy/workflow.py.txt" in pages[site / "architecture.html"].links
    shown = (site / "source" / "kadeploy" / "workflow.py.txt").read_text(encoding="utf-8")
    assert shown == (ROOT / "kadeploy" / "workflow.py").read_text(encoding="utf-8")
    assert "../source/contrib/jobs.conf.txt" in pages[site / "howto" / "batch-schedulers.html"].links


def test_a_link_that_is_a_file_name_shows_the_title_of_its_page(site: Path) -> None:
    assert '<a href="glossary.html">Glossary</a>' in (site / "architecture.html").read_text(encoding="utf-8")


def test_pages_read_as_on_a_forge(site: Path) -> None:
    """Bars in code of tables lose their backslash, and a list goes on behind a block of code."""
    migrating = (site / "migrating.html").read_text(encoding="utf-8")
    assert "--force-steps SetDeploymentEnv&#124;SetDeploymentEnvUntrusted:1:200&amp;" in migrating
    contributing = (site / "contributing.html").read_text(encoding="utf-8")
    section = contributing.split('id="add-a-command"')[1].split("<h2")[0]
    assert section.count("<ol>") == 1
    assert section.count("<li>") == 5


def test_no_markdown_is_left_as_it_was_written(site: Path) -> None:
    for path in site.rglob("*.html"):
        body = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        prose = re.sub(r"<(pre|code)\b.*?</\1>|<!--.*?-->", "", body, flags=re.DOTALL)
        assert re.findall(r"^\s*(?:[-*] |\d+\. |```|\|).*$|\]\(", prose, re.MULTILINE) == [], path


def test_the_messages_of_the_program_are_a_page_of_the_site(site: Path) -> None:
    page = (site / "reference" / "messages.html").read_text(encoding="utf-8")
    assert 'id="filebusyerror"' in page
    assert "Unknown implementation …; there are: …" in page


def test_broken_links_and_anchors_and_pages_that_no_menu_has_are_refused(tmp_path: Path) -> None:
    for name in ("docs", "scripts", "kadeploy", "contrib"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "alone.md").write_text("# Alone\n", encoding="utf-8")
    with (tmp_path / "docs" / "lab.md").open("a", encoding="utf-8") as page:
        page.write("\n[a](nowhere.md) [b](glossary.md#no-such-word) [c](../kadeploy/nothing.py)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for told in ("nowhere.md", "#no-such-word", "../kadeploy/nothing.py", "alone.md"):
        assert told in done.stderr


def test_the_pictures_of_the_flow_are_as_they_would_be_drawn() -> None:
    loader = SourceFileLoader("flow", str(ROOT / "scripts" / "flow"))
    spec = spec_from_loader("flow", loader)
    assert spec is not None
    flow = module_from_spec(spec)
    sys.modules["flow"] = flow
    loader.exec_module(flow)
    for name, drawing in (("flow", flow.plan()), ("sets", flow.sets())):
        drawn = (ROOT / "docs" / "explanation" / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn == str(drawing), "run: scripts/flow"
    assert ">KO  node-5<" in drawn
