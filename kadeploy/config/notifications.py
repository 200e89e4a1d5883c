"""``notifications`` in ``site.yml``: by what ways the service may tell users that their operations have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from kadeploy.config.file import Struct
from kadeploy.config.rules import FolderUrl, Host, Line, Port, Wrong, expects, is_host, is_mail_address

MailAddress = Annotated[str, expects(is_mail_address, "an address of mail, such as kadeploy@site.example")]
MailDomain = Annotated[
    str,
    expects(
        is_host, "what stands behind the @ of addresses, such as site.example", meant=lambda text: text.lstrip("@")
    ),
]


class Mail(Struct, frozen=True, kw_only=True):
    """The server that takes mail to users."""

    server: Host
    """Address or name of the mail server."""
    port: Port = 25
    """Where it listens: usually 25, 587 or 465."""
    tls: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection is encrypted: after a first word (usual at ports 25 and 587), from its beginning (465)."""
    user: Line = ""
    """As whom to log in; empty: nobody is asked."""
    password_file: str = ""
    """File whose first line is that user's password (mode 0600)."""
    sender: MailAddress
    """From whom mail is."""
    domain: MailDomain
    """Mail to ada goes to ``ada@DOMAIN``."""
    own_addresses: bool = False
    """Let users name another address than that."""

    def contradictions(self) -> Iterable[Wrong]:
        """Half of what is needed to log in."""
        if bool(self.user) != bool(self.password_file):
            missing, other = ("password_file", "user") if self.user else ("user", "password_file")
            yield Wrong((other,), f"it needs a {missing} beside it; expected both or none.")


class Notifications(Struct, frozen=True, kw_only=True):
    """``notifications``."""

    mail: Mail | None = None
    webhooks: tuple[FolderUrl, ...] = ()
    """Beginnings of URLs that users may have the service call: ``https://hooks.example.org/``; others are refused."""
    page: FolderUrl = ""
    """Where users reach the service's page, for links: ``https://kadeploy.example.org:25300/``."""
