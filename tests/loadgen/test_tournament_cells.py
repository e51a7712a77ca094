"""The tournament's cells: what is planned, run, kept and read again."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from preble.cost_library import load_cost_model
from preble.errors import ConfigError
from preble_loadgen.simulation_cells import Load
from preble_loadgen.tournament.cell import CellFigures, CellKey
from preble_loadgen.tournament.contests import CONTESTS, REFERENCE, load_of, nominal_rate, slo_of
from preble_loadgen.tournament.plan import PARTS, plan
from preble_loadgen.tournament.run import run_cell, run_missing
from preble_loadgen.tournament.scope import Scope
from preble_loadgen.tournament.store import CellStore
from preble_loadgen.trace_request import Segment, TraceRequest

KEY = CellKey(
    section="failures",
    workload="hot_prefix",
    policy="preble",
    num_workers=1,
    cost_model="qwen3-0.6b-h100",
    rate=0.0,
    load=1.0,
    seed=3,
)
WITHOUT_TRACES = Scope(has=lambda contest: not contest.file and not contest.arrivals_file)
EVERYTHING = Scope(has=lambda contest: True)


def test_a_cell_is_the_same_again_and_survives_its_file(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    cell = run_cell(KEY, None)
    store.put(cell)
    assert store.read() == [cell]
    again = run_cell(KEY, None)
    assert replace(again, wall_seconds=cell.wall_seconds) == cell
    assert cell.num_failed == 0 and sum(cell.worker_requests) == cell.num_requests


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    keys = [KEY, replace(KEY, policy="round_robin")]
    store.put(run_cell(KEY, None))
    done: list[str] = []
    run_missing(store, keys, traces=None, jobs=1, on_done=lambda c: done.append(c.key.policy))
    assert done == ["round_robin"]
    assert store.missing(keys) == []
    run_missing(store, keys, traces=None, jobs=1, on_done=lambda c: done.append(c.key.policy))
    assert done == ["round_robin"]


def test_a_file_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"key": {}}')
    with pytest.raises(ConfigError, match=r"old\.json is no cell of this version"):
        CellStore(tmp_path).read()


def test_every_planned_cell_has_a_file_of_its_own() -> None:
    keys = plan(EVERYTHING)
    assert len({key.file_name for key in keys}) == len(set(keys)) == len(keys)
    assert {key.num_workers for key in keys} == {2, 4, 8, 64, 512}


@pytest.mark.parametrize("part", PARTS)
def test_a_quick_look_at_a_part_is_a_part_of_the_whole(part: str) -> None:
    whole, quick = (plan(replace(WITHOUT_TRACES, quick=quick), (part,)) for quick in (False, True))
    assert quick and set(quick) <= set(whole)
    assert all(not CONTESTS[key.workload].file for key in whole)


def test_a_load_means_the_same_on_a_faster_device() -> None:
    contest = CONTESTS["tool_use"]
    slow, fast = load_cost_model(REFERENCE), load_cost_model("mistral-7b-h100")
    assert nominal_rate(contest, slow) == contest.rate
    speedup = slow.prefill_seconds(2000.0, 0.0) / fast.prefill_seconds(2000.0, 0.0)
    assert nominal_rate(contest, fast) == pytest.approx(contest.rate * speedup)


def test_the_slo_follows_the_prompts() -> None:
    cost = load_cost_model(REFERENCE)

    def ttft(name: str, *prompts: int) -> float:
        requests = [
            TraceRequest(index=0, line=1, at=0.0, segments=(Segment(1, size),), output_tokens=1)
            for size in prompts
        ]
        return slo_of(CONTESTS[name], Load(requests, [0.0] * len(requests)), cost).ttft

    def alone(size: int) -> float:
        return cost.prefill_seconds(float(size), 0.0)

    assert ttft("tool_use", 100) == 1.0
    assert ttft("tool_use", 20_000) == 3.0 * alone(20_000)
    assert ttft("no_sharing", 20_000) == 3.0 * alone(20_000)
    long = (*[1000] * 95, *[30_000] * 5)
    assert ttft("tool_use", *long) == 3.0 * alone(2450)
    assert ttft("no_sharing", *long) == 2.0 * alone(30_000)


def test_a_trace_keeps_its_shape_at_another_rate(tmp_path: Path) -> None:
    rows = "\n".join(f"2023-11-16 18:00:{s:02d}.0000000,100,5" for s in (0, 1, 3, 9))
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}\n"
    (tmp_path / CONTESTS["azure_code"].file).write_text(text)
    key = replace(KEY, workload="azure_code", rate=30.0)
    load = load_of(key, tmp_path)
    gaps = [b - a for a, b in zip(load.arrivals, load.arrivals[1:], strict=False)]
    assert [gap / gaps[0] for gap in gaps] == pytest.approx([1.0, 2.0, 6.0])
    assert 3 / load.arrivals[-1] == pytest.approx(30.0)


def test_a_missing_trace_is_named() -> None:
    with pytest.raises(ConfigError, match=r"azure2023_code.*--traces"):
        load_of(replace(KEY, workload="azure_code", rate=1.0), None)


def test_no_process_outlives_a_killed_tournament(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import multiprocessing, os, time\n"
        "from preble_loadgen.simulation_cells import begin_process\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    with ProcessPoolExecutor(1, mp_context=context, initializer=begin_process) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30.0
    while _lives(child):
        assert time.monotonic() < deadline, "the cell's process lives on"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_families_that_meet_are_counted() -> None:
    key = replace(KEY, workload="families", num_workers=2, policy="longest_prefix")
    assert (run_cell(key, None).meeting_share or 0.0) > 0.9
    assert (run_cell(replace(key, policy="random"), None).meeting_share or 1.0) < 0.7


def test_a_cell_from_before_tiers_keeps_its_file_name() -> None:
    key = replace(KEY, num_workers=4, cost_model=REFERENCE)
    assert key.file_name == "failures-hot_prefix-preble-4w-519aa855fa4d.json"
    for later in (
        replace(key, tiers=("host",)),
        replace(key, length_predictor="oracle"),
        replace(key, length_noise=0.5),
        replace(key, cv=4.0),
    ):
        assert later.file_name != key.file_name


def test_a_file_from_before_tiers_is_read() -> None:
    cell = run_cell(KEY, None)
    fields = json.loads(cell.to_json())
    del fields["worker"]
    for name in ("tiers", "length_predictor", "length_noise", "cv"):
        del fields["key"][name]
    assert CellFigures.from_json(json.dumps(fields)) == cell
