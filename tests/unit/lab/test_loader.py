"""What machines fetch before a kernel."""

from __future__ import annotations

import re
from pathlib import Path

from kadeploy.lab import loader

ROOT = Path(__file__).parents[3]
TEMPLATE = ROOT / "templates" / "pxe" / "pxelinux.j2"


def test_every_module_that_a_boot_profile_names_is_in_the_tftp_folder(tmp_path: Path) -> None:
    loader._pxelinux(tmp_path)
    named = set(re.findall(r"COM32 (\S+)", TEMPLATE.read_text(encoding="utf-8")))
    assert {"chain.c32", "mboot.c32"} <= named
    assert named <= {path.name for path in tmp_path.iterdir()}


def test_the_documentation_gives_administrators_the_grub_of_the_lab() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f'--modules="{" ".join(loader.IN_GRUB)}"' in page
