"""What users ask for, as plain data: nothing here opens a file, knows a process, or belongs to one machine."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kadeploy.config.cluster import Implementation
from kadeploy.environments.environment import MAX_VERSION, Environment
from kadeploy.runner.request import Options

RebootKind = Literal["simple_reboot", "set_pxe", "deploy_env", "env_recorded"]
Level = Literal["soft", "hard", "very_hard"]
PowerOperation = Literal["on", "off", "status"]


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict about unknown fields: a misspelt wish is refused, not forgotten. ``type`` says which kind it is."""


class Recorded(_Struct, frozen=True, kw_only=True, tag="recorded"):
    """A recorded environment by its name; by default the highest version that the user may see."""

    name: str
    """Or ``name@user:version%arch``, or an alias."""
    version: Annotated[int, msgspec.Meta(ge=0, le=MAX_VERSION)] | None = None
    owner: str | None = None
    arch: str | None = None


class Described(_Struct, frozen=True, kw_only=True, tag="described"):
    """An environment that is described in the request itself, and not recorded."""

    environment: Environment


class DeployRequest(_Struct, frozen=True, kw_only=True, tag="deploy"):
    """What ``kadeploy3`` asks for."""

    user: str = ""
    """Whose rights count, and whose recorded environments; empty: who asks."""
    nodes: tuple[str, ...]
    environment: Recorded | Described
    options: Options = msgspec.field(default_factory=Options)
    uploads: tuple[str, ...] = ()
    """Paths and URLs of ``-x``."""
    files: dict[str, str] = {}
    """SHA-256 of what the client has sent, by the name that the request has for it."""
    force_steps: dict[str, tuple[Implementation, ...]] | None = None
    """Implementations by macro-step in place of the cluster's."""
    ignore_nodes_deploying: bool = False
    hook: bool = True
    host_keys: bool = False
    """Collect the host keys of the systems that were deployed (``--known-hosts``)."""


class RebootRequest(_Struct, frozen=True, kw_only=True, tag="reboot"):
    """What ``kareboot3`` asks for."""

    user: str = ""
    nodes: tuple[str, ...]
    kind: RebootKind
    level: Level = "soft"
    wait: bool = True
    environment: Recorded | None = None
    """For env_recorded."""
    check_production: bool = False
    """``-c``: refuse when the production system cannot have survived."""
    options: Options = msgspec.field(default_factory=Options)
    uploads: tuple[str, ...] = ()
    files: dict[str, str] = {}
    """As in `DeployRequest`."""
    ignore_nodes_deploying: bool = False
    hook: bool = True


class PowerRequest(_Struct, frozen=True, kw_only=True, tag="power"):
    """What ``kapower3`` asks for."""

    user: str = ""
    nodes: tuple[str, ...]
    operation: PowerOperation
    level: Level = "soft"
    wait: bool = True
    ignore_nodes_deploying: bool = False
    debug: bool = False
    hook: bool = True


Wish = DeployRequest | RebootRequest | PowerRequest
