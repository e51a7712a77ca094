"""The client SDK's requests as messages of `preble.v1`, and its answers as values.

Both clients share this file; it does no I/O. It checks only what the wire cannot carry, or would
carry with another meaning: the router checks the rest, and its answer names the field.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preble import wire
from preble.errors import InvalidRequest, PeerError
from preble.page_keys import pack_tokens, unpack_tokens
from preble.results import (
    ClusterState,
    ClusterWorker,
    Completion,
    CompletionChunk,
    RouteCandidate,
    RouteExplanation,
    ServedModel,
    TreeSize,
)
from preble.types import Usage, WorkerState
from preble.v1 import cluster_pb2, inference_pb2
from preble.v1.worker_pb2 import SamplingParams

Prompt = str | Sequence[int] | npt.NDArray[np.integer]
"""Text, which the router tokenizes, or token ids, which are used as they are."""

_CONDITIONS = {
    cluster_pb2.WORKER_STATE_UNREACHABLE: WorkerState.UNREACHABLE,
    cluster_pb2.WORKER_STATE_JOINING: WorkerState.JOINING,
    cluster_pb2.WORKER_STATE_READY: WorkerState.READY,
    cluster_pb2.WORKER_STATE_DRAINING: WorkerState.DRAINING,
    cluster_pb2.WORKER_STATE_SUSPECT: WorkerState.SUSPECT,
}


def generate_request(
    prompt: Prompt,
    *,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
    ignore_eos: bool = False,
    namespace: str = "",
    priority: int = 0,
    model: str = "",
    request_id: str = "",
    ttft_slo_seconds: float | None = None,
    tbt_slo_seconds: float | None = None,
    top_logprobs: int | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> inference_pb2.GenerateRequest:
    """A request to generate; `Client.generate` documents the arguments.

    Raises:
        InvalidRequest: the wire cannot carry a value.
    """
    if max_tokens is not None and max_tokens < 1:
        # On the wire 0 means the rest of the context.
        raise InvalidRequest(f"max_tokens must be at least 1, not {max_tokens}", field="max_tokens")
    if top_p <= 0:
        # On the wire 0 means 1.
        raise InvalidRequest(f"top_p must lie in (0, 1], not {top_p}", field="top_p")
    request = inference_pb2.GenerateRequest(
        model=model,
        **_prompt(prompt),
        sampling=SamplingParams(
            max_tokens=_unsigned("max_tokens", max_tokens or 0),
            temperature=temperature,
            top_p=top_p,
            top_k=_unsigned("top_k", top_k),
            ignore_eos=ignore_eos,
            stop_token_ids=[_unsigned("stop_token_ids", token) for token in stop_token_ids],
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            top_logprobs=None if top_logprobs is None else _unsigned("top_logprobs", top_logprobs),
        ),
        stop=[stop] if isinstance(stop, str) else list(stop),
        namespace=namespace,
        priority=_integer("priority", priority, low=-(2**31), high=2**31 - 1),
        request_id=request_id,
        ttft_slo_seconds=ttft_slo_seconds,
        tbt_slo_seconds=tbt_slo_seconds,
    )
    if seed is not None:
        request.seed = _unsigned("seed", seed, bits=64)
    return request


def tokenize_request(text: str, model: str) -> inference_pb2.TokenizeRequest:
    """Ask for the token ids of `text`."""
    return inference_pb2.TokenizeRequest(model=model, text=text)


def detokenize_request(token_ids: Prompt, model: str) -> inference_pb2.TokenizeRequest:
    """Ask for the text of `token_ids`."""
    if isinstance(token_ids, str):
        raise InvalidRequest("token_ids must be token ids, not text", field="token_ids")
    return inference_pb2.TokenizeRequest(model=model, tokens=_pack("token_ids", token_ids))


def explain_request(
    prompt: Prompt, *, namespace: str, max_tokens: int | None
) -> cluster_pb2.ExplainRouteRequest:
    """Ask where `prompt` would go."""
    return cluster_pb2.ExplainRouteRequest(
        **_prompt(prompt),
        namespace=namespace,
        max_tokens=_unsigned("max_tokens", max_tokens or 0),
    )


def _prompt(prompt: Prompt) -> dict[str, Any]:
    """The member of the message's `prompt` that carries it."""
    return {"text": prompt} if isinstance(prompt, str) else {"tokens": _pack("prompt", prompt)}


def _pack(field: str, ids: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    # Bytes are a sequence of integers to Python; here they are a mistake.
    array = np.asarray([] if isinstance(ids, (bytes, bytearray)) else ids)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise InvalidRequest(f"{field} must be text or a sequence of token ids", field=field)
    if int(array.min()) < 0 or int(array.max()) > 0xFFFF_FFFF:
        raise InvalidRequest(f"{field} has a token id outside of 0 ... 2**32 - 1", field=field)
    return pack_tokens(array)


def _unsigned(field: str, value: int, *, bits: int = 32) -> int:
    return _integer(field, value, low=0, high=2**bits - 1)


def _integer(field: str, value: int, *, low: int, high: int) -> int:
    if not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InvalidRequest(f"{field} must lie in {low} ... {high}, not {value!r}", field=field)
    return int(value)


def chunk(message: inference_pb2.GenerateResponse) -> CompletionChunk:
    """A message of the answer."""
    tokens = tuple(unpack_tokens(message.tokens).tolist())
    logprobs = _logprobs(message)
    reason = wire.finish_from_wire(message.finish_reason)
    if reason is None:
        return CompletionChunk(
            request_id=message.request_id, text=message.text, token_ids=tokens, **logprobs
        )
    return CompletionChunk(
        request_id=message.request_id,
        text=message.text,
        token_ids=tokens,
        **logprobs,
        finish_reason=reason,
        usage=Usage(
            prompt_tokens=message.usage.prompt_tokens,
            completion_tokens=message.usage.completion_tokens,
            cached_tokens=message.usage.cached_tokens,
            predicted_cached_tokens=message.usage.predicted_cached_tokens,
        ),
        worker_id=message.usage.worker_id,
    )


def _logprobs(message: inference_pb2.GenerateResponse) -> dict[str, Any]:
    """The two fields of a chunk that say how likely its tokens were."""
    if not message.logprobs:
        return {}
    chosen = np.frombuffer(message.logprobs, dtype="<f4")
    tokens = unpack_tokens(message.top_tokens).reshape(len(chosen), -1).tolist()
    top = np.frombuffer(message.top_logprobs, dtype="<f4").reshape(len(chosen), -1).tolist()
    return {
        "logprobs": tuple(chosen.tolist()),
        "top_logprobs": tuple(
            dict(zip(ids, values, strict=True)) for ids, values in zip(tokens, top, strict=True)
        ),
    }


def completion(chunks: Sequence[CompletionChunk]) -> Completion:
    """The chunks of one whole answer, joined.

    Raises:
        PeerError: the answer broke off without a finish reason.
    """
    last = chunks[-1] if chunks else None
    if last is None or last.finish_reason is None or last.usage is None:
        raise PeerError("the answer ended without a finish reason")
    return Completion(
        request_id=last.request_id,
        text="".join(piece.text for piece in chunks),
        token_ids=tuple(token for piece in chunks for token in piece.token_ids),
        logprobs=tuple(value for piece in chunks for value in piece.logprobs),
        top_logprobs=tuple(likely for piece in chunks for likely in piece.top_logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        worker_id=last.worker_id or "",
    )


def token_ids(message: inference_pb2.TokenizeResponse) -> list[int]:
    """Token ids of a tokenized text."""
    ids: list[int] = unpack_tokens(message.tokens).tolist()
    return ids


def served_models(message: inference_pb2.ListModelsResponse) -> tuple[ServedModel, ...]:
    """The models a router lists."""
    return tuple(ServedModel(id=m.id, context_tokens=m.context_tokens) for m in message.models)


def cluster_state(message: cluster_pb2.GetClusterResponse) -> ClusterState:
    """A router's account of its cluster."""
    return ClusterState(
        router_id=message.router_id,
        version=message.version,
        policy=message.policy,
        workers=tuple(_worker(worker) for worker in message.workers),
        tree=TreeSize(
            nodes=message.tree.nodes,
            pages=message.tree.pages,
            held_pages=message.tree.held_pages,
            digest=message.tree.digest,
        ),
        live_requests=message.live_requests,
        uptime_seconds=message.uptime_seconds,
    )


_SAME_NAME = (
    "address",
    "live_requests",
    "held_pages",
    "speed_ratio",
    "predicted_cached_tokens_total",
    "actual_cached_tokens_total",
    "silent_seconds",
    "placed_requests_total",
    "snapshots_total",
    "differences_total",
    "held_key_sum",
)


def _worker(message: cluster_pb2.WorkerStatus) -> ClusterWorker:
    same: dict[str, Any] = {name: getattr(message, name) for name in _SAME_NAME}
    return ClusterWorker(
        **same,
        # A state of a later version: not one to send work to.
        condition=_CONDITIONS.get(message.state, WorkerState.SUSPECT),
        spec=wire.hello_from_wire(message.hello) if message.HasField("hello") else None,
        version=message.hello.version,
        engine=message.hello.engine,
        load=wire.load_from_wire(message.load),
    )


def route_explanation(message: cluster_pb2.ExplainRouteResponse) -> RouteExplanation:
    """A router's dry run."""
    return RouteExplanation(
        worker_id=message.worker_id,
        reason=message.reason,
        prompt_tokens=message.prompt_tokens,
        candidates=tuple(
            RouteCandidate(
                worker_id=candidate.worker_id,
                cached_tokens=candidate.cached_tokens,
                terms={term.name: term.value for term in candidate.terms},
            )
            for candidate in message.candidates
        ),
    )
