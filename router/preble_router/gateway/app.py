"""`make_app` is the gateway's door: an ASGI application over a dispatcher."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Route

from preble import __version__
from preble.errors import PrebleError
from preble_router.config import RouterConfig
from preble_router.gateway.completions import CompletionRoutes
from preble_router.gateway.edge import Edge
from preble_router.gateway.errors import on_error
from preble_router.gateway.models import ModelRoutes
from preble_router.gateway.operation import OperationRoutes
from preble_router.metrics import Metrics
from preble_router.prompt_embedding import PromptEmbedder
from preble_router.prompt_encoding import PromptEncoder
from preble_router.tokenizer import Tokenizer

if TYPE_CHECKING:
    from preble_router.dispatch import Dispatcher


def make_app(
    dispatcher: "Dispatcher",
    tokenizer: Tokenizer,
    config: RouterConfig,
    metrics: Metrics,
    *,
    embedder: PromptEmbedder | None = None,
) -> FastAPI:
    """The application. The dispatcher must live in the event loop that serves it.

    Routes are Starlette's own: bodies are validated here, by field, and need no second validation.
    """
    prompts = PromptEncoder(tokenizer, embedder=embedder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        prompts.close()

    routes = [
        *CompletionRoutes(dispatcher, prompts, config, metrics).routes(),
        *ModelRoutes(dispatcher, prompts, config).routes(),
        *OperationRoutes(dispatcher, metrics).routes(),
    ]
    app = FastAPI(
        title="Preble",
        version=__version__,
        routes=routes,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={HTTPException: on_error, PrebleError: on_error},
    )
    paths = [route.path for route in routes if isinstance(route, Route)]
    app.add_middleware(
        Edge,
        paths=paths,
        api_keys=config.api_keys,
        metrics=metrics,
        all_hurry=bool(config.default_timeout_seconds or config.max_queue_seconds),
        check_turn=dispatcher.check_turn,
    )
    return app
