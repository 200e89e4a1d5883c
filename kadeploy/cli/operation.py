"""What the tools that touch nodes share: options, files of the caller, signals, the final report."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from kadeploy import files
from kadeploy.boot.profile import NODE_PATTERN
from kadeploy.caller import Account, as_user, caller
from kadeploy.cli import hangup, shell
from kadeploy.cli.display import Display
from kadeploy.errors import FileError, NodeListError, UserInterruptError
from kadeploy.events import Report
from kadeploy.operations import background, dry_run, hostkeys
from kadeploy.operations.launch import launch
from kadeploy.operations.requests import Wish
from kadeploy.operations.work import Work
from kadeploy.runner import player

SOME_KO = 3
"""Exit status of an operation that has finished with nodes KO."""

Verbosity = Annotated[
    int | None,
    typer.Option("-V", "--verbose-level", metavar="VALUE", help="Verbose level, 0 to 4.", min=0, max=4),
]
Debug = Annotated[bool, typer.Option("-d", "--debug-mode", help="Show what commands on nodes say.")]
User = Annotated[
    str | None, typer.Option("-u", "--user", metavar="USERNAME", help="Owner of the recorded environment.")
]
Key = Annotated[
    str | None,
    typer.Option(
        "-k",
        "--key",
        metavar="[FILE]",
        help="Public keys to let in; by default your own.",
    ),
]
BlockDevice = Annotated[
    str | None,
    typer.Option("-b", "--block-device", metavar="BLOCKDEVICE", help="Block device to use."),
]
Partition = Annotated[
    int | None,
    typer.Option("-p", "--partition-number", metavar="NUMBER", help="Partition to use.", min=1),
]
Vlan = Annotated[str | None, typer.Option("--vlan", metavar="VLANID", help="Set the VLAN.")]
Profile = Annotated[
    str | None,
    typer.Option("-w", "--set-pxe-profile", metavar="FILE", help="Boot profile for the last boot."),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        "--set-pxe-pattern",
        metavar="FILE",
        help=f"Lines node,value: a node's {NODE_PATTERN}.",
    ),
]
Uploads = Annotated[
    str | None,
    typer.Option(
        "-x",
        "--upload-pxe-files",
        metavar="FILES",
        help="Its files: pxe-USER--BASENAME on the server.",
    ),
]
EnvVersion = Annotated[
    int | None,
    typer.Option("--env-version", metavar="NUMBER", help="Version (default: the highest)."),
]
EnvArch = Annotated[
    str | None,
    typer.Option("--env-arch", metavar="ARCH", help="The same as NAME%ARCH for -e.", hidden=True),
]
ClassicalTimeout = Annotated[
    str | None,
    typer.Option(
        "--reboot-classical-timeout",
        metavar="V",
        help="Seconds for n nodes to boot: 200+5*n.",
    ),
]
Hook = Annotated[bool, typer.Option("--hook/--no-hook", help="Run the site's hook at the end (default).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.")]
Wid = Annotated[
    str | None,
    typer.Option("--write-workflow-id", metavar="FILE", help="Write the workflow id there."),
]


@dataclass(frozen=True)
class Outputs:
    """Files of the caller that the operation fills."""

    ok: str | None = None
    ko: str | None = None
    wid: str | None = None

    def create(self) -> None:
        """Create or empty them, so that a wrong path is refused before any node is touched."""
        shell.create_name_files(self.ok, self.ko)
        if self.wid:
            shell.write_names(self.wid, ())

    def fill(self, report: Report) -> None:
        """Write the nodes that are OK and those that are not."""
        for path, names in ((self.ok, report.ok), (self.ko, report.ko)):
            if path:
                shell.write_names(path, names)


def nodes(machines: Sequence[str] | None, lists: Sequence[str] | None) -> tuple[str, ...]:
    """The nodes of ``-m`` and ``-f``; at least one.

    Raises:
        NodeListError: none was given.
    """
    names = shell.node_names(machines, lists)
    if not names:
        raise NodeListError("No node: name them with -m NODE, or give a file of names with -f FILE.")
    return tuple(names)


def singularities(path: str | None, who: Account) -> dict[str, str]:
    """Value by node of ``--set-pxe-pattern``: lines ``node,value``; blank lines and ``#`` comments do not count.

    Raises:
        FileError: names the malformed line.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(files.read_text(path, who).splitlines() if path else (), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        name, comma, value = content.partition(",")
        if not comma or not name.strip():
            raise FileError(f"--set-pxe-pattern {path}, line {number}: expected node,value.")
        values[name.strip()] = value.strip()
    return values


def check_script(path: str, who: Account) -> None:
    """Refuse a script of ``-s`` that the caller cannot run.

    Raises:
        FileError: says what is missing.
    """
    with as_user(who):
        if not Path(path).is_file() or not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
            raise FileError(f"-s {path}: not a file that you can read and execute. Try chmod +x {path}.")


def run_script(path: str, who: Account) -> None:
    """Run the script of ``-s`` as the caller; how it ends is told and changes nothing."""
    command = [os.path.abspath(path)]  # noqa: PTH100 - the name as the caller gave it, links not resolved
    try:
        if os.geteuid() == 0 and who.uid != 0:
            groups = os.getgrouplist(who.name, who.gid)
            done = subprocess.run(command, user=who.uid, group=who.gid, extra_groups=groups, check=False)
        else:
            done = subprocess.run(command, check=False)
    except OSError as error:
        print(f"The script {path} cannot be run: {error.strerror}")
    else:
        print(f"The script {path} ended with status {done.returncode}")


def boot_profile(path: str, who: Account) -> str:
    """Text of the boot profile of ``-w``.

    Raises:
        FileError: it cannot be read, or is empty.
    """
    text = files.read_text(path, who)
    if not text.strip():
        raise FileError(f"-w {path}: the boot profile is empty. Write what the boot loader is to do, or leave -w out.")
    return text


def uploads(given: str | None) -> tuple[str, ...]:
    """Paths and URLs of ``-x``, which are separated by commas."""
    return tuple(
        str(Path(word).expanduser()) if "://" not in word else word for word in (given or "").split(",") if word
    )


def write_host_keys(path: str, work: Work, report: Report) -> None:
    """Fill the caller's file of ``--known-hosts`` with the keys of the nodes that run their new system."""
    lines = hostkeys.lines(work, report)
    try:
        with as_user(caller()), Path(path).open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise FileError(f"--known-hosts {path}: {error.strerror}. Name a file that you can write.") from error


def show(work: Work, who: Account) -> int:
    """``--dry-run``: print what would be done."""
    print(*dry_run.lines(work, who), sep="\n")
    return 0


def carry_out(work: Work, who: Account, display: Display, outputs: Outputs) -> Report:
    """Launch *work* in the foreground: signals end it cleanly, and the files are written whatever happens.

    It outlives the terminal, and so does this process until its end.
    """
    hangup.outlive()
    if outputs.wid:
        shell.write_names(outputs.wid, [work.wid])
    stop = threading.Event()
    with _signals(stop, work), display.live():
        report = launch(work, who, display, stop)
    outputs.fill(report)
    return report


def in_background(request: Wish, folder: Path, who: Account, outputs: Outputs) -> int:
    """``--no-wait``: print the workflow id as soon as the operation has begun."""
    wid = background.start(request, folder, who)
    if outputs.wid:
        shell.write_names(outputs.wid, [wid])
    print(wid)
    return 0


def status(report: Report) -> int:
    """Exit status of an operation that was begun."""
    if report.aborted:
        return UserInterruptError.exit_code
    return SOME_KO if report.ko else 0


@contextmanager
def _signals(stop: threading.Event, work: Work) -> Iterator[None]:
    """SIGINT and SIGTERM set *stop*; a second one leaves at once, and takes what was started along."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            player.end_processes(work.folder)
            os._exit(UserInterruptError.exit_code)
        stop.set()
        with suppress(OSError):  # nobody may read it any more
            os.write(2, b"\nInterrupted: ending cleanly (once more to leave at once).\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
