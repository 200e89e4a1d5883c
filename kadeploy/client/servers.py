"""``client.yml``: the services that a user's tools know by name, and how each of them is shown who asks.

Secrets are in files of their own, opened with the rights of the user.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from kadeploy import files
from kadeploy.caller import Account, as_user, is_user_name
from kadeploy.client import address
from kadeploy.client.address import Address
from kadeploy.config.file import Struct, as_struct
from kadeploy.config.service import PORT
from kadeploy.errors import ConfigError, FileError

VARIABLE = "KADEPLOY_CLIENT"
"""Names the file."""
OWN = Path("~/.config/kadeploy/client.yml")
COMMON = Path("/etc/kadeploy/client.yml")
_LONGEST = 4096
"""Bytes of a secret."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class Server(Struct, frozen=True, kw_only=True):
    """One of ``servers``."""

    url: str
    """``https://host:port``, or ``unix:/path``."""
    ca: str = ""
    """File of the authorities (PEM) that sign its certificate; empty: those of this machine."""
    token_file: str = ""
    """File of a token, which is shown to the service."""
    user: str = ""
    """Whose password it is; empty: the account's name."""
    password_file: str = ""
    """File whose first line is that password."""
    certificate: str = ""
    """File of the client certificate (PEM), with its chain."""
    private_key: str = ""
    """Its key; empty: in the same file."""


class Listed(Struct, frozen=True, kw_only=True):
    """One of ``servers`` as Kadeploy 3.3 wrote them."""

    name: str
    hostname: str
    port: int = PORT
    secure: bool = True
    auth_headers_prefix: str = ""
    """Had another meaning, and has none."""


class Client(Struct, frozen=True, kw_only=True):
    """``client.yml``."""

    default: str = ""
    """The server to ask where none is named."""
    servers: dict[str, Server] | tuple[Listed, ...] = {}
    """By name, with the keys below; or a list as Kadeploy 3.3 wrote it."""


class Servers(NamedTuple):
    """What a client knows."""

    path: Path
    """The file."""
    default: str
    named: Mapping[str, Server]


def known(who: Account) -> Servers:
    """The servers that *who* can name: those of `VARIABLE`'s file, else of the own one, else of the machine's.

    Raises:
        KadeployError: the file is wrong, or cannot be read.
    """
    given = os.environ.get(VARIABLE, "")
    own = who.home.joinpath(*OWN.parts[1:])
    for path in [Path(given)] if given else [own, COMMON]:
        if given or _exists(path, who):
            return _read(path, who)
    return Servers(own, "", {})


def _exists(path: Path, who: Account) -> bool:
    with as_user(who):
        return os.path.lexists(path)


def _read(path: Path, who: Account) -> Servers:
    found = as_struct(path, files.read_text(str(path), who), Client)
    named = (
        found.servers if isinstance(found.servers, dict) else {each.name: _today(path, each) for each in found.servers}
    )
    if found.default and found.default not in named:
        raise ConfigError(f"{path}: default: {found.default} is none of the servers: {', '.join(named) or 'none'}.")
    return Servers(path, found.default, named)


def _today(path: Path, listed: Listed) -> Server:
    if not listed.secure:
        raise ConfigError(f"{path}: {listed.name}: secure: false: the service speaks HTTPS alone: remove that line.")
    host = f"[{listed.hostname}]" if ":" in listed.hostname else listed.hostname
    return Server(url=f"https://{host}:{listed.port}")


# --- the address of a server ----------------------------------------------------------------------------------------


def literal(word: str) -> Server | None:
    """The server that *word* is the address of, not the name: ``https://…``, ``unix:/…`` or a path."""
    return Server(url=word) if word.startswith(("https:", "http:", "unix:", "/")) else None


def address_of(server: Server, who: Account, name: str = "", path: Path = COMMON) -> Address:
    """Where to ask *server*, which *path* calls *name*, and what to show there.

    Raises:
        KadeployError: its address is wrong, or a file with a secret cannot be used.
    """
    where = f"{path}: servers.{name}" if name else server.url
    if socket := _socket_path(server.url):
        if not socket.startswith("/"):
            raise ConfigError(f"{where}: {server.url}: a socket is named by its whole path, unix:/PATH.")
        return address.of_socket(socket, _acting_for(who))
    host, port = _host_and_port(where, server.url)
    files_of = _Files(path.parent, who, where)
    headers = files_of.credentials(server)
    return address.of_machine(host, port, lambda: files_of.context(server), headers, name)


def _acting_for(who: Account) -> dict[str, str]:
    """Under sudo it is not root that calls; the service knows root alone by the connection, and believes its word."""
    return {"X-Kadeploy-User": who.name} if os.geteuid() == 0 and who.uid != 0 else {}


def _socket_path(url: str) -> str:
    return url if url.startswith("/") else url.removeprefix("unix:").removeprefix("//") if url[:5] == "unix:" else ""


def _host_and_port(where: str, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORT
        host.encode("idna")
    except ValueError as error:
        raise ConfigError(f"{where}: url: {url} is no address: expected https://HOST:{PORT}.") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: url: no user and no password here: use user and password_file, or token_file.")
    if parts.scheme != "https" or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(
            f"{where}: url: {url} is no address of a service: expected https://HOST:{PORT} or unix:/PATH."
        )
    return host, port


class _Files(NamedTuple):
    """Opens what ``client.yml`` names: relative to its *folder*, with the rights of *who*."""

    folder: Path
    who: Account
    where: str

    def credentials(self, server: Server) -> dict[str, str]:
        """The header that says who asks; none where a certificate does."""
        if server.token_file and server.password_file:
            raise ConfigError(f"{self.where}: token_file and password_file: leave out one of the two.")
        if server.user and not server.password_file:
            raise ConfigError(f"{self.where}: user: this goes with a password_file.")
        if server.token_file:
            return {"Authorization": f"Bearer {self._token(server.token_file)}"}
        if server.password_file:
            return {"Authorization": f"Basic {self._basic(server)}"}
        return {}

    def _token(self, name: str) -> str:
        token = self._secret(name)
        if not _TOKEN.fullmatch(token):
            raise FileError(f"{self._path(name)}: not one token. Write into it what kadeploy3d token create printed.")
        return token

    def _basic(self, server: Server) -> str:
        user = server.user or self.who.name
        if not is_user_name(user):
            raise ConfigError(f"{self.where}: user: {user} is no name of a user.")
        return base64.b64encode(f"{user}:{self._secret(server.password_file)}".encode()).decode()

    def context(self, server: Server) -> ssl.SSLContext:
        """How TLS verifies the service, and what it is shown."""
        if server.private_key and not server.certificate:
            raise ConfigError(f"{self.where}: private_key: this goes with a certificate.")
        for name in (server.ca, server.certificate):
            if name:
                files.open_as_user(self._path(name), self.who).close()
        if key := server.private_key or server.certificate:
            self._require_private(key)
        try:
            with as_user(self.who):
                context = _trusting(self._named(server.ca))
                if server.certificate:
                    context.load_cert_chain(
                        self._path(server.certificate), self._named(server.private_key), password=_no_passphrase
                    )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.where}: ca, certificate or private_key cannot be used ({address.why(error)}): expected PEM, "
                "and the key of the certificate, without a passphrase."
            ) from error
        return context

    def _named(self, name: str) -> Path | None:
        return self._path(name) if name else None

    def _path(self, name: str) -> Path:
        parts = Path(name).parts
        return self.who.home.joinpath(*parts[1:]) if parts[:1] == ("~",) else self.folder / name

    def _secret(self, name: str) -> str:
        """The first line of a file that is not empty."""
        path = self._path(name)
        self._require_private(name)
        line, _, _ = files.read_text(str(path), self.who, _LONGEST).strip().partition("\n")
        if not line:
            raise FileError(f"{path}: is empty. Write the secret into it.")
        return line.rstrip("\r")

    def _require_private(self, name: str) -> None:
        """Refuse a file of the user's that others can read, and any file that everybody can."""
        path = self._path(name)
        with files.open_as_user(path, self.who) as stream:
            status = os.fstat(stream.fileno())
        if status.st_mode & (0o077 if status.st_uid == self.who.uid else 0o007):
            raise FileError(f"{path}: others can read it, and could act as you. First: chmod 600 {path}")


def _trusting(ca: Path | None) -> ssl.SSLContext:
    """Verifies by the authorities of the machine, or by those in *ca* alone."""
    context = ssl.create_default_context(cafile=ca)
    if ca:
        # Python 3.13 refuses authorities without keyUsage, and what they sign without an identifier of its authority:
        # those that sites make by hand. The user trusts this one by name, and curl and earlier Pythons believe it.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _no_passphrase() -> str:
    """OpenSSL would ask at the terminal."""
    return ""
