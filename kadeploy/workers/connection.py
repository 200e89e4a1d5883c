"""A worker's calls to the service of its controller."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kadeploy.client.address import Address
from kadeploy.client.http import Http
from kadeploy.errors import FileError
from kadeploy.files import MEGA
from kadeploy.workers import charge, parcel
from kadeploy.workers.charge import Answer, Charge, Welcome, Written
from kadeploy.workers.jobs import Job
from kadeploy.workers.lease import Report
from kadeploy.workers.presence import Presence
from kadeploy.workflow import Outcome


def present(http: Http, presence: Presence) -> Welcome:
    """Say that this worker is there."""
    return http.ask("POST", "/v1/workers", Welcome, body=presence)


class Controller:
    """The service, for the shard of one *job*; a thread has one of its own.

    Each method raises KadeployError where the service refuses or cannot be reached.
    """

    def __init__(self, address: Address, job: Job) -> None:
        self._http = Http(replace(address, headers={**address.headers, charge.KEY: job.key}))
        self._path = f"/v1/shards/{job.wid}/{job.folder}"

    def claim(self) -> Charge:
        """Take the shard."""
        return self._http.ask("POST", f"{self._path}/claim", Charge)

    def fetch(self, into: Path) -> None:
        """Have the request and the files that it names in *into*."""
        with self._http.opened(f"{self._path}/files") as response, self._http.telling():
            parcel.unpack(response, into)

    def image(self, sha256: str, size: int, into: Path) -> None:
        """Have an image of *size* bytes in the file *into*.

        Raises:
            FileError: another one came.
        """
        digest, left = hashlib.sha256(), size
        with self._http.opened(f"{self._path}/images/{sha256}") as response, into.open("xb") as file:
            while piece := self._piece(response):
                left -= len(piece)
                if left < 0:
                    break
                digest.update(piece)
                file.write(piece)
        if left or digest.hexdigest() != sha256:
            raise FileError("The image that came is not the one of the request.")

    def report(self, report: Report) -> Answer:
        """Tell what has happened; whether to go on."""
        return self._http.ask("POST", f"{self._path}/report", Answer, body=report)

    def profiles(self, boot: str, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        """Have boot profiles written: what became of each node."""
        wanted = charge.Profiles(boot=boot, nodes=nodes)
        return self._http.ask("POST", f"{self._path}/profiles", Written, body=wanted).outcomes

    def results(self, folder: Path) -> None:
        """Send back what a run has left in *folder*."""
        self._http.ask("PUT", f"{self._path}/results", type(None), pieces=parcel.results(folder))

    @contextmanager
    def slot(self, window: str) -> Iterator[Iterator[bytes]]:
        """Wait for a slot of *window*, and hold it: lines as they come, the one that says ``held`` among them."""
        with self._http.opened(f"{self._path}/slots/{window}") as response:
            yield _lines(response)

    def cut(self) -> None:
        """From any thread: end what is being asked."""
        self._http.cut()

    def close(self) -> None:
        """Nothing more will be asked."""
        self._http.close()

    def _piece(self, response: http.client.HTTPResponse) -> bytes:
        with self._http.telling():
            return response.read(MEGA)


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    rest = b""
    try:
        while piece := response.read1():
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
    except (OSError, http.client.HTTPException, ValueError):
        return  # cut, from either end
