"""What machines fetch before a kernel."""

from __future__ import annotations

import re
from pathlib import Path

from kadeploy.lab import loader

TEMPLATE = Path(__file__).parents[3] / "templates" / "pxe" / "pxelinux.j2"


def test_every_module_that_a_boot_profile_names_is_in_the_tftp_folder(tmp_path: Path) -> None:
    loader._pxelinux(tmp_path)
    named = set(re.findall(r"COM32 (\S+)", TEMPLATE.read_text(encoding="utf-8")))
    assert {"chain.c32", "mboot.c32"} <= named
    assert named <= {path.name for path in tmp_path.iterdir()}
