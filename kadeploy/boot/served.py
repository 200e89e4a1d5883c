"""Where the kernels and initrds of a cluster are: the folder that is served, and how loaders name what is in it.

They come by HTTP. Under Secure Boot they come by TFTP: Debian's signed GRUB speaks nothing else.
"""

from __future__ import annotations

from pathlib import Path

from kadeploy.config.cluster import Loader
from kadeploy.config.site import Site


def setting(loader: Loader) -> str:
    """The key of ``site.yml`` that says which folder it is."""
    return "boot.tftp_root" if loader.secure_boot else "boot.http_root"


def root(site: Site, loader: Loader) -> Path:
    """The folder on this machine."""
    return Path(site.boot.tftp_root if loader.secure_boot else site.boot.http_root)


def base(site: Site, loader: Loader) -> str:
    """URL of that folder, which ends in ``/``."""
    return f"tftp://{site.server_address}/" if loader.secure_boot else site.boot.http_url


def url(site: Site, loader: Loader, name: str) -> str:
    """Where a loader fetches *name*, a file below the folder or a URL; empty stays empty."""
    return name if not name or "://" in name else base(site, loader) + name.lstrip("/")


def path(site: Site, loader: Loader, name: str) -> Path | None:
    """The file on this machine that *name* is; None where it is another machine's."""
    below = name.removeprefix(base(site, loader))
    return None if "://" in below else root(site, loader) / below.lstrip("/")
