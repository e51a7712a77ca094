"""Which plots stand in which chapter, and what is to be read beneath them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report import plots
from preble_loadgen.tournament.report.capacity import capacities
from preble_loadgen.tournament.report.comparison import SWEPT
from preble_loadgen.tournament.report.document import Figure
from preble_loadgen.tournament.report.duels import paired
from preble_loadgen.tournament.report.groups import (
    MEASURES,
    OURS,
    Measure,
    Seeds,
    Setting,
    by_setting,
    by_sweep,
    in_sections,
    is_own,
    over_seeds,
)
from preble_loadgen.tournament.report.resilience import capacity_per_worker, without_faults
from preble_loadgen.tournament.report.statistics import Estimate, estimate, ratio_estimate
from preble_loadgen.tournament.report.worker_sweeps import Sweeps, by_field, stretch
from preble_loadgen.tournament.scheduling.plan import SECTION as WORKER_SECTION

NEAR_SATURATION = 1.0
"""Points and tails are drawn at the highest load that is no higher than this."""
COMPARED = ("mean TTFT", "p99 TTFT")
WORKER_MEASURES: dict[str, Measure] = {
    "normalised latency": stretch,
    "p99 TTFT (s)": MEASURES["p99 TTFT"],
}
Policies = Mapping[str, Seeds]


def figures(cells: Sequence[CellFigures]) -> dict[str, list[Figure]]:
    """By the anchor of their chapter; none where there are no cells for them."""
    found = {
        "duels": _latencies(cells) + _scatter(cells) + _tails(cells) + _loads(cells),
        "capacity": _capacities(cells),
        "reproduction": _latencies(cells, "reproduction"),
        "scaling": _scaling(cells),
        "robustness": _robustness(cells),
        "ablation": _ablation(cells),
        "scheduling": _workers(cells),
    }
    return {anchor: drawn for anchor, drawn in found.items() if drawn}


def _cluster(setting: Setting) -> str:
    return f"{setting.num_workers} workers, {setting.cost_model}, {setting.local_policy}"


def _seeds(policies: Policies) -> str:
    seeds = sorted({seed for cells in policies.values() for seed in cells})
    return f"Seeds: {', '.join(map(str, seeds))}."


def _latencies(cells: Sequence[CellFigures], *sections: str) -> list[Figure]:
    drawn = []
    for setting, policies in by_sweep(in_sections(cells, *(sections or SWEPT))).items():
        panels = [
            (
                f"{name} (s)",
                {
                    policy: [
                        (rate, over_seeds(rates[rate], MEASURES[name])) for rate in sorted(rates)
                    ]
                    for policy, rates in policies.items()
                },
            )
            for name in COMPARED
        ]
        if max(len(curve) for curve in panels[0][1].values()) < 2:
            continue
        everything = {
            f"{policy} {rate}": seeds
            for policy, rates in policies.items()
            for rate, seeds in rates.items()
        }
        drawn.append(
            Figure(
                title=f"Latency against rate: {setting.name}, {setting.num_workers} workers",
                text="Mean and 99th percentile of the time to first token in seconds, on a"
                " logarithmic axis, over the arrival rate of the whole cluster; lower is better."
                " Means over seeds, preble with its 95 % interval."
                f" {_cluster(setting)}; section {setting.section}. {_seeds(everything)}",
                svg=plots.curves(panels, x_label="requests/s", salt=f"latency {setting}"),
            )
        )
    return drawn


def _near_saturation(cells: Sequence[CellFigures]) -> dict[Setting, dict[Setting, Policies]]:
    """Cluster → setting → its policies: of each sweep one load, of one cluster all workloads."""
    chosen: dict[Setting, tuple[Setting, Policies]] = {}
    for setting, policies in by_setting(in_sections(cells, *SWEPT)).items():
        present = chosen.get(setting.sweep)
        if setting.rate and (present is None or setting.load <= NEAR_SATURATION):
            chosen[setting.sweep] = (setting, policies)
    clusters: dict[Setting, dict[Setting, Policies]] = {}
    for sweep, (setting, drawn) in chosen.items():
        cluster = replace(sweep, workload="", variant="")
        clusters.setdefault(cluster, {})[setting] = drawn
    return clusters


def _scatter(cells: Sequence[CellFigures]) -> list[Figure]:
    return [
        Figure(
            title=f"Hit share against imbalance, {cluster.num_workers} workers",
            text="Cached share of the prompt tokens over the largest worker's busy time relative"
            " to the mean, a point per policy, means over seeds. Up and to the left is better:"
            f" many hits, even load. {_cluster(cluster)}; section {cluster.section}.",
            svg=plots.scatter(
                [
                    (
                        f"{setting.name}, load {setting.at_load}",
                        {
                            policy: (
                                over_seeds(seeds, lambda cell: cell.busy_imbalance).mean,
                                over_seeds(seeds, lambda cell: cell.cached_share).mean,
                            )
                            for policy, seeds in policies.items()
                        },
                    )
                    for setting, policies in settings.items()
                ],
                salt=f"scatter {cluster}",
            ),
        )
        for cluster, settings in _near_saturation(cells).items()
    ]


def _tails(cells: Sequence[CellFigures]) -> list[Figure]:
    drawn = []
    for cluster, settings in _near_saturation(cells).items():
        panels = [
            (f"{setting.name}, load {setting.at_load}", curves)
            for setting, policies in settings.items()
            if (
                curves := {
                    policy: quantiles
                    for policy, seeds in policies.items()
                    if (quantiles := _quantiles(seeds))
                }
            )
        ]
        if panels:
            drawn.append(
                Figure(
                    title=f"Tail of the time to first token, {cluster.num_workers} workers",
                    text="Share of the requests whose first token took longer than so many"
                    " seconds, both axes logarithmic, down to 1 %; further left is better."
                    " Quantiles are averaged over seeds."
                    f" {_cluster(cluster)}; section {cluster.section}.",
                    svg=plots.tails(panels, salt=f"tails {cluster}"),
                )
            )
    return drawn


def _quantiles(seeds: Seeds) -> list[float]:
    curves = [cell.ttft_quantiles for cell in seeds.values() if cell.ttft_quantiles]
    return np.mean(np.array(curves), axis=0).tolist() if curves else []


def _loads(cells: Sequence[CellFigures]) -> list[Figure]:
    drawn = []
    for setting, policies in by_setting(cell for cell in cells if cell.load_over_time).items():
        firsts = {policy: seeds[min(seeds)] for policy, seeds in policies.items()}
        faults = f", faults {', '.join(setting.faults)}" if setting.faults else ""
        drawn.append(
            Figure(
                title=f"Load over time: {setting.name}, load {setting.at_load}{faults}",
                text="Prompt tokens that wait for prefill, a line per worker (with many workers"
                " a band from the least to the most), the mean in black; the same scale for every"
                f" policy. {_cluster(setting)}; section {setting.section}. One seed:"
                f" {min(cell.key.seed for cell in firsts.values())}.",
                svg=plots.loads(
                    [(policy, cell.load_over_time) for policy, cell in firsts.items()],
                    salt=f"loads {setting}",
                ),
            )
        )
    return drawn


def _capacities(cells: Sequence[CellFigures]) -> list[Figure]:
    clusters: dict[Setting, list[tuple[str, dict[str, Estimate]]]] = {}
    for row in capacities(in_sections(cells, *SWEPT)):
        cluster = replace(row.setting, workload="", variant="")
        values = {policy: capacity.rate for policy, capacity in row.of.items()}
        clusters.setdefault(cluster, []).append((row.setting.name, values))
    return [
        Figure(
            title=f"Capacity at SLO, {cluster.num_workers} workers",
            text="Requests/s of the whole cluster, means over seeds with 95 % intervals; longer is"
            " better. A bar that ends at the edge of the sweep is a bound: see the table."
            f" {_cluster(cluster)}; section {cluster.section}.",
            svg=plots.bars(panels, x_label="requests/s", salt=f"capacity {cluster}"),
        )
        for cluster, panels in clusters.items()
    ]


def _scaling(cells: Sequence[CellFigures]) -> list[Figure]:
    own = in_sections(cells, "scaling")
    lines: dict[Setting, dict[str, list[tuple[float, Estimate]]]] = {}
    for (setting, policy), by_size in capacity_per_worker(own).items():
        lines.setdefault(setting, {})[policy] = [
            (float(size), Estimate(rate, rate, rate, 1)) for size, rate in sorted(by_size.items())
        ]
    drawn = [
        _sizes(setting, policies, "capacity per worker (requests/s)", "Capacity per worker")
        for setting, policies in lines.items()
    ]
    tails: dict[Setting, dict[str, list[tuple[float, Estimate]]]] = {}
    for setting, of_policies in by_setting(own).items():
        for policy, seeds in of_policies.items():
            place = tails.setdefault(replace(setting, num_workers=0, rate=0.0), {})
            figure = over_seeds(seeds, MEASURES["p99 TTFT"])
            place.setdefault(policy, []).append((float(setting.num_workers), figure))
    return drawn + [
        _sizes(setting, policies, "p99 TTFT (s)", f"Tail at load {setting.load:g}")
        for setting, policies in tails.items()
    ]


def _sizes(
    setting: Setting,
    policies: Mapping[str, list[tuple[float, Estimate]]],
    label: str,
    title: str,
) -> Figure:
    return Figure(
        title=f"{title} against the number of workers: {setting.name}",
        text=f"{label[0].upper()}{label[1:]}, both axes logarithmic; a flat line scales perfectly."
        f" {setting.cost_model}, {setting.local_policy}.",
        svg=plots.curves(
            [(label, policies)], x_label="workers", salt=f"{title} {setting}", log_x=True
        ),
    )


def _robustness(cells: Sequence[CellFigures]) -> list[Figure]:
    settings = by_setting(cells)
    panels: dict[str, dict[str, dict[str, Estimate]]] = {}
    for setting, policies in settings.items():
        if setting.section != "robustness" or not setting.faults:
            continue
        sound = without_faults(setting, settings)
        place = f"{setting.name}, {setting.num_workers} workers, load {setting.at_load}"
        row = panels.setdefault(place, {}).setdefault(", ".join(setting.faults), {})
        for policy, seeds in policies.items():
            value = paired(seeds, sound.get(policy, {}), MEASURES["p99 TTFT"])
            if value is not None:
                row[policy] = value
    known = [
        (name, {fault: of for fault, of in rows.items() if of}) for name, rows in panels.items()
    ]
    shown = [(name, rows) for name, rows in known if rows]
    if not shown:
        return []
    return [
        Figure(
            title="What each fault costs",
            text="p99 TTFT with the fault over p99 TTFT without it, the same policy and seeds, on"
            " a logarithmic axis; 1 means no cost. Lines are 95 % intervals, cut at three times.",
            svg=plots.dots(shown, x_label="p99 TTFT, with / without", salt="robustness"),
        )
    ]


def _ablation(cells: Sequence[CellFigures]) -> list[Figure]:
    """One panel per figure, a row per term; the interval is over settings and seeds together."""
    ratios: dict[str, dict[str, list[float]]] = {name: {} for name in COMPARED}
    settings = by_setting(in_sections(cells, "ablation", "peers"))
    for setting, policies in settings.items():
        peers = settings.get(replace(setting, section="peers"), {})
        whole = policies.get(OURS) or peers.get(OURS) or {}
        for policy, seeds in policies.items():
            if policy != OURS and is_own(policy):
                for name in COMPARED:
                    value = paired(seeds, whole, MEASURES[name])
                    if value is not None:
                        ratios[name].setdefault(policy, []).append(value.mean)
    panels = [
        (name, {policy: {OURS: ratio_estimate(values)} for policy, values in sorted(rows.items())})
        for name, rows in ratios.items()
        if rows
    ]
    if not panels:
        return []
    return [
        Figure(
            title="What each term is worth",
            text="The figure without the term over that of the whole policy, geometric mean over"
            " settings, on a logarithmic axis: right of 1 the term helps. Lines are 95 %"
            " intervals over settings, cut at three times.",
            svg=plots.dots(panels, x_label="without / with", salt="ablation"),
        )
    ]


def _workers(cells: Sequence[CellFigures]) -> list[Figure]:
    """Of the study of scheduling within a worker."""
    drawn = []
    for field, contenders in by_field(in_sections(cells, WORKER_SECTION)).items():
        panels = [
            (label, {who: _curve(sweeps, measure) for who, sweeps in contenders.items()})
            for label, measure in WORKER_MEASURES.items()
        ]
        if max(len(curve) for curve in panels[0][1].values()) < 2:
            continue
        drawn.append(
            Figure(
                title=f"One worker: {field.workload}, {field.cost_model}, CV {field.cv:g}",
                text="Mean normalised latency, end to end per output token, in multiples of that"
                " of requests alone on the worker, and the 99th percentile of the time to first"
                " token in seconds, over the arrival rate; logarithmic, lower is better.",
                svg=plots.curves(panels, x_label="requests/s", salt=f"worker {field}"),
            )
        )
    return drawn


def _curve(sweeps: Sweeps, measure: Measure) -> plots.Curve:
    """Over the rates, each with its seeds."""
    found: dict[float, list[float]] = {}
    for cell in (cell for sweep in sweeps.values() for cell in sweep):
        found.setdefault(cell.key.rate, []).append(measure(cell))
    return [(rate, estimate(found[rate])) for rate in sorted(found)]
