"""How people name an environment: ``name@user:version%arch``, of which all but the name may be missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from kadeploy.errors import OptionError

_WRITTEN = re.compile(
    r"(?P<name>.+?)(?:@(?P<owner>[^@:%\s]+))?(?::(?P<version>[0-9]{1,18}))?(?:%(?P<arch>[A-Za-z0-9_.-]+))?", re.DOTALL
)


class Reference(NamedTuple):
    """A name, or the alias, of an environment; what is None is left open."""

    name: str
    version: int | None = None
    owner: str | None = None
    arch: str | None = None

    def readings(self) -> Iterator[Reference]:
        """What is meant: the name to the letter, since names may hold any sign, else what it is split into.

        Raises:
            OptionError: the name says something else than an option does.

        >>> list(Reference("debian12@deploy:3%x86_64").readings())[1]
        Reference(name='debian12', version=3, owner='deploy', arch='x86_64')
        """
        yield self
        match = _WRITTEN.fullmatch(self.name)
        if match is not None and match["name"] != self.name:
            yield Reference(
                match["name"],
                self._agreed("version", int(match["version"]) if match["version"] else None),
                self._agreed("owner", match["owner"]),
                self._agreed("arch", match["arch"]),
            )

    def _agreed(self, field: str, written: Any) -> Any:
        given = getattr(self, field)
        if None not in (given, written) and given != written:
            raise OptionError(f"{self.name!r} names {field} {written}, and the options {given}: name one of them.")
        return given if written is None else written

    def __str__(self) -> str:
        """As it can be written.

        >>> str(Reference("debian12", 3, "deploy", "x86_64"))
        'debian12@deploy:3%x86_64'
        """
        marks = (("@", self.owner), (":", self.version), ("%", self.arch))
        return self.name + "".join(f"{mark}{value}" for mark, value in marks if value not in (None, ""))
