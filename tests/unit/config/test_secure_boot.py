"""What Debian has signed, and what that can fetch: the rest is refused when a cluster file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kadeploy.config.cluster import Cluster
from kadeploy.config.file import as_struct
from kadeploy.errors import ConfigError

TEXT = """\
nodes: [{{name: gdx-1}}]
arch: "{arch}"
disk: {{device: /dev/sda, partitions: [{{number: 1, size: 4GiB, role: deploy}}]}}
loader: {{firmware: uefi, profiles: grub, secure_boot: true, kernel: "{kernel}"}}
"""


def read(kernel: str = "deploy-vmlinuz", arch: str = "x86_64") -> Cluster:
    return as_struct(Path("gdx.yml"), TEXT.format(kernel=kernel, arch=arch), Cluster)


@pytest.mark.parametrize("kernel", ["deploy-vmlinuz", "boot/vmlinuz", "tftp://10.0.0.9/vmlinuz"])
def test_what_comes_by_tftp_is_taken(kernel: str) -> None:
    assert read(kernel).loader.kernel == kernel


def test_what_a_signed_grub_cannot_fetch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gdx.yml:4: loader.kernel: .*GRUB speaks TFTP alone; expected a file below"):
        read("http://10.0.0.1/vmlinuz")


@pytest.mark.parametrize("arch", ["aarch64", "arm64"])
def test_architectures_without_signed_loaders_are_refused(arch: str) -> None:
    with pytest.raises(ConfigError, match=rf"loader.secure_boot: it is true, and arch is {arch}: .* x86-64 alone"):
        read(arch=arch)
