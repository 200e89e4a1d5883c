"""A collection from Galaxy beside the package: only another version is told."""

from __future__ import annotations

import json
from pathlib import Path

from kadeploy import __version__
from kadeploy.runner.artifact import other_version


def plugin(collection: Path, version: str = "") -> Path:
    """A plugin of a collection, which is an artifact where it has a version."""
    path = collection / "plugins" / "inventory" / "kadeploy.py"
    path.parent.mkdir(parents=True)
    path.touch()
    if version:
        (collection / "MANIFEST.json").write_text(json.dumps({"collection_info": {"version": version}}))
    return path


def test_an_artifact_of_another_version_is_told_with_both_versions_and_its_place(tmp_path: Path) -> None:
    told = other_version(plugin(tmp_path, "0.0.9"))
    assert str(tmp_path) in told
    assert "pip install kadeploy==0.0.9" in told
    assert f"kadeploy.core:{__version__}" in told


def test_an_artifact_of_the_same_version_is_nothing_to_tell(tmp_path: Path) -> None:
    assert other_version(plugin(tmp_path, __version__)) == ""


def test_a_wheel_or_a_checkout_has_one_version_alone(tmp_path: Path) -> None:
    assert other_version(plugin(tmp_path)) == ""
