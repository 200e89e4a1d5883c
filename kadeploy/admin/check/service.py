"""The service: its units, its socket, and who answers there."""

from __future__ import annotations

import http.client
import shlex
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kadeploy import __version__
from kadeploy.admin.check import unit_files
from kadeploy.admin.check.asked import ask
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look

UNIT = Look("service", "units")
ANSWERS = Look("service", "answers")
VERSION = Look("service", "version")
CONSOLES = Look("service", "consoles")

SYSTEMD = Path("/run/systemd/system")
"""There where systemd runs (sd_booted(3))."""
_UNITS = ("kadeploy3d.socket", unit_files.SERVICE)
_CONSOLES = "kadeploy3d-consoles.socket"
_PURGE = "kadeploy-purge.timer"
_CHOSEN = (unit_files.BOOT_SERVER, _PURGE, "kadeploy-backup.timer")
"""Units that a site may have enabled: it may have a boot server, or nightly work, of its own."""
_LIMIT = 10.0


class _About(msgspec.Struct):
    """What the service says of itself, as far as it is of interest here."""

    version: str
    site: str
    user: str


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with the service."""
    installed = _is_installed(unit_files.SERVICE)
    if installed and SYSTEMD.is_dir():
        yield from _units(subject)
    if not subject.socket.exists():
        yield from _absent(subject, installed)
        return
    yield from _answers(subject)
    yield from _consoles(subject)


def _units(subject: Subject) -> Iterator[Finding]:
    names = [*_UNITS, *([_CONSOLES] if subject.configuration.has_consoles else [])]
    for name in (*names, *filter(_is_installed, _CHOSEN)):
        ended = ask("systemctl", "show", "-p", "LoadState,UnitFileState,ActiveState", name)
        if ended is None or ended.rc != 0:
            yield UNIT.warn(
                f"{name}: systemctl does not tell: {ended.reason if ended else 'it is missing'}", "run this as root"
            )
            return
        state = dict(line.partition("=")[::2] for line in ended.stdout.splitlines())
        if name not in _CHOSEN or state.get("UnitFileState") != "disabled":
            yield unit_found(name, state)
        elif name == _PURGE:
            yield UNIT.warn(
                f"{name} is not enabled: what is old and of no use stays",
                f"systemctl enable --now {name}, or a job of your own that runs kadeploy-site purge",
            )


def _is_installed(unit: str) -> bool:
    return unit_files.find(unit) is not None


def unit_found(name: str, state: dict[str, str]) -> Finding:
    """What is found of a unit of which systemd says *state*."""
    if state.get("LoadState") == "not-found":
        return UNIT.fail(f"{name} is not installed", "see docs/install.md, then systemctl daemon-reload")
    if state.get("LoadState") not in ("loaded", None):
        return UNIT.fail(f"{name}: systemd says {state['LoadState']}", f"systemctl status {name}")
    if state.get("ActiveState") != "active":
        return UNIT.fail(
            f"{name} is {state.get('ActiveState', 'unknown')}", f"systemctl start {name}; journalctl -u {name} says why"
        )
    if state.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "linked"):
        return UNIT.warn(f"{name} runs, and will not after a reboot of this machine", f"systemctl enable {name}")
    return UNIT.ok(f"{name} is enabled and runs")


def _absent(subject: Subject, installed: bool) -> Iterator[Finding]:
    """Nobody has opened the socket: an error only where somebody should have."""
    owner = subject.owner
    if installed or (owner and owner.uid != 0):
        whose = f"the state belongs to {owner.name}" if owner and owner.uid != 0 else "its units are installed"
        yield ANSWERS.fail(
            f"there is no socket {subject.socket}, and {whose}: no tool can work",
            "systemctl enable --now kadeploy3d.socket",
        )
    else:
        yield ANSWERS.ok("there is no service: root carries out operations itself, and other accounts cannot")


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_LIMIT)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_LIMIT)
        self.sock.connect(str(self._path))


def _answers(subject: Subject) -> Iterator[Finding]:
    path = subject.socket
    if not stat.S_ISSOCK(path.stat().st_mode):
        yield ANSWERS.fail(f"{path} is no socket", f"rm {shlex.quote(str(path))}; systemctl restart kadeploy3d.socket")
        return
    connection = _Unix(path)
    try:
        connection.request("GET", "/v1/")
        answer = connection.getresponse()
        content = answer.read(1 << 16)
        about = msgspec.json.decode(content, type=_About) if answer.status == http.client.OK else None
    except TimeoutError:
        yield ANSWERS.fail(
            f"the service does not answer at {path} within {_LIMIT:g} s",
            "journalctl -u kadeploy3d; systemctl restart kadeploy3d",
        )
        return
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        yield ANSWERS.fail(f"the service does not answer at {path}: {error}", "systemctl restart kadeploy3d")
        return
    finally:
        connection.close()
    if about is None:
        yield ANSWERS.fail(f"the service at {path} answers {answer.status} {answer.reason}", "journalctl -u kadeploy3d")
        return
    if about.site != subject.site.name:
        yield ANSWERS.fail(
            f"the service at {path} serves site {about.site}, and this configuration is of {subject.site.name}",
            "see which configuration it was started with (KADEPLOY_CONFIG_DIR in its unit)",
        )
    else:
        yield ANSWERS.ok(f"the service answers at {path}: you are {about.user}")
    if about.version != __version__:
        yield VERSION.warn(
            f"the service runs Kadeploy {about.version}, and {__version__} is installed", "systemctl restart kadeploy3d"
        )


def _consoles(subject: Subject) -> Iterator[Finding]:
    service = subject.site.service
    if not subject.configuration.has_consoles:
        return
    if service.consoles_as_service:
        yield CONSOLES.warn(
            "service.consoles_as_service: whoever comes from a console to a shell reads the site's key and passwords",
            f"take the line out, and systemctl enable --now {_CONSOLES}",
        )
    elif not Path(service.console_socket).exists():
        yield CONSOLES.fail(
            f"there is no socket {service.console_socket}: nobody can open a console through the service",
            f"systemctl enable --now {_CONSOLES}",
        )
    else:
        yield CONSOLES.ok(f"programs of consoles are started at {service.console_socket}")
