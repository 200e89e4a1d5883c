"""What all tests of the administrator's work share."""

from __future__ import annotations

from tests.unit.admin.sound_site import served, sound, sound_files, units

__all__ = ["served", "sound", "sound_files", "units"]
