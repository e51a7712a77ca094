"""Preble: prefix-aware serving of large language models on many GPUs.

This package is the vocabulary shared by all parts, and the client SDK. It is light: importing it
loads neither torch nor ray, and gRPC only with the first use of a client.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preble.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Imports the clients when they are asked for."""
    if name in {"AsyncClient", "Client"}:
        from preble import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the clients too, for completion in an interpreter."""
    return sorted({*globals(), *__all__})
