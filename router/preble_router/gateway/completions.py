"""`/v1/completions` and `/v1/chat/completions`: from a body to tokens, and from tokens to text."""

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import xxhash
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from preble.errors import InvalidRequest, PrebleError
from preble.page_keys import num_tokens
from preble_router.config import RouterConfig
from preble_router.gateway.body import read_object
from preble_router.gateway.generating import EventStream, LiveRequest
from preble_router.gateway.models import check_model
from preble_router.gateway.record import RECORD_KEY, RequestRecord
from preble_router.gateway.requests import CommonFields, read_chat, read_completion
from preble_router.gateway.responses import (
    ChatEncoder,
    CompletionEncoder,
    ResponseEncoder,
    json_response,
)
from preble_router.generation import GenerationRequest
from preble_router.lengths.predictor import Vector
from preble_router.metrics import Metrics
from preble_router.prompt_encoding import PromptEncoder
from preble_router.tenants import tenant_of
from preble_router.text_generation import TextGeneration, output_budget

if TYPE_CHECKING:
    from preble_router.dispatch import Dispatcher

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` in `/v1/completions`; chats have the operator's."""

MAX_TIMEOUT_SECONDS = 86_400


class CompletionRoutes:
    """The endpoints that generate."""

    def __init__(
        self,
        dispatcher: "Dispatcher",
        prompts: PromptEncoder,
        config: RouterConfig,
        metrics: Metrics,
    ) -> None:
        self._dispatcher = dispatcher
        self._prompts = prompts
        self._config = config
        self._metrics = metrics

    def routes(self) -> list[BaseRoute]:
        """What is served here."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completion."""
        chat = read_chat(await read_object(request, max_bytes=self._config.max_body_bytes))
        check_model(chat.common.model, self._config.model)
        deadline_at = _deadline_at(request)
        self._dispatcher.check_admission(
            num_requests=chat.common.num_choices,
            deadline_at=deadline_at,
            priority=chat.common.priority,
            tenant=self._tenant(request, chat.common),
        )
        prompt = await self._prompts.encode_chat(
            chat.messages, template_variables=chat.template_variables
        )
        return await self._generate(
            request,
            [prompt],
            chat.common,
            encoder_class=ChatEncoder,
            default_tokens=self._config.default_max_tokens,
            deadline_at=deadline_at,
        )

    async def completions(self, request: Request) -> Response:
        """OpenAI's text completion."""
        completion = read_completion(
            await read_object(request, max_bytes=self._config.max_body_bytes),
            vocab_size=self._prompts.tokenizer.vocab_size,
        )
        check_model(completion.common.model, self._config.model)
        deadline_at = _deadline_at(request)
        self._dispatcher.check_admission(
            num_requests=len(completion.prompts) * completion.common.num_choices,
            deadline_at=deadline_at,
            priority=completion.common.priority,
            tenant=self._tenant(request, completion.common),
        )
        prompts = [
            prompt if isinstance(prompt, bytes) else await self._prompts.encode(prompt)
            for prompt in completion.prompts
        ]
        return await self._generate(
            request,
            prompts,
            completion.common,
            encoder_class=CompletionEncoder,
            default_tokens=DEFAULT_COMPLETION_TOKENS,
            deadline_at=deadline_at,
        )

    async def _generate(
        self,
        request: Request,
        prompts: Sequence[bytes],
        common: CommonFields,
        *,
        encoder_class: type[ResponseEncoder],
        default_tokens: int,
        deadline_at: float | None,
    ) -> Response:
        record: RequestRecord = request.scope[RECORD_KEY]
        record.streamed, record.user = common.stream, common.user
        # A client may send an id twice; a dispatcher must not see one twice.
        unique_id = f"{record.request_id}-{secrets.token_hex(4)}"
        requests = self._dispatch_requests(
            unique_id,
            prompts,
            [await self._prompts.embed(prompt) for prompt in prompts],
            common,
            default_tokens,
            deadline_at=deadline_at,
            tenant=self._tenant(request, common),
        )
        live = LiveRequest(
            self._start_all(requests, common.stop),
            num_choices=common.num_choices,
            receive=request.receive,
            record=record,
            metrics=self._metrics,
        )
        asked = common.sampling.top_logprobs
        encoder = encoder_class(
            unique_id,
            created=int(time.time()),
            model=self._config.model,
            num_choices=common.num_choices,
            logprobs_of=None if asked is None else self._prompts.tokenizer,
            include_usage=common.include_usage,
        )
        if not common.stream:
            choices = await live.collect(encoder)
            return json_response(encoder.whole(choices), headers=live.headers)
        events = live.events(encoder)
        first = await anext(events)
        return EventStream(first, events, live.headers)

    def _dispatch_requests(
        self,
        unique_id: str,
        prompts: Sequence[bytes],
        embeddings: Sequence[Vector | None],
        common: CommonFields,
        default_tokens: int,
        *,
        deadline_at: float | None,
        tenant: str,
    ) -> list[GenerationRequest]:
        """The choices of the first prompt, then those of the next.

        One after another: where the first is placed, its prompt is expected in the cache, and the
        policy knows that when it places the others; it may still think a second copy worth it.
        """
        requests: list[GenerationRequest] = []
        num_requests = len(prompts) * common.num_choices
        for prompt, embedding in zip(prompts, embeddings, strict=True):
            max_tokens = output_budget(
                common.max_tokens,
                default=default_tokens,
                num_prompt_tokens=num_tokens(prompt),
                context_tokens=self._dispatcher.context_tokens,
            )
            for choice in range(common.num_choices):
                number = f"-{len(requests)}" if num_requests > 1 else ""
                seed = choice_seed(common.sampling.seed, choice)
                requests.append(
                    GenerationRequest(
                        request_id=unique_id + number,
                        tokens=prompt,
                        sampling=replace(common.sampling, max_tokens=max_tokens, seed=seed),
                        namespace=common.namespace,
                        priority=common.priority,
                        deadline_at=deadline_at,
                        ttft_slo_seconds=common.ttft_slo_seconds,
                        tbt_slo_seconds=common.tbt_slo_seconds,
                        tenant=tenant,
                        embedding=embedding,
                    )
                )
        return requests

    def _tenant(self, request: Request, common: CommonFields) -> str:
        return tenant_of(
            self._config.api_keys,
            authorization=request.headers.get("authorization", ""),
            namespace=common.namespace,
        )

    def _start_all(
        self, requests: Sequence[GenerationRequest], stop: Sequence[str]
    ) -> list[TextGeneration]:
        """All of them or none."""
        started: list[TextGeneration] = []
        try:
            for request in requests:
                generation = self._dispatcher.start(request)
                started.append(TextGeneration(generation, self._prompts.tokenizer, stop=stop))
        except PrebleError:
            for text_generation in started:
                text_generation.cancel()
            raise
        return started


def choice_seed(seed: int, choice: int) -> int:
    """Of choice number `choice`, from 0; the first is what the request alone would be."""
    if choice == 0:
        return seed
    return xxhash.xxh3_64_intdigest(choice.to_bytes(8, "little"), seed=seed)


def _deadline_at(request: Request) -> float | None:
    """From `X-Request-Timeout`, seconds from its arrival on; in `time.monotonic` seconds."""
    given = request.headers.get("x-request-timeout")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise InvalidRequest(
            f"X-Request-Timeout must be seconds, above 0 and at most {MAX_TIMEOUT_SECONDS:.0f}, "
            f"not {given!r}",
            field="X-Request-Timeout",
        )
    record: RequestRecord = request.scope[RECORD_KEY]
    return time.monotonic() - (time.perf_counter() - record.started_at) + seconds
