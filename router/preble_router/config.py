"""Everything an operator can set about a router, already validated."""

from dataclasses import dataclass
from pathlib import Path

from preble.transport import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Options of one router process.

    Attributes:
        model: name under which clients ask for the model.
        model_path: directory with tokenizer.json, tokenizer_config.json and config.json.
        host, port: of the HTTP gateway. grpc_port: of the gRPC services, on the same host.
        workers: addresses (host:port) to link to from the start; others announce themselves.
        policy: name of a routing policy.
        length_predictor: name of a predictor of output lengths.
        length_embedder: directory of a sentence encoder, by which `retrieval` finds similar
            prompts; None for hashed n-grams.
        page_tokens: tokens per page of its prefix tree; workers with other pages are not used.
        max_tree_pages: pages of which it knows who holds them; beyond it, what was used long ago is
            forgotten, of the namespaces that have most.
        max_live_requests: requests accepted and not ended; beyond it 429.
        max_queue_seconds: a request whose first token is predicted to take longer is refused with
            429; 0 for no limit.
        default_timeout_seconds: of a request that states none; 0 for none. One that cannot end in
            its time is refused with 429.
        slow_reader_seconds: a stream of which nothing was read for so long, though there is output,
            is cut off; 0 for never.
        default_max_tokens: of a request that states none.
        max_body_bytes: largest body of an HTTP request; beyond it 413.
        silence_seconds: a worker's step loop silent for longer (its predicted step time added)
            is suspended.
        max_attempts: placements of one request in all.
        api_keys: bearer tokens accepted on HTTP and gRPC; empty accepts everybody.
        worker_token: bearer token to present to workers, "" for none.
        worker_ca: CA file for TLS towards workers; None for plain text.
        journal: file that records every scheduler input, for replay; None for none. One that is
            there is kept as FILE.previous.
        drain_seconds: how long running requests may go on after SIGTERM.
    """

    model: str
    model_path: Path
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    router_id: str = "router"
    workers: tuple[str, ...] = ()
    policy: str = "preble"
    length_predictor: str = "mean"
    length_embedder: Path | None = None
    page_tokens: int = 16
    max_tree_pages: int = 1 << 24
    max_live_requests: int = 4096
    max_queue_seconds: float = 0.0
    default_timeout_seconds: float = 0.0
    slow_reader_seconds: float = 60.0
    default_max_tokens: int = 256
    max_body_bytes: int = 16 * 1024 * 1024
    silence_seconds: float = 1.5
    max_attempts: int = 3
    seed: int = 0
    api_keys: tuple[str, ...] = ()
    worker_token: str = ""
    worker_ca: Path | None = None
    tls: Tls | None = None
    journal: Path | None = None
    drain_seconds: float = 30.0
    log_level: str = "info"

    def deadline(self, stated: float | None, *, now: float) -> float | None:
        """When a request must have ended: as it states, else by default."""
        if stated is None and self.default_timeout_seconds:
            return now + self.default_timeout_seconds
        return stated

    def start_by(self, *, now: float) -> float | None:
        """When a request that comes now must have its first token."""
        return now + self.max_queue_seconds if self.max_queue_seconds else None
