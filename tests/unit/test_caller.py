"""Who calls: the real user, or who called sudo; and threads that open files as that user."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from kadeploy import caller as caller_module
from kadeploy.caller import Account, as_user, caller
from kadeploy.errors import OptionError

ME = pwd.getpwuid(os.getuid())
NOBODY = pwd.getpwnam("nobody")


def in_process(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_without_sudo_it_is_the_real_user() -> None:
    assert caller({}) == (ME.pw_name, ME.pw_uid, ME.pw_gid, Path(ME.pw_dir))


def test_home_is_where_the_users_shell_says_and_not_where_sudo_does() -> None:
    assert caller({"HOME": "/srv/me"}).home == Path("/srv/me")
    assert caller({"HOME": "here"}).home == Path(ME.pw_dir)
    if os.getuid() == 0:
        assert caller({"HOME": "/root", "SUDO_UID": str(NOBODY.pw_uid)}).home == Path(NOBODY.pw_dir)


def test_under_sudo_it_is_who_called_sudo_and_only_root_is_believed() -> None:
    expected = NOBODY if os.getuid() == 0 else ME
    assert caller({"SUDO_UID": str(NOBODY.pw_uid)}).name == expected.pw_name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_is_not_root_is_believed_nothing() -> None:
    """Or anybody could set SUDO_UID and use the rights and the files of another user."""
    code = (
        "import os; from kadeploy.caller import caller\n"
        f"os.setresuid({NOBODY.pw_uid}, {NOBODY.pw_uid}, {NOBODY.pw_uid})\n"
        "print(caller().name)"
    )
    assert in_process(code, SUDO_UID="0") == NOBODY.pw_name


@pytest.mark.parametrize("text", ["", "root", "-1", "1; id", "²"])
def test_a_sudo_uid_that_is_no_number_does_not_count(text: str) -> None:
    assert caller({"SUDO_UID": text}).uid == os.getuid()


def test_a_user_without_account_is_refused() -> None:
    if os.getuid() != 0:  # nobody else can be called by another user
        assert caller({"SUDO_UID": "54321"}).uid == os.getuid()
        return
    with pytest.raises(OptionError, match="54321 has no account"):
        caller({"SUDO_UID": "54321"})


# --- the caller's environment --------------------------------------------------------------------------------------


def shed(code: str = "", **environment: str) -> dict[str, str]:
    """The environment that is left in a process of root's."""
    lines = ("import json, os", "from kadeploy import caller", "caller.shed_environment()", code)
    said: dict[str, str] = json.loads(
        in_process("\n".join((*lines, "print(json.dumps(dict(os.environ)))")), **environment)
    )
    return said


HARMFUL = (
    *("ANSIBLE_CONFIG", "ANSIBLE_LIBRARY", "ANSIBLE_STRATEGY_PLUGINS", "PYTHONSTARTUP", "LD_LIBRARY_PATH", "BASH_ENV"),
    *("http_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "TMPDIR", "PGHOST"),
    *("PAGER", "EDITOR", "MPLCONFIGDIR", "KADEPLOY_RUN", "PERL5LIB", "LANGUAGES", "XTERM"),
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called with sudo")
def test_of_who_calls_with_sudo_few_variables_reach_root() -> None:
    kept = {"TERM": "xterm", "LC_ALL": "C.UTF-8", "TZ": "Europe/Paris", "KADEPLOY_PLAIN": "1", "OAR_NODE_FILE": "/n"}
    left = shed(SUDO_UID="65534", HOME="/home/eve", **dict.fromkeys(HARMFUL, "theirs"), **kept)
    assert not left.keys() & set(HARMFUL)
    assert kept.items() <= left.items()
    assert (left["HOME"], left["USER"], left["SUDO_UID"]) == (ME.pw_dir, ME.pw_name, "65534")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called with sudo")
@pytest.mark.parametrize(("name", "value"), [("LC_ALL", "../eve"), ("TERM", "/tmp/t"), ("TZ", "/tmp/z"), ("TZ", ":z")])
def test_a_variable_that_names_a_file_does_not_reach_root(name: str, value: str) -> None:
    assert name not in shed(SUDO_UID="65534", **{name: value})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called with sudo")
def test_programs_are_looked_for_where_nobody_but_root_can_put_one(open_folder: Path) -> None:
    path = ("/usr/bin", "bin", ".", "", str(open_folder / "theirs"), str(open_folder / "all"), str(open_folder / "no"))
    for name, mode, owner in (("theirs", 0o755, NOBODY.pw_uid), ("all", 0o777, 0)):
        (open_folder / name).mkdir()
        (open_folder / name).chmod(mode)
        os.chown(open_folder / name, owner, 0)
    assert shed(SUDO_UID="65534", PATH=":".join(path))["PATH"] == "/usr/bin"
    assert shed(SUDO_UID="65534", PATH="")["PATH"].endswith(":/sbin:/bin")


@pytest.mark.parametrize("sudo", ["", "0"])
def test_root_keeps_the_environment_that_it_has_set_itself(sudo: str) -> None:
    given = {"ANSIBLE_CONFIG": "/root/ansible.cfg", "http_proxy": "http://proxy:3128", "HOME": "/srv/me"}
    assert given.items() <= shed(SUDO_UID=sudo, **given).items()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_that_has_changed_its_user_sheds_what_the_caller_has_set() -> None:
    code = (
        f"import os; from kadeploy import caller; os.setresuid({NOBODY.pw_uid}, 0, 0); caller.shed_environment()\n"
        "print(os.environ.get('ANSIBLE_CONFIG'), caller.caller().name, caller.caller().home)"
    )
    assert in_process(code, ANSIBLE_CONFIG="/tmp/theirs", HOME="/home/eve") == "None nobody /home/eve"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called with sudo")
def test_what_the_configuration_names_is_taken_back() -> None:
    left = shed("caller.take_back(['http_proxy', 'BMC_PASSWORD'])", SUDO_UID="65534", http_proxy="http://proxy:3128")
    assert left["http_proxy"] == "http://proxy:3128"


# --- the user of one thread ---------------------------------------------------------------------------------------

DAEMON = pwd.getpwnam("daemon")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


ROOT, ALICE, BOB = account(ME), account(NOBODY), account(DAEMON)


def rights() -> tuple[int, int, list[int]]:
    return os.geteuid(), os.getegid(), os.getgroups()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter and write; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o1777)
        yield path


def make(path: Path, uid: int, gid: int, mode: int) -> Path:
    path.write_text(path.name)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


@pytest.fixture
def own(folder: Path) -> dict[int, Path]:
    """A file for each user, which nobody else may open, but for root."""
    return {who.uid: make(folder / who.name, who.uid, who.gid, 0o600) for who in (ROOT, ALICE, BOB)}


def opened(paths: Iterable[Path]) -> set[str]:
    """Names of those that this thread can open."""
    names = set()
    for path in paths:
        with suppress(PermissionError), path.open() as stream:
            names.add(stream.read())
    return names


@as_root
def test_threads_work_for_different_users_at_once_and_each_opens_its_users_files_only(own: dict[int, Path]) -> None:
    workers = (ALICE, BOB, ROOT)
    together = threading.Barrier(len(workers), timeout=60)

    def work(who: Account) -> list[set[str]]:
        seen = []
        for _ in range(200):
            with as_user(who):
                together.wait()  # now each thread is its user
                seen.append(opened(own.values()))
                together.wait()
            seen.append(opened(own.values()))
        return seen

    with ThreadPoolExecutor(len(workers)) as pool:
        alice, bob, root = pool.map(work, workers)
    everything = {"root", "nobody", "daemon"}
    assert alice == [{"nobody"}, everything] * 200
    assert bob == [{"daemon"}, everything] * 200
    assert root == [everything] * 400


@as_root
def test_a_file_that_only_the_users_group_may_read_is_opened(folder: Path) -> None:
    path = make(folder / "shared", 0, ALICE.gid, 0o040)
    with as_user(ALICE):
        assert opened([path]) == {"shared"}
    with as_user(BOB):
        assert opened([path]) == set()


@as_root
def test_the_users_other_groups_count_and_roots_do_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's group database is not ours to change, so the answer of getgrouplist(3) is given."""
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 54321, 54322])
    path, roots = make(folder / "project", 0, 54322, 0o040), make(folder / "wheel", 0, 0, 0o040)
    with as_user(ALICE):
        assert opened([path, roots]) == {"project"}
    with as_user(BOB._replace(gid=54321)):
        assert sorted(os.getgroups()) == [54321, 54321, 54322]


@as_root
def test_no_privilege_of_root_is_left_and_all_come_back(own: dict[int, Path]) -> None:
    def effective() -> str:
        return re.findall(r"CapEff:\s*(\w+)", Path("/proc/thread-self/status").read_text())[0]

    before = effective()
    with as_user(ALICE):
        assert int(effective(), 16) == 0
    assert effective() == before
    assert opened(own.values()) == {"root", "nobody", "daemon"}


@as_root
def test_a_process_whose_privileges_do_not_leave_with_the_user_is_refused() -> None:
    code = (
        "import ctypes, os, pwd; from pathlib import Path; from kadeploy.caller import Account, as_user\n"
        "assert ctypes.CDLL(None).prctl(28, 4, 0, 0, 0) == 0\n"  # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP
        "try:\n"
        "    with as_user(Account('nobody', 65534, 65534, Path('/'))): print('went on')\n"
        "except PermissionError as error: print('refused', os.geteuid())"
    )
    assert in_process(code) == "refused 0"


@as_root
def test_what_may_be_executed_is_asked_for_the_user(folder: Path) -> None:
    path = make(folder / "script", ALICE.uid, 0, 0o700)
    with as_user(ALICE):
        assert os.access(path, os.R_OK | os.X_OK, effective_ids=True)
    with as_user(BOB):
        assert not os.access(path, os.R_OK, effective_ids=True)


@as_root
def test_new_files_belong_to_the_user(folder: Path) -> None:
    with as_user(ALICE):
        (folder / "new").write_text("")
    status = (folder / "new").stat()
    assert (status.st_uid, status.st_gid) == (ALICE.uid, ALICE.gid)


@as_root
def test_the_innermost_user_counts_and_each_block_gives_back_what_it_found(own: dict[int, Path]) -> None:
    before = rights()
    with as_user(ALICE):
        outer = rights()
        with as_user(BOB):
            assert opened(own.values()) == {"daemon"}
            with as_user(ROOT):
                assert opened(own.values()) == {"root", "nobody", "daemon"}
            assert opened(own.values()) == {"daemon"}
        assert rights() == outer
        assert opened(own.values()) == {"nobody"}
    assert rights() == before


@as_root
def test_root_is_root_again_after_an_exception() -> None:
    before = rights()
    with pytest.raises(ZeroDivisionError), as_user(ALICE), as_user(BOB):
        raise ZeroDivisionError
    assert rights() == before


@as_root
@pytest.mark.parametrize("impossible", [{"uid": 2**32 - 2, "gid": 2**32 - 1}, {"uid": 2**32 - 1}])
def test_a_change_that_cannot_be_made_is_refused_and_changes_nothing(impossible: dict[str, int]) -> None:
    """The kernel has no user or group -1: for setresuid(2) it means no change, which would be to go on as root."""
    before = rights()
    with pytest.raises(OSError, match=r"\w"), as_user(ALICE._replace(**impossible)):
        pytest.fail("went on")
    assert rights() == before


@as_root
def test_on_an_unknown_machine_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_module, "_MACHINES", {})
    with pytest.raises(OSError, match="this kind of machine"), as_user(ALICE):
        pytest.fail("went on")
    assert os.geteuid() == 0


@as_root
def test_a_process_of_a_user_becomes_nobody_else() -> None:
    code = (
        "import os; from pathlib import Path; from kadeploy.caller import Account, as_user\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "with as_user(Account('nobody', 65534, 65534, Path('/'))): print(os.geteuid(), end=' ')\n"
        "with as_user(Account('root', 0, 0, Path('/'))): print(os.geteuid(), end=' ')\n"
        "try:\n"
        "    with as_user(Account('daemon', 1, 1, Path('/'))): print('went on')\n"
        "except PermissionError: print('refused')"
    )
    assert in_process(code) == "65534 65534 refused"
