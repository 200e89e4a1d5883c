"""Real BMCs for tests: ``ipmi_sim`` on loopback, whose machine is a folder that tells what was done to it."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

USER = "kadeploy"
PASSWORD = "s3cret-words"
ADDRESS = "127.9.8.1"

_LAN = """\
name "bmc"
set_working_mc 0x20
startlan 1
  addr {address} {port}
  priv_limit admin
  allowed_auths_callback md5
  allowed_auths_user md5
  allowed_auths_operator md5
  allowed_auths_admin md5
  guid {guid}
endlan
chassis_control "{chassis} {folder}"
user 2 true "{user}" "{password}" admin 10 md5
"""

_COMMANDS = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_add_fru_data 0x20 0 {size} data {fru}
mc_enable 0x20
"""
PRODUCT = {"Manufacturer": "Acme", "Product name": "Roadrunner 9", "Serial Number": "SN-0042"}
"""What the BMCs tell of their machine."""


def _fru() -> bytes:
    """An inventory with a product area (Platform Management FRU Information Storage Definition, 8 and 12)."""
    fields = (PRODUCT["Manufacturer"], PRODUCT["Product name"], "part", "1", PRODUCT["Serial Number"], "tag", "file")
    area = bytes((1, 0, 25)) + b"".join(bytes((0xC0 | len(each),)) + each.encode() for each in fields) + b"\xc1"
    area += bytes(-(len(area) + 1) % 8)
    area = bytes((area[0], (len(area) + 1) // 8)) + area[2:]
    head = bytes((1, 0, 0, 0, 1, 0, 0))
    return head + _checksum(head) + area + _checksum(area)


_CHASSIS = """\
#!/bin/sh
# FOLDER get|set WHAT [VALUE]
folder=$1
shift
[ "$1" = get ] || echo "$*" >>"$folder/log"
case "$*" in
    "get power") echo "power:$(cat "$folder/claims" 2>/dev/null || cat "$folder/power")" ;;
    "get boot") echo boot:none ;;
    "set power "*) [ -e "$folder/stuck" ] || echo "$3" >"$folder/power" ;;
    "set shutdown "*) [ -e "$folder/deaf" ] || echo 0 >"$folder/power" ;;
    "set reset "*) [ ! -e "$folder/refusing" ] ;;
    "set boot "*) [ ! -e "$folder/stubborn" ] ;;
    *) exit 1 ;;
esac
"""


@dataclass(frozen=True)
class Bmc:
    """A BMC and its machine."""

    port: int
    folder: Path

    @property
    def address(self) -> str:
        """As node.bmc says it."""
        return f"{ADDRESS}:{self.port}"

    def turn(self, on: bool) -> None:
        """Put the machine into a state and forget what was done to it."""
        for fault in ("log", "stuck", "deaf", "refusing", "stubborn", "claims"):
            (self.folder / fault).unlink(missing_ok=True)
        (self.folder / "power").write_text(f"{int(on)}\n")

    def break_(self, fault: str) -> None:
        """``stuck``: does not follow its power lines; ``deaf``: its system ignores the button; ``refusing``: reset;
        ``stubborn``: boots as it always does."""
        (self.folder / fault).touch()

    def claim(self, on: bool) -> None:
        """Let the BMC say so, whatever its machine does."""
        (self.folder / "claims").write_text(f"{int(on)}\n")

    @property
    def on(self) -> bool:
        """Whether the machine runs."""
        return (self.folder / "power").read_text().strip() == "1"

    @property
    def done(self) -> list[str]:
        """What was done to the machine, in order."""
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_bound(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return True
    return False


def _start(folder: Path) -> tuple[Bmc, subprocess.Popen[bytes]]:
    bmc = Bmc(free_udp_port(), folder)
    bmc.turn(on=True)
    chassis = folder / "chassis"
    chassis.write_text(_CHASSIS)
    chassis.chmod(0o755)
    lan = folder / "lan.conf"
    lan.write_text(
        _LAN.format(
            address=ADDRESS,
            port=bmc.port,
            guid=uuid.uuid4().hex,
            chassis=chassis,
            folder=folder,
            user=USER,
            password=PASSWORD,
        )
    )
    fru = _fru()
    (folder / "commands").write_text(_COMMANDS.format(size=len(fru), fru=" ".join(f"{each:#04x}" for each in fru)))
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            ["ipmi_sim", "-n", "-c", lan, "-f", folder / "commands", "-s", folder],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + 20
    while not _is_bound(bmc.port):
        assert process.poll() is None, (folder / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return bmc, process


@pytest.fixture(scope="session")
def _bmc_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bmc]]:
    started = [_start(tmp_path_factory.mktemp("bmc")) for _ in range(3)]
    yield [bmc for bmc, _ in started]
    for _, process in started:
        process.kill()
        process.wait()


@pytest.fixture
def bmcs(_bmc_processes: list[Bmc]) -> list[Bmc]:
    """Three BMCs whose machines are on."""
    for bmc in _bmc_processes:
        bmc.turn(on=True)
    return _bmc_processes


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Address of a BMC that never answers: the port is bound, and nobody reads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((ADDRESS, 0))
        yield f"{ADDRESS}:{bound.getsockname()[1]}"


# --- BMCs that answer, and let nobody in ------------------------------------------------------------

_RMCP = bytes((0x06, 0x00, 0xFF, 0x07))
_OPEN_SESSION = 0x10


@pytest.fixture
def refusing_bmc() -> Callable[[int | None], AbstractContextManager[str]]:
    """Makes a BMC that lets nobody in."""
    return _refusing


@contextmanager
def _refusing(status: int | None) -> Iterator[str]:
    """Address of a BMC that offers IPMI 2.0 and refuses every session with a status of RMCP+ (IPMI 2.0, table 13-15).

    With None it leaves those who log in without an answer.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((ADDRESS, 0))
        thread = threading.Thread(target=_refuse, args=(bound, status), daemon=True)
        thread.start()
        yield f"{ADDRESS}:{bound.getsockname()[1]}"
        bound.sendto(b"", bound.getsockname())
        thread.join()


def _refuse(bound: socket.socket, status: int | None) -> None:
    while True:
        packet, sender = bound.recvfrom(4096)
        if not packet:
            return
        if packet[4] == 0:
            bound.sendto(_authentication_capabilities(packet), sender)
        elif packet[5] == _OPEN_SESSION and status is not None:
            tag, session = packet[16], packet[20:24]
            payload = bytes((tag, status, 0, 0)) + session
            bound.sendto(_RMCP + bytes((6, 0x11)) + bytes(8) + struct.pack("<H", len(payload)) + payload, sender)


def _authentication_capabilities(packet: bytes) -> bytes:
    """The answer to the first question of all: channel 1, MD5, IPMI 2.0."""
    sequence, command = packet[14 + 4], packet[14 + 5]
    head = bytes((0x81, 0x07 << 2))
    body = bytes((0x20, sequence, command, 0, 1, 0x84, 0x14, 0x02, 0, 0, 0, 0))
    message = head + _checksum(head) + body + _checksum(body)
    return _RMCP + bytes(9) + bytes((len(message),)) + message


def _checksum(data: bytes) -> bytes:
    return bytes((-sum(data) & 0xFF,))


# --- Redfish ----------------------------------------------------------------------------------------


@dataclass
class Redfish:
    """A Redfish service whose machine is what it was told to be, and which may say something else, or refuse."""

    url: str = ""
    on: bool = True
    claims: str = ""
    """Power state that it tells in any case."""
    refuses: tuple[int, str] | None = None
    """HTTP status and words with which orders are refused."""
    pause: float = 0
    """Seconds between the header of an answer and its body."""
    done: list[str] = field(default_factory=list)
    boot: dict[str, object] = field(default_factory=dict)
    """What it was told of its boot order."""

    def answer(self, path: str) -> dict[str, object]:
        """The resource at *path*."""
        systems = "/redfish/v1/Systems"
        reset = {"target": f"{systems}/1/Actions/ComputerSystem.Reset"}
        found: dict[str, dict[str, object]] = {
            "/redfish/v1": {"Id": "Root", "Name": "r", "RedfishVersion": "1.6.0", "Systems": {"@odata.id": systems}},
            systems: {"Name": "s", "Members": [{"@odata.id": f"{systems}/1"}]},
            f"{systems}/1": {
                "Id": "1",
                "Name": "1",
                "Manufacturer": PRODUCT["Manufacturer"],
                "Model": PRODUCT["Product name"],
                "SerialNumber": PRODUCT["Serial Number"],
                "EthernetInterfaces": {"@odata.id": f"{systems}/1/EthernetInterfaces"},
                "PowerState": self.claims or ("On" if self.on else "Off"),
                "Boot": {
                    "BootSourceOverrideTarget": "None",
                    "BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "Pxe", "Hdd"],
                    "BootSourceOverrideEnabled": "Disabled",
                },
                "Actions": {"#ComputerSystem.Reset": reset},
            },
            f"{systems}/1/EthernetInterfaces": {
                "Name": "e",
                "Members": [{"@odata.id": f"{systems}/1/EthernetInterfaces/1"}],
            },
            f"{systems}/1/EthernetInterfaces/1": {
                "Id": "1",
                "Name": "1",
                "MACAddress": "52:54:00:AA:BB:01",
                "Status": {"Health": "OK", "State": "Enabled"},
            },
        }
        return found[path.rstrip("/")]

    def order(self, kind: str) -> None:
        """Do what a reset of this type does."""
        self.done.append(kind)
        if kind in ("On", "ForceOff"):
            self.on = kind == "On"


@pytest.fixture
def redfish_liar() -> Iterator[Redfish]:
    """A `Redfish` that answers at its URL, without asking for a password."""
    machine = Redfish()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, machine.answer(self.path))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "ResetType" not in asked:  # it has no sessions: who asks sends the password with each request
                self._send(404, {})
            elif machine.refuses:
                status, words = machine.refuses
                self._send(status, {"error": {"code": "Base.1.0.GeneralError", "message": words}})
            else:
                machine.order(asked["ResetType"])
                self._send(200, {})

        def do_PATCH(self) -> None:
            machine.boot.update(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["Boot"])
            self._send(200, {})

        def _send(self, status: int, answer: dict[str, object]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            time.sleep(machine.pause)
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer((ADDRESS, 0), Handler) as server:
        machine.url = f"http://{ADDRESS}:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield machine
        server.shutdown()
