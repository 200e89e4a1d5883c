"""What a cluster file says and its nodes do not is told, each time with what to do."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from kadeploy.admin import contradictions
from kadeploy.admin.findings import Finding
from kadeploy.config.cluster import NodeRange
from kadeploy.config.partition import Partition
from tests.unit.admin.sound_site import SoundSite
from tests.unit.admin.test_hardware import machine

NODES = {f"gdx-{number}.site": machine(number) for number in (1, 2)}


def found(site: SoundSite, ranges: dict[str, str] | None = None, **cluster: Any) -> list[Finding]:
    configuration = load(site)
    part = {"name": "gdx-[1-2].site", "bmc": "10.0.3.[1-2]", "mac": "52-54-00-00-00-[01-02]", **(ranges or {})}
    known = configuration.clusters["gdx"]
    loader = structs.replace(known.loader, firmware=cluster.pop("firmware", "uefi"))
    disk = structs.replace(
        known.disk,
        device=cluster.pop("device", "/dev/sda"),
        partitions=tuple(Partition(number=rank, size=size) for rank, size in enumerate(cluster.pop("sizes", ()), 1)),
    )
    changed = structs.replace(known, nodes=(NodeRange(**part),), loader=loader, disk=disk, **cluster)
    return list(contradictions.found(structs.replace(configuration, clusters={"gdx": changed}), NODES))


def load(site: SoundSite) -> Any:
    return site.subject().configuration


def test_where_file_and_nodes_agree_nothing_is_told(sound: SoundSite) -> None:
    assert found(sound, arch="amd64") == []
    assert found(sound, device="/dev/disk/by-path/pci-0000:00:1f.2-ata-1", sizes=("4GiB", "440GiB", "")) == []


@pytest.mark.parametrize(
    ("cluster", "ranges", "level", "text", "advice"),
    [
        (
            {"firmware": "bios"},
            {},
            "warn",
            r"gdx-\[1-2\].site: it booted by uefi, and .* is bios",
            "loader.firmware: uefi",
        ),
        ({"device": "/dev/nvme0n1"}, {}, "fail", "no /dev/nvme0n1.*gdx-1.site: /dev/sda 447 GiB MZ7KM", "disk.device"),
        (
            {"sizes": ("512MiB", "1TiB", "")},
            {},
            "fail",
            r"gdx-\[1-2\].site: disk.partitions need 1024.5 GiB, more than there are .*/dev/sda 447 GiB MZ7KM",
            "make partitions smaller",
        ),
        ({"arch": "aarch64"}, {}, "warn", "its architecture is x86_64, and arch is aarch64", "set arch"),
        ({}, {"mac": "52-54-00-00-01-[01-02]"}, "warn", "by another of its cards", "take the new mac"),
        ({}, {"mac": "52-54-00-00-09-[01-02]"}, "warn", "may be another machine", "take the new mac"),
        (
            {},
            {"bmc": "10.0.3.[2-3]"},
            "warn",
            "would switch another machine .*10.0.3.1, and not 10.0.3.2",
            "correct bmc",
        ),
        ({}, {"bmc": "10.0.3.[2-3]:6230"}, "warn", "would switch another machine", "correct bmc"),
    ],
)
def test_each_contradiction_is_one_line_for_all_nodes(
    sound: SoundSite, cluster: dict[str, Any], ranges: dict[str, str], level: str, text: str, advice: str
) -> None:
    (finding,) = found(sound, ranges, **cluster)
    assert finding.level == level
    assert __import__("re").search(text, finding.text)
    assert advice in finding.advice
