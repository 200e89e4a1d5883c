"""A machine whose firmware knows Microsoft's keys and checks signatures is deployed, by the real workflow.

OVMF with these keys enrolled, in a lab of its own: firmware, shim, GRUB and Debian's kernels judge each other for real.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.accounts import Installation
from tests.vm.conftest import Cluster, started

NAME = "kadeploy-test-secure"
NODE = "node-1"


@pytest.fixture(scope="module")
def deployed(installation: Installation) -> Iterator[Cluster]:
    """The lab, whose machine was deployed with Debian."""
    with started(
        installation, NAME, "--nodes", "1", "--firmware", "secure-boot", "--environments", "debian12-min"
    ) as cluster:
        words = ["-m", NODE, "-a", str(cluster.environment("debian12-min")), "-k", str(cluster.public_key), "-V", "3"]
        done = cluster.run("kadeploy3", *words, "--reboot-classical-timeout", "420")
        assert done.returncode == 0, "\n".join([done.stdout, done.stderr, cluster.serial(NODE)[-4000:]])
        yield cluster


def test_the_deployment_system_comes_signed_and_by_tftp_alone(deployed: Cluster) -> None:
    address = deployed.lab.members[NODE].address
    asked = [line for line in deployed.lab.log("boot server").read_text().splitlines() if f" {address} " in line]
    sent = [line.split("'")[1].lstrip("/") for line in asked if line.startswith("tftp: ") and line.endswith(" sent")]
    way = iter(sent)
    assert all(name in way for name in ("bootx64.efi", "grubx64.efi", "deploy-vmlinuz", "deploy-initrd")), sent
    assert [line for line in asked if line.startswith("http: ")] == []


def test_the_deployed_debian_runs_from_its_disk_under_secure_boot(deployed: Cluster) -> None:
    """The variable of the firmware says so (UEFI, "Globally Defined Variables"), and so does the kernel's lockdown."""
    said = deployed.wait_ssh(
        NODE,
        command="cat /etc/debian_version; mount | grep ' on / '; od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-*; "
        "cat /sys/kernel/security/lockdown",
    )
    version, root, variable, lockdown = said.splitlines()
    assert version.startswith("12.")
    assert "/dev/sda3 on / type ext4" in root
    assert variable.split()[-1] == "1"
    assert "[integrity]" in lockdown
