"""The engine's side of the cache's tiers: host memory, and the compact forms.

Which of them a model can have, at what size and price, is decided here when it is loaded; which
request is where, step by step, only the scheduler decides.
"""

import os
from dataclasses import dataclass, replace

import numpy as np

from preble.cost import CostModel
from preble.errors import ConfigError
from preble_worker.batch import Batch
from preble_worker.config import NO_TIERS, TierConfig, WorkerConfig
from preble_worker.copy_lane import make_lane
from preble_worker.hidden_form import HiddenForm, HiddenSource, hidden_page_tokens
from preble_worker.host_pool import HostPool, host_bytes_per_page
from preble_worker.int8_form import Int8Form, int8_page_tokens
from preble_worker.kv_form import KvForm
from preble_worker.kv_pool import KVPool
from preble_worker.mixed_store import Forms

HOST_PAGES_PER_DEVICE_PAGE = 4
HOST_MEMORY_SHARE = 0.25
"""Of the machine's memory, at most, where the operator gave no size."""

COPY_RATES = {"cpu": 5e9, "cuda": 2.5e10}
"""Bytes per second between device and host where the operator knows no better: within a CPU's
memory, and from pinned memory over PCIe 4 with 16 lanes."""


@dataclass(frozen=True, slots=True)
class CacheTiers:
    """What an engine has besides full-precision KV on the device; None for what it has not."""

    host: HostPool | None = None
    hidden: HiddenForm | None = None
    int8: Int8Form | None = None

    @property
    def any(self) -> bool:
        """Whether there is one, so that batches can have moves or conversions."""
        return self.host is not None or bool(self.forms)

    @property
    def forms(self) -> Forms:
        """The compact forms that there are."""
        forms = {KvForm.HIDDEN: self.hidden, KvForm.INT8: self.int8}
        return {kind: form for kind, form in forms.items() if form is not None}

    def begin(self, batch: Batch) -> None:
        """Do what must have happened before the batch is computed, and begin its other moves."""
        if self.host is not None:
            self.host.begin(batch.moves)
        for conversion in batch.conversions:
            if conversion.before is KvForm.HIDDEN:
                assert self.hidden is not None
                if self.int8 is not None:
                    self.int8.clear(conversion.new_pages.astype(np.int64))
                self.hidden.upgrade(conversion)
            else:
                assert self.int8 is not None
                self.int8.shrink(conversion)


NO_CACHE_TIERS = CacheTiers()


def make_tiers(
    config: WorkerConfig, pool: KVPool, source: HiddenSource | str
) -> tuple[CacheTiers, TierConfig]:
    """The tiers that `config.kv_tiers` asks for, with the scheduler's options that fit them.

    Args:
        source: of the model, or why it has none.

    Raises:
        ConfigError: the model cannot have the hidden form, or a size is not possible.
    """
    wanted = config.kv_tiers
    if not wanted:
        return NO_CACHE_TIERS, NO_TIERS
    if "int8" in wanted and "host" not in wanted:
        raise ConfigError("kv_tiers has 'int8', the form of what is in host memory, but no 'host'")
    hidden = _hidden_form(pool, source) if "hidden" in wanted else None
    resident = _int8_form(pool, source) if "int8-resident" in wanted else None
    int8 = "int8" in wanted
    host_pages = _num_host_pages(config, pool, int8=int8) if "host" in wanted else 0
    host = None
    if host_pages:
        lane = make_lane(pool.device, rate=config.copy_rate)
        host = HostPool(pool, lane, num_pages=host_pages, int8=int8)
    rate = config.copy_rate or COPY_RATES[pool.device.type]
    options = TierConfig(
        host_pages=host_pages,
        int8=int8,
        page_bytes=pool.bytes_per_page,
        page_copy_seconds=pool.bytes_per_page / rate,
        hidden_page_tokens=hidden.page_tokens if hidden else 0,
        int8_page_tokens=resident.page_tokens if resident else 0,
    )
    return CacheTiers(host, hidden, resident), options


def with_hidden_cost(cost: CostModel, hidden: HiddenForm | None, parameters: int) -> CostModel:
    """`cost` with what a token in the hidden form adds to a step, where that was not measured: the
    share of a prompt token's work that its projections to K and V are."""
    if hidden is None or cost.per_hidden_token:
        return cost
    share = hidden.num_weights / parameters
    return replace(cost, per_hidden_token=cost.per_prefill_token * share)


def _hidden_form(pool: KVPool, source: HiddenSource | str) -> HiddenForm:
    if isinstance(source, str):
        raise ConfigError(f"kv_tiers has 'hidden', which this model cannot have: {source}")
    shape = pool.shapes[0]
    page_tokens = hidden_page_tokens(shape, width=source.width, page_tokens=pool.page_tokens)
    if page_tokens <= pool.page_tokens:
        raise ConfigError(
            f"kv_tiers has 'hidden', which saves no memory with this model: of a token and layer "
            f"it keeps d_model = {source.width} numbers, keys and values are "
            f"2·n_kv·d_h = {shape.numbers_per_token}"
        )
    return HiddenForm(pool, source)


def _int8_form(pool: KVPool, source: HiddenSource | str) -> Int8Form:
    """What hinders the hidden form but its size hinders any."""
    if isinstance(source, str):
        raise ConfigError(f"kv_tiers has 'int8-resident', which this model cannot have: {source}")
    page_tokens = int8_page_tokens(pool)
    if page_tokens <= pool.page_tokens:
        raise ConfigError(
            f"kv_tiers has 'int8-resident', which saves no memory with pages of {pool.page_tokens} "
            f"tokens: one holds {page_tokens} in 8 bits"
        )
    return Int8Form(pool)


def _num_host_pages(config: WorkerConfig, pool: KVPool, *, int8: bool) -> int:
    if config.host_kv_tokens:
        num_pages = config.host_kv_tokens // config.page_tokens
        if not num_pages:
            raise ConfigError(
                f"host_kv_tokens is {config.host_kv_tokens}, less than a page of "
                f"{config.page_tokens} tokens"
            )
        return num_pages
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = int(memory * HOST_MEMORY_SHARE) // host_bytes_per_page(pool, int8=int8)
    return max(1, min(HOST_PAGES_PER_DEVICE_PAGE * pool.num_pages, most))
