"""Whether an image or an archive is whole and of the kind that its description says.

Nodes would find out themselves, but only when their disks have been erased for it. The file is any user's: it is
unpacked to nowhere by the program of its kind, with nobody's rights, and within bounds of memory and time.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from kadeploy.caller import powerless
from kadeploy.environments.image import COMPRESSIONS, KINDS, Kind
from kadeploy.errors import FileError
from kadeploy.files import MEGA, LocalFile

TIME_LIMIT = 1800.0
"""Seconds after which a file is taken as it is."""
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def require_kind(stream: BinaryIO, kind: str, name: str) -> None:
    """Refuse a file, called *name*, whose first bytes are not of its *kind*; *stream* stays where it is.

    Raises:
        FileError: says what the file is instead, as far as it can be told.
    """
    head = os.pread(stream.fileno(), tarfile.BLOCKSIZE, 0)
    magic = KINDS[kind].compression.magic
    if not magic or head.startswith(magic):
        return
    raise FileError(f"{name}: is not of kind {kind}: {_seen(head, KINDS[kind])}.")


def require_whole(found: LocalFile, stream: BinaryIO, kind: str, name: str, cache: Path) -> None:
    """Refuse a file that cannot be unpacked to its end, or is of another kind; in *cache* is noted which are good.

    Args:
        found: checksums of the file.
        stream: the file, open; it is read from its beginning.
        kind: what the description calls it.
        name: what people call it.
        cache: folder of the site.

    Raises:
        FileError: says what is wrong, in the words of the program that unpacks it.
    """
    note = cache / "sound" / f"{found.sha256}-{kind}"
    if note.exists():
        return
    require_kind(stream, kind, name)
    if KINDS[kind].form != "fsa":
        _unpack(stream, KINDS[kind], name)
    with suppress(OSError):  # a cache is a convenience, and only root may write it
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.touch()


def _seen(head: bytes, kind: Kind) -> str:
    """What a file that begins with *head* seems to be, and what to do."""
    if not head:
        return "it is empty: make or copy it anew"
    if head.lstrip().lower().startswith(_PAGES):
        return "it is a web page: give the address that downloads the file itself"
    for each in COMPRESSIONS:
        if head.startswith(each.magic):
            advice = {"tar": f": say {each.tar}", "dd": f": say {each.dd}", "fsa": ", which fsarchiver does not read"}
            return f"it is compressed by {each.name}{advice[kind.form]}"
    program = "fsarchiver" if kind.form == "fsa" else kind.compression.name
    if _is_tar(head) and kind.form != "fsa":
        return f"it is an archive that nothing has compressed: compress it by {program}"
    return f"it does not begin as files of {program} do: name another kind, or make the file anew"


def _is_tar(block: bytes) -> bool:
    """Whether *block* is the header of a tar archive, or of an empty one."""
    if len(block) == tarfile.BLOCKSIZE and not any(block):
        return True
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unpack(stream: BinaryIO, kind: Kind, name: str) -> None:
    with tempfile.TemporaryFile() as said:
        try:
            process = _started(stream, kind, said)
        except FileNotFoundError:  # nodes have it; here nobody can look
            return
        with process:
            head, size, ended = _drain(cast("BinaryIO", process.stdout))
            if not ended:
                process.kill()
        if not ended:
            return
        if process.returncode:
            why = words(said, kind) or f"{kind.compression.unpack[0]} ends with status {process.returncode}"
            raise FileError(f"{name}: is not a sound file of kind {kind.name}: {why}. Make or copy it anew.")
    if why := _why_not(head, size, kind):
        raise FileError(f"{name}: {why}.")


def _started(stream: BinaryIO, kind: Kind, said: BinaryIO) -> subprocess.Popen[bytes]:
    stream.seek(0)
    return subprocess.Popen(
        kind.compression.unpack_here,
        stdin=stream,
        stdout=subprocess.PIPE,
        stderr=said,
        env={"PATH": os.defpath},
        **powerless(),
    )


def _drain(pipe: BinaryIO) -> tuple[bytes, int, bool]:
    """First block and size of what comes out, and whether it came to its end in time."""
    head, size, deadline = b"", 0, time.monotonic() + TIME_LIMIT
    while piece := pipe.read(MEGA):
        head, size = head or piece[: tarfile.BLOCKSIZE], size + len(piece)
        if time.monotonic() > deadline:
            return head, size, False
    return head, size, True


def words(said: BinaryIO, kind: Kind) -> str:
    """What the program that unpacks *kind* complained of in the file *said*, on one line; empty: nothing."""
    said.seek(0)
    lines = [line.strip() for line in said.read(2000).decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return ""
    program = kind.compression.unpack[0]
    text = lines[0].removeprefix(f"{program}: ").rstrip(";. ")
    return f"{program} says: " + "".join(character if character.isprintable() else "?" for character in text)


def _why_not(head: bytes, size: int, kind: Kind) -> str:
    """Why what was unpacked is not of *kind*; empty when it is."""
    if not size:
        return f"is not of kind {kind.name}: there is nothing in it"
    if kind.form == "dd":
        is_archive = size % tarfile.BLOCKSIZE == 0 and any(head) and _is_tar(head)
        return f"is not of kind {kind.name}: it holds a tar archive: say {kind.compression.tar}" if is_archive else ""
    if not _is_tar(head):
        return (
            f"is not of kind {kind.name}: what it holds is no tar archive; if it is a disk, say {kind.compression.dd}"
        )
    if size % tarfile.BLOCKSIZE:
        return f"is not a sound file of kind {kind.name}: the tar archive in it is cut off after {size} bytes"
    return ""
