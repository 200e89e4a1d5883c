"""The network namespace of one thread: entered, inherited by what is started in it, and left again (root)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kadeploy.errors import ConfigError
from kadeploy.remote import namespace
from tests.descriptors import descriptors

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make namespaces")


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Two namespaces of our own."""
    names = (f"kadeploy-a-{os.getpid()}", f"kadeploy-b-{os.getpid()}")
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield names
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def here() -> str:
    """The namespace of this thread."""
    return str(Path("/proc/thread-self/ns/net").readlink())


def inode(name: str) -> str:
    return f"net:[{Path('/run/netns', name).stat().st_ino}]"


def test_the_thread_is_inside_and_then_back_where_it_was(names: tuple[str, str]) -> None:
    before = here()
    with namespace.inside(names[0]):
        assert here() == inode(names[0]) != before
        with namespace.inside(names[1]):
            assert here() == inode(names[1])
        assert here() == inode(names[0])
    assert here() == before


def test_it_comes_back_after_an_exception_and_leaves_no_descriptor_open(names: tuple[str, str]) -> None:
    before, open_before = here(), descriptors()
    with pytest.raises(ZeroDivisionError), namespace.inside(names[0]):
        raise ZeroDivisionError
    assert here() == before
    assert descriptors() <= open_before


def test_threads_and_processes_started_inside_are_inside(names: tuple[str, str]) -> None:
    seen: list[str] = []
    with namespace.inside(names[0]):
        thread = threading.Thread(target=lambda: seen.append(here()))
        thread.start()
        thread.join()
        done = subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
    assert seen == [inode(names[0])]
    assert done.stdout.strip() == inode(names[0])


def test_threads_are_in_different_namespaces_at_once(names: tuple[str, str]) -> None:
    before, together = here(), threading.Barrier(3, timeout=60)

    def look(name: str) -> tuple[str, str]:
        with namespace.inside(name):
            together.wait()
            seen = here()
            together.wait()
        return seen, here()

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(look, (*names, "")))
    assert found == [(inode(names[0]), before), (inode(names[1]), before), (before, before)]


def test_no_name_moves_nobody() -> None:
    before = here()
    with namespace.inside(""):
        assert here() == before


@pytest.mark.parametrize("name", ["kadeploy-nowhere", "../../proc/self/ns/net"])
def test_a_namespace_that_is_not_there_is_refused_and_the_thread_stays(name: str) -> None:
    before = here()
    with pytest.raises(ConfigError, match="there is no namespace"), namespace.inside(name):
        pytest.fail("went in")
    assert here() == before


def test_who_may_not_enter_is_told_to_become_root(names: tuple[str, str]) -> None:
    code = (
        "import os, sys; from kadeploy.errors import ConfigError; from kadeploy.remote import namespace\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try:\n"
        "    with namespace.inside(sys.argv[1]): print('went in')\n"
        "except ConfigError as refusal: print(refusal)"
    )
    done = subprocess.run([sys.executable, "-c", code, names[0]], capture_output=True, text=True, check=True)
    assert "Run the command as root (sudo)" in done.stdout


def test_whoever_is_there_already_needs_no_privilege(names: tuple[str, str]) -> None:
    code = (
        "import os, sys; from kadeploy.remote import namespace\n"
        "os.setgroups([]); os.setresuid(65534, 65534, 65534)\n"
        "with namespace.inside(sys.argv[1]): print('inside', namespace.is_here(sys.argv[2]))"
    )
    as_nobody = [sys.executable, "-c", code, *names]
    inside = subprocess.run(["ip", "netns", "exec", names[0], *as_nobody], capture_output=True, text=True, check=False)
    outside = subprocess.run(as_nobody, capture_output=True, text=True, check=False)
    assert (inside.stdout, "cannot be entered" in outside.stderr) == ("inside False\n", True), outside.stderr
