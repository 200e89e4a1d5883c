"""Files are opened with the rights of the user who named them, although the controller is root."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.errors import FileError

NOBODY = Account("nobody", pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid, Path("/nonexistent"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that every user can enter; pytest's own cannot be entered by others."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path.name.startswith(("pytest-", "test_")):
            path.chmod(0o755)
    return tmp_path


def test_root_reads_for_a_user_only_what_that_user_can_read(folder: Path) -> None:
    secret, shared = folder / "secret", folder / "shared"
    secret.write_text("root's")
    secret.chmod(0o600)
    shared.write_text("everybody's")
    shared.chmod(0o644)
    assert files.read_text(str(shared), NOBODY) == "everybody's"
    with pytest.raises(FileError, match="Permission denied"):
        files.read_text(str(secret), NOBODY)
    with pytest.raises(FileError, match="nobody can read"):
        files.fetch(str(secret), folder, NOBODY)


def test_what_is_remembered_for_one_user_is_not_told_to_another(folder: Path) -> None:
    secret, cache = folder / "secret", folder / "cache"
    secret.write_text("root's")
    secret.chmod(0o600)
    while not cache.exists():  # until the file's last change is long enough ago
        stream, _ = files.hold(str(secret), folder, Account("root", 0, 0, Path("/root")), cache)
        stream.close()
    with pytest.raises(FileError, match="Permission denied"):
        files.hold(str(secret), folder, NOBODY, cache)


def test_a_link_to_roots_file_is_as_closed_as_the_file(folder: Path) -> None:
    secret, link = folder / "secret", folder / "link"
    secret.write_text("root's")
    secret.chmod(0o600)
    link.symlink_to(secret)
    with pytest.raises(FileError, match="Permission denied"):
        files.open_as_user(link, NOBODY)


def test_root_is_root_again_afterwards_even_after_a_refusal(folder: Path) -> None:
    before = (os.geteuid(), os.getegid(), sorted(os.getgroups()))
    with pytest.raises(FileError):
        files.open_as_user(folder / "missing", NOBODY)
    assert (os.geteuid(), os.getegid(), sorted(os.getgroups())) == before


def test_a_full_disk_is_told_as_such_and_nothing_is_left(folder: Path) -> None:
    """A file system of 64 KiB, in a mount namespace of its own, and a server that sends more."""
    script = f"""
import http.server, threading, os, sys
from pathlib import Path
from kadeploy import files
from kadeploy.caller import caller
from kadeploy.errors import FileError
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"x" * 4_000_000)
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_): pass
server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
try:
    files.fetch(f"http://127.0.0.1:{{server.server_port}}/i.tgz", Path({str(folder)!r}), caller())
except FileError as error:
    print(error, os.listdir({str(folder)!r}))
"""
    command = f'mount -t tmpfs -o size=64k none "{folder}" && exec "{sys.executable}" -'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        input=script,
        env={**os.environ, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is full: make room there. []" in done.stdout
