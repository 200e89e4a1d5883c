"""What tests of the service share."""

from __future__ import annotations

from tests.unit.serving import service

__all__ = ["service"]
