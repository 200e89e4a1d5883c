"""``python -m bench NAME [--quick] [--json FILE]``: measure one thing; without a name, all names."""

from __future__ import annotations

import importlib
import sys

BENCHES = ("commands", "inventory", "broadcast", "deploy", "service", "boot", "page", "history")
"""Modules of this package; each has `main(arguments) -> exit status` and tells its options at ``--help``."""


def main(arguments: list[str]) -> int:
    """Run the measurement that is named first; 2 when there is none of that name."""
    if not arguments or arguments[0] not in BENCHES:
        print(f"usage: python -m bench {'|'.join(BENCHES)} [--quick] [--json FILE]", file=sys.stderr)
        return 2
    module = importlib.import_module(f"bench.{arguments[0]}")
    status: int = module.main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
