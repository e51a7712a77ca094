"""What probes, scrapers and operators ask: health, readiness, metrics, the cluster's state."""

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from preble import __version__
from preble.errors import NoWorkers
from preble_router.gateway.responses import json_response
from preble_router.metrics import Metrics

if TYPE_CHECKING:
    from preble_router.dispatch import Dispatcher


class OperationRoutes:
    """The endpoints that only look."""

    def __init__(self, dispatcher: "Dispatcher", metrics: Metrics) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics

    def routes(self) -> list[BaseRoute]:
        """What is served here."""
        return [
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.prometheus),
            Route("/cluster", self.cluster),
            Route("/version", self.version),
        ]

    async def health(self, request: Request) -> Response:
        """The process lives."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """A request that came now would find a worker."""
        if not self._dispatcher.is_ready:
            raise NoWorkers("no worker is ready")
        return json_response({"status": "ready"})

    async def prometheus(self, request: Request) -> Response:
        """Metrics, for a scraper."""
        content, content_type = await self._metrics.render(
            self._dispatcher.status(), accept=request.headers.get("accept", "")
        )
        return Response(content, headers={"content-type": content_type})

    async def cluster(self, request: Request) -> Response:
        """Router and workers, as the router sees them."""
        return json_response(self._dispatcher.status())

    async def version(self, request: Request) -> Response:
        """Of this router."""
        return json_response({"version": __version__})
