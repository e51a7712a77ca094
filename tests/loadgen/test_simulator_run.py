"""What a simulated run keeps: every request, every token, and itself when it is repeated."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from simulator_helpers import COST, load, options, run

from preble.errors import ConfigError
from preble_loadgen.report import summarize
from preble_loadgen.simulator import simulate
from preble_loadgen.trace_request import Segment, TraceRequest
from preble_router.policies import POLICY_NAMES


def test_equal_runs_have_equal_digests() -> None:
    first, again = run(), run()
    assert first.digest == again.digest
    assert first.records == again.records
    assert first.samples == again.samples


def test_other_processes_hash_strings_otherwise_and_run_the_same() -> None:
    """No set's order may decide anything, in any policy, under any fault."""
    program = """
from simulator_helpers import load, run
from preble_router.policies import POLICY_NAMES
faults = ["death:0@0.7+0.5", "hang:1@2+3", "loss:0.1", "router@4+0.1"]
for policy in POLICY_NAMES:
    print(policy, run(load(60), policy=policy, faults=faults, check_every=0.0).digest)
"""
    tests = str(Path(__file__).parents[1])
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": tests},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and printed != {""}


def test_the_digest_shows_any_difference() -> None:
    digests = {
        run().digest,
        run(policy="random").digest,
        run(policy="random", seed=1).digest,
        run(wire_seconds=0.0006).digest,
        run(load(seed=1)).digest,
    }
    assert len(digests) == 5


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_policy_serves_everything(policy: str) -> None:
    result = run(load(60), policy=policy)
    assert not any(record.error for record in result.records)
    assert result.num_placements == 60


@pytest.mark.parametrize("local_policy", ["fcfs", "lpm", "preble_groups"])
def test_what_workers_took_from_cache_is_what_the_records_say(local_policy: str) -> None:
    result = run(local_policy=local_policy)
    assert sum(w.cached_tokens for w in result.workers) == sum(
        record.cached_tokens for record in result.records
    )
    assert sum(w.prompt_tokens for w in result.workers) == sum(
        record.prompt_tokens for record in result.records
    )
    assert any(worker.cached_tokens for worker in result.workers)


def test_preempted_requests_end_once_too() -> None:
    result = run(load(80, rate=200.0), kv_cache_tokens=1024, num_workers=2)
    assert sum(worker.preemptions for worker in result.workers) > 0


@pytest.mark.parametrize("seed", range(3))
def test_to_skip_ahead_changes_no_token_and_no_time(seed: int) -> None:
    """Under a policy that looks at no report, both ways go through the same states."""
    requests = load(80, rate=30.0, seed=seed)
    single = run(requests, policy="round_robin", report_seconds=0.0)
    skipping = run(requests, policy="round_robin", report_seconds=0.5)
    assert single.num_steps == skipping.num_steps
    assert single.num_calls > 1.5 * skipping.num_calls
    for one, other in zip(_by_index(single.records), _by_index(skipping.records), strict=True):
        assert replace(one, predicted_cached_tokens=0) == replace(other, predicted_cached_tokens=0)


def _by_index(records: list) -> list:  # type: ignore[type-arg]
    return sorted(records, key=lambda record: record.index)


def test_one_request_takes_as_long_as_the_cost_model_says() -> None:
    request = TraceRequest(index=0, line=1, at=0.0, segments=(Segment(1, 700),), output_tokens=3)
    (record,) = run([request], num_workers=1).records
    first = COST.step_seconds(prefill_tokens=512, attention=512 * 256, decodes=0, context_tokens=0)
    attention = 188 * (512 + 94)
    second = COST.step_seconds(prefill_tokens=188, attention=attention, decodes=0, context_tokens=0)
    gaps = [
        COST.step_seconds(prefill_tokens=0, attention=0, decodes=1, context_tokens=context)
        for context in (700, 701)
    ]
    wire = options().wire_seconds
    assert record.first_at == pytest.approx(2 * wire + first + second)
    assert list(record.gaps) == pytest.approx(gaps)
    assert record.ended_at == record.last_at


def test_a_slow_cluster_queues_and_a_large_one_does_not() -> None:
    requests = load(100, rate=60.0)
    small = summarize(run(requests, num_workers=1).records)
    large = summarize(run(requests, num_workers=8).records)
    assert small.ttft.p99 > 3 * large.ttft.p99


def test_samples_tell_the_load_over_time() -> None:
    result = run(sample_every=0.5)
    times = sorted({sample.at for sample in result.samples})
    assert len(result.samples) == 3 * len(times)
    assert times == pytest.approx([0.5 * i for i in range(len(times))])
    assert max(sample.num_running for sample in result.samples) > 1


def test_closed_loop_turns_wait_for_the_answer() -> None:
    rng = random.Random(0)
    requests = [
        TraceRequest(
            index=3 * turn + session,
            line=3 * turn + session + 1,
            at=float(turn),
            segments=(Segment(session, 200), Segment(100 + session, 100 * (turn + 1))),
            output_tokens=rng.randrange(5, 30),
            session=f"s{session}",
            turn=turn,
            think_seconds=0.25 if turn else None,
        )
        for turn in range(4)
        for session in range(3)
    ]
    result = run(requests)
    by_index = {record.index: record for record in result.records}
    for request in requests:
        if request.turn:
            before = by_index[request.index - 3]
            assert by_index[request.index].sent_at == pytest.approx(before.ended_at + 0.25)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="do not fit a worker of 256"):
        simulate(load(3), options(context_tokens=256))
    with pytest.raises(ConfigError, match="no routing policy is named 'best'"):
        simulate(load(3), options(policy="best"))
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        simulate(load(3), options(num_workers=0))
    with pytest.raises(ConfigError, match="there are only 3 workers"):
        simulate(load(3), options(faults=["death:3@1"]))
