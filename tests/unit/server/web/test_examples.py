"""The examples in the docstrings of the page's modules are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from kadeploy.server import web

MODULES = [each.name for each in pkgutil.iter_modules(web.__path__, f"{web.__name__}.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
