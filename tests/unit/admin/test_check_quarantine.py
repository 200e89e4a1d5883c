"""The topic quarantine: which nodes are put aside, and which ones should be."""

from __future__ import annotations

import time

from kadeploy.admin.check import quarantine
from kadeploy.state import database
from kadeploy.state import quarantine as stays
from kadeploy.state.tables import Log
from tests.unit.admin.sound_site import SoundSite


def test_before_the_first_use_of_the_database_none_is_and_none_is_made(sound: SoundSite) -> None:
    assert sound.levels(quarantine.check) == {"nodes": "ok"}
    assert not (sound.folder / "state/kadeploy.db").exists()


def test_nodes_in_quarantine_are_told_with_how_they_get_out(sound: SoundSite) -> None:
    name = sound.subject().nodes[0]
    stays.put(sound.subject().site, [name], "ada", "its disk")
    database.disconnect()
    found = sound.one(quarantine.check, "nodes", "warn")
    assert found.text.startswith(f"{name}: in quarantine since ")
    assert found.text.endswith("by ada: its disk")
    assert found.advice.endswith(f"kadeploy-site quarantine release {name}")


def test_nodes_that_fail_too_often_are_told_where_the_site_has_a_rule(sound: SoundSite) -> None:
    bad, good = sound.subject().nodes[:2]
    shared = {"wid": "D-1", "operation": "deploy", "user": "alice", "start": int(time.time()) - 60}
    database.connect(sound.subject().site)
    database.insert(Log, [shared | {"hostname": bad, "success": False}, shared | {"hostname": good, "success": True}])
    database.disconnect()
    assert sound.levels(quarantine.check) == {"nodes": "ok"}
    sound.change("site", quarantine={"operations": 1})
    found = sound.one(quarantine.check, "proposed", "warn")
    assert found.text == f"{bad}: 1 of its last 1 deployments failed"
    assert f"kadeploy-site quarantine add {bad}" in found.advice
    assert sound.levels(quarantine.check, good) == {"nodes": "ok", "proposed": "ok"}


def test_a_database_of_another_version_is_left_to_its_topic(sound: SoundSite) -> None:
    database.connect(sound.subject().site).execute_sql("UPDATE schema_version SET version = 1")
    database.disconnect()
    assert "schema version 1" in sound.one(quarantine.check, "nodes", "warn").text
