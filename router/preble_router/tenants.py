"""Who is charged for a request where tenants share workers fairly, and how much. Pure."""

import hashlib
from collections.abc import Sequence

from preble.fair_share import OUTPUT_WEIGHT
from preble.types import Usage

_DIGEST_CHARS = 12


def tenant_of(api_keys: Sequence[str], *, authorization: str, namespace: str) -> str:
    """The tenant behind a request that was let in.

    Where callers present different API keys, the key says who it is, and no caller can pass for
    another. Where there is one key or none, all callers are as good as one, and the namespace
    they name is all that tells them apart.

    Args:
        api_keys: all that are accepted.
        authorization: the header, as it was checked: "Bearer KEY".

    Returns:
        The namespace, or "key-" and a digest: the name travels and may be shown, the key may not.
    """
    if len(api_keys) < 2:
        return namespace
    key = authorization.partition(" ")[2].strip()
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:_DIGEST_CHARS]}"


def charged_tokens(usage: Usage) -> float:
    """What a request that ended cost its tenant: the prompt tokens that were computed for it, and
    its output. Nothing if it had none: then nobody knows whether it was computed at all."""
    if not usage.completion_tokens:
        return 0.0
    computed = usage.prompt_tokens - usage.cached_tokens
    return max(1, computed) + OUTPUT_WEIGHT * usage.completion_tokens
