"""Whole broadcasts in which one relay lies, talks nonsense, or breaks the rules: nobody else notices.

The liar is the real relay with a line of its program changed. It stands in the middle of the chain, so that it could
harm those in front of it and those behind it.
"""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from kadeploy.broadcast import chain
from kadeploy.workflow import Verdict
from tests.unit.broadcast.test_chain import LAST, RING, TAKE_ALL, Scene

LIAR = "node-2"
HONEST = [1, 3, 4]
SAID = 'tell("listening", pid=os.getpid())'
ACCEPT = "self.outbox = ACCEPTED + OFFSET.pack(self.ring.head)"
VERDICT = 'tell("verdict", **facts)'

REFUTED = {
    "it got one byte": ('"bytes": self.ring.head', '"bytes": 1', r"tells of 1 bytes, the image has \d+"),
    "it got other bytes": (
        "self.digest.sha256.hexdigest(),\n",
        '"00",\n',
        "wrong sha256: 00 received, [0-9a-f]{64} exp",
    ),
    "it got more than there is": ('"bytes": self.ring.head', '"bytes": 10**400', "said what no relay says"),
    "an unknown verdict": ('"verdict": self.verdict', '"verdict": "splendid"', "said what no relay says .*splendid"),
    "a verdict and nothing else": (VERDICT, 'tell("verdict")', "said what no relay says .*missing required field"),
    "a verdict of another type": (VERDICT, 'tell("verdict", **{**facts, "bytes": []})', "said what no relay says"),
    "progress": (SAID, f'tell("progress"); {SAID}', "said what no relay says"),
    "a report": (SAID, f'tell("report", line="node-3 00 x"); {SAID}', "said what no relay says"),
    "an end": (SAID, f'tell("end", given=1); {SAID}', "said what no relay says"),
    "deep nesting": (SAID, f"""print('{{"event":' + '[' * 50000); {SAID}""", "said what no relay says"),
}
"""What it says of itself: line, its change, and the reason."""

HARMLESS = {
    "others were skipped": (SAID, f'[tell("skipped", node=f"node-{{n}}", reason="x") for n in range(9)]; {SAID}'),
    "others have failed": (
        VERDICT,
        VERDICT
        + r"""
        for n in (1, 3, 4, 9):
            text = json_text({"event": "verdict", **facts, "verdict": "ko", "message": "a lie"})
            self.reports.append(f"node-{n} {proof(self.signature, text.encode()).hex()} {text}")""",
    ),
    "an endless stay": ('"seconds": round(', '"seconds": 1e300 + round('),
    "it knows nobody behind it": (SAID, f'[tell("beyond") for _ in range(99)]; {SAID}'),
    "it listens, again and again": (
        SAID,
        f"threading.Thread(target=lambda: [{SAID} for _ in range(9999)]).start(); {SAID}",
    ),
    "all kinds of JSON": (SAID, f"""print('[]\\n7\\nnull\\n{{}}\\n"x"\\n{{"a": 1e999}}\\n\\xff\\0'); {SAID}"""),
}
"""What it says of others, or what says nothing: it is OK itself."""

RULES = {
    "garbage for acknowledgements": ("self.outbox = ACK + ", "self.outbox = b'GET / HTTP/1.0' + "),
    "acknowledgements of what it did not get": ("ACK_BODY.pack(*vector)", "ACK_BODY.pack(2**63, 2**63, 2**63)"),
    "bytes beyond the end": (ACCEPT, "self.outbox = ACCEPTED + OFFSET.pack(2**64 - 1)"),
    "a report without end": ("DONE + LENGTH.pack(len(body))", "DONE + LENGTH.pack(2**32 - 1)"),
    "connections that break": (ACCEPT, f"{ACCEPT}; self.flush(); self.drop_predecessor()"),
    "silence and the end": (SAID, f"{SAID}; time.sleep(0.1); sys.exit(0)"),
    "acknowledgements for those behind it": ("ACK_BODY.pack(*vector)", "ACK_BODY.pack(vector[0], 2**63, 2**63)"),
    "somebody nearer to the head": (ACCEPT, "self.outbox = REPLACED; self.flush(); sys.exit(0)"),
    "nothing for those behind it": ("self.take_range(min(end, ", "self.take_range(min(0, "),
    "reports that are no text": ('body = "\\n".join(self.reports).encode()', "body = bytes(range(256)) * 100"),
}
"""What it does on the wire: its line and its change."""

Lie = tuple[str, str]


runs = itertools.count()
slow_sink = f"{TAKE_ALL}; sleep 3"
SHORTEST = 3.0
"""Seconds, less than anybody is waited for: a neighbour that says nothing, 3.5, and all the others 20 and more."""


def play(folder, lies: list[Lie], sink: str = TAKE_ALL, **settings) -> tuple[dict[str, chain.Reception], float, Scene]:
    """A broadcast to four nodes, its outcomes and its seconds."""
    scene = Scene(folder, 4, 2 * RING)
    honest = scene.start

    async def start(member: chain.Member, program: bytes) -> chain.LocalRelay:
        for before, after in lies if member.name == LIAR else []:
            assert program.count(before.encode()) == 1, before
            program = program.replace(before.encode(), after.encode())
        return await honest(member, program)

    scene.start = start
    begun = time.monotonic()
    outcomes = scene.send(scene.describe(sink, **settings))
    return outcomes, time.monotonic() - begun, scene


def play_beside(folder, lies, **settings) -> tuple[dict[str, chain.Reception], float, float, Scene]:
    """Also the seconds of one in which nobody lies, at the same time: the machine may be busy with other things."""
    for name in ("usual", "lies"):
        (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        usual = pool.submit(play, folder / "usual", [], slow_sink)
        outcomes, seconds, scene = play(folder / "lies", lies, slow_sink, **settings)
        return outcomes, seconds, usual.result()[1], scene


def check_the_others(outcomes: dict[str, chain.Reception], scene: Scene) -> None:
    for number in HONEST:
        outcome = outcomes[f"node-{number}"]
        assert (outcome.verdict, outcome.message) == (Verdict.OK, "")
    assert scene.identical(*HONEST)


@pytest.mark.parametrize(("before", "after", "reason"), REFUTED.values(), ids=REFUTED)
def test_a_relay_that_lies_about_itself_is_ko_alone(tmp_path, before, after, reason):
    """Bytes and digest are compared with the image; words that mean nothing are that node's failure."""
    outcomes, _, scene = play(tmp_path, [(before, after)])
    check_the_others(outcomes, scene)
    assert outcomes[LIAR].verdict is Verdict.KO
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(outcomes[LIAR].message)


@pytest.mark.parametrize("lie", HARMLESS.values(), ids=HARMLESS)
def test_what_a_relay_says_about_others_is_not_believed(tmp_path, lie):
    outcomes, seconds, scene = play(tmp_path, [lie])
    check_the_others(outcomes, scene)
    assert outcomes[LIAR].verdict is Verdict.OK
    assert outcomes[LIAR].seconds <= seconds


def test_a_relay_that_says_again_and_again_that_it_knows_nobody_alive_is_heard_once(tmp_path, monkeypatch):
    """The head feeds those who come next; they get all the same what they would have got."""
    monkeypatch.setattr(chain, "KNOWN", 1)
    outcomes, _, scene = play(tmp_path, [HARMLESS["it knows nobody behind it"]])
    check_the_others(outcomes, scene)
    assert scene.heads == 2


@pytest.mark.parametrize("lie", RULES.values(), ids=RULES)
def test_a_relay_that_breaks_the_rules_is_passed_by(tmp_path, lie):
    outcomes, _, scene = play(tmp_path, [lie])
    check_the_others(outcomes, scene)


def test_a_verdict_without_a_transfer_is_refuted(tmp_path):
    """The only node knows the image already, asks for none of it, and says that it has got all."""
    scene = Scene(tmp_path, 1, 1000)
    broadcast = scene.describe()

    async def start(member: chain.Member, program: bytes) -> chain.LocalRelay:
        facts = {"verdict": "ok", "message": "", "bytes": 1000, "sha256": broadcast.sha256, "seconds": 1.0}
        lies = [json.dumps({"event": "listening"}), json.dumps({"event": "verdict", **facts})]
        program = f"import time\nfor line in {lies!r}: print(line, flush=True)\ntime.sleep(60)"
        return await chain.start_local(member, program.encode())

    scene.start = start
    outcome = scene.send(broadcast)["node-1"]
    assert outcome.verdict is Verdict.KO
    assert "skipped by server: Connection refused" in outcome.message
    assert "tells of the whole image, but 0 bytes were sent" in outcome.message


lines = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
    st.builds(
        lambda event, facts: json.dumps({"event": event, **facts}).encode(),
        st.sampled_from(["listening", "skipped", "progress", "verdict", "report", "end", "other"]) | st.integers(),
        st.dictionaries(
            st.sampled_from(["node", "by", "reason", "verdict", "message", "bytes", "sha256", "seconds", "line"]),
            st.sampled_from(["node-1", "node-3", "ko", "server"]) | st.none() | st.integers() | st.floats() | st.text(),
        ),
    ),
)
"""What a node may print: bytes, characters, and words that look like those of a relay."""
pauses = st.sampled_from([0.0, 0.01, 0.1])


@hypothesis.settings(
    max_examples=8,
    deadline=None,
    phases=[hypothesis.Phase.generate],  # a broadcast takes seconds: too long to look for the shortest lie
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(lines, pauses), max_size=20), st.booleans())
def test_whatever_a_relay_says_the_others_end_as_well_and_as_soon(tmp_path, said, relays_too):
    """Beside its work, or in place of it: the others are OK, and nobody's patience with anybody had to end for it."""
    speech = f"""
import threading, sys, time
def speak():
    for text, pause in {said!r}:
        sys.stdout.buffer.write(text + b"\\n")
        sys.stdout.flush()
        time.sleep(pause)
{"threading.Thread(target=speak).start()" if relays_too else "speak(); sys.exit(0)"}
"""
    lies = [("# -- the relay --", f"{speech}\n# -- the relay --")]
    outcomes, seconds, usual, scene = play_beside(tmp_path / str(next(runs)), lies)
    check_the_others(outcomes, scene)
    assert seconds < 1.5 * usual + SHORTEST


SEND = "return sock.send(self.read(offset, self.ready))"
DISTORTIONS = {
    "a byte is another one": "if 0 <= place < size: data[place] ^= 64",
    "all is noise": "data[max(0, place) :] = os.urandom(max(0, size - max(0, place)))",
    "halves change places": "data = data[size // 2 :] + data[: size // 2] if 0 <= place < size else data",
    "a byte too much": "data[place:place] = b'x' if 0 <= place < size else b''",
    "a byte is missing": "del data[place : place + (0 <= place < size)]",
    "it stops": "data = data[: max(0, place)]",
    "it trickles": "data = data[: max(1, place)]; time.sleep(0.02 if place < 2 else 0)",
}
"""What a relay does to the bytes that it passes on, at a place of the image that chance has chosen."""
FLOOR = 6.0
"""Seconds that it may take until others notice that they are held up."""


def distorted(how: str, place: int) -> list[Lie]:
    """A relay that gives its successor something else than what it has got itself."""
    speech = f"""
def distort(sock, data, offset):
    place, size = {place} - offset, len(data)
    {DISTORTIONS[how]}
    if not data:
        raise BlockingIOError
    return min(size, sock.send(data))

# -- the relay --"""
    return [
        ("# -- the relay --", speech),
        (SEND, "return distort(sock, bytearray(self.read(offset, self.ready)), offset)"),
    ]


@pytest.mark.parametrize("how", DISTORTIONS)
@hypothesis.settings(
    max_examples=3,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 2 * RING - 1))
def test_what_a_relay_does_to_the_bytes_that_it_passes_on_harms_nobody(tmp_path, how, place):
    """Those behind it have the image all the same, and as soon. It is OK itself: nobody else can tell what it has."""
    folder = tmp_path / str(next(runs))
    outcomes, seconds, usual, scene = play_beside(folder, distorted(how, place), silence=1.0, patience=1.0)
    check_the_others(outcomes, scene)
    assert (outcomes[LIAR].verdict, outcomes[LIAR].message) == (Verdict.OK, "")
    if how != "it trickles":  # to the end, perhaps, when that was near
        assert outcomes["node-3"].note.startswith(f"fed by the server itself: {LIAR} ")
    assert seconds < 1.5 * usual + FLOOR


SLOWLY = (
    "for _ in range(CHUNK // BITE):\n            wanted = min(BITE, ",
    "for _ in (time.sleep(0.05), ):\n            time.monotonic() - self.started < 20 or sys.exit(9)"
    "\n            wanted = min(1000, ",
)
FAITHFUL = ("if who > self.predecessor_index:", "if self.predecessor:")
TAKERS = {
    "it does as it is told": [SLOWLY],
    "it stays where it is": [SLOWLY, FAITHFUL],
}


def require_ahead(outcomes, seconds):
    """The others are not bound to the pace of the one that takes so many, however slow this machine is."""
    for number in HONEST:
        assert outcomes[f"node-{number}"].seconds < 0.75 * seconds


@pytest.mark.parametrize("lies", TAKERS.values(), ids=TAKERS)
def test_a_relay_that_takes_the_image_slowly_holds_up_neither_those_behind_it_nor_those_in_front(tmp_path, lies):
    """Whether it cannot or does not want to. It ends after twenty seconds, without the image."""
    outcomes, _, scene = play(tmp_path, lies, silence=1.0, patience=1.0)
    check_the_others(outcomes, scene)
    require_ahead(outcomes, 20)


def test_a_slow_disk_holds_up_neither_those_behind_it_nor_those_in_front(tmp_path):
    """Its node gets the image from the head itself, at its own pace, and is OK in the end."""
    sips = f'while [ $(head -c 65536 | tee -a "{LAST}" | wc -c) -gt 0 ]; do sleep 0.15; done'
    slow = f"if [ $NODE = {LIAR} ]; then {sips}; else {TAKE_ALL}; fi"
    outcomes, _, scene = play(tmp_path, [], slow)
    check_the_others(outcomes, scene)
    assert outcomes[LIAR].verdict is Verdict.OK
    assert outcomes[LIAR].seconds > 15
    require_ahead(outcomes, outcomes[LIAR].seconds)
    assert outcomes[LIAR].note.startswith("fed by the server itself: node-1 says it took ")


def test_nobody_is_moved_where_all_disks_are_as_slow(tmp_path):
    """Each takes two or three megabytes a second, and so does the head's own way: there is nothing better to offer."""
    sips = f'while [ $(head -c 262144 | tee -a "{LAST}" | wc -c) -gt 0 ]; do sleep 0.1; done'
    outcomes, _, scene = play(tmp_path, [], sips)
    assert {(outcome.verdict, outcome.note) for outcome in outcomes.values()} == {(Verdict.OK, "")}
    assert scene.identical(1, 2, 3, 4)


def test_a_relay_that_holds_everything_up_is_left_behind(tmp_path):
    """It takes the bytes, gives signs of life and passes nothing on: those behind it are fed by the head itself."""
    hold = ("if branch.sock and branch.sent < self.ring.head:", "if False:")
    never = ("select.POLLOUT if branch.sent < self.store.head else 0", "0")
    outcomes, _, scene = play(tmp_path, [hold, never], stall_limit=1.0)
    check_the_others(outcomes, scene)
