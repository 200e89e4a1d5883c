"""What the variables mean that scripts and plays see; `kadeploy.runner.inventory` computes them."""

from __future__ import annotations

from collections.abc import Mapping

SCRIPTS: Mapping[str, str] = {
    "KADEPLOY_CLUSTER": "Name of the node's cluster.",
    "KADEPLOY_ENV": "Name of the environment; empty where none is deployed or booted.",
    "KADEPLOY_ENV_VERSION": "Its version.",
    "KADEPLOY_ENV_KERNEL": "Path of its kernel in it.",
    "KADEPLOY_ENV_INITRD": "Path of its initrd in it.",
    "KADEPLOY_ENV_KERNEL_PARAMS": "Parameters of its kernel: the cluster's (loader.user_params), then its own.",
    "KADEPLOY_ENV_HYPERVISOR": "Path of Xen in it.",
    "KADEPLOY_ENV_HYPERVISOR_PARAMS": "Xen's parameters.",
    "KADEPLOY_OS_KIND": "linux, xen or other.",
    "KADEPLOY_BLOCK_DEVICE": "The disk: /dev/sda.",
    "KADEPLOY_DEPLOY_PART": "The partition that is deployed: /dev/sda3; of several, the one that is booted.",
    "KADEPLOY_DEPLOY_PART_NUM": "Its number; empty for a whole disk.",
    "KADEPLOY_DEPLOY_PARTS": "All partitions that are deployed, separated by blanks.",
    "KADEPLOY_PART_TYPE": "Type of the deployment partition, in hexadecimal: 83.",
    "KADEPLOY_FS_TYPE": "File system of the deployment partition.",
    "KADEPLOY_MKFS_OPTIONS": "What mkfs is given for it (mkfs_options of the site).",
    "KADEPLOY_FS_TYPE_TMP": "File system that is made on the tmp partition: that of -r; empty without it.",
    "KADEPLOY_MKFS_OPTIONS_TMP": "What mkfs is given for that.",
    "KADEPLOY_SWAP_PART": "The swap partition; empty where the layout has none.",
    "KADEPLOY_SWAP_PART_NUM": "Its number.",
    "KADEPLOY_PROD_PART": "The production system's partition; empty where the layout has none.",
    "KADEPLOY_PROD_PART_NUM": "Its number.",
    "KADEPLOY_TMP_PART": "The tmp partition; empty where the layout has none.",
    "KADEPLOY_TMP_PART_NUM": "Its number.",
    "KADEPLOY_EFI_PART": "The EFI system partition; empty where the layout has none.",
    "KADEPLOY_EFI_PART_NUM": "Its number.",
    "KADEPLOY_PARTITION_TABLE": "The cluster's layout, as sfdisk reads it.",
    "KADEPLOY_ENV_EXTRACTION_DIR": "Where the deployment partition is mounted: extraction_dir of the site.",
    "KADEPLOY_PREPOST_EXTRACTION_DIR": "Where archives of pre- and post-installs are unpacked: rambin_dir of the site.",
    "KADEPLOY_TMP_DIR": "A folder for what is needed for a moment.",
    "KADEPLOY_AUTHORIZED_KEYS": "The user's public keys (-k), one a line.",
    "KADEPLOY_FIRMWARE": "bios or uefi.",
    "KADEPLOY_SECURE_BOOT": "yes where the nodes boot by Secure Boot (loader.secure_boot); else empty.",
    "KADEPLOY_BOOTS_FROM": "disk or network: where the deployed system's kernel comes from.",
    "KADEPLOY_KEXEC_DIR": "Where kernel and initrd are kept for kexec: kexec_dir of the cluster.",
    "KADEPLOY_DEPLOYMENT_KERNEL_PARAMS": "Parameters of the deployment system's kernel: loader.params of the cluster.",
}
"""Environment variables of every script on a node: of ours, of pre- and post-installs, of custom operations."""

PLAYS: Mapping[str, str] = {
    "kadeploy_wants": "A boolean for each conditional micro-step, by its name.",
    "kadeploy_env": "The variables of scripts.",
    "kadeploy_boot": "kind: none, deploy, deployed or custom; level of the first reboot; target: what must come up.",
    "kadeploy_power": "operation: on, off or status; level.",
    "kadeploy_new_root": "Folder where the deployment partition is mounted, which the connection new_root enters.",
    "kadeploy_preinstalls": "Archives of pre-installs, each with path, kind and script.",
    "kadeploy_admin_postinstalls": "The cluster's post-installs, likewise.",
    "kadeploy_user_postinstalls": "The environment's post-installs, likewise.",
    "kadeploy_grub_menu": "grub.cfg of the deployed system; empty where no GRUB is installed.",
    "kadeploy_deployment_kernel": "File of the deployment system's kernel, on the controller.",
    "kadeploy_deployment_initrd": "File of its initrd, on the controller.",
}
"""Variables of the group ``kadeploy_nodes``."""

PROMISED = frozenset({"kadeploy_wants", "kadeploy_env", "kadeploy_boot", "kadeploy_power", "kadeploy_new_root"})
"""Those of `PLAYS` that keep name and meaning, as all of `SCRIPTS` and `NODES` do; others are between our roles."""

NODES: Mapping[str, str] = {
    "ansible_host": "Address of the node.",
    "ansible_port": "Port of its ssh server.",
    "ansible_user": "root.",
    "ansible_ssh_private_key_file": "The site's key.",
    "ansible_host_key_checking": "True: host keys are always checked.",
    "ansible_ssh_common_args": "The run's own known hosts: the deployment system's key is pinned; behind the first "
    "boot the new system's first key is taken and kept.",
}
"""Variables of each node: how tasks of a site's own reach it."""
