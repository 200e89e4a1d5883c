"""``/metrics``: numbers of the site and of this process, in the text formats of Prometheus and OpenMetrics."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from typing import Any

from litestar import Request, Response, get
from litestar.types import ASGIApp, Message, Receive, Send
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kadeploy import __version__
from kadeploy.config.folder import Configuration
from kadeploy.config.service import Service
from kadeploy.server.auth import Connection
from kadeploy.server.census import Census, gauge
from kadeploy.server.front_ends import is_within, network
from kadeploy.server.site import of as site_of
from kadeploy.server.site import shown

Asked = Request[Any, Any, Any]

PATH = "/metrics"
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
"""Methods that are told by name: whoever calls may send any word."""
OTHER = "other"
"""Stands for any other method, and for any path at which there is nothing."""
UNAVAILABLE = 503
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: upper bounds of the histogram of requests."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which hardly anybody stores


class Metrics:
    """The numbers of one site that this process serves."""

    def __init__(self) -> None:
        self._census = Census()
        self._own = CollectorRegistry()
        """What this process counts by itself."""
        asked = ("method", "route", "status")
        self._requests = Counter("kadeploy_api_requests", "Requests answered.", asked, registry=self._own)
        self._seconds = Histogram(
            "kadeploy_api_request_seconds",
            "Seconds until the answer to a request began.",
            asked[:2],
            buckets=BUCKETS,
            registry=self._own,
        )
        self._unavailable = Counter(
            "kadeploy_api_unavailable",
            "Requests answered with 503: the database, or the configuration, could not be used.",
            registry=self._own,
        )
        ProcessCollector(registry=self._own)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request has been answered, after so many seconds; *route* is the template of its path."""
        known = method if method in METHODS else OTHER
        self._requests.labels(known, route or OTHER, str(status)).inc()
        self._seconds.labels(known, route or OTHER).observe(seconds)
        self._unavailable.inc(status == UNAVAILABLE)

    def text(self, configuration: Configuration, consoles: int, accept: str) -> tuple[bytes, str]:
        """All numbers in the form that the header *accept* asks for, and its media type; so many *consoles* are open.

        Raises:
            DatabaseError: the database cannot be used.
        """
        counted = self._census.metrics(configuration)
        encode, kind = choose_encoder(accept)
        return encode(_All([*_about(consoles), *counted, *self._own.collect()])), kind


class _All(Collector):
    """What has been collected, as one."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        return self._found


def _about(consoles: int) -> Iterator[Metric]:
    build = {(__version__, platform.python_version()): 1.0}
    yield gauge("kadeploy_build_info", "Which version this is; always 1.", ("version", "python"), build)
    yield gauge("kadeploy_consoles", "Consoles that are open.", (), {(): consoles})


@get(PATH, sync_to_thread=True, include_in_schema=False)
def metrics(request: Asked) -> Response[bytes]:
    """All numbers, for whoever may call, or who calls from where the site lets others read them too."""
    site = site_of(request)
    if not may_read_unnamed(shown(request), site.configuration.site.service):
        site.caller(request)
    found: Metrics = request.scope["state"][_METRICS]
    text, kind = found.text(site.configuration, site.consoles.number, request.headers.get("accept", ""))
    return Response(text, media_type=kind)


def may_read_unnamed(connection: Connection, service: Service) -> bool:
    """Whether who calls may read the numbers without saying who they are, by the address they call from."""
    sources = [network(each, "service.metrics_from") for each in service.metrics_from]
    shows = "authorization" in connection.headers
    return connection.uid is None and not shows and is_within(connection.address, sources)


_METRICS = "kadeploy_metrics"
"""Key of `Metrics` in the state of a request's scope."""


class Measured:
    """Counts each answer, and how long it took until it began: the answer to who follows a run has no end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._metrics = Metrics()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass the request on; consoles, which are no requests of this kind, are left alone."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        scope["state"][_METRICS] = self._metrics

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("path_template", "")
                self._metrics.answered(scope["method"], route, message["status"], time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, noting)
