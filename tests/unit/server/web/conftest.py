"""A browser without a browser: requests to the pages of a real service, as one user or another."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pytest

from kadeploy.client.address import of_socket
from kadeploy.server.front_ends import AS_USER

Fields = str | list[str]


class Answer(NamedTuple):
    """Of the service."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def where(self) -> str:
        """The page that it leads to."""
        return self.headers.get("location", "")

    @property
    def words(self) -> str:
        """What people read of the page."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.text)).split())


class Browser:
    """Pages of the service at a socket, for one user; root may look as anybody."""

    def __init__(self, path: Path, user: str) -> None:
        self._path, self._user = path, user

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> Answer:
        """The answer to a request."""
        connection = of_socket(str(self._path), {}).connection()
        given = {AS_USER: self._user, **headers}
        if body:
            given["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, body or None, given)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, found, response.read().decode())
        connection.close()
        return answer

    def get(self, path: str, **query: Fields) -> Answer:
        """A page."""
        return self.ask("GET", f"{path}?{urlencode(query, doseq=True)}" if query else path)

    def post(self, path: str, **fields: Fields) -> Answer:
        """The answer to a form, with the token that the user's pages have unless *fields* have another."""
        fields.setdefault("csrf", self.token())
        return self.ask("POST", path, urlencode(fields, doseq=True))

    def token(self) -> str:
        """What the forms of this user's pages bring."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.get("/ui/deploy").text)
        assert found
        return found[1]


@pytest.fixture
def browse(service: Path) -> Callable[[str], Browser]:
    """``browse("alice").get("/ui/nodes")``, at a service on the test's site."""
    return lambda user: Browser(service, user)
