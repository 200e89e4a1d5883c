"""``service`` in ``site.yml``: how `kadeploy3d` serves the site to accounts that are not root's."""

from __future__ import annotations

from collections.abc import Iterable

from kadeploy.config.file import Struct
from kadeploy.config.rules import File, Folder, Header, IpAddress, Name, Network, OpenPort, Positive, User, Wrong

SOCKET = "/run/kadeploy/kadeploy3d.sock"
CONSOLE_SOCKET = "/run/kadeploy/consoles.sock"
PORT = 25300
"""Where the original's server listens."""


class Https(Struct, frozen=True, kw_only=True):
    """The way in from other machines."""

    certificate: File
    """Path of the certificate, with its chain (PEM)."""
    private_key: File
    address: IpAddress = "0.0.0.0"  # noqa: S104 - other machines are what it is for
    port: OpenPort = PORT
    client_ca: File = ""
    """Certificates of the authorities whose client certificates are believed; the user is the subject's common name."""


class FrontEnd(Struct, frozen=True, kw_only=True):
    """A server in front of this one that has authenticated the user already, and says who it is."""

    sources: tuple[Network, ...]
    """Addresses and networks from which its word is taken: ``10.1.0.4``, ``10.2.0.0/16``."""
    header: Header = "X-Remote-Ident"
    """Header in which it names the user."""

    def contradictions(self) -> Iterable[Wrong]:
        """It stands nowhere."""
        if not self.sources:
            yield Wrong(("sources",), "an empty list is given; expected a list of at least one address or network.")


class Quota(Struct, frozen=True, kw_only=True):
    """How much of one user's the service takes on."""

    workflows: Positive = 20
    """Operations that run at a time."""
    nodes: Positive = 10_000
    """Nodes in all of them."""
    files_mb: Positive = 50_000
    """Room for the files that the user has sent; the ones that were used least recently make room."""
    uploads: Positive = 8
    """Files that the user sends at a time."""
    consoles: Positive = 20


class Workers(Struct, frozen=True, kw_only=True):
    """Other machines that may carry out parts of operations."""

    users: tuple[User, ...]
    """Whose tokens may take work: they get the site's ssh key and the BMCs' passwords with it."""
    database_role: Name = ""
    """Role of the PostgreSQL database that workers use; it gets the right to the tables of their queue."""

    def contradictions(self) -> Iterable[Wrong]:
        """Nobody may work."""
        if not self.users:
            yield Wrong(("users",), "an empty list is given; expected a list of at least one user.")


class Service(Struct, frozen=True, kw_only=True):
    """``service``."""

    socket: File = ""
    """Where local accounts find it, for whom the kernel says who they are; empty: `SOCKET`, for ``/etc/kadeploy``."""
    https: Https | None = None
    htpasswd: File = ""
    """File of users and password hashes (bcrypt or argon2) for HTTP basic authentication."""
    front_ends: tuple[FrontEnd, ...] = ()
    metrics_from: tuple[Network, ...] = ()
    """Addresses and networks from which ``/metrics`` is answered without asking who calls; others show a token."""
    workers: Workers | None = None
    folders: tuple[Folder, ...] = ()
    """Folders below which files may be named as ``server:///path``."""
    quota: Quota = Quota()
    console_socket: File = CONSOLE_SOCKET
    """Where the service has the programs of consoles started, under another account than its own."""
    consoles_as_service: bool = False
    """Let them run under its own account after all: whoever comes from one to a shell reads the site's secrets."""
    record_consoles: bool = False
    """Keep what consoles show, for `kaconsole3 --replay`."""
