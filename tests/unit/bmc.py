"""Real BMCs for tests: ``ipmi_sim`` on loopback, whose machine is a folder that tells what was done to it."""

from __future__ import annotations

import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
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
mc_enable 0x20
"""

_CHASSIS = """\
#!/bin/sh
# FOLDER get|set WHAT [VALUE]
folder=$1
shift
[ "$1" = get ] || echo "$*" >>"$folder/log"
case "$*" in
    "get power") echo "power:$(cat "$folder/power")" ;;
    "get boot") echo boot:none ;;
    "set power "*) [ -e "$folder/stuck" ] || echo "$3" >"$folder/power" ;;
    "set shutdown "*) [ -e "$folder/deaf" ] || echo 0 >"$folder/power" ;;
    "set reset "*) [ ! -e "$folder/refusing" ] ;;
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
        for fault in ("log", "stuck", "deaf", "refusing"):
            (self.folder / fault).unlink(missing_ok=True)
        (self.folder / "power").write_text(f"{int(on)}\n")

    def break_(self, fault: str) -> None:
        """``stuck``: does not follow its power lines; ``deaf``: its system ignores the button; ``refusing``: reset."""
        (self.folder / fault).touch()

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
    (folder / "commands").write_text(_COMMANDS)
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
