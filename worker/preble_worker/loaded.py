"""What the worker's shell gets from an engine factory: the engine, and what it dictates."""

from dataclasses import dataclass

from preble.cost import CostModel
from preble_worker.batch import Engine
from preble_worker.config import SchedulerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine that is ready to run, with the scheduler options that fit it.

    Attributes:
        scheduler: options as configured, with sizes the engine chose where the operator left them
            open (pages of the KV pool, context, token budget) and the model's eos tokens.
        cost: predicts the engine's steps, here and at the routers.
        name: "torch" or "simulated".
    """

    engine: Engine
    scheduler: SchedulerConfig
    cost: CostModel
    vocab_size: int
    name: str
