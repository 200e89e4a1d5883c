"""Which files a client has to send: all that a request and its environment name, and nothing that is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from kadeploy.environments.environment import Archive, Environment, FileSystem, Image
from kadeploy.operations.named_files import named
from kadeploy.operations.requests import DeployRequest, Described, PowerRequest, RebootRequest, Recorded, Wish
from kadeploy.runner.request import CustomOperation, Options
from tests.unit import build

WORDS = ("file", "upload", "archive", "image", "tarball", "path", "initrd", "kernel")
"""What is in the name of a field that could hold the name of a file."""
FILES = {
    ("Image", "file"),
    ("Archive", "file"),
    ("CustomOperation", "file"),
    ("DeployRequest", "uploads"),
    ("RebootRequest", "uploads"),
}
"""Fields that name files of the user's; `full` fills each of them."""
OTHERS = {
    ("DeployRequest", "files"),  # what was sent of them
    ("RebootRequest", "files"),
    ("Environment", "image"),  # holds an Image
    ("FileSystem", "image"),
    ("Environment", "kernel"),  # paths in the image
    ("Environment", "kernel_params"),
    ("Environment", "initrd"),
    ("Options", "pxe_profile"),  # a text
    ("FileSystem", "filesystem"),
    ("Environment", "filesystem"),
}
"""Fields that sound like it."""


def structs(kind: Any, seen: dict[str, inspect.StructType]) -> dict[str, inspect.StructType]:
    """All structs that a type leads to, by name."""
    if isinstance(kind, inspect.StructType):
        if kind.cls.__name__ in seen:
            return seen
        seen[kind.cls.__name__] = kind
    for each in _parts(kind):
        structs(each, seen)
    return seen


def _parts(kind: Any) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.StructType):
        yield from (field.type for field in kind.fields)
    for name in ("types", "item_types"):
        yield from getattr(kind, name, ())
    for name in ("item_type", "key_type", "value_type"):
        if hasattr(kind, name):
            yield getattr(kind, name)


def test_no_field_of_a_request_that_may_name_a_file_is_forgotten() -> None:
    found: dict[str, inspect.StructType] = {}
    for kind in get_args(Wish):
        structs(inspect.type_info(kind), found)
    assert {"DeployRequest", "Options", "Environment", "FileSystem", "Archive", "CustomOperation"} <= set(found)
    sounding = {
        (name, field.name)
        for name, kind in found.items()
        for field in kind.fields
        if any(word in field.name for word in WORDS)
    }
    assert sounding == FILES | OTHERS, "say in named_files whether a client has to send this"


def names_in(value: Any) -> Iterator[str]:
    """What stands in the fields of `FILES`, wherever they are in *value*."""
    if isinstance(value, tuple):
        for each in value:
            yield from names_in(each)
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            content = getattr(value, field)
            if (type(value).__name__, field) in FILES:
                yield from filter(None, [content] if isinstance(content, str) else content)
            else:
                yield from names_in(content)


def full() -> tuple[Environment, Options]:
    """An environment and options with a file in every place."""
    own = Image(file="/own.tgz", kind="tgz")
    environment = build.environment(
        image=Image(file="/image.tgz", kind="tgz"),
        preinstall=Archive(file="/pre.tgz", kind="tgz"),
        postinstalls=(Archive(file="/post1.tgz", kind="tgz"), Archive(file="/post2.tgz", kind="tgz")),
        partitions=(
            FileSystem(id=0, device="/dev/sda3"),
            FileSystem(id=1, device="/dev/sda5", filesystem="xfs", image=own),
        ),
    )
    where: dict[str, str] = {"implementation": "SetDeploymentEnv", "micro_step": "reboot"}
    operations = (
        CustomOperation(**where, action="send", file="/sent", destination="/tmp"),  # type: ignore[arg-type]
        CustomOperation(**where, action="run", file="/run.sh"),  # type: ignore[arg-type]
        CustomOperation(**where, action="exec", command="true"),  # type: ignore[arg-type]
    )
    return environment, Options(custom_operations=operations, pxe_profile="x")


@pytest.mark.parametrize("recorded", [False, True])
def test_every_file_that_a_deployment_names_is_sent(recorded: bool) -> None:
    environment, options = full()
    wanted: Recorded | Described = Recorded(name="tiny") if recorded else Described(environment=environment)
    request = DeployRequest(user="alice", nodes=("n",), environment=wanted, options=options, uploads=("~/k", "i"))
    found = named(request, environment if recorded else None)
    everything = [*names_in(environment), *names_in(options), *request.uploads]
    assert len(everything) == 9
    assert sorted(found) == sorted(everything)
    assert recorded or sorted(names_in(request)) == sorted(everything)


def test_a_reboot_needs_its_uploads_its_operations_and_the_image_that_holds_the_kernel() -> None:
    environment, options = full()
    request = RebootRequest(
        user="alice",
        nodes=("n",),
        kind="env_recorded",
        environment=Recorded(name="tiny"),
        options=options,
        uploads=("~/k",),
    )
    assert named(request, environment) == ["/image.tgz", "/sent", "/run.sh", "~/k"]
    simple = msgspec.structs.replace(request, environment=None, kind="simple_reboot")
    assert named(simple) == ["/sent", "/run.sh", "~/k"]


def test_a_power_operation_needs_no_file() -> None:
    assert named(PowerRequest(user="alice", nodes=("n",), operation="on")) == []


def test_a_file_is_named_once_and_what_the_service_has_itself_is_left_out() -> None:
    environment = build.environment(
        image=Image(file="HTTP://host/i.tgz", kind="tgz"),
        preinstall=Archive(file="server:///srv/pre.tgz", kind="tgz"),
        postinstalls=(Archive(file="/post.tgz", kind="tgz"), Archive(file="/post.tgz", kind="tgz", script="go")),
    )
    uploads = ("https://host/k", "/post.tgz", "file:///k", "local:///k", "SERVER:///srv/k", "relative")
    request = build.deploy_request(environment=Described(environment=environment), uploads=uploads)
    assert named(request) == ["/post.tgz", "file:///k", "local:///k", "relative"]
