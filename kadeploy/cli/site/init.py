"""``kadeploy-site init``: from flags or questions to a configuration."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from kadeploy.admin import initial, layout, node_ranges, node_sources
from kadeploy.admin.sources.found import Found
from kadeploy.cli import shell, usage
from kadeploy.cli.site import unattended
from kadeploy.config.cluster import PowerCommands
from kadeploy.config.folder import configuration_folder, load_site
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError, MissingOptionError, OptionError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import told

Firmware = Literal["bios", "uefi"]
Table = Literal["gpt", "msdos"]
Profiles = Literal["pxelinux", "grub", "ipxe"]
Power = Literal["ipmi", "redfish", "command"]

_PROFILES: dict[str, Profiles] = {"bios": "pxelinux", "uefi": "grub"}
"""Firmware → what reads boot profiles on it."""
_TABLES: dict[str, Table] = {"bios": "msdos", "uefi": "gpt"}
_LONGEST_PASSWORD = 1024
_LISTED = 20
"""Lines of what was left out that a terminal gets."""


def init(
    *,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FOLDER", help="The configuration folder; /etc/kadeploy unless given."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="WORD", help="Name of the site, such as paris.")] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="ADDRESS", help="This controller's, as the nodes reach it.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="WORD", help="Name of a cluster, whose file is made.")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            metavar="RANGE",
            help="Its nodes, gdx-[1-100].paris.example; with --from only these of the files.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="KIND:FILE",
            help="Nodes of a file: csv, dhcpd, dnsmasq, kea, inventory[:GROUP]; repeatable.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain",
            metavar="DOMAIN",
            help="Added to names of the files that have no dot.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    addresses: Annotated[
        str | None,
        typer.Option(
            "--addresses", metavar="RANGE", help="As many as nodes: 10.0.1.[1-100].", rich_help_panel=usage.MACHINES
        ),
    ] = None,
    bmcs: Annotated[
        str | None,
        typer.Option(
            "--bmcs",
            metavar="RANGE",
            help="Likewise, or HOSTNAME_SHORT-bmc.paris.example.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    macs: Annotated[
        str | None,
        typer.Option(
            "--macs",
            metavar="LIST",
            help="Likewise: MAC addresses between commas, or 52:54:00:00:01:[00-1f].",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    power: Annotated[
        Power | None,
        typer.Option("--power", metavar="DRIVER", help="ipmi, redfish or command.", rich_help_panel=usage.MACHINES),
    ] = None,
    power_commands: Annotated[
        list[str] | None,
        typer.Option(
            "--power-command",
            metavar="KEY=COMMAND",
            help="With --power command: 'hard_reboot=reset-it HOSTNAME_SHORT'; repeatable.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    bmc_user: Annotated[
        str | None,
        typer.Option("--bmc-user", metavar="USER", help="User of the BMCs.", rich_help_panel=usage.MACHINES),
    ] = None,
    bmc_password_file: Annotated[
        str | None,
        typer.Option(
            "--bmc-password-file",
            metavar="FILE",
            help="File of that user's password; - takes it from standard input, or unseen from the terminal.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option("--disk", metavar="DEVICE", help="Where deployments go; /dev/sda.", rich_help_panel=usage.DISK),
    ] = None,
    table: Annotated[
        Table | None,
        typer.Option("--table", metavar="WORD", help="gpt or msdos; by the firmware.", rich_help_panel=usage.DISK),
    ] = None,
    partitions: Annotated[
        str | None,
        typer.Option(
            "--partitions",
            metavar="LIST",
            help=f"ROLE:SIZE in their order; {layout.USUAL['bios']}.",
            rich_help_panel=usage.DISK,
        ),
    ] = None,
    firmware: Annotated[
        Firmware | None,
        typer.Option("--firmware", metavar="WORD", help="bios or uefi.", rich_help_panel=usage.BOOT),
    ] = None,
    secure_boot: Annotated[
        bool,
        typer.Option(
            "--secure-boot",
            help="UEFI, and its Secure Boot: nodes load what is signed, by TFTP.",
            rich_help_panel=usage.BOOT,
        ),
    ] = False,
    profiles: Annotated[
        Profiles | None,
        typer.Option(
            "--profiles",
            metavar="WORD",
            help="pxelinux, grub or ipxe: what reads boot profiles; by the firmware.",
            rich_help_panel=usage.BOOT,
        ),
    ] = None,
    tftp_root: Annotated[
        str | None,
        typer.Option(
            "--tftp-root", metavar="FOLDER", help="/srv/kadeploy/tftp unless given.", rich_help_panel=usage.BOOT
        ),
    ] = None,
    http_root: Annotated[
        str | None,
        typer.Option(
            "--http-root", metavar="FOLDER", help="/srv/kadeploy/http unless given.", rich_help_panel=usage.BOOT
        ),
    ] = None,
    http_url: Annotated[
        str | None,
        typer.Option("--http-url", metavar="URL", help="Of --http-root; http://ADDRESS/.", rich_help_panel=usage.BOOT),
    ] = None,
    boot_log: Annotated[
        str | None,
        typer.Option(
            "--boot-log",
            metavar="FILE",
            help="Of the boot server, in which try sees what a node fetched; of ours where that is installed.",
            rich_help_panel=usage.BOOT,
        ),
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(
            "--state-dir", metavar="FOLDER", help="/var/lib/kadeploy unless given.", rich_help_panel=usage.RUN
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            help="postgresql:// or mysql://; SQLite in --state-dir unless given.",
            rich_help_panel=usage.RUN,
        ),
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(
            "--account",
            metavar="USER",
            help="Whose state and keys are; kadeploy where there is such an account, else root.",
            rich_help_panel=usage.RUN,
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace files that say something else; they stay beside.", rich_help_panel=usage.RUN
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Take defaults and ask nothing.", rich_help_panel=usage.RUN)
    ] = False,
    form: shell.Format = "text",
) -> None:
    """Begin a site, or add a cluster to it: a complete, commented configuration, its keys and its folders."""
    unattended.end_tidily()
    folder = Path(config).absolute() if config is not None else configuration_folder()
    initial.require_root(folder)
    given = {
        "--name": name,
        "--address": address,
        "--state-dir": state_dir,
        "--tftp-root": tftp_root,
        "--http-root": http_root,
        "--http-url": http_url,
        "--boot-log": boot_log,
        "--database": database,
        "--cluster": cluster,
        "--nodes": nodes,
        "--domain": domain,
        "--addresses": addresses,
        "--bmcs": bmcs,
        "--macs": macs,
        "--power": power,
        "--bmc-user": bmc_user,
        "--bmc-password-file": bmc_password_file,
        "--disk": disk,
        "--table": table,
        "--partitions": partitions,
        "--firmware": firmware,
        "--secure-boot": "yes" if secure_boot else None,
        "--profiles": profiles,
    }
    answers = _Answers(
        {option: text for option, text in given.items() if text is not None}, sources or [], power_commands or [], yes
    )
    owner = initial.owner_named(account)
    existing = load_site(folder) if (folder / "site.yml").exists() else None
    answers.is_asked = not yes and _at_terminal() and answers.lacks(existing)
    site = answers.site(existing)
    state = Path(site.state_dir if site else existing.state_dir)  # type: ignore[union-attr]
    found, wish = answers.cluster(state, has_clusters=any((folder / "clusters").glob("*.yml")))
    begun = initial.begin(folder, owner, site, wish, replace, found.left_out)
    if form != "text":
        shell.emit(msgspec.to_builtins(begun), form)
        return
    for line in begun.warnings:
        shell.warn(line)
    print("\n".join(_lines(begun, wish)))


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


# --- answers --------------------------------------------------------------------------------------------------------

_SITE_OPTIONS = (
    *("--name", "--address", "--state-dir", "--tftp-root", "--http-root", "--http-url", "--boot-log"),
    "--database",
)
_CLUSTER_OPTIONS = (
    *("--nodes", "--domain", "--addresses", "--bmcs", "--macs", "--power", "--bmc-user", "--bmc-password-file"),
    *("--disk", "--table", "--partitions", "--firmware", "--secure-boot", "--profiles"),
)
_BMC_OPTIONS = ("--bmcs", "--bmc-user", "--bmc-password-file")


@dataclass
class _Answers:
    """What the options say, and what is asked for besides."""

    given: dict[str, str]
    sources: list[str]
    commands: list[str]
    takes_defaults: bool
    is_asked: bool = False
    """Whether somebody is at a terminal who is asked what is missing."""

    def lacks(self, existing: Site | None) -> bool:
        """Whether something is needed that no option says."""
        if existing is None and not {"--name", "--address"} <= self.given.keys():
            return True
        if "--cluster" not in self.given:
            return existing is not None and not self.given and not self.sources
        has_nodes = "--nodes" in self.given or bool(self.sources)
        has_power = bool(self.commands) if self.given.get("--power") == "command" else "--bmc-user" in self.given
        return not (has_nodes and has_power)

    def of(
        self,
        option: str,
        question: str,
        default: str = "",
        is_guess: bool = False,
        check: Callable[[str, str], object] | None = None,
    ) -> str:
        """What *option* says, what is answered, or the default.

        Args:
            option: such as ``--name``.
            question: empty: it is not asked for.
            default: empty: there is none.
            is_guess: whether the default is taken only when somebody has seen it, or said ``--yes``.
            check: called with the option and the text; raises where it makes no sense.

        Raises:
            MissingOptionError: nobody says it.
        """
        text = self.given.get(option)
        if text is None and self.is_asked and question:
            text = _ask(option, question, default, check)
        if text is None and (default or not is_guess) and (self.takes_defaults or not is_guess):
            text = default
        if text is None:
            hint = f", or --yes for {default}" if default else ""
            raise MissingOptionError(f"{option} is missing: give it{hint}.")
        if check is not None and text:
            check(option, text)
        return text

    # --- the site

    def site(self, existing: Site | None) -> initial.SiteWish | None:
        """What ``site.yml`` is to say; None: what it says already."""
        if existing is not None and not self.given.keys() & set(_SITE_OPTIONS):
            return None
        name = self.of(
            "--name",
            "Name of the site",
            existing.name if existing else socket.gethostname().partition(".")[0],
            is_guess=existing is None,
            check=initial.require_word,
        )
        address = self.of(
            "--address",
            "Address of this controller, as the nodes reach it",
            existing.server_address if existing else _own_address(),
            is_guess=existing is None,
            check=initial.require_address,
        )
        boot = existing.boot if existing else None
        tftp = self.of("--tftp-root", "Folder of the TFTP server", boot.tftp_root if boot else "/srv/kadeploy/tftp")
        http = self.of("--http-root", "Folder of the HTTP server", boot.http_root if boot else "/srv/kadeploy/http")
        is_same = existing is not None and existing.server_address == address
        usual = boot.http_url if boot and is_same else initial.url_of(address)
        url = self.of("--http-url", "URL of that folder", usual)
        return initial.SiteWish(
            name=name,
            address=address,
            state_dir=self.of("--state-dir", "", existing.state_dir if existing else "/var/lib/kadeploy"),
            tftp_root=tftp,
            http_root=http,
            http_url=url if url.endswith("/") else f"{url}/",
            boot_log=self.of("--boot-log", "", boot.log if boot else initial.usual_boot_log()),
            database=self.of("--database", "", existing.database if existing else ""),
        )

    # --- a cluster

    def cluster(self, state: Path, has_clusters: bool) -> tuple[Found, initial.ClusterWish | None]:
        """What a cluster file is to say, and what was left out of the files that have its nodes; None: none is made."""
        question = "" if has_clusters and self.given else "Name of a cluster (empty: none for now)"
        name = self.of("--cluster", question, check=initial.require_word)
        if not name:
            if stray := [option for option in _CLUSTER_OPTIONS if option in self.given] + ["--from"] * bool(
                self.sources
            ):
                raise MissingOptionError(f"--cluster is missing: {stray[0]} belongs to a cluster, which has a name.")
            return Found([], []), None
        found = self._machines()
        firmware, profiles, secure_boot = self._boot()
        table = self._word("--table", "", _TABLES[firmware], ("gpt", "msdos"))
        parts = self.of(
            "--partitions",
            "Partitions",
            layout.USUAL[firmware],
            check=lambda _, text: layout.partitions(text, table, firmware),
        )
        device = self.of("--disk", "Disk that deployments go to", "/dev/sda", check=_require_device)
        power = self._word("--power", "How BMCs are spoken to: ipmi, redfish, command", "ipmi", _POWERS)
        user, file, password, commands = "", "", None, {}
        if power != "command":
            found = self._with_bmcs(found, is_url=power == "redfish")
            user = self.of("--bmc-user", "User of the BMCs", is_guess=True, check=_require_line)
            file, password = self._password(state / "keys" / f"bmc-{name}")
        else:
            if stray := [option for option in _BMC_OPTIONS if option in self.given]:
                raise OptionError(f"{stray[0]} goes with --power ipmi or redfish: commands know the BMCs themselves.")
            commands = self._commands()
        wish = initial.ClusterWish(
            name=name,
            machines=tuple(found.entries),
            device=device,
            table=table,
            firmware=firmware,
            profiles=profiles,
            secure_boot=secure_boot,
            partitions=tuple(layout.partitions(parts, table, firmware)),
            power=power,
            commands=commands,
            bmc_user=user,
            password_file=file,
            password=password,
        )
        return found, wish

    def _boot(self) -> tuple[Firmware, Profiles, bool]:
        """Firmware, what reads boot profiles, and whether all has to be signed: UEFI, and GRUB's profiles."""
        usual = "uefi" if "--secure-boot" in self.given else "bios"
        firmware = self._word("--firmware", "Firmware of the nodes, bios or uefi", usual, ("bios", "uefi"))
        question = "Secure Boot, yes or no" if firmware == "uefi" else ""
        is_secure = self._word("--secure-boot", question, "no", ("yes", "no")) == "yes"
        profiles = self._word("--profiles", "", _PROFILES[firmware], ("pxelinux", "grub", "ipxe"))
        if is_secure and firmware != "uefi":
            raise OptionError(f"--secure-boot and --firmware {firmware} contradict each other: it is UEFI's alone.")
        if is_secure and profiles != "grub":
            raise OptionError(f"--secure-boot and --profiles {profiles} contradict each other: GRUB alone is signed.")
        return firmware, profiles, is_secure

    def _word(self, option: str, question: str, default: str, words: tuple[str, ...]) -> Any:
        def check(option: str, text: str) -> None:
            if text not in words:
                raise OptionError(f"{option} {text}: expected one of {', '.join(words)}.")

        return self.of(option, question, default, check=check)

    def _machines(self) -> Found:
        question = (
            "" if self.sources else "Nodes: a range gdx-[1-100].paris.example, or a file dhcpd:/etc/dhcp/dhcpd.conf"
        )
        nodes = self.of("--nodes", question, is_guess=not self.sources, check=_require_nodes)
        if _is_source(nodes):
            self.sources, nodes = [nodes], ""
        named = node_ranges.named(nodes, "--nodes") if nodes else []
        if not self.sources:
            asked = self._column("--addresses", "Their addresses, as many (empty: they are looked up by name)", named)
            found = node_ranges.entries(nodes, asked, macs=self.of("--macs", ""))
            return node_sources.checked(found)
        if both := [option for option in ("--addresses", "--macs") if option in self.given]:
            raise OptionError(f"{both[0]} and --from contradict each other: the files have them.")
        return node_sources.read(self.sources, self.given.get("--domain", ""), named)

    def _column(self, option: str, question: str, names: Sequence[str]) -> str:
        """What there is one of for each of the nodes *names*."""
        return self.of(option, question, check=lambda option, text: node_ranges.column(text, names, option))

    def _with_bmcs(self, found: Found, is_url: bool) -> Found:
        """The machines with the BMCs that ``--bmcs`` names, for those that have none from their file.

        *is_url*: they are spoken to by HTTPS, unless a URL says how.
        """
        ordered = node_ranges.in_order(found.entries) if self.sources else found.entries
        question = "Their BMCs, as many, or HOSTNAME_SHORT-bmc (empty: later)"
        names = [each.name for each in ordered]
        pattern = self._column("--bmcs", "" if all(each.bmc for each in ordered) else question, names)
        values = node_ranges.column(pattern, names, "--bmcs")
        machines = [
            msgspec.structs.replace(machine, bmc=_url(machine.bmc or bmc) if is_url else machine.bmc or bmc)
            for machine, bmc in zip(ordered, values, strict=True)
        ]
        return Found(node_sources.checked(machines).entries, found.left_out)

    def _commands(self) -> dict[str, str]:
        """The site's own commands that switch nodes, by key."""
        if not self.commands and self.is_asked:
            question = "Command that resets a node, HOSTNAME_SHORT stands for it"
            return {"hard_reboot": _ask("--power-command", question, "", _require_line)}
        if not self.commands:
            raise MissingOptionError("--power-command is missing: give 'hard_reboot=COMMAND HOSTNAME_SHORT', for one.")
        found = dict(command.partition("=")[::2] for command in self.commands)
        for key, command in found.items():
            if key not in _COMMANDS:
                hint = did_you_mean(key, _COMMANDS)
                raise OptionError(f"--power-command {key}: expected {', '.join(_COMMANDS)}, each with =COMMAND.{hint}")
            _require_line("--power-command", command)
        return found

    def _password(self, kept: Path) -> tuple[str, str | None]:
        """Path of the BMCs' password, or empty and what is to be *kept* in that file; None: what is there."""
        named = self.given.get("--bmc-password-file")
        if named is not None and named != "-":
            return str(Path(named).absolute()), None
        if named == "-" or (self.is_asked and not kept.exists()):
            return "", _read_password()
        if not kept.exists():
            raise MissingOptionError(
                "--bmc-password-file is missing: name the file of the BMCs' password, or - to type it."
            )
        return "", None


_COMMANDS = PowerCommands.__struct_fields__
_POWERS = ("ipmi", "redfish", "command")


def _ask(option: str, question: str, default: str, check: Callable[[str, str], object] | None) -> str:
    """Ask until the answer makes sense; questions are no output."""

    def value(text: str) -> str:
        try:
            if check is not None and text:
                check(option, text.strip())
        except KadeployError as error:
            raise typer.BadParameter(str(error)) from error
        return text.strip()

    return str(typer.prompt(question, default, show_default=bool(default), value_proc=value, err=True))


def _own_address() -> str:
    """The address by which this machine reaches others; empty where it reaches none. Nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return ""


def _url(bmc: str) -> str:
    return bmc if not bmc or "://" in bmc else f"https://{bmc}"


def _is_source(text: str) -> bool:
    return text.partition(":")[0] in node_sources.KINDS


def _require_nodes(_: str, text: str) -> None:
    if _is_source(text):
        node_sources.read([text])
    else:
        node_ranges.named(text, "--nodes")


def _require_device(option: str, text: str) -> None:
    if not text.startswith("/dev/") or not text.isprintable() or " " in text:
        raise OptionError(f"{option} {text}: expected a disk such as /dev/sda, /dev/nvme0n1 or /dev/disk/by-id/….")


def _require_line(option: str, text: str) -> None:
    if not text.isprintable():
        raise OptionError(f"{option}: expected one line of letters.")


def _read_password() -> str:
    """What is typed, unseen; or the first line of standard input."""
    try:
        if sys.stdin.isatty():
            found = getpass.getpass("Password of that user: ")
        else:
            found = sys.stdin.readline(_LONGEST_PASSWORD + 2).rstrip("\r\n")
    except (UnicodeDecodeError, EOFError) as error:
        raise OptionError("--bmc-password-file: what came is no password.") from error
    if not found or len(found) > _LONGEST_PASSWORD or not found.isprintable():
        raise OptionError("--bmc-password-file: expected a password on one line, not an empty one.")
    return found


# --- what was done --------------------------------------------------------------------------------------------------


def _lines(begun: initial.Begun, wish: initial.ClusterWish | None) -> list[str]:
    lines = [f"made       {path}" for path in begun.made]
    lines += [f"unchanged  {path}" for path in begun.unchanged if Path(path).is_file()]
    for each in begun.changed:
        lines += [f"changed    {each.path}, which was kept as {each.former}", *each.diff.splitlines()]
    lines += [f"left out   {each.where}: {each.text}" for each in begun.left_out[:_LISTED]]
    if len(begun.left_out) > _LISTED:
        lines.append(f"left out   {len(begun.left_out) - _LISTED} more, which --format json tells")
    if wish is not None:
        names = [machine.name for machine in wish.machines]
        lines.append(f"{wish.name} has {len(names)} node{'' if len(names) == 1 else 's'}: {told(names)}")
    return [*lines, "Next:", *(f"  {command}" for command in begun.next)]
