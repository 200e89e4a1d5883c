"""The table of what boots what: complete, the one of the documentation, and asked before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from kadeploy.boot import loaders
from kadeploy.config.cluster import Loader
from tests.unit import build

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


def loader(firmware: str, profiles: str, method: str = "chainload") -> Loader:
    return Loader(firmware=firmware, profiles=profiles, method=method)  # type: ignore[arg-type]


def test_every_firmware_and_loader_of_the_configuration_has_a_row() -> None:
    hints = get_type_hints(Loader)
    wanted = {(firmware, one) for firmware in get_args(hints["firmware"]) for one in get_args(hints["profiles"])}
    assert set(loaders.WAYS) == wanted


def test_the_documentation_shows_this_table() -> None:
    lines = DOCS.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| `loader.firmware` |"))
    shown = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        firmware, profiles, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        shown[firmware, profiles] = tuple(cells)
    assert shown == {key: _cells(way) for key, way in loaders.WAYS.items()}


def _cells(way: loaders.Way) -> tuple[str, ...]:
    disk = ", ".join(sorted(way.filesystems)) or "none"
    return (
        disk,
        "any" if "linux" in way.boots else "none",
        *("yes" if each in way.boots else "no" for each in ("xen", "disk")),
    )


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
def test_a_file_system_that_a_boot_sector_cannot_start_from_is_refused_with_what_works(filesystem: str) -> None:
    reason = loaders.why_not(loader("bios", "pxelinux"), build.environment(filesystem=filesystem))
    assert filesystem in reason
    assert "ext2, ext3, ext4" in reason
    assert "UEFI" in reason
    assert "pure_pxe" in reason


@pytest.mark.parametrize("filesystem", loaders.FILESYSTEMS)
@pytest.mark.parametrize(
    "able",
    [
        loader("uefi", "grub"),
        loader("uefi", "ipxe"),
        *(loader("bios", each, "pure_pxe") for each in ("pxelinux", "grub", "ipxe")),
    ],
)
def test_grub_under_uefi_and_kernels_from_the_network_boot_every_file_system(able: Loader, filesystem: str) -> None:
    assert loaders.why_not(able, build.environment(filesystem=filesystem)) == ""


def test_a_file_system_that_the_table_does_not_know_is_the_sites_affair() -> None:
    assert loaders.why_not(loader("bios", "pxelinux"), build.environment(filesystem="jfs")) == ""
