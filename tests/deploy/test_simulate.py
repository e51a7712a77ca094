"""`preble simulate` from the command line."""

import json
from pathlib import Path

import pytest

from preble_deploy.cli import run

TRACE = "\n".join(
    json.dumps(
        {
            "timestamp": 100 * i,
            "input_length": 1000,
            "output_length": 8,
            "hash_ids": [i % 3, 1000 + i],
        }
    )
    for i in range(24)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE + "\n")
    return path


def test_policies_are_compared_and_written(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, requests = tmp_path / "figures.json", tmp_path / "requests.jsonl"
    flags = ["--workers", "2", "--policy", "preble", "--policy", "round_robin", "--jobs", "2"]
    files = ["--out", str(out), "--requests-out", str(requests), "--faults", "slow:0@0x2"]
    assert run(["simulate", str(trace), *flags, *files]) == 0
    shown = capsys.readouterr().out
    assert "preble" in shown and "round_robin" in shown and "TTFT mean" in shown
    figures = json.loads(out.read_text())
    assert [cell["policy"] for cell in figures["cells"]] == ["preble", "round_robin"]
    assert figures["cells"][0]["metrics"]["num_complete"] == 24
    assert figures["cells"][0]["samples"]
    assert figures["faults"][0]["seconds"] is None
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    assert len(lines) == 48 and len(lines[0]["gaps"]) == 7


def test_one_policy_shows_the_whole_report_and_the_digest(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", str(trace), "--workers", "2", "--rate", "5"]) == 0
    shown = capsys.readouterr().out
    assert "inter-token gap" in shown and "digest" in shown


def test_an_oracle_without_noise_is_never_wrong(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", str(trace), "--length-predictor", "oracle", "--rate", "5"]) == 0
    assert "predicted within 0.0 tokens" in capsys.readouterr().out


def test_objectives_and_what_crossed_are_told(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    flags = ["--workers", "1", "--local-policy", "edf", "--ttft-slo", "0.5", "--tbt-slo", "0.25"]
    tiers = ["--cost-model", "opt-13b-a100-40gb", "--kv-tiers", "host,int8,hidden"]
    assert run(["simulate", str(trace), *flags, *tiers, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "within TTFT 0.5 s and p99 gap 0.25 s" in shown and "GB out" in shown
    document = json.loads(out.read_text())
    assert document["cluster"]["ttft_slo_seconds"] == 0.5
    cell = document["cells"][0]
    assert 0.0 <= cell["service"]["within"] <= 1.0 and cell["service"]["token_seconds"] > 0.0
    assert cell["crossings"]["hidden_starts"] == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--policy", "best"], "--policy is 'best'; allowed: round_robin"),
        (["--length-predictor", "x"], "--length-predictor is 'x'; allowed: mean, max_tokens"),
        (["--length-noise", "-1"], "--length-noise"),
        (["--ttft-slo", "0"], "--ttft-slo"),
        (["--faults", "flood"], "fault 'flood' is none of"),
        (["--workers", "1", "--faults", "death:4@1"], "there are only 1 workers"),
        (["--cost-model", "missing.json"], "missing.json"),
        (["--max-model-len", "100"], "do not fit a worker of 100"),
    ],
)
def test_what_cannot_be_simulated_is_said(
    trace: Path, flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", str(trace), *flags]) == 2
    assert complaint in capsys.readouterr().err.replace("\n", " ")


def test_what_cannot_be_in_time_is_refused_and_goodput_is_shown(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    flags = ["--workers", "1", "--timeout", "0.3", "--rate", "1000", "--out", str(out)]
    assert run(["simulate", str(trace), *flags]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "goodput" in shown and "refused" in shown and "overloaded" in shown
    goodput = json.loads(out.read_text())["cells"][0]["goodput"]
    assert 0 < goodput["num_good"] < 24 and goodput["num_refused"] > 0
