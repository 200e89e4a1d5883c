"""All resources of the original that there are, and the answer to what is refused at them."""

from __future__ import annotations

from collections.abc import Sequence

from litestar import Controller

from kadeploy.server.original.environments import EnvironmentController
from kadeploy.server.original.operations import (
    ConsoleController,
    DeploymentController,
    PowerController,
    RebootController,
)
from kadeploy.server.original.rights import RightController
from kadeploy.server.original.site import NodeController, SiteController
from kadeploy.server.original.statistics import StatisticsController

CONTROLLERS: Sequence[type[Controller]] = (
    SiteController,
    NodeController,
    EnvironmentController,
    RightController,
    StatisticsController,
    DeploymentController,
    RebootController,
    PowerController,
    ConsoleController,
)
