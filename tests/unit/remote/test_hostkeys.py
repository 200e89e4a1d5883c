"""Known-hosts lines from what ssh-keyscan says."""

from __future__ import annotations

from kadeploy.remote import hostkeys


def test_keys_are_written_under_name_and_address_and_strangers_are_ignored() -> None:
    scanned = [
        "# 10.0.0.1:22 SSH-2.0-OpenSSH",
        "10.0.0.1 ssh-ed25519 AAAA",
        "10.0.0.1 ssh-rsa BBBB",
        "10.0.0.9 ssh-rsa CC",
    ]
    assert hostkeys.lines({"n-1": "10.0.0.1", "n-2": "10.0.0.2"}, scanned, 22) == [
        "n-1,10.0.0.1 ssh-ed25519 AAAA",
        "n-1,10.0.0.1 ssh-rsa BBBB",
    ]


def test_another_port_is_written_in_brackets() -> None:
    assert hostkeys.lines({"n-1": "10.0.0.1"}, ["[10.0.0.1]:2222 ssh-rsa A"], 2222) == [
        "[n-1]:2222,[10.0.0.1]:2222 ssh-rsa A"
    ]


def test_a_node_that_is_reached_by_its_name_is_written_once() -> None:
    assert hostkeys.lines({"n-1": "n-1"}, ["n-1 ssh-rsa A"], 22) == ["n-1 ssh-rsa A"]


def test_no_node_asks_nobody() -> None:
    assert hostkeys.collect({}, 22) == []
