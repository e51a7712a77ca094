"""The cache's tiers of a model that is not there: what first principles say of their sizes and
prices, for the engine of sleeps and the simulator."""

from preble.cost import CostModel
from preble.errors import ConfigError
from preble.first_principles import BYTES_PER_NUMBER, PAIRS, DecoderShape, Device, estimated_cost
from preble_worker.config import KV_TIERS, NO_TIERS, TierConfig

HOST_TOKENS_PER_DEVICE_TOKEN = 4
"""Size of the host's pool where the operator gave none."""
INT8_SCALE_BYTES = 4
"""Of the numbers in 8 bits that a token has in a KV head."""


def named_tiers(name: str, tiers: tuple[str, ...], **sizes: float) -> TierConfig:
    """`estimated_tiers` of the model and device that a cost model is of, by the name under which
    Preble offers it or the name that it bears.

    Raises:
        ConfigError: also if it is none from first principles, so that sizes are not known.
    """
    if not tiers:
        return NO_TIERS
    found = PAIRS.get(name) or _borne_by().get(name)
    if found is None:
        raise ConfigError(
            f"kv_tiers: sizes are known only where the cost model is one of "
            f"{', '.join(sorted(PAIRS))}, not for {name!r}"
        )
    model, device = found
    return estimated_tiers(model, device, tiers, cost=estimated_cost(model, device), **sizes)


def _borne_by() -> dict[str, tuple[DecoderShape, Device]]:
    return {estimated_cost(*pair).name: pair for pair in PAIRS.values()}


def estimated_tiers(
    model: DecoderShape,
    device: Device,
    tiers: tuple[str, ...],
    *,
    cost: CostModel,
    kv_tokens: float,
    page_tokens: float,
    host_kv_tokens: float = 0,
    copy_rate: float = 0.0,
) -> TierConfig:
    """What `tiers`, some of KV_TIERS, mean for `model` on `device`.

    Args:
        kv_tokens: size of the device's pool.
        host_kv_tokens: 0 for four times that.
        copy_rate: bytes per second between host and device, 0 for the device's own.

    Raises:
        ConfigError: there is no such tier, or the model cannot have it.
    """
    for tier in tiers:
        if tier not in KV_TIERS:
            raise ConfigError(f"kv_tiers: {tier!r} is none; allowed are {', '.join(KV_TIERS)}")
    if "int8" in tiers and "host" not in tiers:
        raise ConfigError("kv_tiers has 'int8', the form of what is in host memory, but no 'host'")
    if "hidden" in tiers and not model.hidden_saves_memory:
        raise ConfigError(
            f"kv_tiers has 'hidden', which saves no memory with {model.name}: of a token and layer "
            f"it keeps d_model = {model.hidden} numbers, keys and values are "
            f"2·n_kv·d_h = {model.kv_numbers}"
        )
    row = model.head_dim + INT8_SCALE_BYTES
    int8_tokens = int(page_tokens * model.head_dim * BYTES_PER_NUMBER // row)
    host_tokens = host_kv_tokens or HOST_TOKENS_PER_DEVICE_TOKEN * kv_tokens
    page_bytes = int(model.kv_bytes_per_token * page_tokens)
    return TierConfig(
        host_pages=int(host_tokens // page_tokens) if "host" in tiers else 0,
        int8="int8" in tiers,
        page_bytes=page_bytes,
        page_copy_seconds=page_bytes / (copy_rate or device.host_bytes_per_second),
        hidden_page_tokens=int(page_tokens * model.kv_numbers // model.hidden)
        if "hidden" in tiers
        else 0,
        int8_page_tokens=int8_tokens if "int8-resident" in tiers else 0,
        cost=cost,
    )
