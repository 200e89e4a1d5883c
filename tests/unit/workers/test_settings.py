"""``worker.yml``: what is taken for granted, and what is refused with the place of the mistake."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kadeploy.errors import ConfigError, KadeployError
from kadeploy.workers import settings

LEAST = "url: https://controller:25400\ndatabase_file: /etc/kadeploy/queue\nclusters: [gdx]\n"


def read(tmp_path: Path, text: str) -> settings.Worker:
    path = tmp_path / "worker.yml"
    path.write_text(text)
    return settings.read(path)


def test_three_lines_will_do(tmp_path: Path) -> None:
    worker = read(tmp_path, LEAST)
    assert worker.called == socket.gethostname()
    assert (worker.shards, worker.clusters) == (2, ("gdx",))
    assert (worker.folder, worker.secrets) == ("/var/lib/kadeploy-worker", "/run/kadeploy-worker")


def test_a_worker_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    assert read(tmp_path, f"{LEAST}name: w1\n").called == "w1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url: https://c:1\nclusters: [gdx]\n", "database_file"),
        ("url: https://c:1\ndatabase_file: /x\n", "clusters"),
        (LEAST.replace("[gdx]", "[]"), "at least one cluster"),
        (LEAST.replace("[gdx]", "gdx"), "clusters"),
        (LEAST.replace("/etc/kadeploy/queue", "queue"), "database_file"),
        (f"{LEAST}shards: 0\n", "shards"),
        (f"{LEAST}folder: /srv/w\nsecrets: /srv/w\n", "secrets"),
        (f"{LEAST}folder: /srv/w\nsecrets: /srv/w/hidden\n", "secrets"),
        (f"{LEAST}folder: /run/w/disk\nsecrets: /run/w\n", "secrets"),
        (f"{LEAST}tokenfile: /x\n", "token_file"),
        ("- a\n", "worker.yml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="worker"):
        settings.read(tmp_path / "worker.yml")


def test_a_token_that_others_can_read_is_not_shown(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o644)
    worker = read(tmp_path, f"{LEAST}token_file: {token}\n")
    with pytest.raises(KadeployError, match="token"):
        settings.address_of(worker, tmp_path / "worker.yml")
    token.chmod(0o600)
    assert settings.address_of(worker, tmp_path / "worker.yml").headers["Authorization"] == "Bearer secret"
