"""What goes wrong in a simulation, and that every request ends all the same."""

from pathlib import Path

import pytest
from simulator_helpers import load, options, run

import preble_loadgen.simulator.router as simulated_router
import preble_loadgen.simulator.worker as simulated_worker
from preble.errors import ConfigError
from preble_loadgen.simulator import Fault, SimulationResult, parse_fault
from preble_router import dispatch
from preble_router.config import RouterConfig
from preble_worker import step_loop


def errors(result: SimulationResult) -> list[str]:
    return [record.error for record in result.records if record.error]


def test_requests_of_a_dead_worker_go_elsewhere() -> None:
    result = run(load(200, rate=40.0), faults=["death:0@2"])
    assert not errors(result)
    assert result.num_retries > 0
    late = [record for record in result.records if record.sent_at > 2.1]
    assert late and not any(record.worker_id == "w0" for record in late)


def test_a_worker_that_comes_back_is_used_again_from_an_empty_cache() -> None:
    result = run(load(600, rate=40.0), faults=["death:0@2+1"])
    assert not errors(result)
    late = [record for record in result.records if record.sent_at > 4.0]
    assert any(record.worker_id == "w0" for record in late)
    assert result.num_snapshots >= 3


def test_the_only_worker_is_waited_for() -> None:
    result = run(load(30, rate=40.0), num_workers=1, faults=["death:0@0.3+1"])
    failed = errors(result)
    assert set(failed) <= {"no_workers"}, "those that came while there was none"
    resumed = [r for r in result.records if r.sent_at < 0.3 and r.ended_at > 1.3]
    assert resumed and not any(record.error for record in resumed)


def test_requests_leave_a_worker_that_hangs() -> None:
    result = run(load(200, rate=40.0), faults=["hang:1@2+6"])
    assert not errors(result)
    assert result.num_retries > 0
    assert max(r.ended_at - r.sent_at for r in result.records) < 6.0


def test_a_slow_worker_is_slow_and_gets_less() -> None:
    requests = load(300, rate=30.0)
    calm = run(requests)
    slow = run(requests, faults=["slow:0@0x4"])
    assert not errors(slow)

    def share(result: SimulationResult) -> int:
        return sum(record.worker_id == "w0" for record in result.records)

    assert share(slow) < 0.8 * share(calm)


def test_lost_and_doubled_events_are_made_good_by_snapshots() -> None:
    calm = run()
    lossy = run(faults=["loss:0.2", "duplicate:0.2"])
    assert not errors(lossy)
    assert lossy.num_snapshots > calm.num_snapshots == 3


def test_stale_facts_cost_knowledge_and_nothing_else() -> None:
    result = run(faults=["stale:1"])
    assert not errors(result)
    assert result.digest != run().digest


def test_a_router_restart_fails_what_was_live_and_finds_the_caches_again() -> None:
    result = run(load(300, rate=30.0), faults=["router@4+0.5"], policy="longest_prefix")
    assert set(errors(result)) == {"router_lost"}
    assert result.num_snapshots == 3
    failed_at = [record.sent_at for record in result.records if record.error]
    assert max(failed_at) < 4.5
    # What it predicts is what the workers still hold, though it placed nothing of it itself.
    first = [r for r in result.records if 4.5 < r.sent_at < 5.0]
    assert sum(record.predicted_cached_tokens or 0 for record in first) > 0
    assert sum(r.cached_tokens for r in first) > 0.3 * sum(r.prompt_tokens for r in first)


@pytest.mark.parametrize("policy", ["e2", "preble"])
def test_everything_at_once_is_survived_and_repeatable(policy: str) -> None:
    faults = ["death:0@1+1", "hang:1@3+3", "slow:2@2+2x3", "router@6+0.3", "loss:0.05", "stale:0.3"]
    requests = load(250, rate=25.0)
    results = [run(requests, policy=policy, faults=faults) for _ in range(2)]
    assert results[0].digest == results[1].digest
    assert len(errors(results[0])) < 60


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("death:2@10", Fault(kind="death", worker=2, at=10.0)),
        ("death:2@10+5.5", Fault(kind="death", worker=2, at=10.0, seconds=5.5)),
        ("hang:0@1+2", Fault(kind="hang", at=1.0, seconds=2.0)),
        ("slow:1@0x3", Fault(kind="slow", worker=1, factor=3.0)),
        ("slow:1@0+60x3", Fault(kind="slow", worker=1, seconds=60.0, factor=3.0)),
        ("router@60", Fault(kind="router", at=60.0, seconds=1.0)),
        ("loss:0.01", Fault(kind="loss", probability=0.01)),
        ("stale:1", Fault(kind="stale", seconds=1.0)),
    ],
)
def test_faults_are_read(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text", ["", "death", "hang:0@1", "slow:0@1", "death:0@1x2", "loss:2", "flood:1", "router"]
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is none of"):
        parse_fault(text)


def test_the_drivers_keep_productions_times() -> None:
    assert simulated_router.TICK_SECONDS == dispatch.TICK_SECONDS
    assert simulated_worker.HEARTBEAT_SECONDS == step_loop.HEARTBEAT_SECONDS
    assert simulated_worker.LONG_STEP_SECONDS == step_loop.LONG_STEP_SECONDS
    assert simulated_worker.STARVED_WAIT_SECONDS == step_loop.STARVED_WAIT_SECONDS
    simulated, real = options(), RouterConfig(model="", model_path=Path())
    assert simulated.silence_seconds == real.silence_seconds
    assert simulated.max_attempts == real.max_attempts
    assert simulated.takeover_seconds == dispatch.TAKEOVER_SECONDS


def test_a_slow_worker_is_hardly_used_and_comes_back_when_it_is_cured() -> None:
    requests = load(1650, rate=30.0)
    result = run(requests, num_workers=4, faults=["slow:1@10+15x10"], check_every=0.0)

    def share(begin: float, end: float) -> float:
        """Of what four equal workers would get."""
        sent = [r.worker_id for r in result.records if begin <= r.sent_at < end]
        return 4.0 * sent.count("w1") / len(sent)

    assert share(0.0, 10.0) > 0.8
    assert share(12.0, 25.0) <= 0.1
    assert share(40.0, 55.0) >= 0.85
