"""Figures from records, computed here once more by hand."""

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from preble_loadgen.report import FORMULAS, Distribution, RequestRecord, summarize
from preble_loadgen.report_text import print_report, report_json, warnings


def record(index: int = 0, **values: Any) -> RequestRecord:
    default: dict[str, Any] = {
        "index": index,
        "scheduled_at": 1.0,
        "sent_at": 1.5,
        "first_at": 2.5,
        "last_at": 4.5,
        "ended_at": 5.5,
        "gaps": (0.5, 1.5),
        "prompt_tokens": 100,
        "expected_output_tokens": 3,
        "output_tokens": 3,
        "cached_tokens": 40,
        "predicted_cached_tokens": 50,
        "worker_id": "a",
        "finish_reason": "length",
    }
    return RequestRecord(**(default | values))


FAILED = record(9, ended_at=11.5, error="timeout", worker_id="", cached_tokens=90, sent_at=9.0)


def test_one_answer() -> None:
    report = summarize([record()])
    assert report.ttft.mean == report.tpot.mean == 1.0
    assert report.e2e.p99 == 4.0
    assert (report.gap.mean, report.gap.max, report.gap.count) == (1.0, 1.5, 2)
    assert report.lateness.p50 == 0.5
    assert report.duration_seconds == 4.0
    assert report.requests_per_second == 0.25
    assert (report.prompt_tokens_per_second, report.output_tokens_per_second) == (25.0, 0.75)
    assert (report.cached_share, report.predicted_share) == (0.4, 0.5)
    assert report.prediction_error == pytest.approx(0.25)


def test_failed_requests_count_as_such_only() -> None:
    whole, both = summarize([record()]), summarize([record(), FAILED, FAILED])
    assert (both.num_sent, both.num_complete, both.num_failed) == (3, 1, 2)
    assert both.failures == {"timeout": 2}
    assert (both.ttft, both.e2e, both.cached_share) == (whole.ttft, whole.e2e, whole.cached_share)
    # The time spent on failures is time spent.
    assert both.duration_seconds == 10.0
    assert both.requests_per_second == 0.1


def test_answers_of_one_token_have_no_tpot() -> None:
    report = summarize([record(output_tokens=1, gaps=()), record(first_at=None, last_at=None)])
    assert (report.tpot.count, report.gap.count, report.ttft.count) == (0, 2, 1)
    assert report.num_short == 1


def test_workers() -> None:
    records = [record(i, worker_id="ab"[i == 3], output_tokens=40) for i in range(4)]
    report = summarize(records)
    assert [(w.worker_id, w.requests, w.computed_tokens) for w in report.workers] == [
        ("a", 3, 300),
        ("b", 1, 100),
    ]
    assert report.imbalance == 1.5


def test_an_unknown_prediction_is_not_zero() -> None:
    report = summarize([record(predicted_cached_tokens=None)])
    assert report.predicted_share is None and report.prediction_error is None
    assert summarize([record(cached_tokens=0)]).prediction_error is None


def test_nothing_at_all() -> None:
    report = summarize([], num_planned=5)
    assert (report.num_sent, report.duration_seconds, report.cached_share) == (0, 0.0, 0.0)
    assert report.ttft == Distribution()
    print_report(Console(file=StringIO()), report)
    assert warnings(report) == ["broken off: 0 of 5 requests were sent"]


def test_a_late_generator_is_warned_of() -> None:
    assert summarize([record()]).is_late
    assert not summarize([record(sent_at=1.04)]).is_late


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_distribution(sample: list[float]) -> None:
    found = Distribution.of(sample)
    ordered = sorted(sample)

    def percentile(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    assert found.count == len(sample)
    assert found.mean == pytest.approx(sum(sample) / len(sample), abs=1e-6)
    for value, share in ((found.p50, 0.5), (found.p90, 0.9), (found.p99, 0.99)):
        assert value == pytest.approx(percentile(share), abs=1e-6)
    assert found.max == ordered[-1]


def test_order_does_not_matter() -> None:
    records = [record(i, ended_at=5.5 + i, worker_id="ab"[i % 2]) for i in range(6)] + [FAILED]
    assert summarize(records) == summarize(records[::-1])


def test_the_table_says_everything() -> None:
    out = StringIO()
    report = summarize([record(), FAILED, record(output_tokens=2)], num_planned=9)
    print_report(Console(file=out, width=120), report)
    text = out.getvalue()
    for expected in ("TTFT", "1,000.0", "1 timeout", "40.00%", "50.00%", "+25.00%", "imbalance"):
        assert expected in text, text
    assert all(formula in text for formula in FORMULAS.values())
    assert text.count("warning:") == 3


def test_predicted_lengths_are_judged_by_those_that_finished() -> None:
    pairs = [(10, 20), (20, 30), (30, 10)]
    records = [record(predicted_output_tokens=p, output_tokens=a) for p, a in pairs]
    failed = replace(FAILED, predicted_output_tokens=500)
    lengths = summarize([*records, failed, record()]).lengths
    assert (lengths.num_requests, lengths.mean_absolute_error) == (3, pytest.approx(40 / 3))
    assert lengths.rank_correlation == pytest.approx(-0.5)
    assert summarize([record()]).lengths.mean_absolute_error is None
    out = StringIO()
    print_report(Console(file=out, width=120), summarize(records))
    assert "predicted within 13.3 tokens on average, rank correlation -0.500" in out.getvalue()


def test_json() -> None:
    values = json.loads(report_json(summarize([record()]), {"command": "x", "seed": 3}))
    assert (values["command"], values["seed"]) == ("x", 3)
    assert values["metrics"]["ttft"]["p99"] == 1.0
    assert values["metrics"]["workers"][0]["worker_id"] == "a"
    assert values["formulas"] == FORMULAS
