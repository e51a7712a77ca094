"""The router's gRPC services: `Inference` for programs, `Cluster` for operators and workers.

All input is checked here, by field; errors leave with their status and `preble.grpc_status`'s
trailers, `retry-after` among them.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import grpc

from preble import errors, grpc_status
from preble.errors import InvalidRequest, ModelNotFound, NoWorkers, PrebleError
from preble.page_keys import num_tokens
from preble.types import SamplingParams
from preble.v1 import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc
from preble.wire import finish_to_wire, logprobs_to_wire, sampling_from_wire
from preble_router.config import RouterConfig
from preble_router.dispatch import Dispatcher, GenerationRequest
from preble_router.metrics import Metrics
from preble_router.prompt_encoding import PromptEncoder
from preble_router.status import status_to_wire
from preble_router.tenants import charged_tokens, tenant_of
from preble_router.text_generation import TextDelta, TextGeneration, output_budget
from preble_router.validation import (
    check_name,
    check_priority,
    check_sampling,
    check_slo,
    check_stop,
    check_tokens,
)

_log = logging.getLogger(__name__)

INFERENCE = "preble.v1.Inference"
CLUSTER = "preble.v1.Cluster"


@asynccontextmanager
async def errors_as_status(context: Any) -> AsyncIterator[None]:
    """Ends the call with the status of whatever is raised inside."""
    try:
        yield
    except PrebleError as error:
        code = grpc.StatusCode[errors.grpc_status(error)]
        await context.abort(code, str(error), grpc_status.trailers(error))
    except grpc.aio.AbortError:
        raise
    except Exception:
        _log.exception("a call of %s failed", context.peer())
        await context.abort(grpc.StatusCode.INTERNAL, "internal error, see the router's log")


class _Prompts:
    """What both services need to read a prompt."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder

    async def read(self, message: Any, oneof: str) -> bytes:
        """The tokens of a message that holds `text` or `tokens`."""
        kind = message.WhichOneof(oneof)
        if kind is None:
            raise InvalidRequest(f"{oneof} is missing: send text or tokens", field=oneof)
        if kind == "tokens":
            vocab_size = self._encoder.tokenizer.vocab_size
            check_tokens(message.tokens, vocab_size=vocab_size, field="tokens")
            return bytes(message.tokens)
        if not message.text:
            raise InvalidRequest("text must not be empty", field="text")
        return await self._encoder.encode(message.text)


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Text or tokens in, text and tokens out."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        encoder: PromptEncoder,
        config: RouterConfig,
        metrics: Metrics,
    ) -> None:
        self._dispatcher = dispatcher
        self._encoder = encoder
        self._prompts = _Prompts(encoder)
        self._config = config
        self._metrics = metrics

    # Writes rather than yields: a cancelled call then unwinds this very coroutine, at once.
    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        """Generates; see the proto."""
        async with errors_as_status(context):
            arrived_at = monotonic()
            self._check_model(request.model)
            check_stop(request.stop)
            check_name(request.request_id, field="request_id")
            request_id = request.request_id or secrets.token_hex(12)
            generation = TextGeneration(
                self._dispatcher.start(await self._read(request, request_id, context)),
                self._encoder.tokenizer,
                stop=request.stop,
            )
            with self._counted(generation):
                await self._stream(generation, request_id, arrived_at, context)

    async def Tokenize(  # noqa: N802
        self, request: inference_pb2.TokenizeRequest, context: Any
    ) -> inference_pb2.TokenizeResponse:
        """Text to tokens or back."""
        async with errors_as_status(context):
            self._check_model(request.model)
            tokens = await self._prompts.read(request, "input")
            text = request.text
            if request.WhichOneof("input") == "tokens":
                text = await self._encoder.decode(tokens)
        return inference_pb2.TokenizeResponse(tokens=tokens, text=text)

    async def ListModels(  # noqa: N802
        self, request: inference_pb2.ListModelsRequest, context: Any
    ) -> inference_pb2.ListModelsResponse:
        """The one model."""
        context_tokens = self._dispatcher.context_tokens or 0
        model = inference_pb2.Model(id=self._config.model, context_tokens=context_tokens)
        return inference_pb2.ListModelsResponse(models=[model])

    def _check_model(self, name: str) -> None:
        if name not in ("", self._config.model):
            raise ModelNotFound(f"model {name!r} is not served here, only {self._config.model!r}")

    async def _read(
        self, request: inference_pb2.GenerateRequest, request_id: str, context: Any
    ) -> GenerationRequest:
        check_name(request.namespace, field="namespace")
        check_priority(request.priority)
        slos = {name: _read_slo(request, name) for name in ("ttft_slo_seconds", "tbt_slo_seconds")}
        # The caller's stated limit is checked before the prompt is encoded, the rest after.
        sampling = self._read_sampling(request)
        seconds = context.time_remaining()
        deadline_at = None if seconds is None else monotonic() + seconds
        tenant = tenant_of(
            self._config.api_keys,
            authorization=str(dict(context.invocation_metadata()).get("authorization", "")),
            namespace=request.namespace,
        )
        self._dispatcher.check_admission(
            deadline_at=deadline_at, priority=request.priority, tenant=tenant
        )
        tokens = await self._prompts.read(request, "prompt")
        context_tokens = self._dispatcher.context_tokens
        if context_tokens is None:
            raise NoWorkers("no worker is ready")
        max_tokens = output_budget(
            request.sampling.max_tokens or None,
            default=context_tokens,
            num_prompt_tokens=num_tokens(tokens),
            context_tokens=context_tokens,
        )
        return GenerationRequest(
            # A client may send an id twice; a dispatcher must not see one twice.
            request_id=f"{request_id}-{secrets.token_hex(4)}",
            tokens=tokens,
            sampling=replace(sampling, max_tokens=max_tokens),
            namespace=request.namespace,
            priority=request.priority,
            deadline_at=deadline_at,
            tenant=tenant,
            embedding=await self._encoder.embed(tokens),
            **slos,
        )

    def _read_sampling(self, request: inference_pb2.GenerateRequest) -> SamplingParams:
        sampling = sampling_from_wire(request.sampling)
        seed = request.seed if request.HasField("seed") else sampling.seed or secrets.randbits(63)
        sampling = replace(
            sampling,
            seed=seed,
            top_p=sampling.top_p or 1.0,
            max_tokens=sampling.max_tokens or 1,
        )
        check_sampling(sampling)
        return sampling

    async def _stream(
        self, generation: TextGeneration, request_id: str, arrived_at: float, context: Any
    ) -> None:
        last_at: float | None = None
        async for delta in generation:
            if delta.tokens:
                now = monotonic()
                if last_at is None:
                    self._metrics.ttft.observe(now - arrived_at)
                else:
                    self._metrics.inter_token.observe(now - last_at)
                last_at = now
            if delta.text or delta.tokens or delta.finish_reason:
                await context.write(_response(request_id, delta, generation.worker_id))

    @contextmanager
    def _counted(self, generation: TextGeneration) -> Iterator[None]:
        """However the call ends, the generation does too, and is counted."""
        self._metrics.live_requests.inc()
        try:
            yield
        finally:
            generation.cancel()
            self._metrics.live_requests.dec()
            self._metrics.request_generated(generation.usage)
            self._metrics.tenant_charged(generation.tenant, charged_tokens(generation.usage))


def _read_slo(request: inference_pb2.GenerateRequest, field: str) -> float | None:
    seconds: float | None = getattr(request, field) if request.HasField(field) else None  # type: ignore[arg-type]
    check_slo(seconds, field=field)
    return seconds


def _response(request_id: str, delta: TextDelta, worker_id: str) -> inference_pb2.GenerateResponse:
    message = inference_pb2.GenerateResponse(
        request_id=request_id,
        text=delta.text,
        tokens=delta.tokens,
        finish_reason=finish_to_wire(delta.finish_reason),
    )
    logprobs_to_wire(delta.logprobs, message)
    if delta.usage is not None:
        message.usage.prompt_tokens = delta.usage.prompt_tokens
        message.usage.completion_tokens = delta.usage.completion_tokens
        message.usage.cached_tokens = delta.usage.cached_tokens
        message.usage.predicted_cached_tokens = delta.usage.predicted_cached_tokens
        message.usage.worker_id = worker_id
    return message


class ClusterService(cluster_pb2_grpc.ClusterServicer):
    """State and membership."""

    def __init__(
        self, dispatcher: Dispatcher, encoder: PromptEncoder, config: RouterConfig
    ) -> None:
        self._dispatcher = dispatcher
        self._prompts = _Prompts(encoder)
        self._config = config

    async def GetCluster(  # noqa: N802
        self, request: cluster_pb2.GetClusterRequest, context: Any
    ) -> cluster_pb2.GetClusterResponse:
        """Everything there is to know."""
        async with errors_as_status(context):
            status = self._dispatcher.status()
        return status_to_wire(status)

    async def AddWorker(  # noqa: N802
        self, request: cluster_pb2.AddWorkerRequest, context: Any
    ) -> cluster_pb2.AddWorkerResponse:
        """Links to an address; answers before the link is up."""
        async with errors_as_status(context):
            self._dispatcher.add_worker(request.address)
        return cluster_pb2.AddWorkerResponse(router_id=self._config.router_id)

    async def DrainWorker(  # noqa: N802
        self, request: cluster_pb2.DrainWorkerRequest, context: Any
    ) -> cluster_pb2.DrainWorkerResponse:
        """Empties a worker."""
        async with errors_as_status(context):
            deadline = request.deadline_seconds if request.HasField("deadline_seconds") else None
            self._dispatcher.drain_worker(request.worker_id, deadline_seconds=deadline)
        return cluster_pb2.DrainWorkerResponse()

    async def RemoveWorker(  # noqa: N802
        self, request: cluster_pb2.RemoveWorkerRequest, context: Any
    ) -> cluster_pb2.RemoveWorkerResponse:
        """Forgets a worker."""
        async with errors_as_status(context):
            self._dispatcher.remove_worker(request.worker_id)
        return cluster_pb2.RemoveWorkerResponse()

    async def ExplainRoute(  # noqa: N802
        self, request: cluster_pb2.ExplainRouteRequest, context: Any
    ) -> cluster_pb2.ExplainRouteResponse:
        """A placement that does not happen."""
        async with errors_as_status(context):
            check_name(request.namespace, field="namespace")
            tokens = await self._prompts.read(request, "prompt")
            explanation = self._dispatcher.explain(
                tokens, namespace=request.namespace, max_tokens=request.max_tokens
            )
        return cluster_pb2.ExplainRouteResponse(
            worker_id=explanation.placement.worker_id,
            reason=explanation.placement.reason,
            prompt_tokens=num_tokens(tokens),
            candidates=[
                cluster_pb2.RouteCandidate(
                    worker_id=candidate.worker_id,
                    cached_tokens=candidate.cached_tokens,
                    terms=[
                        cluster_pb2.RouteTerm(name=name, value=value)
                        for name, value in candidate.terms.items()
                    ],
                )
                for candidate in explanation.candidates
            ],
        )
