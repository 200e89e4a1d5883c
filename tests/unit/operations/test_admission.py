"""From a request to work: whose rights count, where it goes, and that nothing is taken for what was not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Hooks, Limits, Site, Vlan
from kadeploy.environments.environment import Archive, Environment, FileSystem, Image
from kadeploy.errors import (
    ConfigError,
    EnvironmentRefusedError,
    NodeListError,
    OptionError,
    ProfileRefusedError,
    RightsError,
)
from kadeploy.operations import admission
from kadeploy.operations.custom import parse
from kadeploy.operations.requests import Described, PowerRequest, RebootRequest, Recorded
from kadeploy.operations.work import Work
from kadeploy.runner import playbooks
from kadeploy.runner.request import Options
from kadeploy.state import rights
from kadeploy.state.database import connect
from kadeploy.state.nodes import NO_ENVIRONMENT
from kadeploy.state.nodes import Recorded as OnNode
from kadeploy.state.tables import EnvironmentRow, environment_columns
from tests.unit import build

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

GDX, NVM = build.NAMES[:2], build.NAMES[2:]
DD = Image(file="/image.dd.gz", kind="ddgz")


def deployed(configuration: Configuration, described: Environment | None = None, **changes: Any) -> Work:
    """A deployment that is admitted; of the recorded environment unless one is described."""
    if described is not None:
        changes["environment"] = Described(environment=described)
    return admission.admit(build.deploy_request(**changes), configuration)


def targets(work: Work) -> dict[str, str]:
    """The device file that is written, by cluster."""
    return {cluster: assignment.deploy_part for cluster, assignment in work.assignments.items()}


# --- what is deployed --------------------------------------------------------------------------------------------


def of_architecture(configuration: Configuration, arch: str) -> Configuration:
    """The same, its cluster gdx of an architecture."""
    gdx = msgspec.structs.replace(configuration.clusters["gdx"], arch=arch)
    return msgspec.structs.replace(configuration, clusters={**configuration.clusters, "gdx": gdx})


def test_nodes_get_the_environment_for_their_architecture(configuration: Configuration, site: Site) -> None:
    connect(site)
    for version, arch in ((1, "x86_64"), (2, "aarch64")):
        columns = environment_columns(build.environment(name="two", version=version, arch=arch, user="root"))
        EnvironmentRow.insert(**columns).execute()
    for arch in ("x86_64", "aarch64"):
        work = deployed(of_architecture(configuration, arch), nodes=GDX, environment=Recorded(name="two"))
        assert work.environment is not None
        assert work.environment.arch == arch
    named = Recorded(name="two@root:2%aarch64")
    assert deployed(configuration, nodes=GDX, environment=named).environment == work.environment
    with pytest.raises(OptionError, match=r"two is for aarch64, and cluster gdx is x86_64: choose .*clusters/gdx.yml"):
        deployed(of_architecture(configuration, "x86_64"), nodes=GDX, environment=named)


# --- where it goes ----------------------------------------------------------------------------------------------


def test_each_cluster_deploys_to_its_own_partition(configuration: Configuration, environment: Environment) -> None:
    work = deployed(configuration)
    assert targets(work) == {"gdx": "/dev/sda3", "nvm": "/dev/nvme0n1p1"}
    assert work.groups == {"gdx": GDX, "nvm": NVM}
    assert {cluster: tuple(n.name for n in a.nodes) for cluster, a in work.assignments.items()} == work.groups


def test_the_environments_own_partition_is_used_where_the_user_named_none(configuration: Configuration) -> None:
    environment = build.environment(part="/dev/sda2")
    assert targets(deployed(configuration, environment, nodes=GDX)) == {"gdx": "/dev/sda2"}


def parted(*devices: str, **changes: Any) -> Environment:
    """An archive of fsarchiver whose file systems go to *devices*; it boots from partition 3 of sda."""
    fields: dict[str, Any] = {
        "image": Image(file="/i.fsa", kind="fsa3"),
        "multipart": True,
        "partitions": tuple(FileSystem(id=rank, device=device) for rank, device in enumerate(devices)),
        "block_device": "/dev/sda",
        "boot_partition": 3,
    }
    return build.environment(**fields | changes)


def test_an_environment_on_several_partitions_goes_where_it_says(configuration: Configuration) -> None:
    environment = parted("/dev/sda2", "/dev/sda3", "/dev/sdb7")
    for options in (Options(), Options(block_device="/dev/sda", partition=3)):
        work = deployed(configuration, environment, nodes=GDX, options=options)
        assert targets(work) == {"gdx": "/dev/sda3"}
        assert work.assignments["gdx"].deploy_parts == ("/dev/sda2", "/dev/sda3", "/dev/sdb7")
    rebooted = RebootRequest(
        user="root", nodes=GDX, kind="env_recorded", environment=Described(environment=environment)
    )
    assert targets(admission.admit(rebooted, configuration)) == {"gdx": "/dev/sda3"}


@pytest.mark.parametrize("options", [Options(partition=2), Options(block_device="/dev/sdb"), Options(partition=0)])
def test_an_environment_on_several_partitions_does_not_go_elsewhere(
    configuration: Configuration, options: Options
) -> None:
    with pytest.raises(OptionError, match=r"-b, -p: tiny says itself where it goes \(/dev/sda2, /dev/sda3\)"):
        deployed(configuration, parted("/dev/sda2", "/dev/sda3"), nodes=GDX, options=options)


@pytest.mark.parametrize(
    ("environment", "error", "said"),
    [
        (parted("/dev/sda1", "/dev/sda3"), OptionError, "tiny: partition 1: that is the swap partition of cluster gdx"),
        (
            parted("/dev/sda3", "/dev/sda9"),
            OptionError,
            "tiny: partition 9: the disks of cluster gdx are cut into 1, 2",
        ),
        (parted("/dev/sda3", "/dev/sdb"), EnvironmentRefusedError, "/dev/sdb: not a partition"),
        (parted("/dev/sda2"), EnvironmentRefusedError, "boots from /dev/sda3 .* its image goes to /dev/sda2"),
        (
            parted(
                image=build.environment().image,
                partitions=(
                    FileSystem(id=0, device="/dev/sda2"),
                    FileSystem(id=1, device="/dev/sda3", image=DD),
                ),
            ),
            EnvironmentRefusedError,
            "boots from /dev/sda3 .* its image goes to /dev/sda2",
        ),
        (
            parted("/dev/sda2", "/dev/sda3", filesystem=""),
            OptionError,
            "an archive of fsarchiver brings no boot loader",
        ),
        (parted("/dev/sda2", "/dev/sda3", kernel=""), OptionError, "an archive of fsarchiver brings no boot loader"),
    ],
)
def test_several_partitions_that_make_no_sense_are_refused(
    configuration: Configuration, environment: Environment, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        deployed(configuration, environment, nodes=GDX)


def test_a_boot_loader_of_ones_own_comes_with_an_archive_of_fsarchiver(configuration: Configuration) -> None:
    own = Options(disable_bootloader_install=True)
    assert deployed(configuration, parted("/dev/sda3", filesystem=""), nodes=GDX, options=own)
    assert deployed(configuration, parted("/dev/sda3", environment_kind="other", filesystem=""), nodes=GDX)


def test_rights_are_needed_on_each_of_several_partitions(site_folder: Path, site: Site, database_url: str) -> None:
    rights.add(site, "root", list(GDX), ["/dev/sda3"])
    configuration, environment = load_configuration(site_folder), parted("/dev/sda3", "/dev/sdb1")
    with pytest.raises(RightsError, match=r"/dev/sdb1 of gdx-\[1-2\]\.site"):
        deployed(configuration, environment, nodes=GDX)
    rights.add(site, "root", list(GDX), ["/dev/sda3", "/dev/sdb1"], overwrite=True)
    assert deployed(configuration, environment, nodes=GDX)


def test_a_command_that_knows_of_one_image_sends_none_of_several(configuration: Configuration) -> None:
    places = (FileSystem(id=0, device="/dev/sda3"), FileSystem(id=1, device="/dev/sda2", image=DD))
    forced = {
        **configuration.clusters["gdx"].macro_steps,
        "BroadcastEnv": (Implementation(name="BroadcastEnvCustom"),),
    }
    environment = parted(image=build.environment().image, partitions=places)
    with pytest.raises(OptionError, match="BroadcastEnvCustom knows of one image, and tiny has 2"):
        deployed(configuration, environment, nodes=GDX, force_steps=forced)
    assert deployed(configuration, environment, nodes=GDX)


def test_a_time_out_for_a_micro_step_that_there_is_not_is_refused_where_its_cluster_is_meant(
    configuration: Configuration,
) -> None:
    file = configuration.folder / configuration.clusters["gdx"].file
    file.write_text(f"{file.read_text()}micro_timeouts: {{format_deploy_prat: 90}}\n")
    wrong = load_configuration(configuration.folder)
    for nodes in (GDX, (*GDX, *NVM)):
        with pytest.raises(
            ConfigError, match=r"micro_timeouts.format_deploy_prat: .*Did you mean format_deploy_part\?"
        ):
            deployed(wrong, build.environment(), nodes=nodes)
    assert set(deployed(wrong, build.environment(), nodes=NVM).assignments) == {"nvm"}


def test_an_environment_that_is_a_whole_disk_goes_to_its_own(configuration: Configuration) -> None:
    environment = build.environment(part="/dev/sdb", image=DD)
    work = deployed(configuration, environment, nodes=GDX)
    assert targets(work) == {"gdx": "/dev/sdb"}
    assert work.assignments["gdx"].partition is None


@pytest.mark.parametrize(
    ("options", "target"),
    [
        (Options(partition=5), "/dev/sda5"),
        (Options(block_device="/dev/sdc"), "/dev/sdc3"),
        (Options(block_device="/dev/sdc", partition=5), "/dev/sdc5"),
        (Options(block_device="/dev/sdc", whole_device=True), "/dev/sdc"),
    ],
    ids=["-p", "-b", "-b and -p", "-b and -c 0"],
)
@pytest.mark.parametrize("part", ["", "/dev/sda2", "/dev/sdb"])
def test_the_users_own_device_and_partition_win_over_the_environments(
    configuration: Configuration, part: str, options: Options, target: str
) -> None:
    """Any other partition holds somebody's data."""
    environment = build.environment(part=part, image=DD)
    assert targets(deployed(configuration, environment, nodes=GDX, options=options)) == {"gdx": target}


def test_a_partition_that_the_disk_has_not_is_refused_unless_the_disk_is_kept_as_it_is(
    configuration: Configuration,
) -> None:
    for environment, options in (
        (build.environment(), Options(partition=9)),
        (build.environment(part="/dev/sda9"), Options()),
    ):
        with pytest.raises(OptionError, match="cut into 1, 2, 3, 5"):
            deployed(configuration, environment, nodes=GDX, options=options)
        kept = msgspec.structs.replace(options, disable_disk_partitioning=True)
        assert targets(deployed(configuration, environment, nodes=GDX, options=kept)) == {"gdx": "/dev/sda9"}


def test_a_disk_without_a_partition_but_with_what_to_boot_is_the_whole_disk(configuration: Configuration) -> None:
    options = Options(block_device="/dev/sdb", boot_partition=0)
    work = deployed(configuration, build.environment(image=DD), nodes=GDX, options=options)
    assert targets(work) == {"gdx": "/dev/sdb"}
    only_the_disk = Options(block_device="/dev/sdb")
    assert targets(deployed(configuration, build.environment(image=DD), nodes=GDX, options=only_the_disk)) == {
        "gdx": "/dev/sdb3"
    }


def test_files_for_a_boot_profile_are_refused_without_one(configuration: Configuration) -> None:
    with pytest.raises(OptionError, match="-x goes with -w"):
        deployed(configuration, build.environment(), uploads=("/home/me/vmlinuz",))
    reboot = RebootRequest(user="root", nodes=GDX, kind="simple_reboot", uploads=("/home/me/vmlinuz",))
    with pytest.raises(OptionError, match="-x goes with -w"):
        admission.admit(reboot, configuration)


def test_an_archive_cannot_be_written_to_a_whole_disk(configuration: Configuration) -> None:
    with pytest.raises(OptionError, match="takes a dd image"):
        deployed(configuration, build.environment(part="/dev/sdb"), nodes=GDX)


# --- rights -----------------------------------------------------------------------------------------------------


def test_without_rights_nothing_is_admitted(site: Site, site_folder: Path, environment: Environment) -> None:
    """The partition that is named is the one of each cluster."""
    rights.add(site, "root", list(GDX), ["/dev/sda3"])
    with pytest.raises(RightsError, match=r"/dev/nvme0n1p1 of nvm-1\.site"):
        deployed(load_configuration(site_folder))


def test_rights_count_on_the_partition_that_is_really_written(site: Site, site_folder: Path) -> None:
    rights.add(site, "root", list(GDX), ["/dev/sda2"])
    configuration, environment = load_configuration(site_folder), build.environment(part="/dev/sda2")
    assert targets(deployed(configuration, environment, nodes=GDX)) == {"gdx": "/dev/sda2"}
    with pytest.raises(RightsError, match="/dev/sda3"):
        deployed(configuration, environment, nodes=GDX, options=Options(partition=3))
    with pytest.raises(RightsError, match="/dev/sda3"):
        deployed(configuration, build.environment(), nodes=GDX)


@pytest.mark.parametrize("request_", [RebootRequest, PowerRequest])
def test_whoever_may_not_deploy_on_nodes_may_not_switch_them(
    site: Site, site_folder: Path, request_: type[RebootRequest | PowerRequest]
) -> None:
    more = {"kind": "simple_reboot"} if request_ is RebootRequest else {"operation": "off"}
    with pytest.raises(RightsError, match=r"gdx-1\.site"):
        admission.admit(request_(user="root", nodes=GDX[:1], **more), load_configuration(site_folder))  # type: ignore[arg-type]


# --- what it becomes --------------------------------------------------------------------------------------------


def test_the_database_url_never_reaches_an_assignment(configuration: Configuration, environment: Environment) -> None:
    """It may hold a password, and assignments are files."""
    assert configuration.site.database
    assert {assignment.site.database for assignment in deployed(configuration).assignments.values()} == {""}


def test_a_node_that_is_named_twice_counts_once(configuration: Configuration, environment: Environment) -> None:
    assert deployed(configuration, nodes=(*GDX, *GDX)).names == list(GDX)


def test_unknown_nodes_and_environments_are_refused(configuration: Configuration, environment: Environment) -> None:
    with pytest.raises(NodeListError, match="mars-1"):
        deployed(configuration, nodes=(*GDX, "mars-1"))
    with pytest.raises(EnvironmentRefusedError, match="nonesuch"):
        deployed(configuration, environment=Recorded(name="nonesuch"))


def test_only_a_recorded_environment_is_recorded_as_being_on_the_nodes(
    configuration: Configuration, environment: Environment
) -> None:
    assert deployed(configuration).states.ok_environment == OnNode.of(environment)
    anonymous = deployed(configuration, build.environment(), nodes=GDX)
    assert anonymous.states.ok_environment == NO_ENVIRONMENT
    assert anonymous.anonymous


@pytest.mark.parametrize(
    ("kind", "more", "plan", "kind_of_boot", "state"),
    [
        ("simple_reboot", {}, "RebootSimple", "none", "rebooted"),
        ("set_pxe", {"options": Options(pxe_profile="DEFAULT x\n")}, "RebootSetPxe", "custom", "rebooted"),
        ("deploy_env", {}, "RebootDeployEnv", "deploy", "deploy_env"),
        ("env_recorded", {"options": Options(partition=3)}, "RebootRecordedEnv", "deployed", "recorded_env"),
        ("env_recorded", {"options": Options(partition=2)}, "RebootRecordedEnv", "deployed", "prod_env"),
    ],
)
def test_each_kind_of_reboot_has_its_playbook_boot_and_state(
    configuration: Configuration,
    environment: Environment,
    kind: Any,
    more: dict[str, Any],
    plan: str,
    kind_of_boot: str,
    state: str,
) -> None:
    if kind == "env_recorded":
        more = more | {"environment": Recorded(name="tiny")}
    work = admission.admit(RebootRequest(user="root", nodes=GDX, kind=kind, level="hard", **more), configuration)
    ((_, (way,)),) = work.plans["gdx"]
    boot = work.assignments["gdx"].boot
    assert (way.name, boot.kind, boot.level, work.states.ok) == (plan, kind_of_boot, "hard", state)
    systems = {
        "none": "any",
        "custom": "any",
        "deploy": "deploy",
        "deployed": "user",
    }
    assert boot.target == systems[kind_of_boot]


@pytest.mark.parametrize(
    ("level", "wait", "retries"), [("soft", True, 2), ("hard", True, 1), ("very_hard", True, 0), ("soft", False, 0)]
)
def test_a_reboot_is_tried_again_at_each_harder_level(
    configuration: Configuration, level: Any, wait: bool, retries: int
) -> None:
    wish = RebootRequest(user="root", nodes=GDX, kind="simple_reboot", level=level, wait=wait)
    ((_, (way,)),) = admission.admit(wish, configuration).plans["gdx"]
    assert way.retries == retries


def test_asking_whether_nodes_are_on_records_nothing(configuration: Configuration) -> None:
    asked = admission.admit(PowerRequest(user="root", nodes=GDX, operation="status"), configuration)
    assert (asked.states.begun, asked.states.ok, asked.states.ko) == (None, None, None)
    switched = admission.admit(PowerRequest(user="root", nodes=GDX, operation="on"), configuration)
    assert (switched.states.begun, switched.states.ok, switched.states.ko) == ("powering", "powered", "power_failed")


def test_the_sites_hook_is_left_out_when_it_is_not_wanted(
    configuration: Configuration, environment: Environment
) -> None:
    site = msgspec.structs.replace(configuration.site, hooks=Hooks(end_of_deployment="tell WORKFLOW_ID"))
    configuration = msgspec.structs.replace(configuration, site=site)
    assert deployed(configuration).hook == "tell WORKFLOW_ID"
    assert deployed(configuration, hook=False).hook == ""


def test_a_word_per_node_is_for_the_nodes_of_the_request_all_of_them(
    configuration: Configuration, environment: Environment
) -> None:
    options = Options(pxe_profile="APPEND id=NODE_SINGULARITY\n", singularities={GDX[0]: "a"})
    with pytest.raises(OptionError, match=r"no line for gdx-2\.site"):
        deployed(configuration, nodes=GDX, options=options)
    with pytest.raises(OptionError, match=r"not among the nodes of this request: gdx-1\.site"):
        deployed(configuration, nodes=GDX[1:], options=options)
    assert deployed(configuration, nodes=GDX[:1], options=options).names == [GDX[0]]


def test_a_vlan_in_which_a_node_has_no_address_is_refused(
    configuration: Configuration, environment: Environment
) -> None:
    with pytest.raises(OptionError, match="no VLANs"):
        deployed(configuration, options=Options(vlan="7"))
    vlan = Vlan(hostname_suffix="-vlan-VLAN_ID", set_command="true")
    site = msgspec.structs.replace(configuration.site, vlan=vlan)
    configuration = msgspec.structs.replace(configuration, site=site)
    with pytest.raises(OptionError, match=r"gdx-1-vlan-7\.site cannot be resolved"):
        deployed(configuration, options=Options(vlan="7"))


# --- what could not be booted -----------------------------------------------------------------------------------


def test_a_file_system_that_nodes_cannot_make_is_refused_at_the_request_and_those_that_come_in_an_image_are_not(
    configuration: Configuration,
) -> None:
    with pytest.raises(OptionError, match=r"tiny is on XFS, and cluster gdx formats ext2, .*supported_filesystems"):
        deployed(configuration, build.environment(filesystem="XFS"))
    assert deployed(configuration, build.environment(filesystem="XFS", image=DD))
    preinstall = Archive(file="/p.tgz", kind="tgz", script="make")
    assert deployed(configuration, build.environment(filesystem="jfs", preinstall=preinstall))
    own = FileSystem(id=1, device="/dev/sda2", filesystem="jfs", image=Image(file="/own.tgz", kind="tgz"))
    places = (FileSystem(id=0, device="/dev/sda3"), own)
    environment = parted(image=build.environment().image, partitions=places, preinstall=preinstall)
    with pytest.raises(OptionError, match="tiny is on jfs"):
        deployed(configuration, environment, nodes=GDX)


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
def test_a_file_system_that_the_loader_cannot_boot_is_refused_at_the_request(
    configuration: Configuration, filesystem: str
) -> None:
    environment = build.environment(filesystem=filesystem)
    with pytest.raises(OptionError, match=rf"Cluster gdx: .* is on {filesystem}, and BIOS boots"):
        deployed(configuration, environment, nodes=GDX)
    assert deployed(configuration, environment, nodes=GDX, options=Options(disable_bootloader_install=True))


def booting(configuration: Configuration, **loader: str) -> Configuration:
    """The site with another loader in cluster gdx."""
    gdx = configuration.clusters["gdx"]
    changed = msgspec.structs.replace(gdx, loader=msgspec.structs.replace(gdx.loader, **loader))
    return msgspec.structs.replace(configuration, clusters=configuration.clusters | {"gdx": changed})


@pytest.mark.parametrize("loader", [{"firmware": "uefi", "profiles": "grub"}, {"method": "pure_pxe"}])
def test_the_same_file_system_is_admitted_where_the_loader_can_boot_it(
    configuration: Configuration, loader: dict[str, str]
) -> None:
    assert deployed(booting(configuration, **loader), build.environment(filesystem="xfs"), nodes=GDX)


@pytest.mark.parametrize("method", ["chainload", "pure_pxe"])
def test_kernel_parameters_that_grub_would_change_are_refused_at_the_request(
    configuration: Configuration, method: str
) -> None:
    strict = booting(configuration, method=method, profiles="grub")
    with pytest.raises(ProfileRefusedError, match="backslash"):
        deployed(strict, build.environment(kernel_params="path=C:\\x"), nodes=GDX)


def test_a_loader_that_cannot_boot_a_disk_is_refused_at_the_request(configuration: Configuration) -> None:
    unable = booting(configuration, firmware="uefi", profiles="pxelinux")
    with pytest.raises(ConfigError, match="PXELINUX cannot boot a disk"):
        deployed(unable, build.environment(), nodes=GDX)
    assert deployed(unable, build.environment(), nodes=GDX, options=Options(pxe_profile="DEFAULT mine\n"))


@pytest.mark.parametrize("name", ["9.evil.example", "-x", "7 8", "7\n", "é", "7" * 64, "a/b"])
def test_a_vlan_is_named_with_letters_and_digits_alone(
    name: str, configuration: Configuration, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked for the address of a stranger, and no word becomes an option of the site's command."""
    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *words: asked.append(words))
    site = msgspec.structs.replace(configuration.site, vlan=Vlan(hostname_suffix="-VLAN_ID", set_command="true"))
    with pytest.raises(OptionError, match="letters and digits alone"):
        deployed(msgspec.structs.replace(configuration, site=site), options=Options(vlan=name))
    assert asked == []


@pytest.mark.parametrize("disk", ["sda", "--force", "/dev/sda /dev/sdb", "/dev/../etc/passwd", "/dev/", "/dev/sda\n"])
def test_what_is_no_device_file_is_no_disk(disk: str, configuration: Configuration, environment: Environment) -> None:
    options = Options(block_device=disk, partition=3)
    with pytest.raises(OptionError, match="not a disk"):
        deployed(configuration, options=options)
    request = RebootRequest(
        user="root", nodes=GDX, kind="env_recorded", environment=Recorded(name="tiny"), options=options
    )
    with pytest.raises(OptionError, match="not a disk"):
        admission.admit(request, configuration)


def test_no_system_is_put_on_the_swap_partition(configuration: Configuration, environment: Environment) -> None:
    with pytest.raises(OptionError, match=r"-p 1: that is the swap partition of cluster gdx.* Choose 2, 3, 5\."):
        deployed(configuration, options=Options(partition=1))


def test_nothing_is_booted_from_the_swap_partition(configuration: Configuration, environment: Environment) -> None:
    request = RebootRequest(
        user="root",
        nodes=GDX,
        kind="env_recorded",
        environment=Recorded(name="tiny"),
        options=Options(partition=1),
    )
    with pytest.raises(OptionError, match="-p 1: that is the swap partition of cluster gdx"):
        admission.admit(request, configuration)


def test_a_mistyped_partition_is_told_to_whoever_has_no_right_on_it_either(
    configuration: Configuration, environment: Environment
) -> None:
    request = build.deploy_request(
        user="nobody", nodes=GDX, environment=Described(environment=environment), options=Options(partition=9)
    )
    with pytest.raises(OptionError, match="-p 9: the disks of cluster gdx are cut into 1, 2, 3, 5"):
        admission.admit(request, configuration)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(boot_partition=9), "-c 9: the disks of cluster gdx are cut into 1, 2, 3, 5"),
        (Options(block_device="/dev/sda3"), "-b /dev/sda3: that is a partition of /dev/sda. Write -b /dev/sda -p 3."),
        (Options(block_device="/dev/nvme0n1p2", partition=2), "Write -b /dev/nvme0n1 -p 2."),
        (Options(reformat_tmp="ext44"), "formats ext2, ext3, ext4, xfs, btrfs, vfat. Did you mean ext4?"),
    ],
)
def test_disks_and_partitions_that_are_not_there_are_refused(
    configuration: Configuration, environment: Environment, options: Options, said: str
) -> None:
    with pytest.raises(OptionError) as refusal:
        deployed(configuration, nodes=GDX, options=options)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("partition", "notes"), [(3, ()), (9, ("gdx: its disks are cut into 1, 2, 3, 5, and -p is another one",))]
)
def test_a_reboot_onto_a_partition_that_the_site_did_not_cut_is_told(
    partition: int, notes: tuple[str, ...], configuration: Configuration, environment: Environment
) -> None:
    request = RebootRequest(
        user="root",
        nodes=GDX,
        kind="env_recorded",
        environment=Recorded(name="tiny"),
        options=Options(partition=partition),
    )
    assert admission.admit(request, configuration).notes == notes


def test_a_request_that_names_more_nodes_than_the_site_takes_is_refused(
    configuration: Configuration, environment: Environment
) -> None:
    site = msgspec.structs.replace(configuration.site, limits=Limits(nodes=1))
    with pytest.raises(NodeListError, match=r"2 nodes, and at most 1 .*limits\.nodes"):
        deployed(msgspec.structs.replace(configuration, site=site), nodes=GDX[:2])


# --- custom operations and the breakpoint ---------------------------------------------------------------------------

CHAINED = ("BroadcastEnvKastafior", "BroadcastEnvKascade", "BroadcastEnvChain")


@pytest.mark.parametrize("name", CHAINED)
def test_what_is_meant_for_one_chain_is_meant_for_the_one_that_is_used(
    name: str, configuration: Configuration, environment: Environment, root: Account
) -> None:
    operations = parse(f"{name},sync@exec%true%", source="-", who=root, known=playbooks.register(configuration.folder))
    asked = Options(custom_operations=operations, breakpoint=f"{name}:sync")
    work = deployed(configuration, options=asked, force_steps=None)
    options = work.assignments["gdx"].options
    assert [each.implementation for each in options.custom_operations] == ["BroadcastEnvChain"]
    assert options.breakpoint == "BroadcastEnvChain:sync"


def test_an_operation_of_a_step_that_is_not_gone_through_is_refused(
    configuration: Configuration, environment: Environment, root: Account
) -> None:
    operations = parse(
        "BroadcastEnvTree,sync@exec%true%", source="-", who=root, known=playbooks.register(configuration.folder)
    )
    with pytest.raises(OptionError, match=r"BroadcastEnvTree, of 'exec true', is not used.*BroadcastEnv for whichever"):
        deployed(configuration, options=Options(custom_operations=operations))
