"""What tests of operations share: a site on which root may do everything, and an environment recorded on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kadeploy.caller import Account
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.state import environments, rights
from tests.unit import build


@pytest.fixture
def root() -> Account:
    return Account("root", 0, 0, Path("/root"))


@pytest.fixture
def environment(site: Site, tmp_path: Path, root: Account) -> Environment:
    """A recorded one."""
    image = tmp_path / "image.tgz"
    image.write_bytes(build.packed("an image"))
    return environments.add(site, build.environment(image=Image(file=str(image), kind="tgz")), root)


@pytest.fixture
def configuration(site: Site, site_folder: Path) -> Configuration:
    rights.add(site, "root", ["*"], ["*"])
    return load_configuration(site_folder)
