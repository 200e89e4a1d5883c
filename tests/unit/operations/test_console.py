"""Who may open a console, as whom its program runs, and the program in a terminal of its own."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from kadeploy.caller import Account, account
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.service import CONSOLE_SOCKET
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, FileError, NodeListError, RightsError
from kadeploy.operations import console, recording
from kadeploy.operations.console import Apart, End, Here, Session, Size, admit
from kadeploy.remote import terminal
from kadeploy.state import rights
from tests.descriptors import descriptors

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for others")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One kind of database will do."""
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


def configured(site_folder: Path, settings: str) -> Configuration:
    """The site whose gdx nodes have *settings*, with rights for alice on one of them."""
    with (site_folder / "clusters" / "gdx.yml").open("a", encoding="utf-8") as file:
        file.write(settings)
    configuration = load_configuration(site_folder)
    rights.add(configuration.site, "alice", ["gdx-1.site", "nvm-1.site"], ["*"])
    return configuration


def shown(session: Session, wanted: bytes = b"\0", seconds: float = 10.0) -> bytes:
    """What a program shows until it says *wanted*, or to its end."""
    said, limit = b"", time.monotonic() + seconds
    while not session.over and wanted not in said:
        assert select.select([session], [], [], limit - time.monotonic())[0], said
        said += session.read()
    return said


def begun(*command: str, size: Size | None = None, recording: recording.Recording | None = None) -> Session:
    return Session(terminal.Program(command, os.environ, (size or Size()).cells), recording)


def told(*command: str, size: Size | None = None) -> tuple[bytes, End]:
    session = begun(*command, size=size)
    return shown(session), session.end("ended")


def runs_as(admitted: console.Console) -> str:
    assert isinstance(admitted.starter, Here)
    return admitted.starter.account.name


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "node", "error", "said"),
    [
        ("alice", "", NodeListError, "-m NODE"),
        ("alice", "gdx-[1-2].site", NodeListError, "2 nodes"),
        ("alice", "mars-1", NodeListError, "Unknown node: mars-1"),
        ("alice", "../gdx-1.site", NodeListError, "Invalid node range"),
        ("alice", "gdx-2.site", RightsError, "karights3 -a -m gdx-2.site -p /dev/sda3 -u alice"),
        ("bob", "gdx-1.site", RightsError, "bob does not have the right"),
        ("alice", "nvm-1.site", ConfigError, r"clusters/nvm.yml: console is not set"),
    ],
)
def test_a_console_is_refused_with_what_to_do(
    user: str, node: str, error: type[Exception], said: str, site: Site, site_folder: Path
) -> None:
    configuration = configured(site_folder, "console: cat\nconsole_account: nobody\n")
    with pytest.raises(error, match=said):
        admit(configuration, user, node)


def test_the_beginning_of_a_nodes_name_will_do(site: Site, site_folder: Path) -> None:
    configuration = configured(site_folder, "console: telnet -E HOSTNAME_FQDN\nconsole_account: nobody\n")
    admitted = admit(configuration, "alice", "gdx-1")
    assert (admitted.node, admitted.part, admitted.command[-1]) == ("gdx-1.site", "/dev/sda3", "gdx-1.site")


@as_root
@pytest.mark.parametrize("own", [None, account("nobody")], ids=["in the service", "in the tool"])
def test_a_program_is_never_roots_for_somebody_else(own: Account | None, site: Site, site_folder: Path) -> None:
    configuration = configured(site_folder, "console: id\nconsole_account: root\n")
    with pytest.raises(ConfigError, match=r"clusters/gdx.yml: console_account: root is refused"):
        admit(configuration, "alice", "gdx-1", own)


@as_root
def test_a_service_of_roots_needs_an_account_for_consoles(site: Site, site_folder: Path) -> None:
    configuration = configured(site_folder, "console: id\n")
    with pytest.raises(ConfigError, match=r"console_account: root is refused.*name an account"):
        admit(configuration, "alice", "gdx-1")
    assert runs_as(admit(configuration, "alice", "gdx-1", account("root"))) == "root"
    assert runs_as(admit(configuration, "alice", "gdx-1", account("nobody"))) == "nobody"


@as_root
@pytest.mark.parametrize("settings", ["console_account: games\n", ""])
def test_a_service_that_is_not_roots_has_programs_started_by_another_account(
    settings: str, site: Site, site_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMC_PASSWORD", "sesame")
    cluster = configured(site_folder, f"console: id\n{settings}").clusters["gdx"]
    with unprivileged(site):
        starter = console._starter(site, cluster, None)
    assert isinstance(starter, Apart)
    assert (starter.socket, starter.account) == (Path(CONSOLE_SOCKET), cluster.console_account)
    assert set(starter.environment) <= {"PATH", "LANG", "LANGUAGE", "TZ", "TERM"} | {
        name for name in os.environ if name.startswith("LC_")
    }


@as_root
def test_where_the_site_says_so_they_run_as_the_service_and_as_nobody_else(site: Site, site_folder: Path) -> None:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("service: {consoles_as_service: true}\n")
    configuration = configured(site_folder, "console: id\n")
    others = configured(site_folder, "console_account: games\n")
    with unprivileged(site):
        starter = console._starter(configuration.site, configuration.clusters["gdx"], None)
        assert isinstance(starter, Here)
        assert starter.account.name == "nobody"
        with pytest.raises(ConfigError, match="nobody, who works here, cannot become games"):
            console._starter(configuration.site, others.clusters["gdx"], None)


@contextmanager
def unprivileged(site: Site) -> Iterator[None]:
    """This process is nobody's."""
    site.state.chmod(0o777)
    os.seteuid(account("nobody").uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_service_keeps_its_own_environment_to_itself(
    site: Site, site_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMC_PASSWORD", "sesame")
    configuration = configured(site_folder, "console: env\nconsole_account: nobody\n")
    service, tool = (admit(configuration, "alice", "gdx-1", own).starter for own in (None, account("nobody")))
    assert "BMC_PASSWORD" not in service.environment
    assert service.environment["USER"] == "nobody"
    assert tool.environment["BMC_PASSWORD"] == "sesame"  # the caller's own


# --- the program ------------------------------------------------------------------------------------------------------


def test_the_terminal_has_its_size_before_the_program_begins() -> None:
    assert told("stty", "size", size=Size(31, 97)) == (b"31 97\r\n", End("ended", 0))


def test_the_program_leads_a_session_with_the_terminal_as_its_own() -> None:
    said, _ = told("sh", "-c", "echo here >/dev/tty; ps -o pid=,sid= -p $$")
    first, second = said.splitlines()
    assert first == b"here"
    assert len(set(second.split())) == 1


def test_the_program_has_none_of_our_files() -> None:
    with Path("/etc/hostname").open(encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        said, _ = told("ls", "/proc/self/fd")
    assert said.split() == [b"0", b"1", b"2", b"3"]  # the last one is ls's own


@as_root
def test_the_program_runs_as_the_account_with_its_groups_and_terminal(site: Site, site_folder: Path) -> None:
    configuration = configured(site_folder, "console: sh -c 'id; stat -c %U $(tty)'\nconsole_account: games\n")
    session = admit(configuration, "alice", "gdx-1").open(Size())
    said = shown(session).decode()
    assert session.end("ended").status == 0
    assert said.startswith("uid=5(games)")
    assert "root" not in said
    assert said.endswith("games\r\n")


def test_a_program_that_ignores_the_hangup_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "GRACE", 0.3)
    session = begun("sh", "-c", "trap '' HUP; echo pid $$; while :; do sleep 0.1; done")
    pid = int(shown(session, b"\n").split()[1])
    assert session.end("revoked") == End("revoked")
    assert not Path(f"/proc/{pid}").exists()


def test_a_session_that_ends_at_once_leaves_nothing() -> None:
    """Its program has hardly begun."""
    before = descriptors()
    for _ in range(10):
        program = terminal.Program(("sleep", "99"), os.environ, Size().cells)
        Session(program).end("left")
        with pytest.raises(ChildProcessError):
            os.waitpid(program.pid, os.WNOHANG)
    assert descriptors() <= before


def test_writing_never_waits_for_a_program_that_does_not_read() -> None:
    session = begun("sleep", "99")
    start = time.monotonic()
    taken = sum(session.write(b"x" * 4096) for _ in range(50))
    assert time.monotonic() - start < 2
    assert taken < 50 * 4096
    session.end("left")


# --- recordings -------------------------------------------------------------------------------------------------------


def recorded(site_folder: Path, settings: str) -> Configuration:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("service: {record_consoles: true}\n")
    return configured(site_folder, settings)


def test_a_console_is_recorded_where_the_site_says_so(site: Site, site_folder: Path) -> None:
    configuration = recorded(site_folder, "console: sh -c 'printf Grüße; sleep 0.3; echo .'\n")
    session = admit(configuration, "alice", "gdx-1", account("nobody")).open(Size(30, 90))
    session.resize(Size(40, 100))
    shown(session)
    session.end("ended")
    (found,) = recording.listed(configuration, "alice")
    assert 0.2 < found.seconds < 5
    assert found.path.stat().st_mode & 0o777 == 0o600
    with recording.open_recorded(found) as file:
        header, pieces = recording.read(file, "it")
        texts = [each.text for each in pieces]
    assert (header.width, header.height, header.user, header.title) == (90, 30, "alice", "gdx-1.site")
    assert texts[0] == "100x40"
    assert "".join(texts[1:]) == "Grüße.\r\n"


def test_no_console_is_recorded_where_the_site_does_not_say_so(site: Site, site_folder: Path) -> None:
    configuration = configured(site_folder, "console: echo hello\n")
    session = admit(configuration, "alice", "gdx-1", account("nobody")).open(Size())
    shown(session)
    session.end("ended")
    assert not recording.folder(site).exists()


def test_a_recording_that_is_full_says_so_and_the_console_goes_on(
    site: Site, site_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LIMIT", 10_000)
    configuration = recorded(site_folder, "console: seq 20000\n")
    session = admit(configuration, "alice", "gdx-1", account("nobody")).open(Size())
    assert shown(session).endswith(b"20000\r\n")
    session.end("ended")
    (found,) = recording.listed(configuration, "alice")
    assert found.path.stat().st_size < 10_200
    last = found.path.read_text(encoding="utf-8").splitlines()[-1]
    assert '"m"' in last
    assert recording.ENDED in last


def test_a_recording_is_whole_though_its_writer_is_killed(site: Site) -> None:
    pid = os.fork()
    if pid == 0:
        made = recording.Recording.begin(site, "gdx-1.site", "alice", 24, 80)
        made.shown(b"last words")
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    (path,) = recording.folder(site).glob("*/*.cast")
    assert "last words" in path.read_text(encoding="utf-8")


def test_a_full_disk_ends_the_recording_and_not_the_console(site: Site, site_folder: Path) -> None:
    header = recording.Header(2, 80, 24)
    full = recording.Recording(FileIO("/dev/full", "w"), header, recording.LIMIT)
    session = begun("echo", "hello", recording=full)
    assert shown(session) == b"hello\r\n"
    assert session.end("ended") == End("ended", 0)


def test_a_console_that_cannot_be_recorded_is_not_opened(site: Site, site_folder: Path) -> None:
    configuration = recorded(site_folder, "console: touch opened\n")
    recording.folder(site).write_text("not a folder", encoding="utf-8")
    with pytest.raises(FileError, match="cannot be recorded, and the site wants that"):
        admit(configuration, "alice", "gdx-1", account("nobody")).open(Size())


def test_old_recordings_and_more_than_the_room_for_runs_go(site: Site, site_folder: Path) -> None:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("runs: {days: 2, max_mb: 1}\n")
    configuration = recorded(site_folder, "console: echo hello\n")
    top = recording.folder(site) / "gdx-1.site"
    top.mkdir(parents=True)
    for name, age, size in (("old", 3, 10), ("large", 1, 900_000), ("larger", 0.5, 900_000), ("new", 0, 10)):
        path = top / f"{name}.cast"
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() - age * 86400,) * 2)
    recording.purge(configuration.site)
    assert sorted(path.stem for path in top.iterdir()) == ["larger", "new"]


@as_root
def test_a_recording_made_by_root_belongs_to_whom_the_state_belongs_to(site: Site, site_folder: Path) -> None:
    configuration = recorded(site_folder, "console: echo hello\n")
    games = account("games")
    os.chown(site.state, games.uid, games.gid)
    session = admit(configuration, "alice", "gdx-1", account("nobody")).open(Size())
    shown(session)
    session.end("ended")
    (found,) = recording.listed(configuration, "alice")
    assert [path.stat().st_uid for path in (found.path, found.path.parent, found.path.parent.parent)] == [5, 5, 5]


def test_users_of_any_name_have_recordings_of_their_own(site: Site, site_folder: Path) -> None:
    configuration = recorded(site_folder, "console: echo hello\n")
    for user in ("../../x", "a-b/c", "x" * 300, "\u202eolga"):
        recording.Recording.begin(configuration.site, "gdx-1.site", user, 24, 80).end()
        (found,) = [each for each in recording.listed(configuration, user) if each.user == user]
        assert found.path.parent == recording.folder(site) / "gdx-1.site"
