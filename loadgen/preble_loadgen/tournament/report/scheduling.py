"""The chapters on scheduling within workers. Pure."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from preble.first_principles import PAIRS
from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.capacity import Capacity
from preble_loadgen.tournament.report.document import NONE, Chapter, Row, Table, number, rate, share
from preble_loadgen.tournament.report.groups import in_sections
from preble_loadgen.tournament.report.worker_sweeps import (
    LATENCY_LEVELS,
    Field,
    Sweeps,
    by_field,
    common,
    effective_throughput,
    equal_latency_throughput,
    gain,
    lengths_seen,
    own,
    stretch,
)
from preble_loadgen.tournament.scheduling.contests import WORKER_CONTESTS
from preble_loadgen.tournament.scheduling.plan import (
    BURSTS,
    GROUPED,
    HYBRIDS,
    MULTI_HEAD,
    POISSON,
    SECTION,
)

BASELINE = "fcfs"
DETAIL_LOADS = {POISSON: 1.4, BURSTS: 0.75}
PUBLISHED = (("alpaca", 1.8), ("sharegpt", 2.1))
"""ALISE's throughput over vLLM at equal latency."""
PUBLISHED_EFFECTIVE = 8.8
"""Apt-Serve's effective throughput over the best of its rivals, at most."""
ORDER = ("fcfs", "lpm", "preble_groups", "mlfq", "srpt", "alise", "adaptive")
Throughput = Callable[[Sweeps], Capacity]
Fields = dict[Field, dict[str, Sweeps]]


def scheduling_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """One worker under each local policy, with each form of cache and predictor."""
    ours = in_sections(cells, SECTION)
    fields = by_field(ours)
    if not any(BASELINE in contenders for contenders in fields.values()):
        return None
    tables = [_equal_latency(fields), _effective(fields), _predictors(ours)]
    for model, cv in sorted({(field.cost_model, field.cv) for field in fields}, reverse=True):
        some = {f: c for f, c in fields.items() if (f.cost_model, f.cv) == (model, cv)}
        tables += [
            _throughputs(some, effective_throughput, f"Effective throughput: {model}, CV {cv:g}"),
            *(
                _throughputs(
                    some,
                    partial(equal_latency_throughput, level=level),
                    f"Throughput at {level:g} times the latency alone: {model}, CV {cv:g}",
                )
                for level in LATENCY_LEVELS
            ),
            _details(some, DETAIL_LOADS[cv], f"At load {DETAIL_LOADS[cv]:g}: {model}, CV {cv:g}"),
        ]
    return Chapter(
        anchor="scheduling",
        title="Scheduling within a worker",
        text="One worker, the same requests under every contender: local policy, tiers of the"
        " cache beyond full-precision KV on the device, predictor of output lengths (the running"
        " mean where none is named; the oracle knows the length, ±0.7 is the standard deviation of"
        " the logarithm of its error). Objectives, first token / p99 between tokens, in seconds: "
        + _objectives()
        + ". A load of 1 is what the cost model says keeps the worker busy. "
        + _refusal(),
        tables=[table for table in tables if table.rows],
    )


def _objectives() -> str:
    return ", ".join(f"{n} {c.slo.ttft:g}/{c.slo.tbt:g}" for n, c in WORKER_CONTESTS.items())


def _refusal() -> str:
    """Why one of the models has no hidden states."""
    shape = PAIRS[GROUPED][0]
    assert not shape.hidden_saves_memory
    return (
        f"Hidden states were run with {MULTI_HEAD} only. With {GROUPED} they are refused at the"
        f" start: a token would keep {shape.hidden:,} numbers per layer, and its keys and values"
        f" are {shape.kv_numbers:,}."
    )


def _equal_latency(fields: Fields) -> Table:
    """ALISE's claim beside ours."""
    rows = []
    for name, published in PUBLISHED:
        contenders = fields.get(Field(MULTI_HEAD, POISSON, name), {})
        for who in (who for who in _sorted(contenders) if who != BASELINE):
            ratios = [
                _ratio(contenders, who, partial(equal_latency_throughput, level=level))
                for level in LATENCY_LEVELS
            ]
            rows.append(Row((name, who, f"{published:g}×", *ratios), strong="alise" in who))
    return Table(
        title=f"ALISE's claim: throughput over {BASELINE} at equal mean normalised latency",
        text=f"{MULTI_HEAD}, Poisson arrivals; the latency is so many times that of requests alone"
        " on the worker. ≥ and ≤ where a sweep ended before its limit.",
        columns=("Requests", "Contender", "Published", *(f"At {x:g}×" for x in LATENCY_LEVELS)),
        rows=rows,
        num_names=2,
    )


def _effective(fields: Fields) -> Table:
    """Apt-Serve's claim beside ours: scheduling alone, then with each form of the cache."""
    forms = ("adaptive", *(f"adaptive+{'+'.join(tiers)}" for tiers in HYBRIDS))
    rows = []
    for field, contenders in fields.items():
        ratios = [
            _ratio(contenders, who, effective_throughput) if who in contenders else NONE
            for who in forms
        ]
        if set(ratios) != {NONE}:
            rows.append(Row((field.cost_model, f"{field.cv:g}", field.workload, *ratios)))
    return Table(
        title=f"Apt-Serve's claim: effective throughput over {BASELINE}",
        text=f"Published: up to {PUBLISHED_EFFECTIVE:g}×. The first column of ratios is scheduling"
        " alone; the others are what the hybrid cache makes of it.",
        columns=("Model", "CV", "Requests", *forms),
        rows=rows,
        num_names=3,
    )


def _predictors(cells: Sequence[CellFigures]) -> Table:
    groups: dict[tuple[str, str], list[CellFigures]] = {}
    for cell in cells:
        key = cell.key
        noise = f" ±{key.length_noise:g}" if key.length_noise else ""
        predictor = (key.length_predictor or "running mean") + noise
        groups.setdefault((key.workload, predictor), []).append(cell)
    rows = []
    for (workload, predictor), group in sorted(groups.items()):
        mean, error, rank = lengths_seen(group)
        rows.append(
            Row(
                (
                    workload,
                    predictor,
                    number(mean),
                    number(error),
                    f"{error / mean:.2f}",
                    NONE if rank is None else f"{rank:.2f}",
                )
            )
        )
    return Table(
        title="How good the predictions were",
        text="Output tokens; mean absolute error; Spearman's rank correlation of predicted and"
        " actual lengths.",
        columns=("Requests", "Predictor", "Mean output", "Error", "Error / mean", "Rank"),
        rows=rows,
        num_names=2,
    )


def _throughputs(fields: Fields, throughput: Throughput, title: str) -> Table:
    """A row per contender, a column per contest."""
    names = [field.workload for field in fields]
    rows = [
        Row(
            (who, *(_throughput(contenders, who, throughput) for contenders in fields.values())),
            strong=who == BASELINE,
        )
        for who in _all_contenders(fields)
    ]
    return Table(
        title=title,
        text=f"Requests/s, means over seeds, and the ratio to {BASELINE}.",
        columns=("Contender", *names),
        rows=rows,
    )


def _throughput(contenders: dict[str, Sweeps], who: str, throughput: Throughput) -> str:
    if who not in contenders:
        return NONE
    found = rate(throughput(contenders[who]))
    return found if who == BASELINE else f"{found} ({_ratio(contenders, who, throughput)})"


def _ratio(contenders: dict[str, Sweeps], who: str, throughput: Throughput) -> str:
    if BASELINE not in contenders:
        return NONE
    ours, theirs = common(contenders[who], contenders[BASELINE])
    return gain(throughput(ours), throughput(theirs)).text if ours and theirs else NONE


def _details(fields: Fields, load: float, title: str) -> Table:
    rows = []
    for field, contenders in fields.items():
        for who in _sorted(contenders):
            cells = [c for sweep in contenders[who].values() for c in sweep if c.key.load == load]
            if cells:
                rows.append(Row((field.workload, who, *_figures(cells)), strong=who == BASELINE))
    return Table(
        title=title,
        text="Means over seeds, in seconds. Normalised latency is in multiples of that alone."
        " Starved: longer than alone by 30 s and by 10 times what it takes alone. Swapped: both"
        " ways.",
        columns=(
            *("Requests", "Contender", "Normalised", "TTFT mean", "TTFT p99", "E2E mean"),
            *("E2E p99", "Within SLOs", "Starved", "Longest wait", "Preempted", "Swapped GB"),
            *("Hidden", "Int8", "Hits"),
        ),
        rows=rows,
        num_names=2,
    )


def _figures(cells: Sequence[CellFigures]) -> tuple[str, ...]:
    def mean(figure: Callable[[CellFigures], float]) -> float:
        return sum(map(figure, cells)) / len(cells)

    return (
        number(mean(stretch)),
        number(mean(lambda c: c.ttft.mean)),
        number(mean(lambda c: c.ttft.p99)),
        number(mean(lambda c: c.e2e.mean)),
        number(mean(lambda c: c.e2e.p99)),
        share(mean(lambda c: c.within_slo)),
        share(mean(lambda c: own(c).starved_share)),
        number(max(own(c).longest_wait for c in cells)),
        number(mean(lambda c: own(c).preemptions)),
        number(mean(lambda c: own(c).swap_bytes / 1e9)),
        number(mean(lambda c: own(c).hidden_starts)),
        number(mean(lambda c: own(c).int8_starts)),
        share(mean(lambda c: c.cached_share)),
    )


def _sorted(contenders: Iterable[str]) -> list[str]:
    return sorted(contenders, key=_place)


def _all_contenders(fields: Fields) -> list[str]:
    return _sorted({who for contenders in fields.values() for who in contenders})


def _place(who: str) -> tuple[int, str]:
    policy = who.partition(",")[0].partition("+")[0]
    return (ORDER.index(policy) if policy in ORDER else len(ORDER), who)
