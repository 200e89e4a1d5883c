"""The relay's parts that need no second member: what it prints, proves, splits and keeps."""

import hmac
import json
import os
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.broadcast import relay

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(values)
def test_what_is_printed_is_json(value):
    """Any JSON reader gets back what was said, whatever characters a sink complained with."""
    assert json.loads(relay.json_text(value)) == value


def test_half_a_character_is_printed_all_the_same():
    """A lone surrogate (a broken file name) does not stop a report."""
    assert json.loads(relay.json_text("a\ud800b")) == "a?b"


@given(st.binary(min_size=1, max_size=64), st.binary(), st.binary())
def test_proof_is_hmac_sha256(secret, one, two):
    """The few lines that replace the hmac module compute what it computes."""
    assert relay.proof(secret, one, two) == hmac.digest(secret, one + two, "sha256")


@given(st.integers(0, 50), st.integers(0, 300), st.integers(1, 10))
def test_split_gives_every_member_to_one_range(first, count, parts):
    """Contiguous, complete, without overlap, no more ranges than asked, sizes that differ by one at most."""
    ranges = list(relay.split(first, first + count, parts))
    assert [member for start, end in ranges for member in range(start, end)] == list(range(first, first + count))
    assert len(ranges) == min(parts, count)
    sizes = [end - start for start, end in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert not sizes or sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("mapped", [True, False], ids=["mmap", "python3-minimal"])
def test_ring_gives_back_the_last_bytes(mapped):
    """What is read or sent from an offset is what came in there, across the place where the ring wraps."""
    ring = relay.Ring(1000)
    if not mapped:
        ring.memory = None
    image = os.urandom(2600)
    giver, taker = socket.socketpair()
    out, into = socket.socketpair()
    giver.sendall(image)
    while ring.head < len(image):
        ring.keep = max(0, ring.head - 300)
        ring.receive(taker, min(ring.room(), len(image) - ring.head))
        ring.ready = ring.head
        offset = ring.oldest
        assert bytes(ring.read(offset, ring.head)) == image[offset : offset + ring.locate(offset, ring.head)[1]]
        sent = ring.send(out, offset)
        assert into.recv(5000) == image[offset : offset + sent]
    assert ring.oldest == 1600
    assert b"".join([bytes(ring.read(1600, 2600)), bytes(ring.read(2000, 2600))]) == image[1600:]
    assert bytes(ring.read(1700, 1750)) == image[1700:1750]


def welcome_in_thread(secret: bytes) -> tuple[tuple[str, int], list[object], threading.Thread]:
    listener = socket.create_server(("127.0.0.1", 0))
    results: list[object] = []

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            try:
                results.append(relay.welcome(sock, secret, b"k" * 32, 10))
            except OSError as error:
                results.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    return listener.getsockname(), results, thread


def test_members_with_the_same_secret_meet():
    """The command arrives as it was given."""
    address, results, thread = welcome_in_thread(b"s" * 32)
    command = relay.COMMAND.pack(relay.FEED, 1, 2, 3)
    relay.dial(address, b"s" * 32, command, 10).close()
    thread.join()
    assert results == [command]


def test_a_listener_without_the_secret_is_not_fed():
    """Somebody who took over a node's address gets no byte of the image."""
    address, _, thread = welcome_in_thread(b"x" * 32)
    with pytest.raises(PermissionError, match="does not know the secret"):
        relay.dial(address, b"s" * 32, relay.COMMAND.pack(relay.FEED, 0, 1, 2), 10)
    thread.join()


def test_a_dialler_without_the_secret_is_refused():
    """Playing back what a member said does not help: the proof covers the listener's own nonce."""
    address, results, thread = welcome_in_thread(b"s" * 32)
    command = relay.COMMAND.pack(relay.FEED, 0, 1, 2)
    with socket.create_connection(address) as sock:
        nonce = os.urandom(32)
        sock.sendall(relay.MAGIC + nonce)
        theirs = relay.receive_exactly(sock, 64, time.monotonic() + 10)[:32]
        sock.sendall(command + relay.proof(b"x" * 32, b"dialler", nonce, theirs, command))
        thread.join()
    assert isinstance(results[0], PermissionError)


def test_a_stranger_is_refused():
    """A port scanner or an HTTP client is not taken for a member."""
    address, results, thread = welcome_in_thread(b"s" * 32)
    with socket.create_connection(address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: node\r\nUser-Agent: somebody curious\r\n\r\n")
        thread.join()
    assert isinstance(results[0], PermissionError)
