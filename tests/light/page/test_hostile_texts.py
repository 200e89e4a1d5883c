"""Hostile texts through everything that a page shows: they are text there, run nothing, and lead nowhere.

The browser does not mind the policy of the pages here: what holds is that every text is escaped. That the policy holds
too is in `test_reading.py`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import argon2
import pytest
from playwright.sync_api import Browser

from kadeploy.caller import is_user_name
from kadeploy.environments import rules
from kadeploy.environments.environment import Environment, Image
from kadeploy.errors import EnvironmentRefusedError
from kadeploy.operations.recording import Recording
from kadeploy.printable import printable
from kadeploy.state import environments, rights
from kadeploy.state.fingerprints import RemoteUser
from tests.browser import Fetched, Seat, seat
from tests.hostile import TEXTS, bundles
from tests.light.page.cluster import Page, begin, served_page, told_at, wait_for_end
from tests.light.page.places import Place, places
from tests.unit import build
from tests.unit.conftest import SITE
from tests.unit.plays import write_play
from tests.unit.serving import DUMMY_CLUSTER

LIKE_LINES = [text for text in TEXTS if text.isprintable() and len(text) < 1000]
BUNDLES = list(bundles(TEXTS, 600))
"""All but the longest, some at a time."""
LAST = "the last line of the console"
USERS = [text for text in LIKE_LINES if is_user_name(text)]
SAYS = """\
  tasks:
    - name: create_partition_table
      ansible.builtin.fail:
        msg: "{{{{ lookup('file', '{folder}/' ~ inventory_hostname) }}}}"
"""
"""What fails a node, in the words of a file."""
PASSED_OVER = re.compile(r"[\s\ufffd]+")
HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


@dataclass
class Hostile:
    """A service whose database, nodes and consoles are full of hostile texts."""

    page: Page
    admitted: Sequence[Environment]
    """Environments, each with another text for a name."""
    wid: str = ""
    """The run whose nodes have failed, each for a reason of its own."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile") / "site"
    for name in ("clusters", "state", "files"):
        (folder / name).mkdir(parents=True)
    for rank, text in enumerate(BUNDLES, start=1):
        (folder / "files" / f"bad-{rank}.site").write_text(text, encoding="utf-8")
    image = folder / "files" / "image.tgz"
    image.write_bytes(build.packed("x"))
    (folder / "htpasswd").write_text(f"ada:{HASHER.hash('secret')}\n")
    text = SITE.format(folder=folder, database=f"sqlite://{folder}/state/kadeploy.db", almighty="[root]")
    (folder / "site.yml").write_text(text, encoding="utf-8")
    cluster = DUMMY_CLUSTER.replace("gdx-[1-8]", f"bad-[1-{len(BUNDLES)}]").replace("1.[1-8]", f"1.[1-{len(BUNDLES)}]")
    cluster = cluster.replace("SetDeploymentEnvDummy", "SetDeploymentEnvHostile")
    write_play(folder, "SetDeploymentEnvHostile", SAYS.format(folder=folder / "files"))
    with tempfile.TemporaryDirectory(prefix="kadeploy-open-") as place, ExitStack() as stack:
        Path(place).chmod(0o755)
        (Path(place) / "console").write_text("\r\n".join([*TEXTS, f"\x1b[0m{LAST}"]), encoding="utf-8")
        shown = f"console: cat {place}/console -\nconsole_account: nobody\n"
        (folder / "clusters" / "bad.yml").write_text(cluster + shown, encoding="utf-8")
        served = stack.enter_context(
            served_page(folder, f"  folders: [{folder}/files]\n  htpasswd: {folder}/htpasswd\n")
        )
        yield Hostile(served, _furnish(served, f"server://{image}"))


def _furnish(page: Page, image: str) -> list[Environment]:
    """Record what the rules admit."""
    found = []
    for rank, text in enumerate(LIKE_LINES, start=1):
        described = {"description": text, "author": text[:200], "kernel_params": text, "hypervisor_params": text}
        environment = Environment(
            name=text[:200],
            version=rank,
            image=Image(file=image, kind="tgz"),
            kernel="/vmlinuz",
            filesystem="ext4",
            visibility="public",
            custom_variables={"TEXT": text},
            **described,
        )
        try:
            found.append(rules.check(environment, "a test"))
        except EnvironmentRefusedError:
            continue
    environments.add_all(page.site, found, RemoteUser("root"))
    recorded = Recording.begin(page.site, "bad-1.site", "root", rows=24, columns=80)
    recorded.shown("\r\n".join(BUNDLES).encode())
    recorded.end()
    for user in USERS:
        rights.add(page.site, user, ["bad-1.site"], ["*"])
    rights.add(page.site, "root", ["*"], ["*"])
    return found


@pytest.fixture
def there(hostile: Hostile, browser: Browser) -> Iterator[Seat]:
    """An administrator, whose browser would run what is not escaped."""
    with seat(browser, hostile.page.address, bypass_csp=True) as found:
        found.sign_in(hostile.page.token("root"))
        yield found


def plain(text: str) -> str:
    """As a page shows it, whatever it makes of white space and of what cannot be shown."""
    return PASSED_OVER.sub("", printable(text))


def require_text(answers: Sequence[Fetched]) -> None:
    """Nothing is foreign in *answers*, and no failure of the service is among them."""
    for answer in answers:
        assert answer.foreign == [], (answer.path, answer.status)
        assert answer.status < 500, (answer.path, answer.text)


# --- the tests themselves -------------------------------------------------------------------------------------------


def test_there_are_many_texts_and_a_page_that_does_not_escape_them_is_found_out(browser: Browser) -> None:
    assert len(TEXTS) > 300
    with seat(browser, "https://127.0.0.1:9", bypass_csp=True) as there:
        assert _ran(there, TEXTS[:60]) > 40, "those of scripts and handlers run by themselves"
        harmless = [text for text in TEXTS if "<" in text and not _is_foreign(there, text)]
    assert len(harmless) < 30, harmless


def _ran(there: Seat, texts: Sequence[str]) -> int:
    count = 0
    for text in texts:
        there.noted.clear()
        there.page.set_content(f"<!DOCTYPE html><p>{text}</p>", wait_until="domcontentloaded")
        count += any(each.startswith("hit") for each in there.settled())
    return count


def _is_foreign(there: Seat, text: str) -> bool:
    there.page.set_content(f"<!DOCTYPE html><p>{text}</p>", wait_until="commit")
    return there.foreign() != []


# --- what is in addresses and forms ---------------------------------------------------------------------------------


def _addresses(text: str, among: Sequence[Place]) -> Iterator[str]:
    for place in among:
        parts = dict.fromkeys(place.parts, text)
        yield place.address(parts)
        if place.query:
            yield place.address(parts or {}, **dict.fromkeys(place.query, text))


def test_in_addresses(there: Seat) -> None:
    """Each text in one part of an address and behind one question mark at least, and some of them in all."""
    known = [place for place in places() if place.parts or place.query]
    asked = [address for text in BUNDLES[::2] for address in _addresses(text, known)]
    for rank, text in enumerate(TEXTS):
        asked += _addresses(text, [known[rank % len(known)], Place("/ui/{none}", ())][: 1 + (rank % 4 == 0)])
    require_text(there.fetch_all([(address, {}) for address in asked]))
    assert there.settled() == []


def test_in_fields_of_forms(there: Seat) -> None:
    """What was typed is there again beside the refusal."""
    for path in ("/ui/deploy", "/ui/act/reboot", "/ui/act/power"):
        page = there.open(path)
        names = page.locator("main form [name]").evaluate_all("all => [...new Set(all.map(each => each.name))]")
        token = page.locator("main form [name=csrf]").first.input_value()
        typed = [dict.fromkeys(names, text) | {"csrf": token, "step": ""} for text in BUNDLES]
        answers = there.fetch_all([(path, each) for each in typed])
        require_text(answers)
        for answer, text in zip(answers, BUNDLES, strict=True):
            assert plain(text) in plain(answer.text), path
    assert there.settled() == []


def test_where_people_sign_in(there: Seat) -> None:
    there.context.clear_cookies()
    there.open("/ui/sign-in")
    asked = [("/ui/sign-in", {"user": text, "password": text, "then": text}) for text in TEXTS]
    asked += [("/ui/sign-in", {"token": text, "then": text}) for text in BUNDLES]
    answers = there.fetch_all(asked)
    require_text(answers)
    assert {answer.status for answer in answers} <= {400, 401, 429}
    assert there.settled() == []


def test_on_pages_that_are_shown(there: Seat) -> None:
    """In the browser itself, where what is not text would run."""
    for text in BUNDLES[::5]:
        for address in _addresses(text, [place for place in places() if place.parts or place.query]):
            there.page.goto(address, wait_until="domcontentloaded")
            assert there.foreign() == [], address
    assert there.settled() == []


# --- what is in the database ----------------------------------------------------------------------------------------


def test_environments(hostile: Hostile, there: Seat) -> None:
    assert len(hostile.admitted) > 200
    page = there.open("/ui/environments")
    there.page.wait_for_timeout(200)
    shown = plain(page.inner_text("body"))
    assert [each.name for each in hostile.admitted if plain(each.name) not in shown] == []
    assert there.foreign() == []
    links = page.locator("main a[href^='/ui/environments/']").evaluate_all(
        "all => all.map(each => each.getAttribute('href'))"
    )
    answers = there.fetch_all([(link, {}) for link in links])
    require_text(answers)
    assert {answer.status for answer in answers} == {200}
    seen = [plain(answer.text) for answer in answers]
    assert [each.name for each in hostile.admitted if not any(plain(each.description) in text for text in seen)] == []
    assert there.settled() == []


def test_users_who_have_rights(hostile: Hostile, there: Seat) -> None:
    assert len(USERS) > 20
    page = there.open("/ui/rights")
    shown = plain(page.inner_text("main"))
    assert [user for user in USERS if plain(user) not in shown] == []
    assert there.foreign() == []
    assert there.settled() == []


# --- what nodes say -------------------------------------------------------------------------------------------------


@pytest.fixture
def failed(hostile: Hostile, there: Seat) -> str:
    """A run whose nodes have failed; it is begun once."""
    if not hostile.wid:
        hostile.wid = begin(there, f"bad-[1-{len(BUNDLES)}].site")
        wait_for_end(there, hostile.page.site, hostile.wid)
    return hostile.wid


def test_reasons_of_failures(failed: str, there: Seat) -> None:
    shown = plain(told_at(there, f"/ui/runs/{failed}", "Ended"))
    assert there.foreign() == []
    assert [text for text in BUNDLES if plain(text)[:40] not in shown] == []
    others = (
        "/ui/runs",
        "/ui/nodes",
        "/ui/nodes/bad-1.site",
        "/ui/statistics",
        f"/ui/runs/{failed}/consoles/bad-1.site",
    )
    for path in others:
        there.open(path)
        assert there.foreign() == [], path
    assert there.settled() == []


def test_the_audit_log(hostile: Hostile, there: Seat) -> None:
    """It holds what was refused, in the words of whoever asked."""
    token = there.open("/ui/act/power").locator("main [name=csrf]").first.input_value()
    there.fetch_all([("/ui/act/power", {"csrf": token, "nodes": text, "operation": text}) for text in TEXTS[::6]])
    told = (Path(hostile.page.site.state_dir) / "audit.jsonl").read_text()
    assert "<script>" in told
    there.open("/ui/audit")
    assert there.foreign() == []
    assert there.settled() == []


def test_consoles(there: Seat) -> None:
    """The terminal draws characters; its title, links and answers to questions come to nothing."""
    page = there.open("/ui/nodes/bad-1.site/console")
    title = page.title()
    page.locator(".xterm-rows").get_by_text(LAST).wait_for()
    page.wait_for_timeout(500)
    assert page.title() == title
    assert [each for each in there.foreign() if "style" not in each.lower()] == []
    assert there.settled() == []
