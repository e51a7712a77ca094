"""The SDK's client, from the options of a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from preble.client import Client
from preble.errors import CapacityError, DeadlineExceeded, PrebleError
from preble_deploy.client_settings import ClientOptions


@contextmanager
def connected(settings: ClientOptions) -> Iterator[Client]:
    """A client of the router that the options name.

    Raises:
        PrebleError: nobody answers there.
    """
    try:
        with Client(
            settings.grpc_address,
            token=settings.api_key,
            ca=settings.router_ca,
            timeout=settings.timeout_seconds,
        ) as client:
            yield client
    except (CapacityError, DeadlineExceeded) as error:
        if type(error) not in (CapacityError, DeadlineExceeded):
            raise
        reason = str(error).splitlines()[0]
        raise PrebleError(
            f"no router answers at {settings.grpc_address} (see --router): {reason}"
        ) from None


def plain(value: Any) -> Any:
    """`value` with what JSON knows only: enumerations by name, tuples as lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
