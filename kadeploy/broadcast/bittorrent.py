"""Broadcast an image with BitTorrent: a libtorrent seed and a small tracker here, aria2c on the nodes.

    outcomes = await bittorrent.send(broadcast, members, run_on, server="192.0.2.1")

Unlike with the chain, every node stores the image once (in its /tmp), unpacks it, and deletes it.
Pieces are checked by aria2c (SHA-1, as BitTorrent has it). Each node tells the size and the SHA-256 of what it got, and
is OK when they are the image's. It does not know that SHA-256, but its digest, which tells it not to unpack another
image. Nodes go on seeding while they unpack.

The torrent travels over ssh and nowhere else, and neither its info-hash nor the tracker's path can be guessed: the
file's name and the path are random. Local discovery, DHT and peer exchange are off.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.server
import ipaddress
import re
import secrets
import shlex
import socket
import struct
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import libtorrent

from kadeploy.broadcast.chain import Broadcast, Member, Progress, Reception, refute, unfit
from kadeploy.workflow import Outcome, Verdict

RunOn = Callable[[Member, bytes], Awaitable[Outcome]]

ANNOUNCE_INTERVAL = 10  # seconds; clients that find too few peers ask again then

SCRIPT = """\
set -u
set -o pipefail
folder=$(mktemp -d /tmp/kadeploy-bittorrent.XXXXXX) || exit 1
cd "$folder" || exit 1
client=
trap '[ -n "$client" ] && kill "$client" 2>/dev/null; cd /; rm -rf "$folder"' EXIT
trap 'exit 143' TERM INT HUP
command -v aria2c >/dev/null || { echo "aria2c is missing: add aria2 to the deployment system" >&2; exit 127; }
base64 -d > image.torrent <<'END_OF_TORRENT'
@TORRENT@
END_OF_TORRENT
printf '#!/bin/sh\\ntouch "%s"\\n' "$folder/complete" > done.sh
chmod +x done.sh
aria2c --quiet --enable-dht=false --enable-dht6=false --enable-peer-exchange=false --bt-enable-lpd=false \\
    --file-allocation=none --seed-ratio=0 --seed-time=1440 --bt-stop-timeout=@STALL@ --bt-tracker-interval=@INTERVAL@ \\
    --on-bt-download-complete="$folder/done.sh" --log=client.log --log-level=warn image.torrent </dev/null >/dev/null &
client=$!
until [ -e complete ]; do
    if ! kill -0 "$client" 2>/dev/null; then
        wait "$client"
        echo "aria2c ended with status $? before the image was complete: $(tail -n 1 client.log)" >&2
        exit 1
    fi
    sleep 0.2
done
sha256=$(sha256sum @NAME@) || exit 1
sha256=${sha256%% *}
echo "received $(stat -c %s @NAME@) $sha256"
if [ "$(printf %s "$sha256" | sha256sum)" != "@CHECK@  -" ]; then
    echo "this is another image than the recorded one" >&2
    exit 1
fi
@EXPORTS@
/bin/bash -c @SINK@ < @NAME@ >/dev/null
status=$?
[ $status = 0 ] || { echo "the command that unpacks the image ended with status $status" >&2; exit 1; }
"""


class Tracker(http.server.ThreadingHTTPServer):
    """Who takes part in this one torrent (BEP 3 and BEP 23: compact answers), with the seed in every answer."""

    daemon_threads = True

    def __init__(self, address: str, seed_port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), _Announce)
        self.path = "/" + secrets.token_urlsafe(16)
        self.peers: dict[tuple[str, int], int] = {(address, seed_port): 0}  # what each still lacks, in bytes
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where clients announce themselves."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}{self.path}"

    def announce(self, host: str, query: dict[str, list[str]]) -> bytes:
        """Note one announcement; the bencoded answer."""
        peer = (host, int(query["port"][0]))
        with self.lock:
            if query.get("event") == ["stopped"]:
                self.peers.pop(peer, None)
            else:
                self.peers[peer] = int(query["left"][0])
            others = [other for other in self.peers if other != peer]
        packed = {4: b"", 6: b""}
        for address, port in others:
            ip = ipaddress.ip_address(address)
            packed[ip.version] += ip.packed + struct.pack("!H", port)
        return b"d8:intervali%de5:peers%d:%s6:peers6%d:%se" % (
            ANNOUNCE_INTERVAL,
            len(packed[4]),
            packed[4],
            len(packed[6]),
            packed[6],
        )


class _Announce(http.server.BaseHTTPRequestHandler):
    """One announcement."""

    timeout = 10

    def do_GET(self) -> None:
        tracker = self.server
        parts = urllib.parse.urlsplit(self.path)
        if not isinstance(tracker, Tracker) or not secrets.compare_digest(parts.path.encode(), tracker.path.encode()):
            self.send_error(404)
            return
        try:
            query = urllib.parse.parse_qs(parts.query, errors="replace")
            answer = tracker.announce(self.client_address[0], query)
        except (KeyError, ValueError):
            self.send_error(400)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Announcements are not logged."""


class Seed:
    """The image as a torrent, and the session that gives it away."""

    def __init__(self, image: Path | int, address: str, folder: Path) -> None:
        self.name = f"kadeploy-{secrets.token_hex(16)}"
        (folder / self.name).symlink_to(image.resolve() if isinstance(image, Path) else f"/proc/self/fd/{image}")
        host = f"[{address}]" if ":" in address else address
        self.session = libtorrent.session(
            {
                "listen_interfaces": f"{host}:0",
                "enable_dht": False,
                "enable_lsd": False,
                "enable_upnp": False,
                "enable_natpmp": False,
                "allow_multiple_connections_per_ip": True,
                "alert_mask": 0,
            }
        )
        self.folder = folder
        self.handle: libtorrent.torrent_handle | None = None

    @property
    def port(self) -> int:
        """Where the seed listens."""
        return int(self.session.listen_port())

    def publish(self, tracker_url: str) -> bytes:
        """Hash the image and offer it; the bytes of the torrent file. Takes as long as reading the image does."""
        entry = libtorrent.create_file_entry(self.name, (self.folder / self.name).stat().st_size)
        torrent = libtorrent.create_torrent([entry], 0, libtorrent.create_torrent.v1_only)
        torrent.add_tracker(tracker_url)
        torrent.set_priv(True)
        libtorrent.set_piece_hashes(torrent, str(self.folder))
        data: bytes = libtorrent.bencode(torrent.generate())
        parameters = libtorrent.add_torrent_params()
        parameters.ti = libtorrent.torrent_info(data)
        parameters.save_path = str(self.folder)
        parameters.trackers = []
        parameters.flags = libtorrent.torrent_flags.seed_mode | libtorrent.torrent_flags.upload_mode
        self.handle = self.session.add_torrent(parameters)
        return data

    def given(self) -> int:
        """Bytes of the image that left this machine."""
        return int(self.handle.status().total_payload_upload) if self.handle else 0


@contextlib.contextmanager
def _swarm(image: Path | int, address: str) -> Iterator[tuple[Seed, Tracker]]:
    """A seed and its tracker; both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kadeploy-bittorrent-") as folder:
        seed = Seed(image, address, Path(folder))
        tracker = Tracker(address, seed.port)
        thread = threading.Thread(target=tracker.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield seed, tracker
        finally:
            tracker.shutdown()
            tracker.server_close()
            thread.join()
            seed.session.pause()
            del seed.session


def script(broadcast: Broadcast, name: str, torrent: bytes, stall: int) -> bytes:
    """What a node runs: fetch, check, unpack, clean up."""
    exports = "\n".join(f"export {key}={shlex.quote(value)}" for key, value in broadcast.environment.items())
    values = {
        "TORRENT": base64.encodebytes(torrent).decode().strip(),
        "STALL": str(stall),
        "INTERVAL": str(ANNOUNCE_INTERVAL),
        "NAME": name,
        "CHECK": hashlib.sha256(broadcast.sha256.encode()).hexdigest(),
        "EXPORTS": exports,
        "SINK": shlex.quote("set -o pipefail\n" + broadcast.sink),
    }
    pieces = SCRIPT.split("@")
    return "".join(values.get(piece, piece) for piece in pieces).encode()


async def send(
    broadcast: Broadcast,
    members: Sequence[Member],
    run_on: RunOn,
    server: str,
    *,
    progress: Progress | None = None,
    stall: int = 60,
) -> dict[str, Reception]:
    """Send the image to all members; one reception per member's name.

    `server` is this machine's address as the nodes reach it. A node whose download stands still for `stall` seconds is
    KO. `progress` gets the bytes that left the seed, and the bytes of the nodes' copies on average.
    """
    if complaint := unfit(broadcast) or ("" if broadcast.size else "an empty image makes no torrent"):
        return {member.name: Reception(Verdict.KO, complaint) for member in members}
    image = broadcast.image if broadcast.descriptor is None else broadcast.descriptor
    with _swarm(image, server) as (seed, tracker):
        torrent = await asyncio.to_thread(seed.publish, tracker.url)
        program = script(broadcast, seed.name, torrent, stall)
        watching = asyncio.create_task(_watch(seed, tracker, broadcast.size, progress)) if progress else None
        try:
            receptions = await asyncio.gather(*(_receive(broadcast, member, run_on, program) for member in members))
        finally:
            if watching:
                watching.cancel()
        return dict(zip((member.name for member in members), receptions, strict=True))


async def _watch(seed: Seed, tracker: Tracker, size: int, progress: Progress) -> None:
    """Tell how far the swarm is, twice a second."""
    while True:
        with tracker.lock:
            lacking = list(tracker.peers.values())[1:]
        progress(seed.given(), size - sum(lacking) // len(lacking) if lacking else 0)
        await asyncio.sleep(0.5)


async def _receive(broadcast: Broadcast, member: Member, run_on: RunOn, program: bytes) -> Reception:
    """One node's script and what became of it."""
    started = time.monotonic()
    try:
        outcome = await run_on(member, program)
    except OSError as error:
        return Reception(Verdict.KO, f"its download cannot be started: {error}")
    seconds = round(time.monotonic() - started, 3)
    size, sha256 = _received(outcome.stdout)
    complaint = refute(broadcast, size, sha256)
    if outcome.verdict is not Verdict.OK:
        said = outcome.stderr.strip() or outcome.message or f"status {outcome.rc}"
        return Reception(Verdict.KO, (sha256 and complaint) or said, seconds=seconds)
    return Reception(Verdict.KO if complaint else Verdict.OK, complaint, size, sha256, seconds)


def _received(said: str) -> tuple[int, str]:
    """Size and SHA-256 of what a node got, from what its script printed; zero bytes if it does not say."""
    found = re.search(r"^received (\d{1,18}) ([0-9a-f]{64})\b", said, re.MULTILINE)
    return (int(found[1]), found[2]) if found else (0, "")
