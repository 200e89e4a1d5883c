"""A site's first configuration: its files, keys and folders, from what an administrator has answered."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from kadeploy.admin import commented
from kadeploy.admin.draft import HIDDEN, Draft
from kadeploy.admin.edit import Edit
from kadeploy.admin.node_ranges import folded
from kadeploy.admin.node_sources import is_address
from kadeploy.admin.sources.found import Entry, LeftOut
from kadeploy.caller import Account, account, as_user, own
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import DEFAULT_FOLDER, load_configuration, load_site
from kadeploy.config.partition import LINKS
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, FileError, OptionError, RightsError
from kadeploy.images.deployment import make_key

SERVICE = "kadeploy"
"""The account of the service."""
SITE_KEY = "site_ed25519"
HOST_KEY = "deployment_host_ed25519"
_SECRET = 0o600
_PUBLIC = 0o644


OUR_BOOT_LOG = "/var/log/kadeploy/bootserver.log"
"""Where ``kadeploy-bootserver.service`` logs; its folder is there where the unit is installed."""


class SiteWish(msgspec.Struct, frozen=True, kw_only=True):
    """What ``site.yml`` is to say."""

    name: str
    address: str
    state_dir: str
    tftp_root: str
    http_root: str
    http_url: str
    boot_log: str = ""
    database: str = ""


class ClusterWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster file is to say."""

    name: str
    machines: tuple[Entry, ...]
    device: str
    table: Literal["gpt", "msdos"]
    firmware: Literal["bios", "uefi"]
    profiles: Literal["pxelinux", "grub", "ipxe"]
    secure_boot: bool = False
    partitions: tuple[dict[str, Any], ...]
    power: Literal["ipmi", "redfish", "command"]
    commands: dict[str, str] = {}
    """The site's own commands by key of ``power.commands``, for `command`."""
    bmc_user: str = ""
    password_file: str = ""
    """Path of the BMCs' password; empty: it is kept among the site's keys."""
    password: str | None = None
    """What is to be in that file, where it is kept there; None: what is in it already."""


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose content was replaced."""

    path: str
    former: str
    """Where what it said before is now."""
    diff: str


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    folder: str
    made: list[str]
    unchanged: list[str]
    changed: list[Changed]
    left_out: list[LeftOut]
    warnings: list[str]
    next: list[str]
    """Commands to type now."""


def begin(
    folder: Path,
    owner: Account,
    site: SiteWish | None,
    cluster: ClusterWish | None,
    replace: bool = False,
    left_out: Sequence[LeftOut] = (),
) -> Begun:
    """Make what is missing of the configuration in *folder*, with the keys and folders that it names; all or nothing.

    Args:
        folder: the configuration folder, which is root's.
        owner: whose the state, the keys and the boot files are.
        site: what ``site.yml`` is to say; None: what it says already.
        cluster: what a cluster file is to say; None: none is made.
        replace: whether files that say something else are replaced; they are kept beside.
        left_out: what became no node, to be told.

    Raises:
        RightsError: this process is not root's.
        ConfigError: a file says something else already, or the result would be refused by every tool.
        FileError: something is in the way.
        OptionError: an answer makes no sense.
    """
    require_root(folder)
    with Draft() as draft:
        work = _Work(draft, folder, owner, replace)
        work.do(site, cluster)
        draft.commit()
    return work.told(left_out)


def require_root(folder: Path) -> None:
    """Refuse accounts other than root, and a folder that others could write to.

    Raises:
        RightsError: this process is not root's.
        ConfigError: tools that run as root would take others' commands from it.
    """
    if os.geteuid() != 0:
        raise RightsError(f"kadeploy-site init writes {folder} and makes the site's keys: run it as root, by sudo.")
    for path in (folder, *folder.parents):
        if not path.exists():
            continue
        status = path.stat()
        others = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != 0 else 0)
        is_sticky = path != folder and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or (status.st_mode & others and not is_sticky):
            raise ConfigError(
                f"--config {folder}: {path} could be changed by others than root, and commands in it run as root: "
                "name a folder of root's, or chown root it and chmod go-w it."
            )


def owner_named(name: str | None) -> Account:
    """The account *name*; unless one is named the service's, or root's where there is none.

    Raises:
        OptionError: there is no account *name*.
    """
    if name is not None:
        return account(name)
    try:
        return account(SERVICE)
    except OptionError:
        return own()


# --- what is asked for --------------------------------------------------------------------------------------------

_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_URL = re.compile(r"https?://[^\s/]+/[^\s?#]*")


def require_word(option: str, text: str) -> None:
    """Refuse what cannot be the name of a site or a cluster.

    Raises:
        OptionError: says which *option* it is about.
    """
    if not _WORD.fullmatch(text):
        raise OptionError(f"{option} {text!r}: expected a name of letters, digits, '.', '-' and '_', such as paris.")


def require_address(option: str, text: str) -> None:
    """Refuse what nodes cannot reach.

    Raises:
        OptionError: says which *option* it is about.
    """
    if not is_address(text):
        raise OptionError(f"{option} {text!r}: expected the controller's address as nodes reach it, such as 10.0.0.1.")


def usual_boot_log() -> str:
    """The log of our boot server; empty where that is not installed."""
    return OUR_BOOT_LOG if Path(OUR_BOOT_LOG).parent.is_dir() else ""


def url_of(address: str) -> str:
    """Where the boot files are, on a server of this address.

    >>> url_of("10.0.0.1"), url_of("fd00::1")
    ('http://10.0.0.1/', 'http://[fd00::1]/')
    """
    return f"http://[{address}]/" if ":" in address else f"http://{address}/"


def _require_sound(site: SiteWish) -> None:
    require_word("--name", site.name)
    require_address("--address", site.address)
    folders = {"--state-dir": site.state_dir, "--tftp-root": site.tftp_root, "--http-root": site.http_root}
    for option, path in folders.items():
        if not path.startswith("/") or not path.isprintable() or ".." in Path(path).parts or Path(path) == Path("/"):
            raise OptionError(f"{option} {path}: expected the whole path of a folder, from / on.")
    for option in ("--tftp-root", "--http-root"):
        if Path(site.state_dir).is_relative_to(folders[option]):
            raise OptionError(
                f"--state-dir {site.state_dir}: it is below {option}, and everybody could fetch its keys."
            )
    if not _URL.fullmatch(site.http_url):
        raise OptionError(
            f"--http-url {site.http_url}: expected a URL that ends with /, such as {url_of(site.address)}."
        )
    scheme = site.database.partition("://")[0]
    if site.database and scheme not in _DATABASES:
        raise OptionError(f"--database {scheme}: expected sqlite:///PATH, postgresql://… or mysql://….")
    if scheme == "postgresql" and _password_in(site.database):
        raise OptionError(
            "--database: everybody can read site.yml, and the URL has a password in it: leave it out, and write it "
            f"into ~{SERVICE}/.pgpass (mode 0600)."
        )


_DATABASES = ("sqlite", "postgresql", "mysql")


def _password_in(url: str) -> bool:
    try:
        return bool(urlsplit(url).password) or "password=" in url
    except ValueError as error:
        raise OptionError(f"--database: {url} is no URL: {error}.") from error


# --- doing it -------------------------------------------------------------------------------------------------------


class _Work:
    """Everything that is made, in one draft."""

    def __init__(self, draft: Draft, folder: Path, owner: Account, replace: bool) -> None:
        self._draft = draft
        self._folder = folder
        self._owner = owner
        self._replace = replace
        self._made: list[Path] = []
        self._unchanged: list[Path] = []
        self._edits: list[Edit] = []
        self._warnings: list[str] = []
        self._has_nodes = False
        if owner_named(None).uid == 0 and owner.uid == 0:
            self._warnings.append(f"there is no account {SERVICE} for the service, and all is root's until it is made")

    def do(self, site: SiteWish | None, cluster: ClusterWish | None) -> None:
        """Write everything into the draft."""
        existing = load_site(self._folder) if site is None else None
        if site is not None:
            _require_sound(site)
        else:
            self._unchanged.append(self._folder / "site.yml")
        self._folders(site or existing)
        self._make_folder(self._folder, 0o755, own())
        self._make_folder(self._folder / "clusters", 0o755, own())
        keys = Path((site or existing).state_dir) / "keys"  # type: ignore[union-attr]
        site_text = self._site(site, keys) if site is not None else None
        if cluster is not None:
            require_word("--cluster", cluster.name)
            self._write(self._folder / "clusters" / f"{cluster.name}.yml", self._cluster(cluster, keys))
        if site_text is not None:
            self._write(self._folder / "site.yml", site_text)
        if self._edits and not self._replace:
            raise ConfigError(_differs(self._edits))
        self._read_back()

    # --- folders

    def _folders(self, site: SiteWish | Site | None) -> None:
        """The folders that *site* names."""
        assert site is not None  # noqa: S101 - one of the two is there
        boot = site if isinstance(site, SiteWish) else site.boot
        state = Path(site.state_dir)
        if state.is_dir() and state.stat().st_uid != self._owner.uid:
            raise FileError(
                f"{state} does not belong to {self._owner.name}, who is to keep the site's state and keys there: "
                f"chown -R {self._owner.name}: {shlex.quote(str(state))}, or name another account by --account."
            )
        self._make_folder(state, 0o700, self._owner)
        self._make_folder(Path(site.state_dir) / "keys", 0o700, self._owner)
        self._make_folder(Path(boot.tftp_root), 0o755, self._owner)
        self._make_folder(Path(boot.http_root), 0o755, self._owner)

    def _make_folder(self, path: Path, mode: int, owner: Account) -> None:
        if self._draft.folder(path, mode, owner):
            self._made.append(path)
            return
        self._unchanged.append(path)
        status, name = path.stat(), shlex.quote(str(path))
        if status.st_uid != owner.uid:
            advice = f"chown -R {owner.name}: {name}"
            self._warnings.append(f"{path} is there and does not belong to {owner.name}: {advice}")
        open_bits = stat.S_IMODE(status.st_mode) & ~mode & 0o777
        if open_bits and not status.st_mode & stat.S_ISVTX:
            self._warnings.append(f"{path} is there and open to others: chmod {mode:o} {name}")

    # --- keys and passwords

    def _key(self, path: Path, comment: str) -> str:
        """The public half of the key at *path*, which is made unless it is there."""
        public = path.with_name(f"{path.name}.pub")
        with as_user(self._owner):
            has_private, has_public = path.is_file(), public.is_file()
        if has_public and not has_private:
            raise FileError(f"{path} is missing beside its .pub: put the private key back, or remove {public}.")
        if has_private:
            self._unchanged += [path]
            text = self._public(path, public) if has_public else ""
            if not text:
                raise FileError(f"{public} is missing: ssh-keygen -y -f {path} > {public}")
            self._unchanged += [public]
            return text
        made = make_key(self._draft.hidden(self._folder, own()) / "keys" / path.name, comment)
        text = made.with_name(public.name).read_text(encoding="utf-8")
        self._add(path, made.read_bytes(), _SECRET)
        self._add(public, text.encode(), _PUBLIC)
        return text

    def _public(self, path: Path, public: Path) -> str:
        with as_user(self._owner):
            text = public.read_text(encoding="utf-8", errors="replace")
        if len(text.splitlines()) != 1 or not re.match(r"ssh-\S+ AAAA\S+", text):
            raise FileError(f"{public} is no public key: ssh-keygen -y -f {path} > {public}")
        return text

    def _password(self, path: Path, password: str | None, cluster: str) -> None:
        """Keep the BMCs' *password* at *path*; None: what is there."""
        content = None if password is None else f"{password}\n".encode()
        with as_user(self._owner):
            before = path.read_bytes() if path.is_file() else None
        if before is None and content is None:
            raise OptionError(
                f"--bmc-password-file: the BMCs of {cluster} have a password: name its file, or - to type it."
            )
        if content is None or content == before:
            self._unchanged.append(path)
            return
        if before is not None and not self._replace:
            raise ConfigError(f"{path} holds another password: --replace keeps that one beside and takes the new one.")
        self._add(path, content, _SECRET)

    def _add(self, path: Path, content: bytes, mode: int) -> None:
        self._draft.file(path, content, mode, self._owner)
        self._made.append(path)

    # --- the files of the configuration

    def _site(self, wish: SiteWish, keys: Path) -> str:
        self._key(keys / SITE_KEY, f"kadeploy site {wish.name}")
        host_key = self._key(keys / HOST_KEY, f"deployment system of {wish.name}")
        values: dict[str, Any] = {
            "name": wish.name,
            "state_dir": wish.state_dir,
            "server_address": wish.address,
            "ssh": {"private_key": str(keys / SITE_KEY), "host_key": " ".join(host_key.split()[:2])},
            "boot": {"tftp_root": wish.tftp_root, "http_root": wish.http_root, "http_url": wish.http_url},
        }
        if wish.boot_log:
            values["boot"]["log"] = wish.boot_log
        if wish.database:
            values["database"] = wish.database
        if wish.database.startswith("mysql") and _password_in(wish.database):
            self._warnings.append("everybody can read site.yml, and the URL of its database has a password in it")
        return commented.text(Site, values, _SITE_HEADER)

    def _cluster(self, wish: ClusterWish, keys: Path) -> str:
        without = sum(not machine.bmc for machine in wish.machines)
        if without and wish.power != "command":
            self._warnings.append(
                f"{_nodes(without)} of {wish.name} without a BMC: kapower3 cannot switch what has none"
            )
        if unnamed := sum(not machine.address for machine in wish.machines):
            self._warnings.append(f"{_nodes(unnamed)} of {wish.name} without an address: looked up by name")
        disk: dict[str, Any] = {"device": wish.device, "table": wish.table, "partitions": list(wish.partitions)}
        if wish.device.startswith(LINKS):
            self._warnings.append(f"{wish.device} is taken for the first disk of the firmware: disk.firmware_number")
            disk["firmware_number"] = 0
        values = {
            "nodes": folded(wish.machines),
            "disk": disk,
            "loader": {
                "firmware": wish.firmware,
                "profiles": wish.profiles,
                **({"secure_boot": True} if wish.secure_boot else {}),
            },
            "power": self._power(wish, keys),
        }
        return commented.text(Cluster, values, _CLUSTER_HEADER)

    def _power(self, wish: ClusterWish, keys: Path) -> dict[str, Any]:
        if wish.power == "command":
            return {"driver": wish.power, "commands": wish.commands}
        path = Path(wish.password_file) if wish.password_file else keys / f"bmc-{wish.name}"
        if wish.password_file:
            self._look_at(path)
        else:
            self._password(path, wish.password, wish.name)
        return {"driver": wish.power, "user": wish.bmc_user, "password_file": str(path)}

    def _look_at(self, path: Path) -> None:
        """Tell what is wrong with a password file of the administrator's own."""
        if not path.is_file():
            why = "is no file that stays" if path.exists() else "there is no such file"
            raise OptionError(f"--bmc-password-file {path}: {why}; - takes the password from standard input.")
        status = path.stat()
        if status.st_uid != self._owner.uid or stat.S_IMODE(status.st_mode) & 0o077:
            name = shlex.quote(str(path))
            advice = f"chown {self._owner.name}: {name}; chmod 600 {name}"
            self._warnings.append(f"{path} has to be {self._owner.name}'s, closed to others: {advice}")

    def _write(self, path: Path, text: str) -> None:
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        if before == text:
            self._unchanged.append(path)
            return
        if before is None:
            self._made.append(path)
        else:
            self._edits.append(Edit(path, before, text))
        self._draft.file(path, text.encode(), _PUBLIC, own(), root=self._folder)

    def _read_back(self) -> None:
        """Read the configuration as it will be.

        Raises:
            ConfigError: every tool would refuse it.
        """
        hidden = self._draft.hidden(self._folder, own())
        (hidden / "clusters").mkdir(exist_ok=True)
        for path in (self._folder / "site.yml", *(self._folder / "clusters").glob("*.yml")):
            copy = hidden / path.relative_to(self._folder)
            if path.is_file() and not copy.exists():
                shutil.copyfile(path, copy)
        for path in self._folder.iterdir():  # inventories, playbooks and roles that cluster files name
            if not path.name.startswith(".") and not (hidden / path.name).exists():
                (hidden / path.name).symlink_to(path)
        self._has_nodes = any((hidden / "clusters").glob("*.yml"))
        try:
            if self._has_nodes:
                load_configuration(hidden).require_sound()
            else:
                load_site(hidden)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"/{HIDDEN}/", "/")) from error

    # --- the report

    def told(self, left_out: Sequence[LeftOut]) -> Begun:
        """What was done."""
        kept = self._draft.kept
        return Begun(
            folder=str(self._folder),
            made=_texts(path for path in self._made if path not in kept),
            unchanged=_texts(self._unchanged),
            changed=[
                *(Changed(path=str(each.path), former=str(kept[each.path]), diff=each.diff) for each in self._edits),
                *(Changed(path=str(path), former=str(kept[path]), diff="") for path in self._made if path in kept),
            ],
            left_out=list(left_out),
            warnings=self._warnings,
            next=_next(self._folder, self._has_nodes),
        )


_SITE_HEADER = (
    "The site. A line that begins with # and a blank explains; one that begins with # alone is a key with its "
    "default: take the # away to set it. Of a section, take it away from its first line as well."
)
_CLUSTER_HEADER = (
    "A cluster: nodes that are alike. The file's name is the cluster's. A line that begins with # and a blank "
    "explains; one that begins with # alone is a key with its default: take the # away to set it. Of a section, take "
    "it away from its first line as well."
)


def _texts(paths: Iterable[Path]) -> list[str]:
    return [str(path) for path in paths]


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _differs(edits: Sequence[Edit]) -> str:
    names = " and ".join(str(each.path) for each in edits)
    verb = "says" if len(edits) == 1 else "say"
    return (
        f"{names} {verb} something else already: --replace takes what is new and keeps what was there beside it. "
        f"The difference:\n{''.join(each.diff for each in edits)}".rstrip("\n")
    )


def _next(folder: Path, has_nodes: bool) -> list[str]:
    """Commands to type once the configuration is there."""
    variable = "" if folder == DEFAULT_FOLDER else f"KADEPLOY_CONFIG_DIR={shlex.quote(str(folder))} "
    if not has_nodes:
        option = "" if folder == DEFAULT_FOLDER else f"--config {shlex.quote(str(folder))} "
        return [f"kadeploy-site init {option}--cluster NAME --from dhcpd:/etc/dhcp/dhcpd.conf"]
    return [f"{variable}kadeploy-site {command}" for command in ("build", "dhcp", "check")]
