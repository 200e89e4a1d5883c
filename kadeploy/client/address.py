"""Where a service is: a unix socket of this machine or HTTPS, what one comes in with, and what goes wrong."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

REACH = 10.0
"""Seconds that another machine has to take a connection, and to shake hands."""
PATIENCE = 60.0
"""Seconds that an answer may take to begin, or to go on."""
_EXCERPT = 200
"""Characters shown of what somebody says who is no service."""


@dataclass(frozen=True)
class Address:
    """A service, and who asks it."""

    told: str
    """As messages call it."""
    connection: Callable[[], http.client.HTTPConnection]
    """A new connection, which is made when it is first used."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """They say who asks."""
    host: str = "localhost"
    """For the header ``Host``."""
    is_remote: bool = False


def of_socket(path: str, headers: Mapping[str, str]) -> Address:
    """The service that listens at the unix socket *path*, where the kernel says who asks."""
    return Address(path, lambda: _Local(path), headers)


def of_machine(
    host: str, port: int, tls: Callable[[], ssl.SSLContext], headers: Mapping[str, str], name: str = ""
) -> Address:
    """The service at *port* of another machine, verified by *tls*, which is asked once; *name* is the user's for it."""
    contexts: list[ssl.SSLContext] = []

    def connection() -> http.client.HTTPConnection:
        if not contexts:
            contexts.append(tls())
        return _Remote(host, port, contexts[0])

    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    told = f"{name} (https://{where})" if name else f"https://{where}"
    return Address(told, connection, headers, where, is_remote=True)


class _Local(http.client.HTTPConnection):
    """By the unix socket *path*."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class _Remote(http.client.HTTPSConnection):
    """By TLS; no variable of the environment leads it through a proxy."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=REACH, context=context)

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(PATIENCE)


# --- what goes wrong ------------------------------------------------------------------------------------------------

_EXPIRED, _NOT_YET, _HOSTNAME, _ADDRESS = 10, 9, 62, 64
"""Results of a verification (``openssl/x509_vfy.h``)."""


def trouble(address: Address, error: BaseException) -> str:
    """A sentence about a connection that failed: what happened, and what to do."""
    return f"{address.told}: {_far(error) if address.is_remote else _near(error)}"


def _near(error: BaseException) -> str:
    if isinstance(error, PermissionError | FileNotFoundError | ConnectionRefusedError):
        return f"the service of this site does not answer ({why(error)}). Is kadeploy3d running?"
    return f"the service does not answer as it should ({why(error)})."


def _far(error: BaseException) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return _unverified(error)
        case ssl.SSLError() if not isinstance(error, ssl.SSLEOFError):
            return _no_tls(error)
        case TimeoutError():
            return "no answer in time. Is the machine on, and does its firewall let this one in?"
        case socket.gaierror():
            return f"this host is not known ({why(error)}). Check the url in client.yml."
        case ConnectionRefusedError():
            return "nobody listens there. Does kadeploy3d run, with service.https, and is it this port?"
    return f"the service does not answer as it should ({why(error)}). Is it kadeploy3d, by HTTPS?"


def is_for_good(error: BaseException) -> bool:
    """Whether the same would go wrong again at once."""
    return isinstance(error, ssl.SSLCertVerificationError)


def why(error: BaseException) -> str:
    """What an exception says on a line, without its name where there are words for it."""
    said = getattr(error, "strerror", None) or " ".join(str(error).split())[:_EXCERPT]
    return said or type(error).__name__


def _unverified(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "its certificate has expired. Check the clock of this machine, or tell an administrator to renew it."
    if error.verify_code == _NOT_YET:
        return "its certificate does not count yet. Check the clock of this machine."
    if error.verify_code in (_HOSTNAME, _ADDRESS):
        return "its certificate is for another name. Give the url the name that the certificate has."
    return (
        f"its certificate is not to be trusted ({error.verify_message}). Name the authority that signed it as ca in "
        "client.yml."
    )


def _no_tls(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if "ALERT" in reason and ("CERT" in reason or "CA" in reason):
        return f"it does not accept the client certificate ({reason.replace('_', ' ').lower()}). Ask for a new one."
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
        return "what answers there does not speak TLS. Check host and port of the url in client.yml."
    return f"TLS failed ({reason.replace('_', ' ').lower() or error}). Ask who runs the service."
