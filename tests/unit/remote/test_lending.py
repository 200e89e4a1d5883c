"""Open files that are lent: to whom, and what becomes of those that ask."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from kadeploy.remote import lending, sockets
from tests.descriptors import descriptors

T = TypeVar("T")


def while_lent(folder: Path, names: list[str], do: Callable[[], T]) -> T:
    """What *do* answers while the files of that name are lent."""

    async def main() -> T:
        with ExitStack() as stack:
            files = {name: stack.enter_context((folder / name).open("rb")).fileno() for name in names}
            with lending.lend(folder, files):
                return await asyncio.to_thread(do)

    return asyncio.run(asyncio.wait_for(main(), 60))


def content(folder: Path, name: str) -> bytes | None:
    descriptor = lending.borrow(folder, name)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 100, 0)
    finally:
        os.close(descriptor)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def test_a_file_is_found_by_its_name_as_often_as_one_asks(folder: Path) -> None:
    asked = ["two", "one", "nonesuch", "one"]
    found = while_lent(folder, ["one", "two"], lambda: [content(folder, name) for name in asked])
    assert found == [b"content of two", b"content of one", None, b"content of one"]


def test_nothing_stays_open_that_was_not_asked_for(folder: Path) -> None:
    def count() -> int:
        before = descriptors()
        for _ in range(20):
            content(folder, "one")
        limit = time.monotonic() + 10  # whoever lends may still be closing the last connection
        while (left := descriptors() - before) > 0 and time.monotonic() < limit:
            time.sleep(0.01)
        return left

    assert while_lent(folder, ["one", "two"], count) <= 0


def test_where_nobody_lends_there_is_nothing(folder: Path) -> None:
    assert content(folder, "one") is None
    assert while_lent(folder, [], lambda: content(folder, "one")) is None
    assert not (folder / lending.SOCKET).exists()


def test_only_the_owner_may_ask(folder: Path) -> None:
    path = folder / lending.SOCKET
    assert while_lent(folder, ["one"], lambda: path.stat().st_mode & 0o777) == 0o600


def test_one_who_asks_and_leaves_holds_up_nobody(folder: Path) -> None:
    def leave_and_ask() -> bytes | None:
        for _ in range(50):
            with sockets.address(folder, lending.SOCKET) as path, socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(path)
        return content(folder, "one")

    assert while_lent(folder, ["one"], leave_and_ask) == b"content of one"
