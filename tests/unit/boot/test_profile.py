"""Boot profiles: the text that each loader gets, to the letter, and that no value can say more than it should."""

from __future__ import annotations

import dataclasses
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.boot import secret
from kadeploy.boot.profile import Sources, disk_index, file_name, profiles, render, write
from kadeploy.config.cluster import Disk, Loader, NodeRange
from kadeploy.config.partition import Partition
from kadeploy.config.site import BootFolders
from kadeploy.environments.environment import Environment
from kadeploy.errors import ConfigError, KadeployError, OptionError, ProfileRefusedError
from kadeploy.runner.request import Options, RequestNode, profile_sources
from kadeploy.workflow import Attempt, Verdict
from tests.unit import build

NODE = RequestNode(name="gdx-1", address="10.0.66.7")
HEADERS = {
    "pxelinux": "SERIAL 0 115200\n",
    "grub": "serial --unit=0 --speed=115200\nterminal_output serial\n",
    "ipxe": "",
}
FILES = {"kernel": "kernels/e-1--vmlinuz", "initrd": "kernels/e-1--initrd.img", "hypervisor": "kernels/e-1--xen.gz"}


def loader(profiles: str, firmware: str = "bios", **changes: object) -> Loader:
    base = Loader(
        profiles=profiles,  # type: ignore[arg-type]
        firmware=firmware,  # type: ignore[arg-type]
        header=HEADERS[profiles],
        params="console=ttyS0,115200",
        user_params="console=ttyS0",
        nfsroot_kernel="nfs-vmlinuz",
        nfsroot_params="root=/dev/nfs nfsroot=10.0.0.1:/srv/nfs",
    )
    return msgspec.structs.replace(base, **changes)


def environment(kind: str = "linux", **changes: object) -> Environment:
    base = build.environment(
        kernel="/boot/vmlinuz",
        initrd="/boot/initrd.img",
        hypervisor="/boot/xen.gz",
        hypervisor_params="dom0_mem=1000000",
        kernel_params="quiet nosmp",
        environment_kind=kind,
    )
    return msgspec.structs.replace(base, **changes)


def sources(boots: Loader, env: Environment | None = None, tftp: Path = Path("/tftp"), **changes: object) -> Sources:
    boot = BootFolders(tftp_root=str(tftp), http_root="/http", http_url="http://10.0.0.1/")
    base = build.assignment(
        "/nowhere",
        user="ejeanvoine",
        site=build.site("/nowhere", server_address="10.0.0.1", boot=boot),
        cluster=build.cluster(
            nodes=(NodeRange(name="gdx-1", address="10.0.66.7"),),
            disk=Disk(partitions=(*build.DEPLOY, Partition(number=4, role="efi"))),
            loader=boots,
        ),
        environment=env or environment(),
        boot_files=FILES,
    )
    return profile_sources(msgspec.structs.replace(base, **changes))


CASES = {
    "pxelinux-deploy": (loader("pxelinux"), "linux", "deploy"),
    "pxelinux-chainload": (loader("pxelinux"), "linux", "deployed"),
    "pxelinux-other": (loader("pxelinux", method="pure_pxe"), "other", "deployed"),
    "pxelinux-pure-pxe": (loader("pxelinux", method="pure_pxe"), "linux", "deployed"),
    "pxelinux-xen": (loader("pxelinux"), "xen", "deployed"),
    "pxelinux-nfsroot": (loader("pxelinux"), "linux", "nfsroot"),
    "grub-deploy": (loader("grub", "uefi"), "linux", "deploy"),
    "grub-disk-uefi": (loader("grub", "uefi"), "linux", "deployed"),
    "grub-disk-bios": (loader("grub"), "linux", "deployed"),
    "grub-pure-pxe": (loader("grub", "uefi", method="pure_pxe"), "linux", "deployed"),
    "grub-xen": (loader("grub", "uefi"), "xen", "deployed"),
    "grub-nfsroot": (loader("grub"), "linux", "nfsroot"),
    "grub-secure-deploy": (loader("grub", "uefi", secure_boot=True), "linux", "deploy"),
    "grub-secure-pure-pxe": (loader("grub", "uefi", secure_boot=True, method="pure_pxe"), "linux", "deployed"),
    "ipxe-deploy": (loader("ipxe"), "linux", "deploy"),
    "ipxe-disk-bios": (loader("ipxe"), "linux", "deployed"),
    "ipxe-disk-uefi": (loader("ipxe", "uefi"), "linux", "deployed"),
    "ipxe-pure-pxe": (loader("ipxe", method="pure_pxe"), "linux", "deployed"),
    "ipxe-nfsroot": (loader("ipxe"), "linux", "nfsroot"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_profile_is_what_its_loader_asks_for(name: str, golden: Callable[[str], str]) -> None:
    boots, kind, boot = CASES[name]
    assert render(sources(boots, environment(kind)), boot, NODE) == golden(f"pxe/{name}")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("grub-")])
def test_grub_itself_accepts_the_syntax(name: str) -> None:
    boots, kind, boot = CASES[name]
    text = render(sources(boots, environment(kind, kernel_params='a=$x ;{ "d e"')), boot, NODE)  # type: ignore[arg-type]
    checked = subprocess.run(["grub-script-check"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


# --- names ------------------------------------------------------------------------------------------------------


def test_files_are_named_after_the_address_as_each_loader_searches_them() -> None:
    assert file_name("pxelinux", "10.0.66.7") == "pxelinux.cfg/0A004207"
    assert file_name("grub", "10.0.66.7") == "grub/grub.cfg-0A004207"
    assert file_name("ipxe", "10.0.66.7") == "ipxe/10.0.66.7.ipxe"


def test_a_node_in_a_vlan_has_a_profile_for_either_address() -> None:
    node = msgspec.structs.replace(NODE, vlan_address="10.27.0.7")
    assert set(profiles(sources(loader("pxelinux"), nodes=(node,)), "deployed", node)) == {
        "pxelinux.cfg/0A004207",
        "pxelinux.cfg/0A1B0007",
    }


def test_ipxe_hands_a_disk_over_to_a_loader_that_has_a_profile_too(golden: Callable[[str], str]) -> None:
    bios = profiles(sources(loader("ipxe")), "deployed", NODE)
    assert set(bios) == {"ipxe/10.0.66.7.ipxe", "pxelinux.cfg/0A004207"}
    assert bios["pxelinux.cfg/0A004207"] == golden("pxe/pxelinux-chainload").removeprefix(HEADERS["pxelinux"])
    assert set(profiles(sources(loader("ipxe", "uefi")), "deployed", NODE)) == {
        "ipxe/10.0.66.7.ipxe",
        "grub/grub.cfg-0A004207",
    }


def test_a_node_without_an_ipv4_address_has_no_profile() -> None:
    with pytest.raises(ConfigError, match="no IPv4 address"):
        profiles(sources(loader("pxelinux")), "deploy", RequestNode(name="gdx-1", address="fe80::1"))
    with pytest.raises(ConfigError, match="no IPv4 address"):
        profiles(sources(loader("pxelinux")), "deploy", RequestNode(name="no-such-node.invalid"))


# --- disks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "index"),
    [("/dev/sda", 0), ("/dev/sdc", 2), ("/dev/vdb", 1), ("/dev/xvda", 0), ("/dev/nvme1n1", 1), ("/dev/mmcblk0", 0)],
)
def test_the_disk_has_the_number_that_its_name_suggests(device: str, index: int) -> None:
    assert disk_index(device) == index
    assert f"APPEND hd{index} 3\n" in render(
        sources(loader("pxelinux"), options=Options(block_device=device)), "deployed", NODE
    )


def test_a_disk_whose_name_tells_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"/dev/disk/by-id/x .*set disk\.firmware_number"):
        disk_index("/dev/disk/by-id/x")


def test_a_disk_that_is_named_by_a_link_has_the_number_that_the_site_gives_it() -> None:
    disk = Disk(device="/dev/disk/by-id/x", firmware_number=1, partitions=build.DEPLOY)
    cluster = build.cluster(disk=disk, loader=loader("pxelinux"), nodes=(NodeRange(name="gdx-1", address="10.0.66.7"),))
    assert "APPEND hd1 3\n" in render(sources(loader("pxelinux"), cluster=cluster), "deployed", NODE)
    other = Options(block_device="/dev/sda")
    assert "APPEND hd0 3\n" in render(sources(loader("pxelinux"), cluster=cluster, options=other), "deployed", NODE)


def test_the_boot_partition_may_be_another_than_the_deployed_one_and_0_is_the_whole_disk() -> None:
    def text(number: int) -> str:
        return render(sources(loader("pxelinux"), options=Options(boot_partition=number)), "deployed", NODE)

    assert text(2).endswith("APPEND hd0 2\n")
    assert text(0).endswith("APPEND hd0\n")


def test_a_whole_device_is_booted_from_its_first_sector() -> None:
    options = Options(whole_device=True)
    assert render(sources(loader("pxelinux"), options=options), "deployed", NODE).endswith("APPEND hd0\n")
    assert "set root='hd0'\n" in render(sources(loader("grub"), options=options), "deployed", NODE)


def test_pxelinux_under_uefi_cannot_boot_a_disk_and_says_what_can() -> None:
    with pytest.raises(ConfigError, match="grub"):
        render(sources(loader("pxelinux", "uefi")), "deployed", NODE)


# --- parameters -------------------------------------------------------------------------------------------------


def test_a_root_that_the_environment_names_is_kept() -> None:
    env = environment(kernel_params="ro root=LABEL=x")
    text = render(sources(loader("pxelinux", method="pure_pxe"), env), "deployed", NODE)
    assert "/dev/sda3" not in text
    assert text.endswith("APPEND initrd=http://10.0.0.1/kernels/e-1--initrd.img console=ttyS0 ro root=LABEL=x\n")


def test_a_kernel_may_do_without_initrd_and_without_parameters() -> None:
    boots = loader("pxelinux", initrd="", params="")
    assert render(sources(boots), "deploy", NODE).endswith(
        "\tKERNEL http://10.0.0.1/deploy-vmlinuz\n\tAPPEND -\n\tIPAPPEND 2\n"
    )


def test_a_url_is_taken_as_it_is() -> None:
    boots = loader("grub", kernel="http://boot.site:8080/k", initrd="tftp://10.0.0.9/i")
    text = render(sources(boots), "deploy", NODE)
    assert "linux (http,boot.site:8080)/k 'console" in text
    assert "initrd (tftp,10.0.0.9)/i; then\n" in text


def test_grub_keeps_together_what_double_quotes_hold_together() -> None:
    env = environment(kernel_params='dyndbg="file a +p; file b" x')
    text = render(sources(loader("grub", method="pure_pxe"), env), "deployed", NODE)
    assert "'dyndbg=file a +p; file b' 'x'; then\n" in text


@pytest.mark.parametrize("params", ["a ${b}", "a && b", "a || b", "a ; b"])
def test_ipxe_refuses_parameters_that_it_would_take_for_its_own(params: str) -> None:
    with pytest.raises(ProfileRefusedError, match="iPXE"):
        render(sources(loader("ipxe", method="pure_pxe"), environment(kernel_params=params)), "deployed", NODE)


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "a\x0bb", "a\x85b", "a\u2028b"])
def test_a_value_with_a_control_character_is_refused(bad: str) -> None:
    with pytest.raises(ProfileRefusedError, match="control character"):
        render(sources(loader("pxelinux", params=bad)), "deploy", NODE)


@pytest.mark.parametrize("name", ["a b", "a\nKERNEL b", "a;b", "$x", "a'b", "{a}"])
def test_the_name_of_a_boot_file_is_one_word(name: str) -> None:
    for profiles_ in ("pxelinux", "grub", "ipxe"):
        with pytest.raises(ProfileRefusedError, match="boot file"):
            render(sources(loader(profiles_, kernel=name)), "deploy", NODE)


@given(
    st.sampled_from(["pxelinux", "grub", "ipxe"]),
    st.sampled_from(["linux", "xen"]),
    st.text(),
    st.text(),
    st.sampled_from(["bios", "uefi"]),
)
def test_no_value_of_a_user_adds_a_line(kind_of: str, kind: str, params: str, hypervisor: str, firmware: str) -> None:
    """Property: whatever the parameters, the profile has the lines that it has without any, or there is none."""
    boots = loader(kind_of, firmware, method="pure_pxe")
    plain = environment(kind, kernel_params="", hypervisor_params="")
    odd = environment(kind, kernel_params=params, hypervisor_params=hypervisor)
    try:
        texts = profiles(sources(boots, odd), "deployed", NODE)
    except KadeployError:
        return
    wanted = profiles(sources(boots, plain), "deployed", NODE)
    assert {name: len(text.splitlines()) for name, text in texts.items()} == {
        name: len(text.splitlines()) for name, text in wanted.items()
    }
    for text, reference in zip(texts.values(), wanted.values(), strict=True):
        for line, model in zip(text.splitlines(), reference.splitlines(), strict=True):
            assert line.split()[:1] == model.split()[:1]


@given(st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp", "Cs"])))
def test_what_users_write_stays_inside_quotes_in_grub(params: str) -> None:
    """Property: outside its quotes the line holds nothing of the user's but blanks."""
    boots = loader("grub", method="pure_pxe")
    try:
        text = render(sources(boots, environment(kernel_params=params)), "deployed", NODE)
    except ProfileRefusedError:
        return
    (line,) = [line for line in text.splitlines() if line.startswith("\t\tif linux ")]
    assert line.endswith("; then")
    words = line.removeprefix("\t\tif linux (http,10.0.0.1)/kernels/e-1--vmlinuz").removesuffix("; then")
    outside = words.split("'")[::2]
    assert "".join(outside).strip(" ") == ""
    assert line.count("'") % 2 == 0


# --- missing pieces ---------------------------------------------------------------------------------------------


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="kernel"):
        render(sources(loader("pxelinux"), environment("xen"), boot_files={}), "deployed", NODE)
    with pytest.raises(ConfigError, match="hypervisor"):
        render(sources(loader("pxelinux"), environment("xen"), boot_files={"kernel": "k"}), "deployed", NODE)
    with pytest.raises(ConfigError, match="nfsroot_kernel"):
        render(sources(loader("pxelinux", nfsroot_kernel="")), "nfsroot", NODE)
    with pytest.raises(OptionError, match="-w"):
        render(sources(loader("pxelinux")), "custom", NODE)


# --- the user's own profile -------------------------------------------------------------------------------------

WIKI = """\
PROMPT 1
SERIAL 0 38400
DEFAULT bootlabel
DISPLAY messages
TIMEOUT 50
label bootlabel
KERNEL FILES_PREFIX--custom-kernel
APPEND initrd=kernels/pxe-ejeanvoine--custom-initrd root=/dev/sda3 node_id=NODE_SINGULARITY"""


def test_the_users_profile_is_kept_but_for_its_two_words(golden: Callable[[str], str]) -> None:
    options = Options(pxe_profile=WIKI, singularities={"gdx-1": "12"})
    assert render(sources(loader("pxelinux"), options=options), "custom", NODE) == golden("pxe/custom")


@pytest.mark.parametrize("written", ["FILES_PREFIX--k", "KERNELS_DIR/FILES_PREFIX--k", "KERNELS_DIR/pxe-ejeanvoine--k"])
def test_the_users_files_are_found_however_old_profiles_name_their_folder(written: str) -> None:
    options = Options(pxe_profile=f"KERNEL {written}\n")
    assert render(sources(loader("pxelinux"), options=options), "custom", NODE) == "KERNEL kernels/pxe-ejeanvoine--k\n"


def test_the_users_profile_replaces_that_of_the_final_boot_only() -> None:
    options = Options(pxe_profile="mine\n")
    asked = sources(loader("pxelinux"), options=options)
    assert render(asked, "deployed", NODE) == "mine\n"
    assert "deploy-vmlinuz" in render(asked, "deploy", NODE)


def test_a_node_without_a_word_of_its_own_is_refused() -> None:
    options = Options(pxe_profile=WIKI, singularities={"gdx-2": "12"})
    with pytest.raises(OptionError, match="gdx-1"):
        render(sources(loader("pxelinux"), options=options), "custom", NODE)


def test_a_nodes_word_cannot_add_a_line() -> None:
    options = Options(pxe_profile=WIKI, singularities={"gdx-1": "1\nKERNEL evil"})
    with pytest.raises(ProfileRefusedError, match="control character"):
        render(sources(loader("pxelinux"), options=options), "custom", NODE)


def test_a_profile_is_no_template() -> None:
    options = Options(pxe_profile="{{ 7 * 7 }} {% for x in y %}\n")
    assert render(sources(loader("pxelinux"), options=options), "custom", NODE) == "{{ 7 * 7 }} {% for x in y %}\n"


def test_a_parameter_is_no_template() -> None:
    env = environment(kernel_params="{{ 7 * 7 }}")
    assert "{{ 7 * 7 }}" in render(sources(loader("pxelinux", method="pure_pxe"), env), "deployed", NODE)


# --- writing ----------------------------------------------------------------------------------------------------


def test_profiles_are_written_where_loaders_look_readable_for_all(tmp_path: Path) -> None:
    outcomes = write(sources(loader("pxelinux"), tftp=tmp_path), "deploy", [NODE])
    assert outcomes["gdx-1"].verdict is Verdict.OK
    path = tmp_path / "pxelinux.cfg" / "0A004207"
    assert path.read_text() == render(sources(loader("pxelinux")), "deploy", NODE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["0A004207"]


def test_a_link_in_the_place_of_a_profile_is_replaced_and_not_followed(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.write_text("of many nodes")
    link = tmp_path / "pxelinux.cfg" / "0A004207"
    link.parent.mkdir()
    link.symlink_to(shared)
    write(sources(loader("pxelinux"), tftp=tmp_path), "deploy", [NODE])
    assert shared.read_text() == "of many nodes"
    assert not link.is_symlink()


def test_a_node_whose_profile_cannot_be_made_is_ko_and_the_others_are_not(tmp_path: Path) -> None:
    nodes = [RequestNode(name="gdx-2", address="fe80::1"), NODE]
    outcomes = write(sources(loader("pxelinux"), tftp=tmp_path), "deploy", nodes)
    assert outcomes["gdx-2"].verdict is Verdict.KO
    assert "no IPv4 address" in outcomes["gdx-2"].message
    assert outcomes["gdx-1"].verdict is Verdict.OK


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "pxelinux.cfg").write_text("a file")
    outcome = write(sources(loader("pxelinux"), tftp=tmp_path), "deploy", [NODE])["gdx-1"]
    assert outcome.verdict is Verdict.KO
    assert "boot.tftp_root" in outcome.message


def test_a_site_may_have_templates_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "templates" / "pxe"
    folder.mkdir(parents=True)
    (folder / "pxelinux.j2").write_text("# ours\nDEFAULT {{ boots }}\n")
    asked = sources(loader("pxelinux"), config_dir=str(tmp_path))
    assert render(asked, "deployed", NODE) == "# ours\nDEFAULT disk\n"


@pytest.mark.parametrize("name", ["pxelinux", "grub", "ipxe"])
def test_only_the_systems_that_we_enter_get_the_secret_of_the_try_each_node_its_own(tmp_path: Path, name: str) -> None:
    made = secret.make(tmp_path, Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted"))
    told = dataclasses.replace(sources(loader(name, method="pure_pxe")), secret=made)
    other = RequestNode(name="gdx-2", address="10.0.66.8")
    for kind in ("deploy", "nfsroot"):
        assert made.parameter("gdx-1") in render(told, kind, NODE)
        assert made.parameter("gdx-1") not in render(told, kind, other)
    assert secret.PARAMETER not in render(told, "deployed", NODE)


def test_a_signed_grub_reads_the_disk_as_another_one_does() -> None:
    """It reads ``grub.cfg`` and the kernel there, whose signature it has shim judge."""
    plain = render(sources(loader("grub", "uefi")), "deployed", NODE)
    assert render(sources(loader("grub", "uefi", secure_boot=True)), "deployed", NODE) == plain


def test_a_signed_grub_boots_no_hypervisor() -> None:
    secure = loader("grub", "uefi", secure_boot=True)
    with pytest.raises(ConfigError, match="signed GRUB boots no hypervisor: take a cluster without loader"):
        render(sources(secure, environment("xen")), "deployed", NODE)
