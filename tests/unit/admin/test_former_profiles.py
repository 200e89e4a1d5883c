"""Boot profiles are put back as they were, but for those that somebody else has written meanwhile."""

from __future__ import annotations

from pathlib import Path

from kadeploy.admin.former_profiles import FormerProfiles
from kadeploy.config.cluster import Node
from tests.unit.admin.sound_site import SoundSite

NODES = [Node(name=f"gdx-{number}", address=f"10.0.0.{number}") for number in (1, 2, 3)]


def test_profiles_are_as_they_were_and_another_ones_stay(sound: SoundSite) -> None:
    site = sound.subject().site
    folder = Path(site.boot.tftp_root) / "pxelinux.cfg"
    folder.mkdir(exist_ok=True)
    files = [folder / f"0A00000{number}" for number in (1, 2, 3)]
    files[0].write_text("of a deployment\n")
    files[2].write_text("of a deployment\n")
    former = FormerProfiles.of(site, [*NODES, Node(name="no.such.name.invalid")])
    for path in files:
        path.write_text("of the deployment system\n")
    since = FormerProfiles.of(site, NODES)
    files[2].write_text("of another user\n")
    former.put_back(since)
    assert [path.read_text() if path.exists() else None for path in files] == [
        "of a deployment\n",
        None,
        "of another user\n",
    ]
