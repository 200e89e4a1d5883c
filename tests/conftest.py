"""What tests of all kinds share."""

from __future__ import annotations

from tests.accounts import installation

__all__ = ["installation"]
