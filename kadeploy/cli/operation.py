"""What the tools that touch nodes share: options, files of the caller, signals, the final report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, cast

import typer

from kadeploy import files
from kadeploy.boot import profile
from kadeploy.boot.profile import NODE_PATTERN
from kadeploy.caller import Account, as_user, caller
from kadeploy.cli import shell
from kadeploy.cli.display import Display, Shown, plan_lines, report_lines
from kadeploy.config.cluster import address
from kadeploy.errors import FileError, Interrupted, KadeployError, NodeListError, OptionError
from kadeploy.nodeset import fold
from kadeploy.operations import staging
from kadeploy.operations.admission import Work
from kadeploy.operations.launch import Report, launch
from kadeploy.remote import hostkeys
from kadeploy.runner import playbooks, player
from kadeploy.runner.request import Assignment, profile_sources
from kadeploy.state import database
from kadeploy.workflow import Plan

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
        raise FileError(f"-w {path}: the boot profile is empty. Write what the boot loader shall do, or leave -w out.")
    return text


def uploads(given: str | None, profile: str | None) -> tuple[str, ...]:
    """Paths and URLs of ``-x``.

    Raises:
        OptionError: there is no profile that could use them.
    """
    if given is None:
        return ()
    if not profile:
        raise OptionError("-x goes with -w: without a PXE profile of yours nobody reads these files.")
    return tuple(str(Path(word).expanduser()) if "://" not in word else word for word in given.split(",") if word)


def write_host_keys(path: str, work: Work, report: Report) -> None:
    """Fill the file of ``--known-hosts`` with the keys of the nodes that run their new system."""
    ready = set(report.ok) - set(report.at_breakpoint)
    addresses = {
        node.name: node.vlan_address or address(request.site, node)
        for request in work.requests.values()
        for node in request.nodes
        if node.name in ready
    }
    lines = hostkeys.collect(addresses, work.site.ssh.port)
    try:
        with as_user(caller()), Path(path).open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise FileError(f"--known-hosts {path}: {error.strerror}. Name a file that you can write.") from error


def show(work: Work) -> int:
    """``--dry-run``: print what would be done, once the files of the request are found good too."""
    requests = staging.rehearse(work.requests, work.caller, work.uploads)
    lines: list[str] = []
    for cluster, names in work.groups.items():
        request, plan = requests[cluster], work.plans[cluster]
        target = [f"to {request.deploy_part}"] if request.environment else []
        details = (*target, *plan_lines(plan), *_profile_lines(request, plan))
        lines += [f"cluster {cluster}: {', '.join(names)}", *(f"    {line}".rstrip() for line in details)]
    print(*lines, *work.notes, "Nothing was done (--dry-run).", sep="\n")
    return 0


def _profile_lines(request: Assignment, plan: Plan) -> list[str]:
    """The boot profiles that *plan* would write, nodes with the same text together."""
    config_dir = Path(request.config_dir)
    known = (player.find(way.name, config_dir) for _, ways in plan for way in ways)
    boots = dict.fromkeys(boot for path in known if path for boot in playbooks.boots(path, config_dir))
    return [
        line
        for boot in boots
        for text, names in profile.alike(
            profile_sources(request), cast("profile.ProfileKind", boot), request.nodes
        ).items()
        for line in (f"boot profile ({boot}) of {fold(names)}:", *textwrap.indent(text, "    ").splitlines())
    ]


def lists(work: Work, report: Report) -> list[str]:
    """The final lists of nodes that are OK and of those that are not."""
    return report_lines(work.operation, work.groups, report.ok, report.ko)


def carry_out(
    work: Work, display: Display, outputs: Outputs, lines: Callable[[Work, Report], list[str]] = lists
) -> Report:
    """Launch *work* in the foreground: signals end it cleanly, files and final lists are written whatever happens."""
    if outputs.wid:
        shell.write_names(outputs.wid, [work.wid])
    stop = threading.Event()
    with _signals(stop, work), display.live():
        report = launch(work, display, stop)
    outputs.fill(report)
    display.ended(work.operation, work.wid, len(report.ok), len(report.ko))
    display.print(*lines(work, report))
    return report


def in_background(work: Work, verbosity: int, outputs: Outputs, debug: bool) -> int:
    """``--no-wait``: go on as a process of its own, whose lines end up in the workflow's folder.

    The caller's process ends as soon as the operation has begun, and prints its id; or with the refusal.
    """
    database.disconnect()  # a connection must not be shared with another process
    reader, writer = os.pipe()
    sys.stdout.flush()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as stream:
            refusal = stream.read()
        if refusal:
            raise KadeployError(refusal)
        if outputs.wid:
            shell.write_names(outputs.wid, [work.wid])
        print(work.wid)
        return 0
    os.setsid()
    os.close(reader)
    os._exit(_detached(work, verbosity, debug, writer))


class _Announcing(Display):
    """Closes a descriptor when the operation has begun: somebody waits for that at its other end."""

    def __init__(self, verbosity: int, debug: bool, stream: IO[str], count: int, writer: int) -> None:
        super().__init__(verbosity, debug, stream)
        self.count = count
        self.writer = writer

    def began(self, work: Shown) -> None:
        """Let the caller go."""
        super().began(work)
        os.close(self.writer)

    def left_out(self, reasons: Mapping[str, str]) -> None:
        """Tell the caller when that is all of them."""
        super().left_out(reasons)
        if len(reasons) == self.count:
            os.write(self.writer, "".join(f"{name}: {reason}\n" for name, reason in reasons.items()).encode())


def _detached(work: Work, verbosity: int, debug: bool, writer: int) -> int:
    """What the process in the background does; its exit status."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    stop = threading.Event()
    work.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with work.folder.with_suffix(".log").open("x", encoding="utf-8") as lines:
        display = _Announcing(verbosity, debug, lines, len(work.names), writer)
        try:
            with _signals(stop, work):
                report = launch(work, display, stop)
        except Exception as error:
            with suppress(OSError):  # when it has begun, nobody listens any more; the journal tells the rest
                os.write(writer, str(error).encode())
            return KadeployError.exit_code
        display.print(*lists(work, report))
    return status(report)


def status(report: Report) -> int:
    """Exit status of an operation that was begun."""
    if report.aborted:
        return Interrupted.exit_code
    return SOME_KO if report.ko else 0


@contextmanager
def _signals(stop: threading.Event, work: Work) -> Iterator[None]:
    """SIGINT and SIGTERM set *stop*; a second one leaves at once, and takes what was started along."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            player.end_processes(work.folder)
            os._exit(Interrupted.exit_code)
        stop.set()
        os.write(2, b"\nInterrupted: ending cleanly (once more to leave at once).\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
