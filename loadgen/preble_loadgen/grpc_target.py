"""A cluster behind its own gRPC services, through the client SDK."""

import time
from pathlib import Path

from preble import AsyncClient
from preble.errors import ConfigError, PrebleError
from preble_loadgen.target import Observation, Question, Served


class GrpcTarget:
    """Sends token ids, and reads tokens; each message may carry several.

    Args:
        url: grpc://host:port, or grpcs:// for TLS.
        timeout: seconds one answer may take.
    """

    def __init__(
        self, url: str, *, token: str = "", ca: Path | None = None, model: str = "", timeout: float
    ) -> None:
        self._url = url
        self._model = model
        self._client = AsyncClient(url, token=token, ca=ca, timeout=timeout)

    async def served(self) -> Served:
        """From ListModels and GetCluster."""
        try:
            models = await self._client.models(timeout=30.0)
            cluster = await self._client.cluster(timeout=30.0)
        except PrebleError as error:
            raise ConfigError(f"cannot use --url {self._url}: {error}") from error
        listed = [model for model in models if self._model in ("", model.id)]
        if not listed:
            wanted = f"the model {self._model!r}" if self._model else "a model"
            raise ConfigError(f"{self._url} does not serve {wanted}")
        self._model = listed[0].id
        vocabularies = [w.spec.vocab_size for w in cluster.workers if w.spec is not None]
        return Served(
            model=self._model,
            context_tokens=listed[0].context_tokens or None,
            vocab_size=min(vocabularies, default=None),
        )

    def prepare(self, question: Question) -> Question:
        """The SDK does all of it when the request is sent."""
        return question

    async def ask(self, prepared: object, observation: Observation) -> None:
        """Sends, and reads to the last message."""
        assert isinstance(prepared, Question)
        try:
            async for chunk in self._client.stream(
                prepared.tokens,
                max_tokens=prepared.output_tokens,
                temperature=0.0,
                seed=prepared.seed,
                ignore_eos=True,
                namespace=prepared.namespace,
                ttft_slo_seconds=prepared.ttft_slo_seconds,
                tbt_slo_seconds=prepared.tbt_slo_seconds,
                model=self._model,
            ):
                if chunk.token_ids:
                    observation.piece(time.perf_counter(), len(chunk.token_ids))
                if chunk.usage is not None:
                    observation.finish_reason = str(chunk.finish_reason)
                    observation.prompt_tokens = chunk.usage.prompt_tokens
                    observation.output_tokens = chunk.usage.completion_tokens
                    observation.cached_tokens = chunk.usage.cached_tokens
                    observation.predicted_cached_tokens = chunk.usage.predicted_cached_tokens
                    observation.worker_id = chunk.worker_id or ""
        except PrebleError as error:
            observation.failed(error.code, str(error))
        if not observation.finish_reason:
            observation.failed("broken off", "the answer ended without a finish reason")

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()
