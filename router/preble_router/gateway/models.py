"""`/v1/models`, `/tokenize` and `/detokenize`: what a model is, and how it reads text."""

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from preble.errors import InvalidRequest, ModelNotFound
from preble.page_keys import num_tokens, unpack_tokens
from preble_router.config import RouterConfig
from preble_router.gateway.body import read_object
from preble_router.gateway.fields import Fields
from preble_router.gateway.messages import read_messages
from preble_router.gateway.requests import read_token_ids
from preble_router.gateway.responses import json_response
from preble_router.prompt_encoding import PromptEncoder

if TYPE_CHECKING:
    from preble_router.dispatch import Dispatcher


def check_model(model: str, served: str) -> None:
    """Clients may leave the name out: one model is served."""
    if model not in ("", served):
        raise _not_found(model, served)


def _not_found(model: str, served: str) -> ModelNotFound:
    return ModelNotFound(f"the model {model!r} is not served here; {served!r} is")


class ModelRoutes:
    """The endpoints that compute nothing on workers."""

    def __init__(
        self, dispatcher: "Dispatcher", prompts: PromptEncoder, config: RouterConfig
    ) -> None:
        self._dispatcher = dispatcher
        self._prompts = prompts
        self._config = config
        self._created = int(time.time())

    def routes(self) -> list[BaseRoute]:
        """What is served here."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        """The one model."""
        return json_response({"object": "list", "data": [self._model_object()]})

    async def model(self, request: Request) -> Response:
        """The one model, by name."""
        model = request.path_params["model"]
        if model != self._config.model:
            raise _not_found(model, self._config.model)
        return json_response(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        return {
            "id": self._config.model,
            "object": "model",
            "created": self._created,
            "owned_by": "preble",
            "max_model_len": self._dispatcher.context_tokens,
        }

    async def tokenize(self, request: Request) -> Response:
        """Token ids of `text` (also called `prompt`) or of `messages`."""
        fields = Fields(await read_object(request, max_bytes=self._config.max_body_bytes))
        messages, text, prompt = (fields.take(name) for name in ("messages", "text", "prompt"))
        if sum(source is not None for source in (messages, text, prompt)) != 1:
            raise InvalidRequest("send one of text, prompt and messages", field="text")
        self._check(fields.string("model"))
        if messages is not None:
            add_generation_prompt = fields.boolean("add_generation_prompt", default=True)
            variables = fields.object("chat_template_kwargs")
            fields.finish({})
            tokens = await self._prompts.encode_chat(
                read_messages(messages),
                add_generation_prompt=add_generation_prompt,
                template_variables=variables,
            )
        else:
            name, value = ("text", text) if text is not None else ("prompt", prompt)
            if not isinstance(value, str):
                raise fields.wrong(name, "a string", value)
            add_special_tokens = fields.boolean("add_special_tokens", default=True)
            fields.finish({})
            tokens = await self._prompts.encode(value, add_special_tokens=add_special_tokens)
        return json_response(
            {
                "tokens": unpack_tokens(tokens).tolist(),
                "count": num_tokens(tokens),
                "max_model_len": self._dispatcher.context_tokens,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """Text of `tokens`."""
        fields = Fields(await read_object(request, max_bytes=self._config.max_body_bytes))
        tokens = read_token_ids(
            fields.take("tokens"), vocab_size=self._prompts.tokenizer.vocab_size, field="tokens"
        )
        self._check(fields.string("model"))
        fields.finish({})
        return json_response({"text": await self._prompts.decode(tokens)})

    def _check(self, model: str) -> None:
        check_model(model, self._config.model)
