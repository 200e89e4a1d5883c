"""Signatures for Secure Boot are seen in the files of Debian, and missed where there are none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.boot.signature import is_signed
from tests.unit.boot.programs import program, signed_program

SCRIPT = Path(__file__).parents[3] / "roles/check_kernel_files/files/check_kernel_files.sh"
SIGNED = {
    Path("/usr/lib/shim/shimx64.efi.signed"): True,
    Path("/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"): True,
    Path("/usr/lib/grub/x86_64-efi/monolithic/grubnetx64.efi"): False,
    Path("/usr/lib/ipxe/snponly.efi"): False,
}
"""Files of packages that the loaders come from."""


def test_the_loaders_of_debian_are_told_apart() -> None:
    there = {path: signed for path, signed in SIGNED.items() if path.is_file()}
    assert there, "scripts/prepare dev installs them"
    assert {path: is_signed(path) for path in there} == there


def test_a_signature_that_is_cut_off_is_none(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(signed_program(b"kernel"))
    assert is_signed(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_signed(path)
    path.write_bytes(program(b"kernel"))
    assert not is_signed(path)


@given(content=st.binary(max_size=600), cut=st.integers(0, 600))
def test_whatever_is_in_a_file_it_is_answered(
    content: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    for each in (content, signed_program()[:cut] + content):
        path.write_bytes(each)
        assert is_signed(path) in {True, False}


@pytest.mark.skipif(os.geteuid() != 0, reason="the step changes its root")
@pytest.mark.parametrize(
    ("kernel", "is_asked", "status"),
    [(signed_program(), True, 0), (program(), True, 1), (b"bzImage", True, 1), (program(), False, 0)],
    ids=["signed", "unsigned", "no program", "unsigned, without Secure Boot"],
)
def test_the_step_on_the_node_judges_alike(kernel: bytes, is_asked: bool, status: int, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(kernel)
    variables = {
        "PATH": os.environ["PATH"],
        "KADEPLOY_ENV_EXTRACTION_DIR": str(tmp_path),
        "KADEPLOY_ENV_KERNEL": "/vmlinuz",
        "KADEPLOY_ENV_INITRD": "",
        "KADEPLOY_ENV_HYPERVISOR": "",
        "KADEPLOY_SECURE_BOOT": "yes" if is_asked else "",
    }
    done = subprocess.run(["sh", SCRIPT], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("/vmlinuz is not signed, and this node boots by Secure Boot" in done.stderr) is bool(status)
