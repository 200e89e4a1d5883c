"""kadeploy-bootserver, as its unit runs it: under an account that is nobody else's, with one capability."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kadeploy.boot import tftp_client
from tests.accounts import Installation
from tests.unit.conftest import SITE

LOW = ("setpriv", "--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service")
"""As AmbientCapabilities= of the unit does it."""
ADDRESS = "127.69.80.1"
LIMIT = 30.0


@pytest.fixture
def folder(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose boot folders hold a file each; all may read it."""
    folder = installation.folder / tmp_path_factory.mktemp("boot").name
    for name in ("tftp", "http"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text(f"by {name}")
    write(folder, f"http://{ADDRESS}/")
    return folder


def write(folder: Path, url: str) -> None:
    text = SITE.format(folder=folder, database='""', almighty="[root]")
    (folder / "site.yml").write_text(text.replace("http://127.0.0.1/", url))


@contextmanager
def served(installation: Installation, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The servers of the site in *folder*, run by its service's account."""
    command = [*LOW, str(installation.tools / "kadeploy-bootserver"), *words]
    environment = {"KADEPLOY_CONFIG_DIR": str(folder)}
    # setpriv gives on what it has, so it is root that calls it.
    drop = (f"--reuid={installation.service.uid}", f"--regid={installation.service.gid}", "--clear-groups")
    argv = [command[0], *drop, *command[1:]]
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    ) as running:
        try:
            yield running
        finally:
            running.terminate()


def by_http(port: int) -> bytes:
    """The file, once the server answers."""
    deadline = time.monotonic() + LIMIT
    while True:
        connection = http.client.HTTPConnection(ADDRESS, port, timeout=5)
        try:
            connection.request("GET", "/file")
            return connection.getresponse().read()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def test_an_account_with_the_capability_alone_serves_what_the_site_names(
    installation: Installation, folder: Path
) -> None:
    with served(installation, folder, "--address", ADDRESS) as running:
        assert by_http(80) == b"by http"
        assert tftp_client.fetch(ADDRESS, "file") == b"by tftp"
        running.terminate()
        lines, errors = running.communicate(timeout=LIMIT)
    assert (running.returncode, errors) == (130, "")
    assert "GET /file" in lines
    assert f"serving {folder}/tftp by TFTP (port 69) and {folder}/http by HTTP (port 80)" in lines


def test_the_port_of_http_is_that_of_the_url_which_nodes_are_given(installation: Installation, folder: Path) -> None:
    write(folder, f"http://{ADDRESS}:8069/")
    with served(installation, folder, "--address", ADDRESS, "--tftp-port", "8070"):
        assert by_http(8069) == b"by http"


@pytest.mark.parametrize("url", ["https://127.69.80.1/", "http://127.69.80.1/below/"])
def test_an_url_that_it_cannot_answer_is_refused(installation: Installation, folder: Path, url: str) -> None:
    write(folder, url)
    done = installation.tool(
        "kadeploy-bootserver", account=installation.service, env={"KADEPLOY_CONFIG_DIR": str(folder)}
    )
    assert done.returncode == 1
    assert f"boot.http_url is {url}" in done.stderr


def refused(installation: Installation, *words: str | Path) -> str:
    done = installation.tool("kadeploy-bootserver", *words, account=installation.service)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    return done.stderr


def test_what_cannot_be_served_is_said_in_a_line(installation: Installation, folder: Path) -> None:
    both = ("--tftp-root", folder / "tftp", "--http-root", folder / "http", "--address")
    assert "such as 10.0.0.1" in refused(installation, *both, "10.0.0.300")
    assert "--tftp-port" in refused(installation, *both, ADDRESS)
    foreign = refused(installation, *both, "203.0.113.9", "--tftp-port", "6969", "--http-port", "6970")
    assert "is the address this machine's?" in foreign
    (folder / "http").chmod(0o700)
    assert f"chmod 755 {folder}/http" in refused(installation, *both, ADDRESS)
    assert "name another with --tftp-root" in refused(installation, "--tftp-root", "/nowhere", "--http-root", "/")
