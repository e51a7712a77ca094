"""Real processes on loopback, killed for real: the shows, held to what they promise."""

import json
import random
from pathlib import Path

from cluster_processes import ClusterProcesses
from shows.router_restart import restart_the_router
from shows.trace import passed, replay_under
from shows.worker_killed import kill_the_busiest


async def test_a_killed_worker_costs_no_stream_a_token(tmp_path: Path) -> None:
    options = ("--max-num-seqs", "8")
    with ClusterProcesses(tmp_path, workers=4, worker_options=options) as cluster:
        outcome = await kill_the_busiest(cluster)
    assert outcome.wrong == []
    assert outcome.in_flight >= 40 and outcome.on_victim > 0 and outcome.without_token > 0
    assert outcome.held_pages_before > 0 == outcome.held_pages_after


async def test_a_restarted_router_finds_the_caches_again(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, workers=4) as cluster:
        outcome = await restart_the_router(cluster)
    assert outcome.failed == []
    assert outcome.share_before > 0.8
    assert outcome.share_after >= 0.95 * outcome.share_before
    assert outcome.pages_after == outcome.pages_before


def test_clients_workers_and_router_count_the_same_cached_tokens(tmp_path: Path) -> None:
    trace = tmp_path / "conversations.jsonl"
    # No multiple of the workers: round robin would keep every conversation where it is.
    trace.write_text("\n".join(_conversations(sessions=13, turns=5)))
    outcomes = [
        replay_under(policy, trace, tmp_path, limit=60, rate=20.0, engine="simulated")
        for policy in ("preble", "round_robin")
    ]
    assert all(outcome.is_exact for outcome in outcomes)
    assert passed(*outcomes)


def _conversations(*, sessions: int, turns: int) -> list[str]:
    """Mooncake lines: conversations that grow by one to three blocks a turn, taken in turns."""
    rng = random.Random(3)
    fresh = iter(range(1, 1_000_000))
    blocks: list[list[int]] = [[0] for _ in range(sessions)]
    lines = []
    for turn in range(turns):
        for session in range(sessions):
            blocks[session] += [next(fresh) for _ in range(rng.randint(1, 3))]
            length = len(blocks[session]) * 512 - rng.randrange(1, 500)
            line = {
                "timestamp": (turn * sessions + session) * 100,
                "input_length": length,
                "output_length": rng.randint(4, 20),
                "hash_ids": blocks[session],
            }
            lines.append(json.dumps(line))
    return lines
