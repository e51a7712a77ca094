"""The client SDK: `Client` and, for asyncio, `AsyncClient`, over gRPC.

The examples run as they stand against a cluster on this machine (`preble serve demo`). Failures
are the classes of `preble.errors`, whatever carried them.
"""

# ruff: noqa: ASYNC109 - a timeout here is the deadline that the call carries to the router.

from collections.abc import Callable, Sequence
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from preble import _messages
from preble._connection import (
    AsyncCompletionStream,
    CompletionStream,
    ConnectOptions,
    GenerateOptions,
    connection,
    restored,
)
from preble._messages import Prompt
from preble.results import ClusterState, Completion, RouteExplanation, ServedModel
from preble.v1 import cluster_pb2, inference_pb2
from preble.v1.cluster_pb2_grpc import ClusterStub
from preble.v1.inference_pb2_grpc import InferenceStub

__all__ = ["AsyncClient", "AsyncCompletionStream", "Client", "CompletionStream"]


class Client:
    """A blocking client of one router. Threads may share it.

    >>> from preble import Client
    >>> with Client() as client:
    ...     answer = client.generate("Once upon a time", max_tokens=8, ignore_eos=True)
    >>> len(answer.token_ids), str(answer.finish_reason)
    (8, 'length')

    Args:
        address: host:port of the router's gRPC services, `grpc://` before it allowed, `grpcs://`
            for TLS. Default: the environment's PREBLE_GRPC_ADDRESS, else 127.0.0.1:8001.
        token: bearer token. Default: the environment's PREBLE_API_KEY, else none.
        ca: file with the certificates to trust; implies TLS.
        certificate, key: files that identify this client, for mutual TLS.
        timeout: seconds each call may take in all, unless the call says otherwise.

    Raises:
        ConfigError: an argument cannot be used. Nothing is connected yet.
    """

    def __init__(self, address: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        self._connection = connection(address, **options)
        self._channel = self._connection.open()
        self._inference = InferenceStub(self._channel)
        self._cluster = ClusterStub(self._channel)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """The whole answer to `prompt`.

        Args:
            prompt: text, or token ids (any sequence of integers, or a NumPy array).
            max_tokens: output tokens at most. Default: the rest of the model's context.
            temperature: 0 is greedy. Default 1.
            top_p: in (0, 1]. Default 1, which keeps all tokens.
            top_k: default 0, which keeps all tokens.
            seed: makes the answer repeatable. Default: drawn by the router.
            stop: a text or several; output ends before the first of them.
            stop_token_ids: tokens that end the output.
            ignore_eos: go on after the end of the sequence.
            namespace: tenant; cached prefixes are shared within one only.
            priority: higher runs first. Default 0.
            model: a name of `models()`. Default: the only one.
            request_id: for logs and traces. Default: drawn by the router.
            ttft_slo_seconds, tbt_slo_seconds: objectives for the time to the first token and
                between tokens, where the workers' local policy knows them. Default: the workers'.
            top_logprobs: give each token's log probability, and those of so many of the likeliest
                in its place, at most 20. Default: none.
            presence_penalty: from -2 to 2, taken off the logit of each token that the output has.
                Default 0.
            frequency_penalty: the same once for each time that the output has it. Default 0.
            timeout: seconds until the request is given up. Default: the client's.

        Raises:
            InvalidRequest, PromptTooLong, ModelNotFound, Unauthenticated: change the request.
            Overloaded, NoWorkers, WorkerFailed (all CapacityError): try again after the error's
                `retry_after_seconds`.
            DeadlineExceeded: `timeout` passed first.
        """
        with self.stream(prompt, **options) as chunks:
            return _messages.completion(list(chunks))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> CompletionStream:
        """The answer in pieces as they come; arguments and errors are those of `generate`.

        >>> from preble import Client
        >>> client = Client()
        >>> for chunk in client.stream("Once upon a time", max_tokens=8):
        ...     piece = chunk.text
        >>> chunk.usage.prompt_tokens > 0
        True
        """
        request, call_options = self._connection.generate_call(prompt, options)
        return CompletionStream(self._inference.Generate(request, **call_options))

    def tokenize(self, text: str, *, model: str = "", timeout: float | None = None) -> list[int]:
        """Token ids of `text`, special tokens as the model's tokenizer adds them.

        >>> from preble import Client
        >>> client = Client()
        >>> client.detokenize(client.tokenize("Once upon a time"))
        'Once upon a time'
        """
        request = _messages.tokenize_request(text, model)
        return _messages.token_ids(self._call(self._inference.Tokenize, request, timeout))

    def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", timeout: float | None = None
    ) -> str:
        """Text of `token_ids`."""
        request = _messages.detokenize_request(token_ids, model)
        return str(self._call(self._inference.Tokenize, request, timeout).text)

    def models(self, *, timeout: float | None = None) -> tuple[ServedModel, ...]:
        """The models the cluster serves.

        >>> from preble import Client
        >>> [model.context_tokens > 0 for model in Client().models()]
        [True]
        """
        request = inference_pb2.ListModelsRequest()
        return _messages.served_models(self._call(self._inference.ListModels, request, timeout))

    def cluster(self, *, timeout: float | None = None) -> ClusterState:
        """The router, its workers and their load, now.

        >>> from preble import Client
        >>> state = Client().cluster()
        >>> any(worker.condition == "ready" for worker in state.workers)
        True
        """
        request = cluster_pb2.GetClusterRequest()
        return _messages.cluster_state(self._call(self._cluster.GetCluster, request, timeout))

    def explain(
        self,
        prompt: Prompt,
        *,
        namespace: str = "",
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> RouteExplanation:
        """Where `prompt` would go now, and why. Nothing is generated or booked.

        >>> from preble import Client
        >>> Client().explain("Once upon a time").worker_id != ""
        True
        """
        request = _messages.explain_request(prompt, namespace=namespace, max_tokens=max_tokens)
        answer = self._call(self._cluster.ExplainRoute, request, timeout)
        return _messages.route_explanation(answer)

    def add_worker(self, address: str, *, timeout: float | None = None) -> None:
        """Have the router link to the worker at `address`, host:port. Raises `InvalidRequest`."""
        request = cluster_pb2.AddWorkerRequest(address=address)
        self._call(self._cluster.AddWorker, request, timeout)

    def drain_worker(
        self,
        worker_id: str,
        *,
        deadline_seconds: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Give a worker nothing more, and end it when its requests have ended. Returns at once.

        Args:
            deadline_seconds: from now until what still runs there goes on elsewhere, from where it
                is. Default: the worker's own drain time.

        Raises:
            WorkerNotFound: no worker of that name is linked.
        """
        request = cluster_pb2.DrainWorkerRequest(
            worker_id=worker_id, deadline_seconds=deadline_seconds
        )
        self._call(self._cluster.DrainWorker, request, timeout)

    def remove_worker(self, worker_id: str, *, timeout: float | None = None) -> None:
        """Have the router forget a worker; its requests go on elsewhere. Raises `WorkerNotFound`.

        The worker's process runs on, and other routers keep it.
        """
        request = cluster_pb2.RemoveWorkerRequest(worker_id=worker_id)
        self._call(self._cluster.RemoveWorker, request, timeout)

    def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: object, timeout: float | None) -> Any:
        try:
            return method(request, **self._connection.call_options(timeout))
        except grpc.RpcError as error:
            raise restored(error) from None


class AsyncClient:
    """A client of one router for asyncio; arguments, answers and errors are those of `Client`.

    >>> import asyncio
    >>> from preble import AsyncClient
    >>> async def main() -> int:
    ...     async with AsyncClient() as client:
    ...         prompts = ["Once upon a time", "In the beginning"]
    ...         calls = [client.generate(text, max_tokens=4, ignore_eos=True) for text in prompts]
    ...         return sum(len(answer.token_ids) for answer in await asyncio.gather(*calls))
    >>> asyncio.run(main())
    8

    It belongs to the event loop in which its first call is made, and may be made before that.
    """

    def __init__(self, address: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        self._connection = connection(address, **options)
        self._channel: grpc.aio.Channel | None = None
        self._stubs: tuple[InferenceStub, ClusterStub] | None = None

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """The whole answer to `prompt`; cancelling the task cancels the request."""
        async with self.stream(prompt, **options) as chunks:
            return _messages.completion([chunk async for chunk in chunks])

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncCompletionStream:
        """The answer in pieces as they come. Call it from within the event loop.

        >>> import asyncio
        >>> from preble import AsyncClient
        >>> async def first_words() -> str:
        ...     client, text = AsyncClient(), ""
        ...     async for chunk in client.stream("Once upon a time", max_tokens=100):
        ...         text += chunk.text
        ...         if len(text) > 10:
        ...             break  # the router stops generating
        ...     await client.close()
        ...     return text
        >>> asyncio.run(first_words()) != ""
        True
        """
        request, call_options = self._connection.generate_call(prompt, options)
        return AsyncCompletionStream(self._inference.Generate(request, **call_options))

    async def tokenize(
        self, text: str, *, model: str = "", timeout: float | None = None
    ) -> list[int]:
        """Token ids of `text`, special tokens as the model's tokenizer adds them."""
        request = _messages.tokenize_request(text, model)
        method = self._inference.Tokenize
        return _messages.token_ids(await self._call(method, request, timeout))

    async def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", timeout: float | None = None
    ) -> str:
        """Text of `token_ids`."""
        request = _messages.detokenize_request(token_ids, model)
        method = self._inference.Tokenize
        return str((await self._call(method, request, timeout)).text)

    async def models(self, *, timeout: float | None = None) -> tuple[ServedModel, ...]:
        """The models the cluster serves."""
        method = self._inference.ListModels
        request = inference_pb2.ListModelsRequest()
        return _messages.served_models(await self._call(method, request, timeout))

    async def cluster(self, *, timeout: float | None = None) -> ClusterState:
        """The router, its workers and their load, now."""
        method = self._cluster.GetCluster
        request = cluster_pb2.GetClusterRequest()
        return _messages.cluster_state(await self._call(method, request, timeout))

    async def explain(
        self,
        prompt: Prompt,
        *,
        namespace: str = "",
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> RouteExplanation:
        """Where `prompt` would go now, and why. Nothing is generated or booked."""
        request = _messages.explain_request(prompt, namespace=namespace, max_tokens=max_tokens)
        method = self._cluster.ExplainRoute
        return _messages.route_explanation(await self._call(method, request, timeout))

    async def add_worker(self, address: str, *, timeout: float | None = None) -> None:
        """Have the router link to the worker at `address`."""
        request = cluster_pb2.AddWorkerRequest(address=address)
        await self._call(self._cluster.AddWorker, request, timeout)

    async def drain_worker(
        self,
        worker_id: str,
        *,
        deadline_seconds: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Give a worker nothing more, and end it when its requests have ended or moved."""
        request = cluster_pb2.DrainWorkerRequest(
            worker_id=worker_id, deadline_seconds=deadline_seconds
        )
        await self._call(self._cluster.DrainWorker, request, timeout)

    async def remove_worker(self, worker_id: str, *, timeout: float | None = None) -> None:
        """Have the router forget a worker; its requests go on elsewhere."""
        request = cluster_pb2.RemoveWorkerRequest(worker_id=worker_id)
        await self._call(self._cluster.RemoveWorker, request, timeout)

    async def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def _inference(self) -> InferenceStub:
        return self._opened()[0]

    @property
    def _cluster(self) -> ClusterStub:
        return self._opened()[1]

    def _opened(self) -> tuple[InferenceStub, ClusterStub]:
        """gRPC ties a channel to the loop that runs when it is made: so not in __init__."""
        if self._stubs is None:
            self._channel = self._connection.open_async()
            self._stubs = InferenceStub(self._channel), ClusterStub(self._channel)
        return self._stubs

    async def _call(
        self, method: Callable[..., Any], request: object, timeout: float | None
    ) -> Any:
        try:
            return await method(request, **self._connection.call_options(timeout))
        except grpc.RpcError as error:
            raise restored(error) from None
