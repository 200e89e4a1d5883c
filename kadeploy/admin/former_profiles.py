"""Boot profiles of nodes as they were, to be put back when a boot of ours in between is over."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from kadeploy.admin import keeper
from kadeploy.boot import profile
from kadeploy.caller import as_user
from kadeploy.config.cluster import Node
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError
from kadeploy.files import replace_file


@dataclass(frozen=True)
class FormerProfiles:
    """What the loaders of nodes found, by file; None where they found none."""

    site: Site
    contents: dict[Path, bytes | None]

    @classmethod
    def of(cls, site: Site, nodes: Iterable[Node]) -> FormerProfiles:
        """Those of *nodes* as they are now; a node without an address has none."""
        contents = {}
        for node in nodes:
            with suppress(ConfigError):
                address = profile.address(node)
                for loader in get_args(profile.Loader):
                    path = Path(site.boot.tftp_root) / profile.file_name(loader, address)
                    contents[path] = _content(path)
        return cls(site, contents)

    def put_back(self, since: FormerProfiles) -> None:
        """Have them as they were, but for those that somebody has changed *since*.

        Raises:
            OSError: one cannot be written.
        """
        with as_user(keeper.of(self.site)):
            for path, content in self.contents.items():
                if content == since.contents[path] or _content(path) != since.contents[path]:
                    continue
                if content is None:
                    path.unlink()
                else:
                    replace_file(path, content, 0o644)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
