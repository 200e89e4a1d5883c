"""Files that take the places of others together: kernel and initrd, of which one is of no use with another's half."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kadeploy.caller import Account, as_user, numbered
from kadeploy.errors import ConfigError
from kadeploy.files import replacing


@contextmanager
def replaced(copies: Mapping[Path, tuple[Path, Path]]) -> Iterator[None]:
    """Have copies in the places of files within the block: *copies* are source and root folder by place.

    All copies are complete before the first takes its place; the others follow at once, in their order. Whatever is
    raised then, or in the block, puts back what was there. The owner of the root folder does it, to whom the copies
    belong: root would follow links that this account has made there.

    Raises:
        ConfigError: one cannot be copied or put in place.
    """
    with ExitStack() as stack:
        for each in [stack.enter_context(_waiting(path, *copies[path])) for path in copies]:
            stack.enter_context(each.in_place())
        yield


@dataclass(frozen=True)
class _Waiting:
    """A copy that waits for its place."""

    path: Path
    copy: Path
    former: Path
    """What is at *path*, by another name; not there where nothing is."""
    owner: Account

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have it there, and the former one again if something is raised."""
        try:
            with _told(self.path, self.owner), as_user(self.owner):
                self.copy.replace(self.path)
            yield
        except BaseException:
            with as_user(self.owner):
                if not self.copy.exists():
                    self._put_back()
            raise

    def _put_back(self) -> None:
        if self.former.exists():
            self.former.replace(self.path)
        else:
            self.path.unlink()


@contextmanager
def _waiting(path: Path, source: Path, root: Path) -> Iterator[_Waiting]:
    """A copy of *source* beside *path*, and what is there; both names are gone at the end."""
    owner = numbered(root.stat().st_uid)
    with ExitStack() as stack:
        with _told(path, owner), source.open("rb") as stream, as_user(owner):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            copy, former = (path.with_name(f".{what}-{os.getpid()}-{path.name}") for what in ("waiting", "former"))
            found = _Waiting(path, copy, former, owner)
            stack.callback(_forget, found)
            with replacing(copy, 0o644) as target:
                shutil.copyfileobj(stream, target)
                target.flush()
                os.fsync(target.fileno())
            _keep(path, found.former)
        yield found


def _keep(path: Path, former: Path) -> None:
    """Have what is at *path*, if anything is, as *former* too."""
    try:
        os.link(path, former, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError:  # another account's file, or of another file system
        shutil.copy2(path, former, follow_symlinks=False)


def _forget(waiting: _Waiting) -> None:
    with as_user(waiting.owner):
        waiting.copy.unlink(missing_ok=True)
        waiting.former.unlink(missing_ok=True)


@contextmanager
def _told(path: Path, owner: Account) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or path
        raise ConfigError(f"{name}: {error.strerror}: it is written as {owner.name}.") from error
