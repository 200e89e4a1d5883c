"""Layouts as they are typed."""

from __future__ import annotations

import pytest

from kadeploy.admin import layout
from kadeploy.errors import OptionError


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_the_usual_layout_of_each_firmware_is_sound(firmware: str) -> None:
    found = layout.partitions(layout.USUAL[firmware], layout.TABLES[firmware], firmware)
    assert found[2] == {"number": 3, "size": "50GiB", "role": "deploy"}
    assert found[-1]["role"] == "tmp"
    assert "size" not in found[-1]


def test_an_msdos_table_goes_on_with_logical_partitions_where_there_are_more_than_four() -> None:
    text = "swap:1GiB,prod:2GiB,deploy:3GiB,tmp:4GiB,other"
    assert [part["number"] for part in layout.partitions(text, "msdos", "bios")] == [1, 2, 3, 5, 6]
    assert [part["number"] for part in layout.partitions(text, "gpt", "bios")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "firmware", "said"),
    [
        ("swap:4GB,deploy", "bios", "'4GB' is no size: expected 512MiB, 4GiB or 1TiB. Did you mean 4GiB?"),
        ("swap:4 gib,deploy", "bios", "Did you mean 4GiB?"),
        ("swpa:4GiB,deploy", "bios", "Did you mean swap?"),
        ("swap:4GiB,prod", "bios", "expected one deploy partition, found 0"),
        ("deploy:4GiB,deploy", "bios", "expected one deploy partition, found 2"),
        ("deploy,tmp", "bios", "deploy needs a size, deploy:4GiB"),
        ("deploy", "uefi", "add efi:512MiB"),
        ("", "bios", "is no role of a partition"),
        ("deploy:1GiB" + ",other:1GiB" * 60, "bios", "61 partitions; at most 60"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(text: str, firmware: str, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        layout.partitions(text, "msdos", firmware)
    assert said in str(refused.value)
