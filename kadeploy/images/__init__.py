"""The images of a lab or a site: the deployment system, and environments from Debian packages or container images.

Each is built once and found again in a cache folder by the sha256 of everything that went into it; builds need root.
"""

from __future__ import annotations

from kadeploy.images.debian import build_debian
from kadeploy.images.deployment import DeploymentSystem, build_deployment_system
from kadeploy.images.environment import BuiltEnvironment
from kadeploy.images.tiny import build_tiny

__all__ = ["BuiltEnvironment", "DeploymentSystem", "build_debian", "build_deployment_system", "build_tiny"]
