"""What the tools that touch nodes share: options, files of the caller, signals, the final report."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import msgspec
import typer

from kadeploy import files
from kadeploy.boot.profile import NODE_PATTERN
from kadeploy.caller import Account, as_user, caller, environment_of
from kadeploy.cli import completion, hangup, pace, shell, summary, together, usage
from kadeploy.cli.display import Display
from kadeploy.cli.pace import Pace
from kadeploy.client.joint import JointReport
from kadeploy.config.site import Site
from kadeploy.errors import FileError, NodeListError, OptionError, UserInterruptError
from kadeploy.events import Began, Ended, Event, Listener, Report
from kadeploy.operations.requests import Wish
from kadeploy.operations.service import Service

Verbosity = Annotated[
    int | None,
    typer.Option(
        "-V", "--verbose-level", metavar="VALUE", help="Verbose level, 0 to 4.", min=0, max=4, rich_help_panel=usage.RUN
    ),
]
Debug = Annotated[
    bool, typer.Option("-d", "--debug-mode", help="Show what commands on nodes say.", rich_help_panel=usage.RUN)
]
User = Annotated[
    str | None,
    typer.Option(
        "-u",
        "--user",
        metavar="USERNAME",
        help="Owner of the recorded environment.",
        rich_help_panel=usage.ENVIRONMENT,
        autocompletion=completion.owners,
    ),
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
    typer.Option(
        "-b",
        "--block-device",
        metavar="BLOCKDEVICE",
        help="Block device to use.",
        rich_help_panel=usage.DISK,
        autocompletion=completion.disks,
    ),
]
Partition = Annotated[
    int | None,
    typer.Option(
        "-p",
        "--partition-number",
        metavar="NUMBER",
        help="Partition to use.",
        min=1,
        rich_help_panel=usage.DISK,
        autocompletion=completion.partitions,
    ),
]
Vlan = Annotated[str | None, typer.Option("--vlan", metavar="VLANID", help="Set the VLAN.", rich_help_panel=usage.BOOT)]
Profile = Annotated[
    str | None,
    typer.Option(
        "-w", "--set-pxe-profile", metavar="FILE", help="Boot profile for the last boot.", rich_help_panel=usage.BOOT
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        "--set-pxe-pattern",
        metavar="FILE",
        help=f"Lines node,value: a node's {NODE_PATTERN}.",
        rich_help_panel=usage.BOOT,
    ),
]
Uploads = Annotated[
    str | None,
    typer.Option(
        "-x",
        "--upload-pxe-files",
        metavar="FILES",
        help="Its files: pxe-USER--BASENAME on the server.",
        rich_help_panel=usage.BOOT,
    ),
]
EnvVersion = Annotated[
    int | None,
    typer.Option(
        "--env-version", metavar="NUMBER", help="Version (default: the highest).", rich_help_panel=usage.ENVIRONMENT
    ),
]
EnvArch = Annotated[
    str | None,
    typer.Option(
        "--env-arch",
        metavar="ARCH",
        help="The same as NAME%ARCH for -e.",
        hidden=True,
        rich_help_panel=usage.ENVIRONMENT,
    ),
]
ClassicalTimeout = Annotated[
    str | None,
    typer.Option(
        "--reboot-classical-timeout",
        metavar="V",
        help="Seconds for n nodes to boot: 200+5*n.",
        rich_help_panel=usage.BOOT,
    ),
]
Script = Annotated[
    str | None,
    typer.Option("-s", "--script", metavar="FILE", help="Run this script at the end.", rich_help_panel=usage.OUTPUT),
]
Force = Annotated[
    bool,
    typer.Option(
        "--ignore-nodes-deploying",
        help="Also take nodes that another operation holds; it loses them.",
        rich_help_panel=usage.RUN,
    ),
]
ALIASES = {
    "--force": "--ignore-nodes-deploying",
    "--env-user": "--user",
    "--custom-steps": "--set-custom-operations",
}
"""Names that Kadeploy 3.2 and later have for options of all tools that touch nodes."""
_DEPLOYMENTS_ALONE = "of a deployment alone, which has the steps for it: kadeploy3."
OF_DEPLOYMENTS = {
    "--breakpoint": _DEPLOYMENTS_ALONE,
    "--custom-steps": _DEPLOYMENTS_ALONE,
    "--set-custom-operations": _DEPLOYMENTS_ALONE,
}
"""What other tools took as well in Kadeploy 3.2 and later, and where it is now."""
Hook = Annotated[
    bool, typer.Option("--hook/--no-hook", help="Run the site's hook at the end (default).", rich_help_panel=usage.RUN)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.", rich_help_panel=usage.RUN)
]
Cancel = Annotated[
    str | None,
    typer.Option(
        "--cancel",
        metavar="WID",
        help="End a running workflow: its nodes are aborted and free.",
        rich_help_panel=usage.RUN,
        autocompletion=completion.workflows,
    ),
]
Attach = Annotated[
    str | None,
    typer.Option(
        "--attach",
        metavar="WID",
        help="Follow a workflow from its beginning; Ctrl-C lets it go on.",
        rich_help_panel=usage.RUN,
        autocompletion=completion.workflows,
    ),
]
Speed = Annotated[
    float,
    typer.Option(
        "--speed",
        metavar="N",
        help="With --attach: N times as fast as it was; 0: at once.",
        show_default=False,
        rich_help_panel=usage.RUN,
    ),
]
WaitFor = Annotated[
    str | None,
    typer.Option(
        "--wait-for",
        metavar="WID",
        help="Wait for the end of a workflow; also --wait WID.",
        rich_help_panel=usage.RUN,
        autocompletion=completion.workflows,
    ),
]
ReportForm = Literal["text", "json"]
Format = Annotated[
    ReportForm,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="text, or json: the report alone.",
        show_default=False,
        rich_help_panel=usage.OUTPUT,
    ),
]
Wid = Annotated[
    str | None,
    typer.Option(
        "--write-workflow-id", metavar="FILE", help="Write the workflow id there.", rich_help_panel=usage.OUTPUT
    ),
]


@contextmanager
def told() -> Iterator[None]:
    """What is refused after the operation has begun is a warning: its report and its exit status count more."""
    try:
        yield
    except FileError as error:
        shell.warn(str(error))


@dataclass(frozen=True)
class Outputs:
    """Files of the caller that the operation fills."""

    ok: str | None = None
    ko: str | None = None
    wid: str | None = None
    known_hosts: str | None = None

    def create(self) -> None:
        """Create or empty them: before anything else, so that no script takes an earlier run's names for this one's.

        A wrong path is refused before any node is touched.
        """
        shell.create_name_files(self.ok, self.ko)
        if self.wid:
            shell.write_names(self.wid, ())
        if self.known_hosts:  # it may be the caller's own
            shell.require_writable(self.known_hosts)

    def fill(self, report: Report) -> None:
        """Write the nodes that are OK, those that are not, and host keys; a file that cannot be written is told."""
        if self.known_hosts:
            with told():
                text = "".join(f"{line}\n" for line in report.host_keys)
                shell.write_bytes(self.known_hosts, text.encode())
        for path, names in ((self.ok, report.ok), (self.ko, report.ko)):
            if path:
                with told():
                    shell.write_names(path, names)


OAR_NODES = ("OAR_NODE_FILE", "OAR_NODEFILE")
"""Variables in which the batch scheduler OAR names the file of a job's nodes."""


def nodes(machines: Sequence[str] | None, lists: Sequence[str] | None, site: Site) -> tuple[str, ...]:
    """The nodes of ``-m`` and ``-f``, or where neither is given those of the caller's OAR job; at least one.

    Raises:
        NodeListError: none was given, or too many.
    """
    if not machines and not lists:
        lists = [path for path in map(os.environ.get, OAR_NODES) if path][:1]
    names = shell.node_names(machines, lists, site.limits.nodes)
    if not names:
        raise NodeListError("No node: name them with -m NODE, or give a file of names with -f FILE.")
    return tuple(names)


def one_of(what: str, given: Mapping[str, str | None]) -> str | None:
    """The only value of *given*, by how it was given; *what* says what they name.

    Raises:
        OptionError: several.
    """
    found = {how: value for how, value in given.items() if value is not None}
    if len(found) > 1:
        raise OptionError(f"{' and '.join(found)} both name {what}: give one of them.")
    return next(iter(found.values()), None)


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
    try:
        with as_user(who):
            good = stat.S_ISREG(Path(path).stat().st_mode) and os.access(path, os.R_OK | os.X_OK, effective_ids=True)
    except OSError as error:
        raise FileError(f"-s {path}: {error.strerror}. Name a script that you can read and execute.") from error
    if not good:
        raise FileError(f"-s {path}: not a file that you can read and execute. Try chmod +x {path}.")


def run_script(path: str, who: Account) -> None:
    """Run the script of ``-s`` as the caller; how it ends is told and changes nothing."""
    command = [os.path.abspath(path)]  # noqa: PTH100 - the name as the caller gave it, links not resolved
    try:
        if os.geteuid() == 0 and who.uid != 0:
            groups = os.getgrouplist(who.name, who.gid)
            done = subprocess.run(
                command, user=who.uid, group=who.gid, extra_groups=groups, env=environment_of(who), check=False
            )
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
    """Paths and URLs of ``-x``, which are separated by commas; a shell knows ``~/`` in front of the first alone."""
    return tuple(word for word in (given or "").split(",") if word)


def show(service: Service, request: Wish) -> int:
    """``--dry-run``: print what would be done."""
    print(*service.plan(request), sep="\n")
    return 0


def display_of(
    name: str, service: Service, verbosity: int | None, debug: bool, clock: Callable[[], float] = time.time
) -> Display:
    """What shows an operation of the tool *name*, as the site and the options of this call want it."""
    site = service.site
    return Display(
        site.verbosity if verbosity is None else verbosity,
        debug,
        final=partial(summary.lists, messages=site.messages),
        final_for_people=partial(summary.for_people, command=name, consoles=service.configuration.has_consoles),
        clock=clock,
    )


def carry_out(service: Service, request: Wish, display: Display, outputs: Outputs) -> Report:
    """Carry *request* out in the foreground: signals end it cleanly, and the files are written whatever happens.

    It outlives the terminal, and so does this process until its end.
    """
    hangup.outlive()
    wids: list[str] = []

    def admitted(wid: str) -> None:
        wids.append(wid)
        if outputs.wid:
            write_wids(outputs.wid, wids, service)

    def interrupt() -> None:
        for wid in wids:
            (service.abandon if stop.is_set() else service.interrupted)(wid)

    stop = threading.Event()
    if outputs.wid:
        write_wids(outputs.wid, [], service)
    with _signals(stop, display, interrupt), display.live():
        report = service.carry_out(request, display, stop, admitted)
    outputs.fill(report)
    return report


def write_wids(path: str, wids: Sequence[str], service: Service) -> None:
    """Write workflow ids to the caller's file *path*; of several servers also to ``PATH_SERVER``, as Kadeploy 3.1 did.

    Raises:
        FileError: the caller may not write there.
    """
    shell.write_names(path, wids)
    if Path(path).is_file():  # beside a device none is made
        for server, own in together.begun(service).items():
            with told():
                shell.write_names(f"{Path(path).resolve()}_{server}", own)


@dataclass(frozen=True)
class Other:
    """What is wanted of a workflow that was begun before."""

    cancel: str | None = None
    attach: str | None = None
    wait_for: str | None = None
    speed: float = 0.0
    """How many times as fast as it was `attach` tells what was; 0: at once."""

    def wid(self, machines: object) -> str | None:
        """The workflow; None when none is named. *machines* are the nodes of a new operation, which it has itself.

        Raises:
            OptionError: several things are wanted, or nodes are named as well.
        """
        given = {"--cancel": self.cancel, "--attach": self.attach, "--wait": self.wait_for}
        wid = one_of("a workflow", given)
        if wid is not None and machines:
            option = next(name for name, value in given.items() if value is not None)
            raise OptionError(f"{option} {wid} is about a workflow that has its nodes already: leave out -m and -f.")
        if self.speed:
            self._require_replay()
        return wid

    def _require_replay(self) -> None:
        """Refuse a speed of what has none."""
        if self.attach is None:
            raise OptionError("--speed is that of a workflow that is told again: name it with --attach WID.")
        if "," in self.attach:
            raise OptionError(f"--attach {self.attach}: with --speed, name one workflow.")
        pace.require_speed(self.speed)

    def follow(self, service: Service, wid: str, display: Display, replay: Pace | None = None) -> Report | None:
        """Cancel the workflow, or follow it to its end; None when there is nothing to tell of its end.

        Raises:
            UserInterruptError: by Ctrl-C; the workflow goes on, if it has not ended.
        """
        if self.cancel is not None:
            ends = service.cancel(wid)
            print(f"{wid} ends: its nodes will be free within seconds." if ends else f"{wid} has ended already.")
            return None
        stop = threading.Event()
        with _leaving(stop), display.live() if self.attach else nullcontext():
            listener = display if self.attach else _only_the_end(display)
            report = service.attach(wid, replay.paced(listener, stop) if replay else listener, stop)
        if replay and stop.is_set():
            raise UserInterruptError(f"{wid} stays as it is: --attach {wid} tells of it again.")
        if report is None:
            raise UserInterruptError(f"{wid} goes on: --cancel {wid} ends it, --attach {wid} follows it again.")
        return report


def of_another(
    other: Other,
    wid: str,
    service: Service,
    tool: str,
    outputs: Outputs,
    script: str | None,
    form: ReportForm,
    verbosity: int | None,
    debug: bool,
) -> int:
    """What *tool* does about a workflow that was begun before: its exit status is that of the operation."""
    output = apart(form)
    replay = Pace(other.speed) if other.speed else None
    display = display_of(tool, service, verbosity if other.attach else 0, debug, replay.now if replay else time.time)
    report = other.follow(service, wid, display, replay)
    if report is None:
        return 0
    outputs.fill(report)
    if script:
        run_script(script, caller())
    answer(output, report)
    return status(report, service.site)


def _only_the_end(display: Display) -> Listener:
    def tell(event: Event) -> None:
        if isinstance(event, Began | Ended):
            display(event)

    return tell


@contextmanager
def _leaving(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set *stop*."""
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require_end(form: ReportForm, dry_run: bool, wait: bool) -> None:
    """Refuse a report of an operation whose end is not waited for, or that does not take place.

    Raises:
        OptionError: says what to leave out.
    """
    if form != "text" and (dry_run or not wait):
        raise OptionError(f"--format {form} tells how the operation ended: leave out --dry-run and --no-wait.")


def apart(form: ReportForm) -> int | None:
    """With ``--format json``, a descriptor of standard output for the report alone; all else goes to standard error."""
    if form == "text":
        return None
    output = os.dup(1)
    os.dup2(2, 1)
    return output


def answer(output: int | None, report: Report) -> None:
    """Write the report where `apart` has made room for it; nobody may read it any more."""
    if output is not None:
        with suppress(OSError), os.fdopen(output, "w", encoding="utf-8") as stream:
            stream.write(shell.document(msgspec.to_builtins(report), "json"))


def in_background(
    service: Service, request: Wish, tool: str, outputs: Outputs, script: str | None, asked: Sequence[str]
) -> int:
    """``--no-wait``: print the workflow id as soon as the operation has begun; of several servers, each behind its own.

    What its end is needed for, files and *script*, is left to another process of *tool*, which waits for it at the
    server that it is *asked* by these words.
    """
    if outputs.wid:
        write_wids(outputs.wid, [], service)
    wid = service.start(request)
    if outputs.wid:
        write_wids(outputs.wid, wid.split(","), service)
    print(*together.told(service, wid), sep="\n", flush=True)
    at_the_end = {"-o": outputs.ok, "-n": outputs.ko, "--known-hosts": outputs.known_hosts, "-s": script}
    if words := [word for option, value in at_the_end.items() if value for word in (option, value)]:
        code = f"import sys; from kadeploy.cli.{tool} import main; sys.exit(main())"
        subprocess.Popen(
            [sys.executable, "-P", "-c", code, "--wait-for", wid, *words, *asked],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return 0


def status(report: Report, site: Site) -> int:
    """Exit status of an operation that has ended."""
    if isinstance(report, JointReport):
        return report.exit_status
    if report.aborted:
        return UserInterruptError.exit_code
    return site.partial_failure_status if report.ko else 0


@contextmanager
def _signals(stop: threading.Event, display: Display, interrupt: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM set *stop*; a second one leaves at once, and takes what was started along."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        interrupt()
        if stop.is_set():
            display.abandon()
            os._exit(UserInterruptError.exit_code)
        stop.set()
        display.interrupted()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
