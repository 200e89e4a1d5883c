"""Faults for a share of the nodes, chosen by a seed: ``refuse-ssh=5%,hang=2``."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.lab.lab import FAULTS


def chosen(text: str, nodes: Sequence[str], seed: int) -> dict[str, str]:
    """Node → fault; the same nodes for the same text, nodes and seed, and one fault per node.

    A share is a percentage, rounded up to whole nodes, or a number of nodes.

    >>> chosen("hang=1,slow=50%", ["node-1", "node-2", "node-3", "node-4"], seed=1)
    {'node-2': 'hang', 'node-3': 'slow', 'node-1': 'slow'}

    Raises:
        OptionError: an unknown fault, a share that is none, or more faults than nodes.
    """
    wanted = [fault for word in text.split(",") if word.strip() for fault in _faults(word, len(nodes))]
    if len(wanted) > len(nodes):
        raise OptionError(f"--faults {text}: {len(wanted)} faults for {len(nodes)} nodes.")
    order = random.Random(seed).sample(list(nodes), len(wanted))  # noqa: S311 - not a secret
    return dict(zip(order, wanted, strict=True))


def _faults(word: str, nodes: int) -> list[str]:
    """The fault of ``fault=share``, once for each node that will have it."""
    fault, _, share = (part.strip() for part in word.partition("="))
    if fault not in FAULTS:
        raise OptionError(f"--faults {word}: expected one of {', '.join(FAULTS)}.{did_you_mean(fault, FAULTS)}")
    number = share.removesuffix("%")
    if not number.isdigit() or (share.endswith("%") and int(number) > 100):
        raise OptionError(f"--faults {word}: expected {fault}=5% or {fault}=3.")
    return [fault] * (-(-nodes * int(number) // 100) if share.endswith("%") else int(number))
