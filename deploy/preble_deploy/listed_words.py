"""Options whose value is a list: as an operator writes it, and what it may hold."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from preble_worker.config import KV_TIERS


def words(value: Any) -> Any:
    """Lists may be given as one string, split at commas and blanks."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(word for item in value for word in str(item).replace(",", " ").split())
    return value


def _address(value: str) -> str:
    bare = value.removeprefix("grpc://")
    host, _, port = bare.rpartition(":")
    if "/" in bare or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{value!r} is no gRPC address; allowed: HOST:PORT")
    return bare


def _address_words(value: Any) -> Any:
    some = words(value)
    return tuple(_address(word) for word in some) if isinstance(some, tuple) else some


def _tier_words(value: Any) -> Any:
    some = words(value)
    unknown = [word for word in some if word not in KV_TIERS] if isinstance(some, tuple) else []
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no tier; allowed: {', '.join(KV_TIERS)}")
    return some


Addresses = Annotated[tuple[str, ...], BeforeValidator(_address_words)]
Tiers = Annotated[tuple[str, ...], BeforeValidator(_tier_words)]
