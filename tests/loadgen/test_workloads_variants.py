"""Variants, arrivals and scenarios of the workloads; what is random, and what must not be."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from preble.errors import ConfigError
from preble_loadgen.analysis import analyze
from preble_loadgen.trace_request import PRIVATE_ID, TraceRequest
from preble_loadgen.traces import Trace, load_trace, save_trace
from preble_loadgen.workloads import VARIANTS, WORKLOADS, WorkloadOptions, make_workload
from preble_loadgen.workloads.arrival_times import replayed
from preble_loadgen.workloads.popularity import DRIFT_SECONDS, HOT_SECONDS, chosen_keys

KEYED = ("tool_use", "programming", "video_qa", "long_documents")


def made(name: str, *variants: str, **options: object) -> Trace:
    if WORKLOADS[name].needs_arrivals and "arrivals" not in options:
        variants = (*variants, "bursty")
    return make_workload(name, WorkloadOptions(variants=frozenset(variants), **options))  # type: ignore[arg-type]


def content(trace: Trace) -> Counter[object]:
    """Prompts and answers, whatever their order; ends of their own count by length."""
    return Counter(
        (
            tuple((min(s.id, PRIVATE_ID), s.length) for s in r.segments),
            r.output_tokens,
        )
        for r in trace.requests
    )


def key_counts(requests: tuple[TraceRequest, ...]) -> Counter[int]:
    return Counter(r.segments[1].id for r in requests)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_survives_its_file(name: str, tmp_path: Path) -> None:
    """Reading also checks order, ids, and that closed loops have something to wait for."""
    trace = made(name, requests=300)
    assert len(trace.requests) == 300
    assert trace.requests[0].at == 0
    save_trace(trace, tmp_path / "trace.jsonl.gz")
    loaded = load_trace(tmp_path / "trace.jsonl.gz")
    assert loaded.requests == trace.requests
    assert (loaded.format, loaded.salt) == (trace.format, trace.salt)


@pytest.mark.parametrize(("requests", "seeds"), [(1, 20), (20, 20), (2000, 5)])
def test_short_episodes_leave_no_requests_wanting(requests: int, seeds: int) -> None:
    for seed in range(seeds):
        assert len(made("embodied_agent", requests=requests, seed=seed).requests) == requests
        sessions = made("tool_use", "sessions", requests=requests, seed=seed)
        assert len(sessions.requests) == requests


@pytest.mark.parametrize("name", WORKLOADS)
def test_same_seed_same_trace(name: str) -> None:
    trace = made(name, requests=100, seed=3)
    assert made(name, requests=100, seed=3) == trace
    other = made(name, requests=100, seed=4)
    assert other.salt != trace.salt


@pytest.mark.parametrize("name", ["embodied_agent", *KEYED])
def test_another_rate_brings_the_same_content_at_another_time(name: str) -> None:
    slow, fast = made(name, prefixes=8, rate=1.0), made(name, prefixes=8, rate=50.0)
    assert content(slow) == content(fast)
    assert slow.requests[-1].at > fast.requests[-1].at


@pytest.mark.parametrize("name", [*KEYED, "no_sharing"])
@pytest.mark.parametrize(("variant", "cv"), [(None, 1.0), ("bursty", 3.0)])
def test_burstiness(name: str, variant: str | None, cv: float) -> None:
    trace = made(name, *([variant] if variant else []), requests=3000, rate=7.0)
    arrivals = analyze(trace.requests).arrivals
    assert arrivals.gap_cv == pytest.approx(cv, rel=0.15)
    assert arrivals.rate == pytest.approx(7.0, rel=0.15)


@pytest.mark.parametrize("name", KEYED)
def test_even(name: str) -> None:
    counts = key_counts(made(name, "even", requests=400, prefixes=37).requests)
    assert set(counts.values()) == {10, 11} and len(counts) == 37


@pytest.mark.parametrize("name", KEYED)
def test_zipf(name: str) -> None:
    counts = key_counts(made(name, "zipf", requests=3000, prefixes=50, zipf=1.4).requests)
    first, second = counts.most_common(2)
    assert first[1] / second[1] == pytest.approx(2**1.4, rel=0.2)
    assert first[1] / 3000 == pytest.approx(1 / sum(r**-1.4 for r in range(1, 51)), rel=0.1)


@pytest.mark.parametrize("exponent", [0.6, 0.9, 1.1, 1.4])
def test_zipf_by_rank(exponent: float) -> None:
    """Each rank's share within four standard errors of its law."""
    size, keys = 20_000, 40
    times = np.arange(size) / 10
    options = WorkloadOptions(variants=frozenset({"zipf"}), zipf=exponent)
    drawn = chosen_keys(np.ones(keys), times, options, np.random.default_rng(5), exact=True)
    law = np.arange(1, keys + 1) ** -exponent
    law /= law.sum()
    error = np.sqrt(law * (1 - law) / size)
    assert (np.abs(np.bincount(drawn, minlength=keys) / size - law) < 4 * error).all()


def test_drift_deals_popularity_anew() -> None:
    trace = made("tool_use", "drift", "zipf", requests=3000, prefixes=40, rate=2.0, zipf=1.4)
    favourites = defaultdict(Counter[int])
    for r in trace.requests:
        favourites[r.at // DRIFT_SECONDS][r.segments[1].id] += 1
    periods = list(favourites.values())[:4]
    assert len({counts.most_common(1)[0][0] for counts in periods}) > 1
    assert all(counts.most_common(1)[0][1] > 0.25 * counts.total() for counts in periods)


def test_drift_keeps_the_shape_of_popularity() -> None:
    """Dealt anew, but to as many favourites as before, in periods of five minutes."""
    times = np.arange(30_000) / 20
    options = WorkloadOptions(variants=frozenset({"zipf", "drift"}), zipf=1.4)
    drawn = chosen_keys(np.ones(50), times, options, np.random.default_rng(5), exact=False)
    periods = np.split(drawn, 5)
    assert times[6000] == DRIFT_SECONDS == 300
    shares = [np.sort(np.bincount(period, minlength=50))[::-1] / 6000 for period in periods]
    assert np.std(shares, axis=0).max() < 0.02
    assert len({int(np.bincount(period).argmax()) for period in periods}) > 2


def test_a_burst_lasts_thirty_seconds_in_sessions_too() -> None:
    """Of the time in which sessions begin, which run slower than requests."""
    variants = ("sessions", "even", "hot-burst")
    trace = made("tool_use", *variants, requests=6000, prefixes=300, rate=20.0)
    firsts = [r for r in trace.requests if r.turn == 0]
    (hot, _), *_ = key_counts(tuple(firsts)).most_common(1)
    times = [r.at for r in firsts if r.segments[1].id == hot]
    low, high = np.percentile(times, [10, 90])
    assert 20 < high - low <= HOT_SECONDS


def test_a_burst_of_one_prefix() -> None:
    trace = made("video_qa", "hot-burst", requests=3000, prefixes=300, rate=10.0)
    middle = trace.requests[-1].at / 2
    inside = [r for r in trace.requests if abs(r.at - middle) <= HOT_SECONDS / 2]
    outside = [r for r in trace.requests if abs(r.at - middle) > HOT_SECONDS / 2]
    (hot, count), *_ = key_counts(tuple(inside)).most_common(1)
    assert count / len(inside) == pytest.approx(0.5, abs=0.08)
    assert key_counts(tuple(outside))[hot] < 0.03 * len(outside)


def test_recorded_gaps_keep_their_shape() -> None:
    recorded = [0.0, 1.0, 1.0, 5.0]
    times = replayed(7, 2.0, recorded)
    assert np.diff(times) == pytest.approx(np.array([1, 0, 4, 1, 0, 4]) * (6 / 2.0 / 10))
    assert replayed(3, 2.0, [4.0]).tolist() == [0.0, 0.0, 0.0]
    trace = made("tool_use", requests=100, rate=5.0, arrivals=(tuple(recorded),))
    assert analyze(trace.requests).arrivals.rate == pytest.approx(5.0)


def test_the_mixed_workload_replays_a_trace_for_each_part() -> None:
    even, uneven = tuple(map(float, range(50))), (0.0, 0.0, 0.0, 1.0)
    trace = made("mixed", requests=500, rate=5.0, arrivals=(even, uneven))
    is_video = [r.output_tokens <= 12 for r in trace.requests]
    videos = [r.at for r, video in zip(trace.requests, is_video, strict=True) if video]
    tools = [r.at for r, video in zip(trace.requests, is_video, strict=True) if not video]
    assert (len(tools), len(videos)) == (400, 100)
    assert np.diff(tools).std() < 1e-5
    assert np.mean(np.diff(videos) < 1e-9) == pytest.approx(2 / 3, abs=0.02)
    with pytest.raises(ConfigError, match="--arrivals-from"):
        make_workload("mixed", WorkloadOptions(requests=10))


def test_the_mixed_workload_as_it_was_sent() -> None:
    """From record 200 on, at 0.7 of the recorded time for two workers; a rate overrides that."""
    slow_start = (*range(0, 20_000, 100), *range(20_000, 21_000))
    recorded = (tuple(map(float, slow_start)),) * 2
    for workers, gap in ((2, 0.7), (4, 0.35)):
        trace = made("mixed", "as-sent", requests=500, workers=workers, arrivals=recorded)
        tools = [r.at for r in trace.requests if r.output_tokens > 12]
        assert len(tools) == 400
        assert np.diff(tools) == pytest.approx(gap, abs=1e-5)
    paced = made("mixed", "as-sent", requests=500, rate=5.0, arrivals=recorded)
    assert paced.requests[0].at == 0 and paced.requests[-1].at == pytest.approx(100, rel=0.02)
    with pytest.raises(ConfigError, match="record 200"):
        made("mixed", "as-sent", requests=50, arrivals=((0.0, 1.0),))


def test_the_second_part_begins_in_the_middle_of_the_only_trace() -> None:
    times = (*range(10), *range(10, 100, 10))
    trace = made("mixed", requests=10, rate=1.0, arrivals=(tuple(map(float, times)),))
    gaps = np.diff([r.at for r in trace.requests if r.output_tokens > 12])
    assert len(gaps) == 7 and gaps.std() < 1e-5


@pytest.mark.parametrize("name", ["embodied_agent", "tool_use"])
def test_agents_wait_for_their_answers(name: str) -> None:
    variants = ["sessions"] if name == "tool_use" else []
    sessions = defaultdict(list)
    for r in made(name, *variants, requests=2000).requests:
        sessions[r.session].append(r)
    assert "" not in sessions
    for turns in sessions.values():
        assert [r.turn for r in turns] == list(range(len(turns)))
        assert turns[0].think_seconds is None
        for earlier, later in pairwise(turns):
            assert later.think_seconds is not None and later.think_seconds >= 0.5
            assert later.at == pytest.approx(earlier.at + later.think_seconds, abs=1e-5)
            # The prompt goes on where the one before ended, the answer included.
            assert later.segments[: len(earlier.segments)] == earlier.segments
            assert later.segments[-1].length > earlier.output_tokens
    thinks = [r.think_seconds for turns in sessions.values() for r in turns[1:]]
    assert np.mean(np.array(thinks, dtype=float)) == pytest.approx(1.5, rel=0.15)


@pytest.mark.parametrize("tokens", [0, 750, 1500, 2400])
def test_programming_with_another_preamble(tokens: int) -> None:
    published = made("programming", requests=200, prefixes=20)
    asked = made("programming", requests=200, prefixes=20, preamble_tokens=tokens)
    for usual, other in zip(published.requests, asked.requests, strict=True):
        lengths = [s.length for s in other.segments]
        assert lengths == [tokens] * bool(tokens) + [s.length for s in usual.segments[1:]]
        assert (other.at, other.output_tokens) == (usual.at, usual.output_tokens)


@pytest.mark.parametrize("percent", [0, 20, 40, 60, 80])
def test_common_share(percent: int) -> None:
    trace = made("common_share", workers=2, common_percent=percent)
    assert len(trace.requests) == 1800
    assert {sum(s.length for s in r.segments) for r in trace.requests} == {4000}
    firsts = {r.segments[0] for r in trace.requests}
    rest = {r.segments[-2] for r in trace.requests}
    assert len(rest) == 60
    assert firsts == rest if percent == 0 else {s.length for s in firsts} == {40 * percent}
    assert len(firsts) == (1 if percent else 60)


def test_environments_share_few_shot_examples_in_the_study_only() -> None:
    def firsts(*variants: str) -> set[int]:
        return {r.segments[0].id for r in made("embodied_agent", *variants, prefixes=30).requests}

    assert len(firsts()) == 30
    assert len(firsts("study")) == 1


def test_what_the_published_generator_caps() -> None:
    def longest(name: str) -> tuple[int, int]:
        requests = made(name, "as-sent", prefixes=60).requests
        prompts = [sum(s.length for s in r.segments[:-1]) for r in requests]
        return max(prompts), max(r.output_tokens for r in requests)

    assert longest("video_qa")[0] == 8192
    assert longest("programming")[1] == 512
    assert longest("embodied_agent")[1] == 26
    assert {r.output_tokens for r in made("long_documents", "as-sent").requests} == {45}
    counts = key_counts(made("video_qa", "as-sent", prefixes=60).requests)
    lengths = {
        s.id: s.length
        for r in made("video_qa", "as-sent", prefixes=60).requests
        for s in r.segments
    }
    (_, most), (rarest, least) = counts.most_common()[0], counts.most_common()[-1]
    assert most > 2 * least and lengths[rarest] < 4000


@pytest.mark.parametrize("name", ["hot_prefix", "shared_system_prompt", "families"])
def test_so_many_requests_are_kept_in_flight(name: str) -> None:
    trace = made(name, workers=4)
    sessions = Counter(r.session for r in trace.requests)
    assert len(sessions) == 32
    assert max(sessions.values()) - min(sessions.values()) <= 1
    assert sum(r.think_seconds is None for r in trace.requests) == 32
    assert {r.think_seconds for r in trace.requests} == {None, 0.0}
    assert len({r.session for r in made(name, in_flight=5).requests}) == 5


def test_scenarios_share_what_they_say() -> None:
    hot = analyze(made("hot_prefix").requests)
    assert hot.key_portions.num_keys == 1
    assert hot.key_portions.portion_percent.mean > 95
    system = analyze(made("shared_system_prompt").requests).sharing
    assert system.unique_tokens == 1024 + system.prompt_tokens - 1000 * 1024
    family = analyze(made("families").requests)
    assert family.sharing.shared_percent.mean == pytest.approx(91)
    assert family.key_portions.num_keys == 32
    assert family.key_portions.requests_per_key.sd == 0


def test_quiet_and_then_a_burst_of_the_same_families() -> None:
    requests = made("quiet_burst", workers=4).requests
    quiet, burst = requests[:192], requests[192:]
    assert all(r.think_seconds is None and not r.session for r in quiet)
    assert np.diff([r.at for r in quiet]) == pytest.approx(5.0)
    at_once = [r for r in burst if r.at == burst[0].at]
    assert len(at_once) == 32 and burst[0].at == quiet[-1].at + 5.0
    assert {r.segments[0] for r in burst} <= {r.segments[0] for r in quiet}


def test_no_sharing() -> None:
    sharing = analyze(made("no_sharing", requests=500).requests).sharing
    assert sharing.ideal_hit_share == 0 and sharing.shared_percent.mean == 0
    recorded = ((10, 1), (20, 2), (30, 3))
    requests = made("no_sharing", requests=5, lengths=recorded).requests
    assert [(r.segments[0].length, r.output_tokens) for r in requests] == [*recorded, *recorded[:2]]
    assert len(made("no_sharing", lengths=recorded).requests) == 3


def test_workers_scale_rate_and_size() -> None:
    small, large = made("tool_use", workers=1), made("tool_use", workers=3)
    assert len(large.requests) == 3 * len(small.requests) == 3 * 5850
    rates = [analyze(trace.requests[:3000]).arrivals.rate for trace in (small, large)]
    assert rates[1] / rates[0] == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_workload_has_a_variant_or_says_which_it_has(name: str, variant: str) -> None:
    if variant in WORKLOADS[name].variants:
        assert len(made(name, variant, requests=20).requests) == 20
    else:
        with pytest.raises(ConfigError, match=rf"{name} has no variant '{variant}'; allowed: "):
            made(name, variant)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("tool", WorkloadOptions(), "no workload 'tool'; allowed: tool_use, "),
        ("tool_use", WorkloadOptions(requests=0), "--requests must be more than 0, not 0"),
        ("tool_use", WorkloadOptions(rate=-1.0), "--rate must be more than 0"),
        ("tool_use", WorkloadOptions(rate=float("nan")), "--rate must be more than 0"),
        ("tool_use", WorkloadOptions(cv=float("inf")), "--cv must be more than 0"),
        ("tool_use", WorkloadOptions(variants=frozenset({"even", "zipf"})), "exclude"),
        ("tool_use", WorkloadOptions(variants=frozenset({"even", "drift"})), "exclude"),
        ("tool_use", WorkloadOptions(lengths=((1, 1),)), "--lengths-from is for no_sharing"),
        ("tool_use", WorkloadOptions(preamble_tokens=1), "--preamble-tokens is for programming"),
        ("programming", WorkloadOptions(common_percent=1), "it is for common_share"),
        ("common_share", WorkloadOptions(common_percent=96), "between 0 and 95"),
        ("programming", WorkloadOptions(preamble_tokens=-1), "at least 0, not -1"),
        ("families", WorkloadOptions(arrivals=((0.0, 1.0),)), "means nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, options: WorkloadOptions, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_workload(name, options)


def test_recorded_and_bursty_arrivals_exclude_each_other() -> None:
    options = WorkloadOptions(arrivals=((0.0, 1.0),))
    with pytest.raises(ConfigError, match="exclude each other"):
        make_workload("tool_use", replace(options, variants=frozenset({"bursty"})))
