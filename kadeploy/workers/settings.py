"""``worker.yml``: which clusters a worker serves, and whose."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

from kadeploy.caller import own
from kadeploy.client import servers
from kadeploy.client.address import Address
from kadeploy.client.servers import Server
from kadeploy.config.file import Struct, read_struct
from kadeploy.config.rules import File, Folder, Line, Name, Positive, Wrong
from kadeploy.errors import ConfigError

PATH = Path("/etc/kadeploy/worker.yml")


class Worker(Struct, frozen=True, kw_only=True):
    """``worker.yml``."""

    url: str
    """Of the controller's service: ``https://host:port``."""
    ca: File = ""
    """File of the authorities (PEM) that sign its certificate; empty: those of this machine."""
    token_file: File = ""
    """File of the token that this worker shows."""
    database_file: File
    """File whose first line is the URL of the queue's database, with user and password: ``postgresql://…``."""
    clusters: tuple[Name, ...]
    """Those whose nodes this machine reaches."""
    shards: Positive = 2
    """How many it carries out at a time: each needs a core and half a gigabyte."""
    name: Line = ""
    """How it is called; empty: the machine's name."""
    folder: Folder = "/var/lib/kadeploy-worker"
    """Where images and run folders are meanwhile."""
    secrets: Folder = "/run/kadeploy-worker"
    """Where secrets are meanwhile: a folder in memory."""
    server_address: Line = ""
    """Address of this machine for the nodes; empty: the one by which it reaches them."""

    def contradictions(self) -> Iterable[Wrong]:
        """No cluster, which the queue would take for all of them; one folder for what is on disk and what is not."""
        if not self.clusters:
            yield Wrong(("clusters",), "an empty list is given; expected a list of at least one cluster.")
        inner, outer = Path(self.secrets), Path(self.folder)
        if inner == outer or inner.is_relative_to(outer) or outer.is_relative_to(inner):
            yield Wrong(("secrets",), f"{inner} and folder ({outer}) are in each other; expected a folder of its own.")

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or socket.gethostname()


def read(path: Path) -> Worker:
    """The settings in *path*.

    Raises:
        ConfigError: they are wrong, or cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file: write it (man 5 kadeploy-worker.yml), or name --settings.")
    return read_struct(path, Worker)


def address_of(worker: Worker, path: Path) -> Address:
    """Where the controller's service is.

    Raises:
        KadeployError: see `kadeploy.client.servers.address_of`.
    """
    server = Server(url=worker.url, ca=worker.ca, token_file=worker.token_file)
    return servers.address_of(server, own(), path=path)
