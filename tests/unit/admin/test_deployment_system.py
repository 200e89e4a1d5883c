"""The deployment system of a site: what can be proved without building one. tests/vm builds and boots it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kadeploy.admin import deployment_system
from kadeploy.admin.deployment_system import Recipe, build, edits, install, memory, public_half, with_console
from kadeploy.admin.edit import apply
from kadeploy.admin.replacement import replaced
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.errors import ConfigError
from kadeploy.images import DeploymentSystem
from kadeploy.images.deployment import keymap_of, make_key
from tests.unit.boot.programs import signed_program


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Of no interest here."""
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


@pytest.fixture
def root(open_folder: Path) -> Path:
    """What the HTTP server shows; another account keeps it."""
    folder = open_folder / "http"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    return folder


@pytest.fixture
def configuration(site_folder: Path, tmp_path: Path, root: Path) -> Configuration:
    """A site whose keys and boot folders are really there."""
    key = make_key(tmp_path / "keys" / "site_ed25519", "site")
    make_key(tmp_path / "keys" / deployment_system.HOST_KEY, "host")
    path = site_folder / "site.yml"
    lines = path.read_text().splitlines()
    values = {"private_key": key, "http_root": root, "http_url": "http://10.0.0.1/boot/"}
    for name, value in values.items():
        assert any(line.strip().startswith(f"{name}:") for line in lines), name
        lines = [f"  {name}: {value}" if line.strip().startswith(f"{name}:") else line for line in lines]
    path.write_text("\n".join(lines) + "\n")
    return load_configuration(site_folder)


@pytest.fixture
def system(tmp_path: Path) -> DeploymentSystem:
    tree = tmp_path / "tree"
    (tree / "usr/lib/modules/6.1.0-9-amd64").mkdir(parents=True)
    (tree / "init").write_bytes(b"x" * 5000)
    os.link(tree / "init", tree / "same")
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_text(f"the {name}")
    public = make_key(tmp_path / "keys" / deployment_system.HOST_KEY, "host").with_suffix(".pub").read_text()
    words = " ".join(public.split()[:2])
    return DeploymentSystem(tmp_path / "kernel", tmp_path / "initrd", tree, words, "key")


def test_kernel_and_initrd_are_put_where_the_clusters_look_for_them(
    configuration: Configuration, system: DeploymentSystem, root: Path, tmp_path: Path
) -> None:
    before = root / "deploy-vmlinuz"
    before.write_text("the former")
    kept = tmp_path / "kept"
    os.link(before, kept)
    found = install(system, configuration, list(configuration.clusters.values()))
    assert found.files == {str(root / "deploy-initrd"): 10, str(root / "deploy-vmlinuz"): 10}
    assert before.read_text() == "the kernel"
    assert kept.read_text() == "the former", "who reads the former file goes on reading it"
    assert {(path.stat().st_uid, path.stat().st_mode & 0o777) for path in root.iterdir()} == {(1234, 0o644)}
    assert (found.linux, found.memory) == ("6.1.0-9-amd64", 8192)


def test_a_link_of_the_folders_owner_leads_root_nowhere(
    configuration: Configuration, system: DeploymentSystem, root: Path, open_folder: Path
) -> None:
    of_root = open_folder / "of-root"
    of_root.mkdir(0o755)
    (root / "boot").symlink_to(of_root)
    path = configuration.folder / "clusters" / "gdx.yml"
    path.write_text(f"{path.read_text()}loader: {{kernel: boot/k, initrd: boot/i}}\n")
    with pytest.raises(ConfigError, match=r"it is written as 1234\."):
        install(system, configuration, [load_configuration(configuration.folder).clusters["gdx"]])
    assert list(of_root.iterdir()) == []


@pytest.mark.parametrize("broken", ["configuration", "kernel", "folder"])
def test_what_cannot_be_done_as_a_whole_changes_neither_boot_files_nor_configuration(
    configuration: Configuration, system: DeploymentSystem, root: Path, broken: str
) -> None:
    (root / "deploy-initrd").write_text("the former")
    changes = edits(configuration, system, {"gdx": "ttyS1,115200"})
    said = ""
    if broken == "configuration":
        with (configuration.folder / "clusters" / "gdx.yml").open("a") as file:
            file.write("# somebody else's\n")
        said = "was changed by somebody else meanwhile"
    elif broken == "kernel":
        system.kernel.unlink()
        said = "No such file"
    else:
        (root / "deploy-vmlinuz").mkdir()
        said = "deploy-vmlinuz: Is a directory"
    before = {path: path.read_text() for path in configuration.folder.rglob("*.yml")}
    with pytest.raises(ConfigError, match=said):
        install(system, configuration, list(configuration.clusters.values()), changes)
    assert {path: path.read_text() for path in configuration.folder.rglob("*.yml")} == before
    assert [path.name for path in root.iterdir() if not path.is_dir()] == ["deploy-initrd"]
    assert (root / "deploy-initrd").read_text() == "the former"


def test_a_kernel_that_cannot_take_its_place_puts_the_former_initrd_back(
    configuration: Configuration, system: DeploymentSystem, root: Path, tmp_path: Path
) -> None:
    """The kernel's place is a mount point, over which nothing can be renamed."""
    for name in ("deploy-initrd", "deploy-vmlinuz"):
        (root / name).write_text(f"the former {name}")
        os.chown(root / name, 1234, 1234)
    before = {path: path.read_text() for path in configuration.folder.rglob("*.yml")}
    (tmp_path / "mounted").write_text("the former deploy-vmlinuz")
    subprocess.run(["mount", "--bind", tmp_path / "mounted", root / "deploy-vmlinuz"], check=True)
    try:
        with pytest.raises(ConfigError, match=r"deploy-vmlinuz: Device or resource busy: it is written as 1234\."):
            install(system, configuration, list(configuration.clusters.values()), edits(configuration, system, {}))
        found = {path.name: path.read_text() for path in root.iterdir()}
    finally:
        subprocess.run(["umount", root / "deploy-vmlinuz"], check=True)
    assert found == {name: f"the former {name}" for name in ("deploy-initrd", "deploy-vmlinuz")}
    assert {path: path.read_text() for path in configuration.folder.rglob("*.yml")} == before


def test_ctrl_c_once_the_files_have_changed_puts_both_back(root: Path, system: DeploymentSystem) -> None:
    (root / "kernel").write_text("the former")
    places = {root / "initrd": (system.initrd, root), root / "kernel": (system.kernel, root)}

    def broken_off() -> None:
        with replaced(places):
            assert (root / "initrd").read_text() == "the initrd"
            assert (root / "kernel").read_text() == "the kernel"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert {path.name: path.read_text() for path in root.iterdir()} == {"kernel": "the former"}


def test_a_file_of_another_account_is_replaced_and_put_back(root: Path, system: DeploymentSystem) -> None:
    """The kernel lets nobody make a second name of it (fs.protected_hardlinks)."""
    (root / "kernel").write_text("root's")
    (root / "kernel").chmod(0o644)

    def broken_off() -> None:
        with replaced({root / "kernel": (system.kernel, root)}):
            assert (root / "kernel").stat().st_uid == 1234
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken_off()
    assert {path.name: path.read_text() for path in root.iterdir()} == {"kernel": "root's"}


def test_initrd_and_kernel_of_a_cluster_change_together(
    configuration: Configuration, system: DeploymentSystem, root: Path
) -> None:
    for name in ("gdx", "nvm"):
        path = configuration.folder / "clusters" / f"{name}.yml"
        path.write_text(f"{path.read_text()}loader: {{kernel: {name}-k, initrd: {name}-i}}\n")
    named = load_configuration(configuration.folder)
    found = install(system, named, list(named.clusters.values()))
    assert list(found.files) == [str(root / name) for name in ("gdx-i", "gdx-k", "nvm-i", "nvm-k")]


def test_a_cluster_that_fetches_it_elsewhere_is_told(
    configuration: Configuration, system: DeploymentSystem, root: Path
) -> None:
    path = configuration.folder / "clusters" / "gdx.yml"
    path.write_text(
        f"{path.read_text()}loader: {{kernel: 'http://10.0.0.1/boot/new/k', initrd: 'http://cdn.site/i'}}\n"
    )
    clusters = [load_configuration(configuration.folder).clusters["gdx"]]
    found = install(system, configuration, clusters)
    assert list(found.files) == [str(root / "new" / "k")]
    assert found.notes == (
        f"clusters/gdx.yml names http://cdn.site/i, which is elsewhere: copy {system.initrd} there.",
    )


def test_under_secure_boot_a_signed_kernel_is_put_where_tftp_serves_it(
    configuration: Configuration, system: DeploymentSystem, root: Path
) -> None:
    path = configuration.folder / "clusters" / "gdx.yml"
    path.write_text(f"{path.read_text()}loader: {{firmware: uefi, profiles: grub, secure_boot: true}}\n")
    secure = load_configuration(configuration.folder)
    tftp = Path(secure.site.boot.tftp_root)
    tftp.mkdir()
    with pytest.raises(ConfigError, match=r"gdx.yml has loader.secure_boot, and this kernel is not signed: nothing is"):
        install(system, secure, [secure.clusters["gdx"]])
    assert list(tftp.iterdir()) == []
    system.kernel.write_bytes(signed_program())
    found = install(system, secure, [secure.clusters["gdx"]])
    assert list(found.files) == [str(tftp / "deploy-initrd"), str(tftp / "deploy-vmlinuz")]
    assert list(root.iterdir()) == []


def test_the_host_key_and_the_serial_line_get_into_the_configuration(
    configuration: Configuration, system: DeploymentSystem
) -> None:
    found = edits(configuration, system, {"gdx": "ttyS1,115200"})
    assert [each.path.name for each in found] == ["site.yml", "gdx.yml"]
    apply(configuration.folder, found)
    after = load_configuration(configuration.folder)
    assert after.site.ssh.host_key == system.host_key_public
    assert after.clusters["gdx"].loader.params.endswith("console=tty0 console=ttyS1,115200")
    assert edits(after, system, {"gdx": "ttyS1,115200"}) == []


def test_consoles_of_before_are_replaced() -> None:
    assert with_console("a console=ttyS0 b", "ttyS1") == "a b console=tty0 console=ttyS1"


def test_the_public_half_is_that_of_the_key(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", "comment")
    assert public_half(key).split()[:2] == (tmp_path / "key.pub").read_text().split()[:2]


def test_a_key_that_is_none_or_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("nonsense\n")
    (tmp_path / "none").chmod(0o600)
    locked = make_key(tmp_path / "locked", "")
    change = ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(locked)]
    subprocess.run(change, check=True, capture_output=True)
    for name in ("none", "absent", "locked"):
        with pytest.raises(ConfigError, match=rf"/{name} \(ssh\.private_key in site\.yml\): .*kadeploy-site init"):
            public_half(tmp_path / name)


def test_memory_is_counted_in_pages_and_a_file_once(system: DeploymentSystem) -> None:
    assert memory(system.tree) == 8192


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(kernel="linux image"), r"--kernel linux image: this is no name of a kernel\."),
        (Recipe(packages=("firmware-x", "--foo")), r"--package --foo: this is no name of a package\."),
        (Recipe(packages=("a,b",)), r"--package a,b"),
        (Recipe(commands=("../sh",)), r"--command \.\./sh"),
        (Recipe(keyboard="zz"), r"there is no keyboard layout 'zz'"),
        (Recipe(keyboard="fr(nonsense)"), r"there is no keyboard layout 'fr\(nonsense\)'"),
        (Recipe(keyboard="$(id)"), r"keyboard '\$\(id\)': expected a layout"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_built(
    recipe: Recipe, said: str, configuration: Configuration, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        build(configuration, recipe, tmp_path / "cache", None, print)


def test_without_a_host_key_nothing_is_built(configuration: Configuration, tmp_path: Path) -> None:
    (tmp_path / "keys" / deployment_system.HOST_KEY).unlink()
    with pytest.raises(ConfigError, match=r"deployment_host_ed25519, the deployment system's host key, is not there"):
        build(configuration, Recipe(), tmp_path / "cache", None, print)


def test_keyboard_layouts_differ() -> None:
    assert len({keymap_of(layout) for layout in ("us", "fr", "de(nodeadkeys)")}) == 3


def test_a_cluster_that_calls_itself_other_than_its_file_is_changed_in_that(
    configuration: Configuration, system: DeploymentSystem
) -> None:
    file = configuration.folder / "clusters" / "gdx.yml"
    file.write_text(f"name: other\n{file.read_text()}")
    found = edits(load_configuration(configuration.folder), system, {"other": "ttyS1,115200"})
    assert [each.path for each in found] == [configuration.folder / "site.yml", file]
