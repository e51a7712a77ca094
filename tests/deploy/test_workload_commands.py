"""`preble workload` and `preble analyze`, from the command line to the file and back."""

import json
from pathlib import Path

import pytest
from deploy_helpers import run_here

from preble_deploy.commands import workload as workload_command
from preble_deploy.options import command
from preble_deploy.sources import variable
from preble_deploy.trace_settings import AnalyzeSettings, WorkloadSettings
from preble_loadgen.analysis import analyze
from preble_loadgen.traces import load_trace
from preble_loadgen.workloads import VARIANTS, WORKLOADS, WorkloadOptions, make_workload

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03,48,10
2023-11-16 18:17:04,31,8
2023-11-16 18:17:07,11,27
"""


def test_the_file_is_the_workload(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = "--requests 50 --prefixes 4 --rate 2 --workers 2 --seed 5 --variant zipf --zipf 1.4"
    path = tmp_path / "trace.jsonl.gz"
    outcome = run_here(
        capsys, "workload", "tool_use", *words.split(), "--variant", "drift", "--out", str(path)
    )
    assert (outcome.status, outcome.out) == (0, "")
    assert f"{path}: 50 requests over " in outcome.err
    assert f"preble analyze {path}" in outcome.err
    options = WorkloadOptions(
        requests=50,
        prefixes=4,
        rate=2.0,
        workers=2,
        seed=5,
        variants=frozenset({"zipf", "drift"}),
        zipf=1.4,
    )
    assert load_trace(path).requests == make_workload("tool_use", options).requests


def test_arrivals_and_lengths_of_a_recorded_trace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recorded, path = tmp_path / "azure.csv", tmp_path / "trace.jsonl"
    recorded.write_text(AZURE)
    words = ("--arrivals-from", str(recorded), "--lengths-from", str(recorded), "--rate", "0.5")
    assert run_here(capsys, "workload", "no_sharing", *words, "--out", str(path)).status == 0
    requests = load_trace(path).requests
    assert [(r.segments[0].length, r.output_tokens) for r in requests] == [
        (48, 10),
        (31, 8),
        (11, 27),
    ]
    assert [r.at for r in requests] == [0.0, 1.0, 4.0]


def test_in_flight_and_cv_arrive(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run_here(capsys, "workload", "hot_prefix", "--in-flight", "3", "--out", str(path))
    assert len({r.session for r in load_trace(path).requests}) == 3
    words = ("--variant", "bursty", "--cv", "5", "--requests", "2000", "--out", str(path))
    run_here(capsys, "workload", "no_sharing", *words)
    assert analyze(load_trace(path).requests).arrivals.gap_cv == pytest.approx(5, rel=0.2)


def test_without_a_name_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, "workload")
    assert outcome.status == 0
    for name in WORKLOADS:
        assert name in outcome.out


def test_help_explains_every_variant() -> None:
    assert workload_command.__doc__ is not None
    for name in VARIANTS:
        assert f"[bold]{name}[/] (" in workload_command.__doc__


@pytest.mark.parametrize("model", [WorkloadSettings, AnalyzeSettings])
def test_every_option_is_explained(model: type) -> None:
    parameters = command(model, lambda settings: 0).__signature__.parameters  # type: ignore[attr-defined]
    for name, field in model.model_fields.items():
        (option,) = parameters[name].annotation.__metadata__
        assert field.description.endswith(".")
        assert f"env: {variable(name)}" in option.help


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("workload", "tool_use"), "--out is missing"),
        (("workload", "tools", "--out", "x"), "there is no workload 'tools'; allowed: tool_use, "),
        (("workload", "tool_use", "--variant", "odd", "--out", "x"), "no variant 'odd'; allowed: "),
        (("workload", "tool_use", "--requests", "0", "--out", "x"), "--requests is '0'; allowed"),
        (("workload", "mixed", "--out", "x"), "--arrivals-from"),
        (("workload", "mixed", "--arrivals-from", "none.csv", "--out", "x"), "cannot read none"),
        (("workload", "families", "--out", "no/where"), "cannot write no/where"),
        (("analyze", "nothing.jsonl"), "cannot read nothing.jsonl"),
        (("analyze", "x", "--format", "odd"), "--format is 'odd'; allowed: mooncake, "),
    ],
)
def test_one_line_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_here(capsys, *words)
    assert outcome.status == 2
    assert complaint in outcome.complaint
    assert not list(tmp_path.iterdir())


@pytest.fixture
def trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    run_here(capsys, "workload", "video_qa", "--requests", "60", "--out", str(path))
    return path


def test_json_has_all_figures(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    found = json.loads(run_here(capsys, "analyze", str(trace), "--json").out)
    expected = analyze(load_trace(trace).requests)
    assert found["trace"]["name"] == "trace.jsonl"
    assert found["num_requests"] == 60
    assert found["sharing"]["ideal_hit_share"] == expected.sharing.ideal_hit_share
    assert set(found["sharing"]["random_hit_shares"]) == {"4", "8", "16", "64"}
    assert found["arrivals"]["peak_rates"].keys() == {"1"}, "it spans less than 10 seconds"
    assert "p99" in found["reuse_distance"]["unique_tokens"]["quantiles"]


def test_tables_for_people(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    outcome = run_here(capsys, "analyze", str(trace))
    assert outcome.status == 0
    share = analyze(load_trace(trace).requests).sharing.ideal_hit_share
    assert "trace.jsonl (preble): 60 requests" in outcome.out
    assert f"{share:.1%}" in outcome.out
    for words in ("random on 64", "key portion %", "reuse, unique tokens", "CV of the gaps"):
        assert words in outcome.out


def test_no_figure_is_cut_off(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    prompt = {"input_length": 512_000, "output_length": 1}
    lines = [
        {**prompt, "timestamp": i, "hash_ids": [*range(i % 4 * 1000, i % 4 * 1000 + 1000)]}
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = run_here(capsys, "analyze", str(path)).out
    assert "512,000" in out and "1.54M" in out and "…" not in out
    assert "peak" not in out, "no window fits into 7 ms"


def test_a_trace_that_shares_nothing_and_has_bad_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE + "XXX,1,1\n")
    assert run_here(capsys, "analyze", str(path)).status == 2
    outcome = run_here(capsys, "analyze", str(path), "--skip-bad-lines", "--limit", "2")
    assert outcome.status == 0
    assert "2 requests" in outcome.out and "0.0%" in outcome.out


def test_seed_and_limit_of_the_analysis(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    def shares(*words: str) -> dict[str, float]:
        found = json.loads(run_here(capsys, "analyze", str(trace), "--json", *words).out)
        return dict(found["sharing"]["random_hit_shares"], n=found["num_requests"])

    assert shares("--seed", "1") != shares("--seed", "2")
    assert shares("--limit", "10")["n"] == 10
