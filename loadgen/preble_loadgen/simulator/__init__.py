"""A cluster under a virtual clock: the production schedulers on a pretend wire.

    agenda       what happens when: a heap of calls
    worker       one worker: a LocalScheduler whose engine is the cost model
    router       the router's duties around a GlobalScheduler: attempts, liveness, ticks
    sessions     who asks when: arrivals of a trace, open and closed loop
    faults       what goes wrong, on request
    simulation   all of it put together: `simulate`

Pure: the same trace, options and seed give the same run to the last bit, told by its digest.
"""

from preble_loadgen.simulator.faults import Fault, parse_fault
from preble_loadgen.simulator.options import SimulationOptions
from preble_loadgen.simulator.result import LoadSample, SimulationResult
from preble_loadgen.simulator.simulation import simulate

__all__ = [
    "Fault",
    "LoadSample",
    "SimulationOptions",
    "SimulationResult",
    "parse_fault",
    "simulate",
]
