"""BitTorrent broadcasts with real clients on this machine."""

import asyncio
import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kadeploy.broadcast import bittorrent, chain
from kadeploy.workflow import Outcome, Verdict

SERVER = "127.0.0.1"


async def run_local(member: chain.Member, program: bytes) -> Outcome:
    """A node's script on this machine."""
    script = f"export NODE={member.name}\n".encode() + program
    done = await asyncio.to_thread(subprocess.run, ["bash", "-s"], input=script, capture_output=True, check=False)
    verdict = Verdict.KO if done.returncode else Verdict.OK
    return Outcome(verdict, rc=done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode())


def run(tmp_path: Path, sink: str, count: int = 2, size: int = 3_000_000, **changes) -> dict[str, chain.Reception]:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(size))
    broadcast = chain.describe(image, sink, environment={"OUT": str(tmp_path)}, **changes)
    members = [chain.Member(f"node-{i}", SERVER) for i in range(1, count + 1)]
    return asyncio.run(bittorrent.send(broadcast, members, run_local, SERVER, stall=20))


def test_every_client_gets_the_same_bytes_and_leaves_nothing_behind(tmp_path):
    """The file that was downloaded goes through the sink and is removed."""
    before = set(Path("/tmp").glob("kadeploy-bittorrent*"))
    outcomes = run(tmp_path, 'cat > "$OUT/$NODE"')
    assert {o.verdict for o in outcomes.values()} == {Verdict.OK}, outcomes
    image = (tmp_path / "image").read_bytes()
    assert (tmp_path / "node-1").read_bytes() == image
    assert (tmp_path / "node-2").read_bytes() == image
    assert set(Path("/tmp").glob("kadeploy-bittorrent*")) <= before


def test_a_failing_sink_is_the_failure_of_its_node_alone(tmp_path):
    """The other node has the image all the same."""
    outcomes = run(tmp_path, 'cat > "$OUT/$NODE"; [ $NODE = node-2 ] || { echo full >&2; exit 4; }')
    assert outcomes["node-2"].verdict is Verdict.OK
    assert "full" in outcomes["node-1"].message
    assert "status 4" in outcomes["node-1"].message


def test_a_wrong_digest_is_noticed(tmp_path):
    """A torrent made of another image than the one recorded is not unpacked."""
    image = tmp_path / "image"
    image.write_bytes(b"a" * 100_000)
    broadcast = chain.describe(image, f"touch {tmp_path}/unpacked")
    image.write_bytes(b"b" * 100_000)
    members = [chain.Member("node-1", SERVER)]
    outcomes = asyncio.run(bittorrent.send(broadcast, members, run_local, SERVER))
    assert f"{broadcast.sha256} expected" in outcomes["node-1"].message
    assert not (tmp_path / "unpacked").exists()


LIES = {
    "bytes": ("received 1 " + "0" * 64, "it tells of 1 bytes, the image has 1000"),
    "digest": ("received 1000 " + "0" * 64, "wrong sha256: 0{64} received, [0-9a-f]{64} expected"),
    "nothing": ("", "it tells of 0 bytes"),
    "nonsense": ("received " + "9" * 5000 + " x\nreceived\n", "it tells of 0 bytes"),
}


@pytest.mark.parametrize(("said", "reason"), LIES.values(), ids=LIES)
def test_a_node_that_does_not_tell_what_it_got_is_ko(tmp_path, said, reason):
    """A status of 0 alone proves nothing, and its script does not name the digest that it has to tell."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 1000)
    broadcast = chain.describe(image, "cat")

    async def lie(_: chain.Member, program: bytes) -> Outcome:
        assert broadcast.sha256.encode() not in program
        return Outcome(Verdict.OK, stdout=said)

    outcomes = asyncio.run(bittorrent.send(broadcast, [chain.Member("node-1", SERVER)], lie, SERVER))
    assert outcomes["node-1"].verdict is Verdict.KO
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(outcomes["node-1"].message)


def test_values_reach_the_sink_as_they_are(tmp_path):
    """A value is data, whatever quotes and at-signs it holds."""
    value = "a'b\"$(id)`@SINK@\n#"
    image = tmp_path / "image"
    image.write_bytes(b"x")
    broadcast = chain.describe(image, f'printf %s "$VALUE" > {tmp_path}/value', environment={"VALUE": value})
    members = [chain.Member("node-1", SERVER)]
    outcomes = asyncio.run(bittorrent.send(broadcast, members, run_local, SERVER))
    assert outcomes["node-1"].verdict is Verdict.OK, outcomes
    assert (tmp_path / "value").read_text() == value


def test_a_node_that_cannot_be_reached_is_ko(tmp_path):
    """An ssh session that does not open is that node's failure."""
    image = tmp_path / "image"
    image.write_bytes(b"x")

    async def unreachable(member: chain.Member, program: bytes) -> Outcome:
        raise ConnectionRefusedError("connection refused")

    sending = bittorrent.send(chain.describe(image, "cat"), [chain.Member("node-1", SERVER)], unreachable, SERVER)
    assert asyncio.run(sending)["node-1"] == chain.Reception(
        Verdict.KO, "its download cannot be started: connection refused"
    )


@pytest.mark.parametrize(("path", "status"), [("/announce?port=1&left=0", 404), ("{}?port=x&left=0", 400), ("{}", 400)])
def test_the_tracker_answers_nobody_who_does_not_know_its_path(path, status):
    """Neither a guessed path nor a malformed announcement gets the list of peers."""
    tracker = bittorrent.Tracker(SERVER, 1)
    with tracker:
        import threading

        threading.Thread(target=tracker.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        base = tracker.url.removesuffix(tracker.path)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(base + path.format(tracker.path))
        tracker.shutdown()
    assert refused.value.code == status


def test_the_tracker_names_the_others():
    """Peers come packed, IPv4 and IPv6 apart, without the one who asks and without those who left."""
    with bittorrent.Tracker(SERVER, 258) as tracker:
        tracker.announce("192.0.2.1", {"port": ["1"], "left": ["5"]})
        tracker.announce("2001:db8::1", {"port": ["2"], "left": ["5"]})
        tracker.announce("192.0.2.9", {"port": ["9"], "left": ["5"]})
        tracker.announce("192.0.2.9", {"port": ["9"], "left": ["5"], "event": ["stopped"]})
        answer = tracker.announce("192.0.2.1", {"port": ["1"], "left": ["0"]})
    six = bytes.fromhex("20010db8000000000000000000000001") + b"\0\2"
    assert answer == b"d8:intervali10e5:peers6:\x7f\0\0\1\1\2" + b"6:peers618:" + six + b"e"
