"""Mail to a user, by the server that the site names."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from pathlib import Path

from kadeploy.config import secret_files
from kadeploy.config.notifications import Mail
from kadeploy.config.rules import is_mail_address
from kadeploy.errors import NotToldError, OptionError
from kadeploy.printable import printable

PATIENCE = 20.0
"""Seconds that the server may take for one answer."""


def address_of(mail: Mail | None, user: str, own: str = "") -> str:
    """Where mail to *user* goes: to the address *own* where the site lets users name one.

    Raises:
        OptionError: there is no mail here, or no address for the user.
    """
    if mail is None:
        raise OptionError("This site sends no mail: there is no notifications.mail in site.yml.")
    if own and not mail.own_addresses:
        raise OptionError(f"Mail goes to your address at {mail.domain} here: leave the address out.")
    found = own or f"{user}@{mail.domain}"
    if not is_mail_address(found):
        raise OptionError(f"{printable(found)} is no address of mail: name one such as ada@{mail.domain}.")
    return found


def send(mail: Mail, folder: Path, to: str, message: str, subject: str, lines: Sequence[str]) -> None:
    """Send a mail to the address *to*, as the *message* with that id; *folder* is the configuration's.

    Raises:
        ConfigError: the password cannot be read.
        NotToldError: the server did not take it.
    """
    composed = _composed(mail, to, message, subject, lines)
    try:
        with _session(mail, folder) as session:
            session.send_message(composed, from_addr=mail.sender, to_addrs=[to])
    except (OSError, smtplib.SMTPException, UnicodeError) as error:
        raise NotToldError(f"{mail.server} does not take the mail ({_why(error)}).") from error


def _composed(mail: Mail, to: str, message: str, subject: str, lines: Sequence[str]) -> EmailMessage:
    composed = EmailMessage(policy=SMTP)
    composed["From"] = mail.sender
    composed["To"] = to
    composed["Subject"] = _one_line(subject)
    composed["Date"] = formatdate(localtime=True)
    composed["Message-ID"] = f"<{re.sub('[^A-Za-z0-9-]', '', message)}.kadeploy@{mail.domain}>"
    composed["Auto-Submitted"] = "auto-generated"  # nobody on holiday answers it (RFC 3834)
    composed.set_content("".join(f"{_one_line(line)}\n" for line in lines), cte="quoted-printable")
    return composed


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


@contextmanager
def _session(mail: Mail, folder: Path) -> Iterator[smtplib.SMTP]:
    context = ssl.create_default_context()
    if mail.tls == "tls":
        session: smtplib.SMTP = smtplib.SMTP_SSL(mail.server, mail.port, timeout=PATIENCE, context=context)
    else:
        session = smtplib.SMTP(mail.server, mail.port, timeout=PATIENCE)
    with session:
        if mail.tls == "starttls":
            session.starttls(context=context)
        if mail.user:
            path = secret_files.place(folder / mail.password_file)
            session.login(mail.user, secret_files.password(path, "notifications.mail.password_file"))
        yield session


def _why(error: Exception) -> str:
    """What it says in a line, as short as a list has room for it."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        [(code, text)] = error.recipients.values()
        return _answer(code, text)
    if isinstance(error, smtplib.SMTPResponseException):
        return _answer(error.smtp_code, error.smtp_error)
    return _shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _answer(code: int, text: bytes | str) -> str:
    return _shown(f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}")


def _shown(text: str) -> str:
    return _one_line(text)[:200]
