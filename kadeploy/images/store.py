"""The cache folder: what was built is found again by the sha256 of everything that went into it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
UNFINISHED = ".building-"


def fingerprint(sources: tuple[str, ...], *inputs: object) -> str:
    """Sixteen hexadecimal digits for a recipe (files and folders beside this module) and its arguments."""
    digest = hashlib.sha256(repr(inputs).encode())
    for path in _files((*sources, "store.py")):
        digest.update(f"\0{path.relative_to(HERE)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def built(cache: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder ``cache/name``, made by `build` if it is not there yet.

    `build` fills a temporary folder that is renamed at its end: an interrupted build leaves nothing that looks
    finished. One build at a time: a second process waits, then finds what the first has made.
    """
    final = cache / name
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache):
        if final.is_dir():
            return final
        for left_over in cache.glob(f"{UNFINISHED}*"):
            _remove(left_over)
        work = cache / f"{UNFINISHED}{name}-{os.getpid()}"
        mask = os.umask(0o022)
        try:
            work.mkdir()
            build(work)
            work.rename(final)
        finally:
            os.umask(mask)
            if work.exists():
                _remove(work)
    return final


def _files(sources: tuple[str, ...]) -> Iterator[Path]:
    for source in sorted(sources):
        path = HERE / source
        yield from (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Be alone in `cache`, waiting for it if need be; the lock goes with its process."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(folder: Path) -> None:
    # A killed build may leave mounts behind: never follow one.
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


def install(source: Path, target: Path) -> None:
    """Copy a file of a recipe; scripts are told by their first bytes, for a wheel need not keep modes."""
    text = source.read_bytes()
    target.write_bytes(text)
    target.chmod(0o755 if text.startswith(b"#!") else 0o644)


def words(name: str) -> tuple[str, ...]:
    """The words of a list among the recipes' files; ``#`` begins a comment."""
    lines = (HERE / "files" / name).read_text().splitlines()
    return tuple(word for line in lines for word in line.partition("#")[0].split())


def delete(path: Path) -> None:
    """Delete a file, a link or a folder; what is not there is deleted already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
