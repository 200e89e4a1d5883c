"""The htpasswd file: which hashes count, what a damaged file does, and how it is changed."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import argon2
import bcrypt
import pytest

from kadeploy.errors import AuthenticationError, FileError
from kadeploy.server import htpasswd
from kadeploy.server.htpasswd import Htpasswd
from tests.unit.server.conftest import Clock

QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


def of_bcrypt(password: str, prefix: str = "2b") -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", f"${prefix}$")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "htpasswd"


def written(path: Path, *lines: str) -> Htpasswd:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Htpasswd(path)


@pytest.mark.parametrize(
    "hashed",
    [
        *(lambda text, prefix=prefix: of_bcrypt(text, prefix) for prefix in ("2a", "2b", "2y")),
        QUICK.hash,
    ],
    ids=["2a", "2b", "2y", "argon2id"],
)
def test_a_password_is_checked_against_its_hash(path: Path, hashed: Callable[[str], str]) -> None:
    found = written(path, "# users", "", f"alice:{hashed('sécret:1')}", f"bob:{hashed('other')}\r")
    assert found.check("alice", "sécret:1")
    assert found.check("bob", "other")
    wrong = [("alice", "other"), ("alice", ""), ("alice", "sécret:1 "), ("carol", "other"), ("Alice", "sécret:1")]
    assert not any(found.check(*each) for each in wrong)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("alice:$apr1$xxxxxxxx$UEJ7/iLqpkSnSUR8tAMqX.", "neither a bcrypt nor an argon2id hash: make it anew"),
        ("alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "neither a bcrypt nor an argon2id hash"),
        ("alice:secret", "neither a bcrypt nor an argon2id hash"),
        ("alice:rqXexS6ZhobKA", "neither a bcrypt nor an argon2id hash"),
        ("alice:$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHQ$c29tZWhhc2hzb21laGFzaA", "neither a bcrypt nor"),
        ("alice:$argon2id$v=19$m=64,t=1", "not a whole argon2id hash"),
        ("alice:$argon2id$v=19$m=64,t=1,p=1$$", "not a whole argon2id hash"),
        ("alice:$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$c29tZWhhc2hzb21laGFzaA", "memory_cost above"),
        (f"alice:$2b$31${'a' * 53}", "a bcrypt cost above 16"),
        ("alice:$2b$04$short", "neither a bcrypt nor an argon2id hash"),
        ("alice:", "neither a bcrypt nor an argon2id hash"),
    ],
)
def test_a_line_that_does_not_count_refuses_its_user_alone_and_is_told_without_the_hash(
    path: Path, line: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = written(path, f"bob:{of_bcrypt('other')}", line)
    assert found.check("bob", "other")
    for password in ("secret", "", line.partition(":")[2][:72]):
        assert not found.check("alice", password)
    [told] = caplog.records
    assert told.getMessage().startswith(f"{path}, line 2 (alice): {said}")
    assert told.getMessage().endswith("; refused.")
    assert line.partition(":")[2] not in told.getMessage() or line == "alice:"


def test_a_user_with_two_lines_has_the_first(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = written(path, f"alice:{of_bcrypt('one')}", f"alice:{of_bcrypt('two')}")
    assert (found.check("alice", "one"), found.check("alice", "two")) == (True, False)
    assert "line 2 (alice): a second line of this user; refused." in caplog.text


def test_a_line_without_a_name_cannot_put_anything_into_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(path, f"a\x1b[2Jb\u2028c:{of_bcrypt('one')}").check("a", "b")
    [told] = caplog.records
    assert "\x1b" not in told.getMessage()
    assert "\u2028" not in told.getMessage()
    assert "expected user:hash" in told.getMessage()


@pytest.mark.parametrize("long", ["x" * 73, "é" * 37])
def test_what_bcrypt_would_cut_is_refused_whether_or_not_the_user_exists(path: Path, long: str) -> None:
    found = written(path, f"alice:{of_bcrypt(long.encode()[:72].decode())}")
    for user in ("alice", "nobody"):
        with pytest.raises(AuthenticationError, match="more than 72 bytes, and bcrypt looks at no more"):
            found.check(user, long)
    assert found.check("alice", long.encode()[:72].decode())


def test_argon2_takes_long_passwords_within_bounds(path: Path) -> None:
    found = written(path, f"alice:{QUICK.hash('x' * 1024)}")
    assert found.check("alice", "x" * 1024)
    assert not found.check("alice", "x" * 1023)
    with pytest.raises(AuthenticationError, match="more than 1024 bytes"):
        found.check("alice", "x" * 1025)


def test_an_unknown_user_takes_as_long_as_a_known_one(path: Path) -> None:
    found = written(path, f"alice:{bcrypt.hashpw(b'secret', bcrypt.gensalt(8)).decode()}")

    def seconds(user: str) -> float:
        taken = []
        for _ in range(7):
            start = time.process_time()
            assert not found.check(user, "wrong")
            taken.append(time.process_time() - start)
        return median(taken)

    known, unknown = seconds("alice"), seconds("nobody")
    assert 0.5 < unknown / known < 2


def test_a_file_without_users_costs_an_unknown_user_a_hash_too(path: Path) -> None:
    found = written(path)
    found.check("alice", "x")  # makes the hash
    start = time.process_time()
    assert not found.check("alice", "x")
    assert time.process_time() - start > 0.01


# --- changes ----------------------------------------------------------------------------------------------------


def test_a_right_password_is_remembered_for_a_minute_and_a_wrong_one_never(path: Path, clock: Clock) -> None:
    path.write_text(f"alice:{of_bcrypt('one')}\n")
    found = Htpasswd(path, clock)
    assert not found.remembers("alice", "one")
    assert not found.check("alice", "two")
    assert not found.remembers("alice", "two")
    assert found.check("alice", "one")
    assert found.remembers("alice", "one")
    assert not found.remembers("alice", "two")
    assert not found.remembers("bob", "one")
    clock.now += 60
    assert not found.remembers("alice", "one")


def test_what_is_remembered_has_bounds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(htpasswd, "_MOST_REMEMBERED", 3)
    line = of_bcrypt("one")
    found = written(path, *(f"user{rank}:{line}" for rank in range(5)))
    assert all(found.check(f"user{rank}", "one") for rank in range(5))
    assert [found.remembers(f"user{rank}", "one") for rank in range(5)] == [False, False, True, True, True]


@pytest.mark.parametrize("change", ["in place", "replaced", "same size and time"])
def test_a_changed_file_is_read_again_and_nothing_of_before_counts(path: Path, change: str) -> None:
    found = written(path, f"alice:{of_bcrypt('one')}")
    assert found.check("alice", "one")
    assert found.remembers("alice", "one")
    before = path.stat()
    text = f"alice:{of_bcrypt('two')}\n"
    if change == "replaced":
        path.with_name("new").write_text(text)
        path.with_name("new").replace(path)
    else:
        path.write_text(text)
    if change == "same size and time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not found.remembers("alice", "one")
    assert (found.check("alice", "one"), found.check("alice", "two")) == (False, True)


def gone(path: Path) -> None:
    path.unlink()


def binary(path: Path) -> None:
    path.write_bytes(b"alice:\xff\xfe\n")


def everybodys(path: Path) -> None:
    path.chmod(0o666)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(9 * 1024 * 1024)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (gone, "No such file or directory"),
        (binary, "can't decode byte 0xff"),
        (everybodys, "everybody can write it"),
        (fifo, "not a regular file"),
        (endless, "more than 8388608 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_refuses_everybody_is_told_once_and_counts_again_when_mended(
    path: Path, change: Callable[[Path], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = written(path, f"alice:{of_bcrypt('one')}")
    assert found.check("alice", "one")
    change(path)
    caplog.set_level(logging.ERROR)
    for ask in (found.remembers, found.check, found.check):
        with pytest.raises(AuthenticationError, match="Passwords cannot be checked now: the service's log says why"):
            ask("alice", "one")
    assert len(caplog.records) == 1
    assert said in caplog.text
    assert f"{path}: " in caplog.text
    path.unlink(missing_ok=True)
    path.write_text(f"alice:{of_bcrypt('one')}\n")
    assert found.check("alice", "one")


# --- writing ----------------------------------------------------------------------------------------------------


def test_a_new_file_is_for_the_account_of_the_folder_alone(path: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    if os.geteuid() == 0:
        os.chown(state, 65534, 65534)
    htpasswd.set_password(path, "alice", "correct horse", like=state)
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, state.stat().st_uid)
    assert Htpasswd(path).check("alice", "correct horse")


def test_a_password_is_changed_in_its_line_and_the_others_the_owner_and_the_mode_stay(path: Path) -> None:
    bob = f"bob:{of_bcrypt('two')}"
    path.write_text(f"# ours\nalice:old\n{bob}\nalice :older\n")
    path.chmod(0o640)
    htpasswd.set_password(path, "alice", "correct horse", like=path.parent)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["# ours", bob]
    assert len(lines) == 3
    assert lines[2].startswith("alice:$argon2id$")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert Htpasswd(path).check("alice", "correct horse")
    assert Htpasswd(path).check("bob", "two")
    assert [each.name for each in path.parent.iterdir()] == ["htpasswd"]


def test_a_user_is_removed(path: Path) -> None:
    path.write_text(f"alice:{of_bcrypt('one')}\nbob:{of_bcrypt('two')}\n")
    assert htpasswd.remove(path, "alice", like=path.parent)
    assert not htpasswd.remove(path, "alice", like=path.parent)
    assert not Htpasswd(path).check("alice", "one")
    assert Htpasswd(path).check("bob", "two")


def test_a_link_stays_one_and_what_it_names_is_changed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere" / "real")
    htpasswd.set_password(path, "alice", "correct horse", like=tmp_path)
    assert path.is_symlink()
    assert Htpasswd(path).check("alice", "correct horse")


def test_changes_at_once_lose_nobody(path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rank: htpasswd.set_password(path, f"user{rank}", "x" * 8, like=path.parent), range(8)))
    assert sorted(line.partition(":")[0] for line in path.read_text().splitlines()) == [f"user{n}" for n in range(8)]


@pytest.mark.parametrize("where", ["none/htpasswd", "folder"])
def test_a_file_that_cannot_be_written_is_a_refusal_and_leaves_nothing_behind(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"Name a file that you can write as `service.htpasswd` in site.yml\."):
        htpasswd.set_password(tmp_path / where, "alice", "correct horse", like=tmp_path)
    assert [each.name for each in tmp_path.rglob("*")] == ["folder"]
