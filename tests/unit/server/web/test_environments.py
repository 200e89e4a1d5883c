"""Environments on the page: what kaenv3 shows this user, and what it lets the user do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Image
from kadeploy.environments.reference import Reference
from kadeploy.errors import EnvironmentRefusedError
from kadeploy.server import audit
from kadeploy.state import database, environments, overview
from kadeploy.state.tables import EnvironmentRow, Log, environment_columns
from tests.unit import build
from tests.unit.server.web.conftest import Browser

Browse = Callable[[str], Browser]
PATH = "/ui/environments"


@pytest.fixture
def recorded(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Environments of alice, one of each visibility, and two public versions of root's."""
    monkeypatch.setattr(overview, "KEPT", 0.0)
    database.connect(site)
    _record(name="mine", user="alice", visibility="private", description="<i>alice's</i> \x1b[31mown")
    _record(name="ours", user="alice", visibility="shared", demolishing_env=2)
    post = Archive(file="server:///post.tgz", kind="tgz", script="run.sh now", md5="cc", sha256="dd")
    image = Image(file="server:///debian.tgz", kind="tgz", md5="aa", sha256="bb")
    for version in (1, 2):
        _record(name="debian", version=version, user="root", visibility="public", image=image, postinstalls=(post,))
    return site


def _record(**changes: Any) -> None:
    found = msgspec.structs.replace(build.environment(), **changes)
    EnvironmentRow.insert(**environment_columns(found)).execute()


def visibility(site: Site, name: str) -> str:
    return environments.find(site, "alice", Reference(name, owner="alice")).visibility


@pytest.mark.parametrize(
    ("user", "query", "names"),
    [
        ("alice", {}, {"debian", "mine", "ours"}),
        ("bob", {}, {"debian"}),
        ("bob", {"owner": "alice"}, {"ours"}),
        ("bob", {"owner": "*"}, {"debian", "ours"}),
        ("root", {"owner": "alice"}, {"ours"}),
        ("alice", {"name": "m*"}, {"mine"}),
        ("alice", {"name": "deb%", "owner": "root"}, {"debian"}),
    ],
)
def test_a_user_sees_what_kaenv3_lists(
    recorded: Site, browse: Browse, user: str, query: dict[str, str], names: set[str]
) -> None:
    text = browse(user).get(PATH, **query).text
    assert {name for name in ("debian", "mine", "ours") if f">{name}</a>" in text} == names


def test_all_versions_are_listed_when_asked_for(recorded: Site, browse: Browse) -> None:
    browser = browse("bob")
    assert browser.get(PATH).text.count(">debian</a>") == 1
    assert browser.get(PATH, all_versions="true").text.count(">debian</a>") == 2


def test_one_environment_is_shown_with_its_files_and_their_checksums(recorded: Site, browse: Browse) -> None:
    words = browse("bob").get(f"{PATH}/one", name="debian", owner="root").words
    for told in (
        "Version 2 ",
        "Version 1 ",
        "server:///debian.tgz (tgz)",
        "MD5 aa",
        "SHA-256 bb",
        "server:///post.tgz (tgz), runs run.sh now",
        "SHA-256 dd",
    ):
        assert told in words


def test_one_that_is_somebody_elses_is_as_if_there_were_none(recorded: Site, browse: Browse) -> None:
    answer = browse("bob").get(f"{PATH}/one", name="mine", owner="alice")
    assert (answer.status, "There is no environment" in answer.words) == (400, True)
    assert browse("alice").get(f"{PATH}/one", name="mine").status == 200


def test_texts_of_an_environment_are_only_texts(recorded: Site, browse: Browse) -> None:
    for path in (PATH, f"{PATH}/one?name=mine"):
        text = browse("alice").get(path).text
        assert "&lt;i&gt;alice&#39;s&lt;/i&gt; �[31mown" in text
        assert "\x1b" not in text


def test_success_is_counted_by_version_and_image_and_what_a_user_stopped_is_left_out(
    recorded: Site, browse: Browse
) -> None:
    done = {
        "wid": "D-1",
        "operation": "deploy",
        "user": "bob",
        "hostname": "gdx-1.site",
        "start": int(time.time()) - 60,
    }
    done |= {"env": "debian:2", "md5": "aa", "error": ""}
    failed = done | {"success": False, "error": "BootNewEnvKexec: late"}
    database.insert(
        Log, [*[done | {"success": True}] * 3, failed, failed | {"error": "aborted"}, failed | {"md5": "xx"}]
    )
    database.insert(Log, [failed | {"anonymous_env": True}])
    words = browse("bob").get(f"{PATH}/one", name="debian").words
    assert "Success rate 75 % of 4 deployments of nodes within 30 days" in words
    assert "Last used not within 30 days" in words
    assert "75 % of 4" in browse("bob").get(PATH).words


# --- changing -------------------------------------------------------------------------------------------------------


MINE = {"name": "mine", "version": "1", "owner": "alice", "arch": ""}


def test_an_owner_says_who_sees_it_and_the_audit_log_which_it_was(recorded: Site, browse: Browse) -> None:
    answer = browse("alice").post(f"{PATH}/visibility", **MINE, visibility="shared")
    assert (answer.status, answer.where) == (303, f"{PATH}/one?name=mine&owner=alice")
    assert visibility(recorded, "mine") == "shared"
    [entry] = audit.read(recorded)
    assert (entry.what, entry.object, entry.user) == (f"POST {PATH}/visibility", "mine@alice:1", "alice")


@pytest.mark.parametrize(
    ("user", "changes", "status"),
    [
        ("bob", {}, 403),
        ("alice", {"visibility": "public"}, 403),
        ("alice", {"visibility": "secret"}, 400),
        ("alice", {"version": "x"}, 400),
        ("alice", {"version": "9"}, 400),
        ("alice", {"csrf": "wrong"}, 403),
    ],
)
def test_what_kaenv3_would_refuse_is_refused(
    recorded: Site, browse: Browse, user: str, changes: dict[str, str], status: int
) -> None:
    answer = browse(user).post(f"{PATH}/visibility", **MINE | {"visibility": "shared"} | changes)
    assert (answer.status, visibility(recorded, "mine")) == (status, "private")


def test_an_administrator_may_publish_what_others_own(recorded: Site, browse: Browse) -> None:
    assert browse("root").post(f"{PATH}/visibility", **MINE, visibility="public").status == 303
    assert ">mine</a>" in browse("bob").get(PATH).text


def test_the_demolishing_tag_is_taken_off(recorded: Site, browse: Browse) -> None:
    assert "Take the demolishing tag off" in browse("alice").get(f"{PATH}/one", name="ours").words
    assert browse("alice").post(f"{PATH}/demolishing", **MINE | {"name": "ours"}).status == 303
    assert "demolishing" not in browse("alice").get(f"{PATH}/one", name="ours").words


def test_who_deletes_is_asked_again_and_a_look_changes_nothing(recorded: Site, browse: Browse) -> None:
    question = browse("alice").get(f"{PATH}/delete", **MINE)
    assert "Delete mine version 1?" in question.words
    assert visibility(recorded, "mine") == "private"
    assert browse("alice").post(f"{PATH}/delete", **MINE).where == PATH
    with pytest.raises(EnvironmentRefusedError):
        visibility(recorded, "mine")


def test_one_version_of_several_is_deleted(recorded: Site, browse: Browse) -> None:
    wanted = {"name": "debian", "version": "1", "owner": "root", "arch": ""}
    assert browse("bob").post(f"{PATH}/delete", **wanted).status == 403
    assert browse("root").post(f"{PATH}/delete", **wanted).status == 303
    left = environments.versions(recorded, "bob", Reference("debian"))
    assert [each.version for each in left] == [2]


def test_forms_are_for_whom_may_use_them(recorded: Site, browse: Browse) -> None:
    page = f"{PATH}/one"
    assert "Who sees it" not in browse("bob").get(page, name="ours", owner="alice").words
    assert "<option>public" not in browse("alice").get(page, name="ours").text
    assert "<option>public" in browse("root").get(page, name="ours", owner="alice").text


def test_a_name_may_hold_any_sign(recorded: Site, browse: Browse) -> None:
    name = "a/b?c=d&e@f:1%g"
    _record(name=name, user="alice", visibility="private")
    browser = browse("alice")
    assert browser.get(f"{PATH}/one", name=name, owner="alice").status == 200
    assert browser.post(f"{PATH}/delete", **MINE | {"name": name}).status == 303
