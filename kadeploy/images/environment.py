"""What a built environment is, and its description in the wiki page's form ("Environment description")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kadeploy.errors import ConfigError
from kadeploy.images.archive import COMPRESSION, pack_image

CONSOLE = "console=tty0 console=ttyS0,115200"


@dataclass(frozen=True)
class BuiltEnvironment:
    """An environment in the cache folder; `kernel` and `initrd` are paths inside the image."""

    name: str
    image: Path
    kind: str
    kernel: str
    initrd: str
    kernel_params: str
    filesystem: str
    description_file: Path
    """Ready for ``kaenv3 -a`` and ``kadeploy3 -a``."""


@dataclass(frozen=True)
class Recipe:
    """What the description says of an environment besides where its image is."""

    name: str
    description: str
    kernel: str
    initrd: str
    kernel_params: str = CONSOLE
    filesystem: str = "ext4"
    version: int = 1
    author: str = "kadeploy-lab"


def finish(recipe: Recipe, tree: Path, work: Path, final: Path, kind: str) -> None:
    """Pack `tree` into `work`; the description names the place where the cache keeps it, `final`."""
    image = f"{recipe.name}.{kind}"
    pack_image(tree, work / image, kind)
    (work / f"{recipe.name}.env").write_text(describe(recipe, final / image, kind))


def describe(recipe: Recipe, image: Path, kind: str) -> str:
    """The description, one ``key : value`` a line."""
    fields = {
        "name": recipe.name,
        "version": str(recipe.version),
        "description": recipe.description,
        "author": recipe.author,
        "tarball": f"{image}|{kind}",
        "kernel": recipe.kernel,
        "kernel_params": recipe.kernel_params,
        "initrd": recipe.initrd,
        "fdisktype": "83",
        "filesystem": recipe.filesystem,
        "environment_kind": "linux",
        "visibility": "public",
        "demolishing_env": "0",
    }
    return "".join(f"{key} : {value}\n" for key, value in fields.items())


def found(folder: Path) -> BuiltEnvironment:
    """The environment that `finish` has left in `folder`: its description is the only record."""
    (path,) = folder.glob("*.env")
    fields = dict(line.split(" : ", 1) for line in path.read_text().splitlines())
    kind = fields["tarball"].rpartition("|")[2]
    return BuiltEnvironment(
        name=fields["name"],
        image=folder / f"{fields['name']}.{kind}",
        kind=kind,
        kernel=fields["kernel"],
        initrd=fields["initrd"],
        kernel_params=fields["kernel_params"],
        filesystem=fields["filesystem"],
        description_file=path,
    )


def check_kind(kind: str) -> str:
    """Refuse a kind of image that cannot be built; the answer is `kind` itself."""
    if kind not in COMPRESSION:
        raise ConfigError(f"cannot build an image of kind {kind!r}: one of {', '.join(COMPRESSION)}")
    return kind
