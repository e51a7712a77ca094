"""`preble profile`, from the command line to the file, on an engine whose truth is known."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from deploy_helpers import Outcome, run_here, write

from preble.cost import CostModel
from preble.cost_library import load_cost_model
from preble_loadgen import profiling
from preble_loadgen.profile_plan import StepShape, plan_steps
from preble_worker.batch import Batch, predicted_seconds
from preble_worker.config import SchedulerConfig, WorkerConfig
from preble_worker.loaded import LoadedEngine

TRUTH = CostModel(
    name="truth",
    fixed=2e-3,
    per_prefill_token=3e-5,
    per_attention=5e-8,
    per_decode=1e-4,
    per_context_token=6e-7,
)
TERMS = ("fixed", "per_prefill_token", "per_attention", "per_decode", "per_context_token")
SMALL = (
    *("--engine", "simulated", "--rounds", "1"),
    *("--kv-cache-tokens", "8192", "--max-num-batched-tokens", "256", "--max-num-seqs", "8"),
)


class KnownEngine:
    """Takes as long as the truth says, times up to `noise`, on a clock of its own."""

    def __init__(self, truth: CostModel, noise: float) -> None:
        self.now = 0.0
        self.batches: list[tuple[Sequence[int], Sequence[int], int]] = []
        self._truth = truth
        self._noise = noise
        self._rng = random.Random(1)

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        factor = 1.0 + self._rng.uniform(-self._noise, self._noise)
        self.now += predicted_seconds(self._truth, batch) * factor
        self.batches.append((batch.starts.tolist(), batch.counts.tolist(), batch.num_decodes))
        return np.full(np.count_nonzero(batch.samples), 5, dtype=np.int64)


Profile = Callable[..., Outcome]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / "config.json", '{"vocab_size": 500, "max_position_embeddings": 8192}')
    write(folder / "tokenizer.json", "{}")
    return folder


@pytest.fixture
def profile(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Profile:
    """Runs `preble profile` on a known engine, and returns what came of it."""

    def run(*words: str, truth: CostModel = TRUTH, noise: float = 0.0) -> Outcome:
        engine = KnownEngine(truth, noise)

        def load(config: WorkerConfig) -> LoadedEngine:
            return replace(real_load(config), engine=engine)

        real_load = profiling.load_engine
        with monkeypatch.context() as patch:
            patch.setattr(profiling, "load_engine", load)
            patch.setattr(profiling, "perf_counter", lambda: engine.now)
            return run_here(capsys, "profile", str(model), *SMALL, *words)

    return run


def test_known_coefficients_are_recovered(profile: Profile, tmp_path: Path) -> None:
    out = tmp_path / "fitted.json"
    outcome = profile("--out", str(out), noise=0.02)
    assert outcome.status == 0, outcome.err
    found = load_cost_model(out)
    for term in TERMS:
        assert getattr(found, term) == pytest.approx(getattr(TRUTH, term), rel=0.1), term
    assert not found.roofline
    assert found.source.startswith("measured ")
    assert "linear" in outcome.out and "R²" in outcome.out
    assert (tmp_path / "fitted.png").read_bytes().startswith(b"\x89PNG")


def test_a_roofline_engine_gets_a_roofline(profile: Profile, tmp_path: Path) -> None:
    truth = replace(TRUTH, roofline=True, weight_read=5e-3, per_context_token=2e-6)
    out = tmp_path / "fitted.json"
    outcome = profile("--out", str(out), "--quick", truth=truth)
    assert outcome.status == 0, outcome.err
    found = load_cost_model(out)
    assert found.roofline
    for prompt in (16.0, 100.0, 256.0):
        assert found.prefill_seconds(prompt, 0.0) == pytest.approx(
            truth.prefill_seconds(prompt, 0.0), rel=0.02
        )
    assert found.decode_seconds(500, 8) == pytest.approx(truth.decode_seconds(500, 8), rel=0.02)


@pytest.mark.parametrize("roofline", [False, True])
def test_compact_forms_are_measured_where_they_are_asked_for(
    profile: Profile, tmp_path: Path, roofline: bool
) -> None:
    truth = replace(TRUTH, per_hidden_token=4e-6, per_int8_token=5e-6)
    if roofline:
        truth = replace(truth, roofline=True, weight_read=5e-3, per_context_token=2e-6)
    out = tmp_path / "fitted.json"
    words = ("--out", str(out), "--cost-model", "opt-13b-a100-40gb")
    assert profile(*words, "--quick", truth=truth).status == 0
    assert load_cost_model(out).per_hidden_token == load_cost_model(out).per_int8_token == 0.0
    outcome = profile(*words, "--hidden-form", "--int8-form", truth=truth, noise=0.02)
    assert outcome.status == 0, outcome.err
    assert load_cost_model(out).per_hidden_token == pytest.approx(4e-6, rel=0.1)
    assert load_cost_model(out).per_int8_token == pytest.approx(5e-6, rel=0.1)
    assert "hidden form: " in outcome.out and "times as long" in outcome.out
    assert "int8: " in outcome.out


def test_a_model_without_hidden_form_says_so(profile: Profile, tmp_path: Path) -> None:
    outcome = profile("--out", str(tmp_path / "x.json"), "--hidden-form")
    assert outcome.status == 2
    assert "saves no memory" in outcome.complaint


def test_a_noisy_engine_is_refused_and_nothing_is_written(profile: Profile, tmp_path: Path) -> None:
    out, plot = tmp_path / "fitted.json", tmp_path / "residuals.png"
    outcome = profile("--out", str(out), "--plot", str(plot), noise=0.7)
    assert outcome.status == 1
    assert "held-out step" in outcome.complaint
    assert "over 15%" in outcome.complaint
    assert "Nothing is written" in outcome.complaint
    assert not out.exists()
    assert plot.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--out", "/no/such/folder/x.json"), "/no/such/folder is no directory"),
        (("--out", "x.json", "--cpu-time"), "--cpu-time needs --engine torch"),
        (("--out", "x.json", "--rounds", "0"), "--rounds"),
        ((), "--out is missing"),
        (("--out", "x.json", "--cost-model", "llama-9"), "llama-3-8b-h100"),
    ],
)
def test_options_that_cannot_be_used(profile: Profile, words: tuple[str, ...], says: str) -> None:
    outcome = profile(*words)
    assert outcome.status == 2
    assert says in outcome.complaint


def test_too_small_a_scheduler_leaves_too_few_steps(profile: Profile, tmp_path: Path) -> None:
    words = ("--max-num-batched-tokens", "16", "--kv-cache-tokens", "64", "--max-num-seqs", "1")
    outcome = profile("--out", str(tmp_path / "x.json"), *words)
    assert outcome.status == 2
    assert "kinds of steps to measure" in outcome.complaint


def test_measured_steps_are_those_planned(profile: Profile, tmp_path: Path) -> None:
    """What reaches the engine: the planned chunk behind the planned context, and nothing else."""
    engine = KnownEngine(TRUTH, 0.0)
    loaded = load_small(engine)
    bench = profiling.StepBench(loaded, clock=lambda: engine.now)
    shape = StepShape(prefills=((40, 256), (100, 0)), decodes=(70, 200, 31))
    step = bench.measure(shape, num_warm=1, num_timed=3)
    assert len(engine.batches) == 4
    for number, (starts, counts, num_decodes) in enumerate(engine.batches):
        assert num_decodes == 3
        assert counts == [1, 1, 1, 40, 100]
        assert starts[3:] == [256, 0]
        contexts = sorted(start - number for start in starts[:3])
        assert [c - planned for c, planned in zip(contexts, (31, 70, 200), strict=True)] < [9] * 3
    assert (step.kind, step.prefill_tokens, step.decodes) == ("mixed", 140, 3)
    assert step.attention == 40 * (256 + 20) + 100 * 50
    assert step.seconds == pytest.approx(step.predicted(TRUTH))


def load_small(engine: Any) -> LoadedEngine:
    return LoadedEngine(
        engine=engine,
        scheduler=SchedulerConfig(num_pages=256, max_batch_tokens=256, max_sequences=8),
        cost=TRUTH,
        vocab_size=500,
        name="simulated",
    )


@pytest.mark.parametrize("quick", [False, True])
def test_every_planned_step_fits_the_scheduler(quick: bool) -> None:
    engine = KnownEngine(TRUTH, 0.0)
    loaded = load_small(engine)
    bench = profiling.StepBench(loaded, clock=lambda: engine.now)
    shapes = plan_steps(loaded.scheduler, quick=quick)
    assert {shape.kind for shape in shapes} == {"prefill", "decode", "mixed"}
    assert len(set(shapes)) == len(shapes)
    for shape in shapes:
        bench.measure(shape, num_warm=1, num_timed=1)


def test_the_written_file_is_a_cost_model_for_the_worker(profile: Profile, tmp_path: Path) -> None:
    out = tmp_path / "fitted.json"
    assert profile("--out", str(out), "--quick").status == 0
    again = profile("--out", str(tmp_path / "again.json"), "--quick", "--cost-model", str(out))
    assert again.status == 0
    assert json.loads(out.read_text())["name"] == "model on a simulated engine"
