"""``kadeploy-site dhcp``: what a DHCP server has to answer the nodes of a site, in its own language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from kadeploy.admin.dhcp import servers, wanted
from kadeploy.admin.dhcp.servers import Server
from kadeploy.cli import shell, usage
from kadeploy.config.folder import load_configuration
from kadeploy.errors import FileError, MissingOptionError
from kadeploy.files import replace_file

Clusters = Annotated[
    list[str] | None,
    typer.Option("--cluster", metavar="NAME", help="Cluster; repeatable (default: all)."),
]


def dhcp(
    *,
    server: Annotated[
        Server | None,
        typer.Option("--server", metavar="SERVER", help="dnsmasq, isc (dhcpd) or kea."),
    ] = None,
    proxy: Annotated[
        bool,
        typer.Option("--proxy", help="Boot files alone, beside a DHCP server that stays as it is."),
    ] = False,
    cluster: Clusters = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Write them there, whole or not at all.", rich_help_panel=usage.OUTPUT
        ),
    ] = None,
    form: shell.Format = "text",
) -> int:
    """Print the lines that a DHCP server needs for the nodes."""
    if server is None:
        raise MissingOptionError(f"Which DHCP server? --server {', '.join(servers.SERVERS)}.")
    configuration = load_configuration()
    found = wanted.of(configuration, cluster or ())
    text = servers.text(server, found, proxy=proxy)
    if output:
        _write(output, text)
    if form != "text":
        shell.emit({"server": server, "proxy": proxy, "text": text, "wanted": msgspec.to_builtins(found)}, form)
    elif not output:
        print(text, end="")
    else:
        count = sum(len(group.hosts) for group in found.groups)
        print(f"{output}: {count} {'node' if count == 1 else 'nodes'}.")
    if trouble := wanted.left_out(found):
        shell.warn(trouble)
    return 0


def _write(output: Path, text: str) -> None:
    if output.exists() and not output.is_file():
        raise FileError(
            f"{output} is no regular file: name another, or leave --output out and redirect what is printed."
        )
    try:
        replace_file(output, text.encode(), 0o644)
    except OSError as error:
        raise FileError(
            f"{output}: {error.strerror}. Name a file in a folder that is there and that you can write to."
        ) from error
