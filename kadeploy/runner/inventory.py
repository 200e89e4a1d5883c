"""From a request to what playbooks and scripts see: named booleans, KADEPLOY_* variables, host variables.

No decision is taken in YAML: a role runs when its boolean in ``kadeploy_wants`` says so, and every boolean is
computed here (rules: wiki page, and the original's behaviour where it is silent).
"""

from __future__ import annotations

from typing import Any

from kadeploy.boot import loaders, parameters, served
from kadeploy.config.cluster import Node, address
from kadeploy.config.partition import Partition, partition_device
from kadeploy.errors import ProfileRefusedError
from kadeploy.runner import known_hosts
from kadeploy.runner.request import Assignment, LocalArchive, Request

GROUP = "kadeploy_nodes"

_GPT_TYPES = {
    "83": "L",
    "82": "S",
    "ef": "U",
    "07": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    "a5": "516E7CB6-6ECF-11D6-8FF8-00022D09712B",
}
"""GPT type per MS-DOS partition type; anything else is a Linux file system."""

_ROLE_TYPES = {"swap": "82", "efi": "ef"}
"""MS-DOS partition type per role in the layout; others are Linux partitions."""


def variables(request: Request) -> dict[str, Any]:
    """Variables of the group ``kadeploy_nodes``."""
    return {
        "kadeploy_wants": wants(request),
        "kadeploy_env": script_variables(request),
        "kadeploy_boot": {"kind": request.boot.kind, "level": reboot_level(request), "target": request.boot.target},
        "kadeploy_power": {"operation": request.power or "status", "level": request.boot.level},
        "kadeploy_new_root": request.site.extraction_dir,
        "kadeploy_preinstalls": _archives(_preinstalls(request)),
        "kadeploy_admin_postinstalls": _archives(request.admin_postinstalls),
        "kadeploy_user_postinstalls": _archives(request.postinstalls),
        "kadeploy_grub_menu": _grub_menu_or_none(request),
        "kadeploy_deployment_kernel": _on_this_machine(request, request.cluster.loader.kernel),
        "kadeploy_deployment_initrd": _on_this_machine(request, request.cluster.loader.initrd),
    }


def host_variables(request: Request, node: Node) -> dict[str, Any]:
    """Variables of one node: how ordinary Ansible tasks reach it, in the deployment system and in the one it boots."""
    return {
        "ansible_host": address(request.site, node),
        "ansible_port": request.site.ssh.port,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": request.site.ssh.private_key,
        "ansible_ssh_common_args": known_hosts.ssh_options(request),
        "ansible_host_key_checking": True,
    }


def reboot_level(request: Request) -> str:
    """With which level a reboot begins: the site's for deployments, else what was asked for."""
    return request.site.first_reboot if request.operation == "deploy" else request.boot.level


def wants(request: Assignment) -> dict[str, bool]:
    """Which conditional micro-steps this request needs."""
    options, environment, disk = request.options, request.environment, request.cluster.disk
    key = bool(options.authorized_keys)
    is_tar = environment is not None and environment.image.is_tar
    multipart = environment is not None and environment.multipart
    mountable = is_mountable(request)
    partitioned = request.partition is not None
    cut = partitioned and not multipart  # of several partitions nobody knows which are free
    swap, tmp = disk.number("swap"), disk.number("tmp")
    linux = environment is not None and environment.environment_kind == "linux"
    return {
        "set_vlan": bool(options.vlan),
        "send_key_in_deploy_env": key,
        "create_partition_table": partitioned and bool(disk.partitions) and not options.disable_disk_partitioning,
        "format_deploy_part": is_tar,
        "mount_deploy_part": mountable and is_tar,
        "mount_after_broadcast": mountable and not is_tar and partitioned,
        "format_tmp_part": bool(options.reformat_tmp) and cut and tmp not in (None, request.partition),
        "format_swap_part": linux and cut and swap not in (None, request.partition),
        "manage_admin_pre_install": bool(_preinstalls(request)),
        "manage_admin_post_install": mountable and bool(request.admin_postinstalls),
        "manage_user_post_install": mountable and bool(request.postinstalls),
        "check_kernel_files": mountable and environment is not None and bool(environment.kernel),
        "send_key": key and mountable,
        "install_bootloader": mountable
        and linux
        and request.cluster.loader.method == "chainload"
        and not options.disable_bootloader_install,
        "umount_deploy_part": mountable,
        "wait_reboot": request.boot.wait,
        "check_nodes": request.boot.wait and request.partition == disk.number("prod"),
    }


def is_mountable(request: Assignment) -> bool:
    """The deployment system can mount what was deployed (a whole-device image has no single file system)."""
    environment = request.environment
    if environment is None:
        return False
    if environment.image.is_dd and request.partition is None:
        return False
    return environment.filesystem in request.cluster.supported_filesystems


def grub_menu(request: Assignment) -> str:
    """The ``grub.cfg`` of the deployed system but for where it is; empty when none is installed.

    Raises:
        ProfileRefusedError: GRUB cannot hand on its kernel parameters.
    """
    environment = request.environment
    if environment is None or not wants(request)["install_bootloader"]:
        return ""
    params = f"{request.cluster.loader.user_params} {environment.kernel_params}".strip()
    with_root = parameters.with_root(params, f"root={request.deploy_part} ro")
    return parameters.grub_menu(environment.kernel, environment.initrd, with_root)


def _grub_menu_or_none(request: Assignment) -> str:
    """The same; empty where admission would have refused it: the step that needs it says so."""
    try:
        return grub_menu(request)
    except ProfileRefusedError:
        return ""


def script_variables(request: Request) -> dict[str, str]:
    """The KADEPLOY_* environment of every script on a node (wiki page, "Environment variables…", and later ones)."""
    site, disk, options = request.site, request.cluster.disk, request.options
    environment = request.environment
    numbers = {role: disk.number(role) for role in ("swap", "prod", "tmp", "efi")}
    values: dict[str, object] = {
        "CLUSTER": request.cluster.name,
        "ENV": environment.name if environment else "",
        "DEPLOY_PART": request.deploy_part,
        "DEPLOY_PARTS": " ".join(request.deploy_parts),
        "ENV_EXTRACTION_DIR": site.extraction_dir,
        "PREPOST_EXTRACTION_DIR": site.rambin_dir,
        "BLOCK_DEVICE": request.device,
        "DEPLOY_PART_NUM": request.partition or "",
        "TMP_DIR": "/tmp",  # noqa: S108 - a folder on the nodes
        "AUTHORIZED_KEYS": options.authorized_keys,
        "PARTITION_TABLE": partition_table(request),
        "FS_TYPE_TMP": options.reformat_tmp,
        "MKFS_OPTIONS_TMP": site.mkfs_options.get(options.reformat_tmp, ""),
        "FIRMWARE": request.cluster.loader.firmware,
        "SECURE_BOOT": "yes" if request.cluster.loader.secure_boot else "",
        "BOOTS_FROM": "disk" if loaders.boots(request.cluster.loader, environment) == "disk" else "network",
        "KEXEC_DIR": request.cluster.kexec_dir,
        "DEPLOYMENT_KERNEL_PARAMS": request.cluster.loader.params,
    }
    for role, number in numbers.items():
        values[f"{role.upper()}_PART_NUM"] = number or ""
        values[f"{role.upper()}_PART"] = partition_device(request.device, number) if number else ""
    if environment is not None:
        params = f"{request.cluster.loader.user_params} {environment.kernel_params}".strip()
        values |= {
            "ENV_VERSION": environment.version,
            "ENV_KERNEL": environment.kernel,
            "ENV_INITRD": environment.initrd,
            "ENV_KERNEL_PARAMS": params,
            "ENV_HYPERVISOR": environment.hypervisor,
            "ENV_HYPERVISOR_PARAMS": environment.hypervisor_params,
            "OS_KIND": environment.environment_kind,
            "PART_TYPE": environment.fdisktype,
            "FS_TYPE": environment.filesystem,
            "MKFS_OPTIONS": site.mkfs_options.get(environment.filesystem, ""),
        }
        values = environment.custom_variables | values
    return {f"KADEPLOY_{name}": str(value) for name, value in values.items()}


def partition_table(request: Request) -> str:
    """The cluster's layout as sfdisk reads it; the deployment partition gets the environment's type.

    Contents are kept where the boundaries stay the same, so that a second deployment leaves the other partitions alone.
    """
    disk = request.cluster.disk
    lines = [f"label: {'gpt' if disk.table == 'gpt' else 'dos'}"]
    extended = False
    for part in sorted(disk.partitions, key=lambda part: part.number):
        if disk.table == "msdos" and part.number > 4 and not extended:
            lines.append(f"{_free_primary(disk.partitions)} : type=5")
            extended = True
        size = f"size={part.size}, " if part.size else ""
        lines.append(f"{part.number} : {size}type={_type(request, part)}")
    return "\n".join(lines) + "\n"


def _free_primary(partitions: tuple[Partition, ...]) -> int:
    used = {part.number for part in partitions}
    return next((number for number in range(1, 5) if number not in used), 4)


def _type(request: Request, part: Partition) -> str:
    code = _ROLE_TYPES.get(part.role, "83")
    if part.number == request.partition and request.environment is not None:
        code = request.environment.fdisktype.lower()
    return _GPT_TYPES.get(code, "L") if request.cluster.disk.table == "gpt" else code


def _preinstalls(request: Assignment) -> tuple[LocalArchive, ...]:
    return (request.preinstall,) if request.preinstall else request.admin_preinstalls


def _archives(archives: tuple[LocalArchive, ...]) -> list[dict[str, str]]:
    return [{"path": archive.path, "kind": archive.kind, "script": archive.script} for archive in archives]


def _on_this_machine(request: Request, name: str) -> str:
    """A file of the deployment system; one of another machine is looked for by its name alone."""
    site, loader = request.site, request.cluster.loader
    return str(served.path(site, loader, name) or served.root(site, loader) / name.rsplit("/", 1)[-1])
