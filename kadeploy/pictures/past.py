"""What is drawn: figures of the log, whether the database was asked or the service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from kadeploy.printable import printable
from kadeploy.state.history import Durations, Image, Rate
from kadeploy.state.load import Load

STEP_NAMES = ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")


class Past(msgspec.Struct, frozen=True):
    """What the log tells of a period."""

    rates: Sequence[Rate]
    durations: Sequence[Durations]
    load: Sequence[Load]


def named(durations: Sequence[Durations], most: int, letters: int) -> dict[Image, str]:
    """The *most* images that were deployed most often, and their names in so many *letters*.

    Those of the same name are told apart by their checksums.
    """
    counts: Counter[Image] = Counter()
    for item in durations:
        counts[item.image] += item.operations
    names = Counter(shortened(image.env, letters) for image in counts)
    found = {}
    for image, _ in counts.most_common(most):
        name = shortened(image.env, letters)
        found[image] = name if names[name] == 1 else f"{name or 'image'} ({printable(image.md5[:6])})"
    return found


def shortened(text: str, letters: int) -> str:
    """*text* on one line of at most so many *letters*, of which the last one says that there were more.

    >>> shortened("gdx-1.nancy.example.org", 12), shortened("gdx-1", 12)
    ('gdx-1.nancy…', 'gdx-1')
    """
    line = " ".join(printable(text).split())
    return line if len(line) <= letters else f"{line[: letters - 1]}…"
