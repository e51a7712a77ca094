"""A router in this process that answers the SDK: token i of an answer is prompt sum plus i."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from preble import grpc_status, wire
from preble.cost import CostModel
from preble.errors import PrebleError
from preble.errors import grpc_status as status_name
from preble.page_keys import pack_tokens, unpack_tokens
from preble.transport import Tls, aio_server, listen
from preble.types import FinishReason, LoadReport, WorkerSpec
from preble.v1 import cluster_pb2 as cluster
from preble.v1 import inference_pb2 as inference
from preble.v1.cluster_pb2_grpc import ClusterServicer, add_ClusterServicer_to_server
from preble.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server

SPEC = WorkerSpec(
    worker_id="worker-1",
    epoch=7,
    model="demo",
    page_tokens=16,
    capacity_tokens=4096,
    max_batch_tokens=512,
    max_sequences=8,
    context_tokens=1024,
    vocab_size=256,
    cost=CostModel(
        name="test",
        fixed=1e-3,
        per_prefill_token=1e-5,
        per_attention=1e-9,
        per_decode=1e-4,
        per_context_token=1e-7,
    ),
)


@dataclass
class FakeRouter(InferenceServicer, ClusterServicer):
    """Answers at once, except that a request that ignores eos with max_tokens 999 never ends."""

    requests: list[inference.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    fail_with: PrebleError | None = None
    fail_after: int = 0
    """Messages sent before `fail_with`."""
    plain_status: bool = False
    """Send no trailers."""
    break_off: bool = False
    """End without a finish reason."""
    started: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    deadlines: list[float | None] = field(default_factory=list)
    worker_calls: list[Any] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    """Of worker-1 at the next looks at the cluster, one each; then that of `SPEC`."""

    async def Generate(
        self, request: inference.GenerateRequest, context: Any
    ) -> AsyncIterator[inference.GenerateResponse]:
        self.requests.append(request)
        self.started.set()
        self.metadata.append({k: str(v) for k, v in context.invocation_metadata() or ()})
        self.deadlines.append(context.time_remaining())
        if self.fail_with and not self.fail_after:
            await self._abort(context)
        try:
            async for message in self._answer(request, context):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            # The second where gRPC was sending a message, and so outside of this function.
            self.cancelled.set()
            raise

    async def _answer(
        self, request: inference.GenerateRequest, context: Any
    ) -> AsyncIterator[inference.GenerateResponse]:
        prompt = request.text.encode() if request.text else unpack_tokens(request.tokens).tolist()
        for i in range(request.sampling.max_tokens or 3):
            if self.fail_with and i == self.fail_after:
                await self._abort(context)
            token = pack_tokens([sum(prompt) + i])
            yield inference.GenerateResponse(request_id="r-1", text=f"{i} ", tokens=token)
            if request.sampling.max_tokens == 999:
                await asyncio.sleep(0.01)
        if not self.break_off:
            yield inference.GenerateResponse(
                request_id="r-1",
                finish_reason=wire.finish_to_wire(FinishReason.LENGTH),
                usage=inference.Usage(
                    prompt_tokens=len(prompt),
                    completion_tokens=request.sampling.max_tokens or 3,
                    cached_tokens=2,
                    predicted_cached_tokens=1,
                    worker_id="worker-1",
                ),
            )

    async def _abort(self, context: Any) -> None:
        assert self.fail_with is not None
        code = getattr(grpc.StatusCode, status_name(self.fail_with))
        trailers = () if self.plain_status else grpc_status.trailers(self.fail_with)
        await context.abort(code, str(self.fail_with), trailers)

    async def Tokenize(
        self, request: inference.TokenizeRequest, context: Any
    ) -> inference.TokenizeResponse:
        if request.WhichOneof("input") == "text":
            return inference.TokenizeResponse(tokens=pack_tokens(list(request.text.encode())))
        text = bytes(unpack_tokens(request.tokens).tolist()).decode()
        return inference.TokenizeResponse(text=text)

    async def ListModels(
        self, request: inference.ListModelsRequest, context: Any
    ) -> inference.ListModelsResponse:
        if self.fail_with and not self.fail_after:
            await self._abort(context)
        model = inference.Model(id="demo", context_tokens=1024)
        return inference.ListModelsResponse(models=[model])

    async def GetCluster(
        self, request: cluster.GetClusterRequest, context: Any
    ) -> cluster.GetClusterResponse:
        spec = replace(SPEC, epoch=self.epochs.pop(0)) if self.epochs else SPEC
        ready = cluster.WorkerStatus(
            address="127.0.0.1:9",
            state=cluster.WORKER_STATE_READY,
            hello=wire.hello_to_wire(spec, version="0.1.0", engine="simulated"),
            load=wire.load_to_wire(LoadReport(num_running=3)),
            held_pages=11,
            speed_ratio=1.5,
        )
        return cluster.GetClusterResponse(
            router_id="router",
            policy="preble",
            workers=[ready, cluster.WorkerStatus(address="127.0.0.1:10")],
            tree=cluster.TreeSummary(nodes=1, pages=2, held_pages=3),
            uptime_seconds=2.5,
        )

    async def DrainWorker(
        self, request: cluster.DrainWorkerRequest, context: Any
    ) -> cluster.DrainWorkerResponse:
        self.worker_calls.append(request)
        return cluster.DrainWorkerResponse()

    async def AddWorker(
        self, request: cluster.AddWorkerRequest, context: Any
    ) -> cluster.AddWorkerResponse:
        self.worker_calls.append(request)
        return cluster.AddWorkerResponse()

    async def RemoveWorker(
        self, request: cluster.RemoveWorkerRequest, context: Any
    ) -> cluster.RemoveWorkerResponse:
        self.worker_calls.append(request)
        return cluster.RemoveWorkerResponse()

    async def ExplainRoute(
        self, request: cluster.ExplainRouteRequest, context: Any
    ) -> cluster.ExplainRouteResponse:
        term = cluster.RouteTerm(name="wait", value=0.25)
        candidate = cluster.RouteCandidate(worker_id="worker-1", cached_tokens=16, terms=[term])
        return cluster.ExplainRouteResponse(
            worker_id="worker-1", reason="cached", prompt_tokens=20, candidates=[candidate]
        )


@contextmanager
def serving(
    router: FakeRouter, *, tls: Tls | None = None, tokens: tuple[str, ...] = ()
) -> Iterator[str]:
    """Serves `router` from a thread with its own event loop; yields its address."""
    started: threading.Event = threading.Event()
    state: dict[str, Any] = {}

    async def serve() -> None:
        server = aio_server(tokens)
        add_InferenceServicer_to_server(router, server)  # type: ignore[no-untyped-call]
        add_ClusterServicer_to_server(router, server)  # type: ignore[no-untyped-call]
        state["port"] = listen(server, "localhost:0", tls)
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await server.start()
        started.set()
        await state["stop"].wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    try:
        yield f"localhost:{state['port']}"
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(10)
