"""What tests of all kinds share."""

from __future__ import annotations

from tests.accounts import installation
from tests.packaging.package import debian_package

__all__ = ["debian_package", "installation"]
