"""``kadeploy-bootserver``: the boot servers, TFTP and HTTP, of a site that has none of its own."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from kadeploy.boot import server
from kadeploy.cli import shell
from kadeploy.cli.site import unattended
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, FileError, KadeployError, OptionError

NAME = "kadeploy-bootserver"
TFTP_PORT, HTTP_PORT = 69, 80
_LAST_PORT = 65535

app = shell.Tool(
    "Serve what nodes boot, by TFTP and HTTP, for a site that has no boot server of its own.",
    examples={
        "kadeploy-bootserver": "Serve the folders that site.yml names; systemd does it: kadeploy-bootserver.service.",
        "kadeploy-bootserver --address 10.0.0.1": "On one address of this machine alone.",
    },
    about="It reads boot.tftp_root, boot.http_root and boot.http_url of site.yml once, and serves regular files below "
    "these folders, read-only, until SIGTERM. Each request is a line on standard output. Ports below 1024 need "
    "CAP_NET_BIND_SERVICE, and nothing else that it does needs root.",
)


@app.command()
def kadeploy_bootserver(
    *,
    address: Annotated[
        str, typer.Option("--address", metavar="IPv4", help="Listen on this address alone (default: on all).")
    ] = "",
    tftp_root: Annotated[
        Path | None,
        typer.Option(
            "--tftp-root", metavar="DIR", help="Folder of loaders and profiles.", readable=False, show_default=False
        ),
    ] = None,
    http_root: Annotated[
        Path | None,
        typer.Option(
            "--http-root", metavar="DIR", help="Folder of kernels and initrds.", readable=False, show_default=False
        ),
    ] = None,
    tftp_port: Annotated[
        int, typer.Option("--tftp-port", metavar="PORT", help="UDP port of TFTP.", min=1, max=_LAST_PORT)
    ] = TFTP_PORT,
    http_port: Annotated[
        int | None,
        typer.Option(
            "--http-port",
            metavar="PORT",
            help="TCP port of HTTP (default: that of boot.http_url, else 80).",
            min=1,
            max=_LAST_PORT,
            show_default=False,
        ),
    ] = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
) -> None:
    """Serve until SIGTERM."""
    unattended.end_tidily()
    where = _checked(address)
    site = None if tftp_root and http_root else load_site()
    if site and not http_root and not http_port:
        http_port = port_of(site)
    tftp = _readable("--tftp-root", tftp_root or Path(site.boot.tftp_root if site else ""))
    http = _readable("--http-root", http_root or Path(site.boot.http_root if site else ""))
    _serve(tftp, http, where, tftp_port, http_port or HTTP_PORT)


def port_of(site: Site) -> int:
    """The port at which nodes expect the HTTP server of *site*.

    Raises:
        ConfigError: boot.http_url is none that this server answers.
    """
    url = urlsplit(site.boot.http_url)
    if url.scheme != "http" or url.path.strip("/"):
        raise ConfigError(
            f"boot.http_url is {site.boot.http_url}, and this server answers http://ADDRESS[:PORT]/ alone: "
            "correct it in site.yml, or leave HTTP to the server that it names."
        )
    return url.port or HTTP_PORT


def _checked(address: str) -> str:
    """The address to listen on."""
    try:
        return str(ipaddress.IPv4Address(address)) if address else "0.0.0.0"  # noqa: S104 - nodes come from anywhere
    except ValueError as error:
        raise OptionError(
            f"--address {address}: expected an IPv4 address of this machine, such as 10.0.0.1."
        ) from error


def _readable(option: str, folder: Path) -> Path:
    """A folder whose files this account can serve."""
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder: make it (kadeploy-site init does), or name another with {option}.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise FileError(f"{folder} is closed to this account: chmod 755 {folder}")
    return folder


def _serve(tftp_root: Path, http_root: Path, address: str, tftp_port: int, http_port: int) -> None:
    print(f"serving {tftp_root} by TFTP (port {tftp_port}) and {http_root} by HTTP (port {http_port})", flush=True)
    try:
        server.serve(tftp_root, http_root, address, tftp_port, http_port)
    except PermissionError as error:
        raise KadeployError(
            "Ports below 1024 are root's: start kadeploy-bootserver.service, or name others with --tftp-port and "
            "--http-port."
        ) from error
    except OSError as error:
        raise KadeployError(
            f"{address}, UDP port {tftp_port} or TCP port {http_port}: {error.strerror or error}. Is another boot "
            "server running (ss -lnup; ss -lntp), and is the address this machine's?"
        ) from error


def main() -> int:
    """Entry point; exit status 0 done, 1 refused, 130 interrupted."""
    return shell.run(app, NAME)


if __name__ == "__main__":
    sys.exit(main())
