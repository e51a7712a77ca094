"""Asks a gateway that we started how far it is. It is ours, so its certificate is not verified."""

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """`answers`: the gateway takes requests. `workers`: how many it may place them on."""

    answers: bool
    workers: int


@dataclass(frozen=True, slots=True)
class GatewayProbe:
    """The gateway at `url`, asked with `api_key` if it has one."""

    url: str
    api_key: str = ""

    async def readiness(self) -> Readiness:
        """What the gateway says now; an unreachable one is not ready."""
        return await asyncio.to_thread(self._readiness)

    def _readiness(self) -> Readiness:
        try:
            workers = _num_ready(json.loads(self._get("/cluster")))
            if workers:
                self._get("/ready")
        except (OSError, HTTPException, ValueError):
            return Readiness(False, 0)
        return Readiness(True, workers)

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path)
        if self.api_key:
            request.add_header("Authorization", f"Bearer {self.api_key}")
        # No proxy: it would not know our loopback.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),
        )
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())


def _num_ready(cluster: dict[str, Any]) -> int:
    return sum(worker.get("state") == "ready" for worker in cluster.get("workers", []))
