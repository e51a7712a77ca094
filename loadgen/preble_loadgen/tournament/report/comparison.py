"""The chapters that set `preble` against the others: duels, lost cells, capacity. Pure."""

from collections.abc import Callable, Sequence

from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.capacity import CapacityRow, capacities
from preble_loadgen.tournament.report.document import (
    NONE,
    Chapter,
    Row,
    Table,
    number,
    rate,
    ratio,
    share,
    with_interval,
)
from preble_loadgen.tournament.report.duels import Duel, Verdict, duels, standing
from preble_loadgen.tournament.report.groups import (
    MEASURES,
    OURS,
    by_setting,
    in_sections,
    is_own,
    names_with_sharing,
    over_seeds,
)
from preble_loadgen.tournament.report.statistics import geometric_mean

CONTESTED = ("peers", "capacity", "failures", "scaling", "robustness", "reproduction")
"""Sections in which policies are set against each other."""
SWEPT = ("peers", "capacity")


def contested(cells: Sequence[CellFigures]) -> list[CellFigures]:
    """Cells that count as duels, with faults or without."""
    return [cell for cell in cells if cell.key.section in CONTESTED]


def duels_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """Who wins where."""
    found = duels(contested(cells))
    if not found:
        return None
    return Chapter(
        anchor="duels",
        title="preble against every other policy",
        text="Ratios are preble's figure over the other policy's, paired by seed, so that less than"
        " 1 means that preble is faster; the intervals are 95 % (Student's t on the logarithms)."
        " A loss is a ratio whose whole interval lies above 1.02, a win one whose interval lies"
        " below 1/1.02, all else is a tie; with one seed the ratio itself decides.",
        tables=[
            _standings(found, "By policy", "Policy", lambda duel: duel.rival),
            _standings(found, "By section", "Section", lambda duel: duel.setting.section),
            _losses(found),
            _beside_best(cells),
            _all_cells(cells),
        ],
    )


def _standings(
    found: Sequence[Duel], title: str, heading: str, key: Callable[[Duel], str]
) -> Table:
    rows = []
    for name in sorted({key(duel) for duel in found}):
        for measure in MEASURES:
            own = [duel for duel in found if key(duel) == name and duel.measure == measure]
            if own:
                rows.append(_standing_row(name, measure, own))
    return Table(
        title=title,
        text="All settings together; the worst is the highest ratio. Times in seconds go into the"
        " ratios as they are.",
        columns=(heading, "Figure", "Duels", "Wins", "Ties", "Losses", "Ratio, geo. mean", "Worst"),
        rows=rows,
        num_names=2,
    )


def _standing_row(name: str, measure: str, own: Sequence[Duel]) -> Row:
    of = standing(own)
    worst = of.worst
    return Row(
        (
            name,
            measure,
            str(of.num_duels),
            *(str(of.verdicts.get(verdict, 0)) for verdict in Verdict),
            number(of.geometric_mean),
            f"{number(worst.ratio.mean)} in {worst.setting.name}, load {worst.setting.at_load}",
        )
    )


def _losses(found: Sequence[Duel]) -> Table:
    lost = sorted(
        (duel for duel in found if duel.verdict is Verdict.LOSS),
        key=lambda duel: -duel.ratio.mean,
    )
    return Table(
        title="Lost cells",
        text="Every duel that preble loses by more than noise, the worst first."
        if lost
        else "preble loses no duel by more than noise.",
        columns=("Workload", "Section", "Policy", "Figure", "Faults", "Workers", "Load", "Ratio"),
        rows=[
            Row(
                (
                    duel.setting.name,
                    duel.setting.section,
                    duel.rival,
                    duel.measure,
                    ", ".join(duel.setting.faults) or NONE,
                    str(duel.setting.num_workers),
                    duel.setting.at_load,
                    ratio(duel.ratio),
                )
            )
            for duel in lost
        ],
        num_names=5,
    )


def _beside_best(cells: Sequence[CellFigures]) -> Table:
    """Ours over the best other of each cell: whoever is best there by that figure."""
    rows = []
    for setting, policies in by_setting(in_sections(cells, "peers", "failures")).items():
        others = {name: seeds for name, seeds in policies.items() if not is_own(name)}
        if OURS not in policies or not others:
            continue
        cells_of = [setting.name, str(setting.num_workers), setting.at_load, str(len(others))]
        for measure in MEASURES.values():
            best = min(others, key=lambda name: over_seeds(others[name], measure).mean)
            own = over_seeds(policies[OURS], measure).mean
            cells_of.append(f"{number(own / over_seeds(others[best], measure).mean)} {best}")
        marks = [cell for cell in policies[OURS].values() if cell.oracle_mean_ttft]
        cells_of.append(
            number(sum(cell.ttft.mean / (cell.oracle_mean_ttft or 1.0) for cell in marks))
            if len(marks) == 1
            else NONE
        )
        rows.append(Row(tuple(cells_of)))
    return Table(
        title="preble beside the best other policy of each cell",
        text="preble's mean over seeds divided by that of the policy which is best there by that"
        " figure, with its name: the best of so many others, so that 1 is what equals would not"
        " reach. The oracle's column divides by the mean TTFT of the placement a search found that"
        " knew every arrival, in a static model that flatters it: no decodes, no evictions.",
        columns=("Workload", "Workers", "Load", "Others", *MEASURES, "Oracle"),
        rows=rows,
    )


def _all_cells(cells: Sequence[CellFigures]) -> Table:
    rows = []
    for setting, policies in by_setting(cells).items():
        ordered = sorted(
            policies.items(), key=lambda item: over_seeds(item[1], MEASURES["mean TTFT"]).mean
        )
        for policy, seeds in ordered:
            cells_of = list(seeds.values())
            rows.append(
                Row(
                    (
                        setting.section,
                        setting.name,
                        ", ".join(setting.faults) or NONE,
                        setting.cost_model,
                        setting.local_policy,
                        policy,
                        str(setting.num_workers),
                        setting.at_load,
                        number(setting.rate) if setting.rate else NONE,
                        str(len(seeds)),
                        *(with_interval(over_seeds(seeds, m)) for m in MEASURES.values()),
                        number(over_seeds(seeds, lambda cell: cell.gap.p99).mean),
                        share(over_seeds(seeds, lambda cell: cell.cached_share).mean),
                        number(over_seeds(seeds, lambda cell: cell.busy_imbalance).mean),
                        share(over_seeds(seeds, lambda cell: cell.within_slo).mean),
                        str(sum(cell.num_failed for cell in cells_of)),
                    ),
                    strong=policy == OURS,
                )
            )
    return Table(
        title="All cells",
        text="Means over seeds with 95 % intervals. Seconds; gap is p99 of the time between two"
        " pieces of an answer, hits the cached share of prompt tokens, imbalance the largest over"
        " the mean busy time, and failed counts all seeds.",
        columns=(
            "Section",
            "Workload",
            "Faults",
            "Cost model",
            "Local policy",
            "Policy",
            "Workers",
            "Load",
            "Rate",
            "Seeds",
            *MEASURES,
            "Gap p99",
            "Hits",
            "Imbalance",
            "Within SLO",
            "Failed",
        ),
        rows=rows,
        num_names=6,
        is_detail=True,
    )


def capacity_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """The rates that policies can carry."""
    swept = in_sections(cells, *SWEPT)
    rows = capacities(swept)
    if not rows:
        return None
    sharing = names_with_sharing(swept)
    return Chapter(
        anchor="capacity",
        title="Capacity at SLO",
        text="Capacity is the highest rate, in requests/s of the whole cluster, with p99 TTFT"
        " within the SLO and at least 90 % of the requests within both SLOs (time to the first"
        " token, time between tokens). It is interpolated between the highest swept rate that is"
        " kept and the next: p99 TTFT on a logarithmic scale, the share within the SLOs on a"
        " linear one, whichever crosses first. Intervals are 95 % over seeds; ≥ marks a policy"
        " that kept the highest rate in some seed, ≤ one that did not keep the lowest. A workload"
        " has sharing if some policy serves at least 5 % of its prompt tokens from cache.",
        tables=[
            _best(rows, sharing),
            _together(rows, sharing),
            _against_each(rows, sharing),
            _every_capacity(rows),
        ],
    )


def _best(rows: Sequence[CapacityRow], sharing: set[str]) -> Table:
    return Table(
        title="preble and the best of the others",
        text="Requests/s; ratios above 1 mean that preble carries more. There is none where both"
        " kept, or both missed, every rate of the sweep.",
        columns=(
            "Workload",
            "Section",
            "Cost model",
            "Best other",
            "Best cache-blind",
            "Sharing",
            "Workers",
            "preble",
            "Best other",
            "Ratio",
            "Best cache-blind",
            "Ratio",
        ),
        rows=[
            Row(
                (
                    row.setting.name,
                    row.setting.section,
                    row.setting.cost_model,
                    row.best_rival or NONE,
                    row.best_blind or NONE,
                    "yes" if row.setting.name in sharing else "no",
                    str(row.setting.num_workers),
                    rate(row.of.get(OURS)),
                    *_beside(row, row.best_rival),
                    *_beside(row, row.best_blind),
                )
            )
            for row in rows
        ],
        num_names=5,
    )


def _beside(row: CapacityRow, rival: str | None) -> tuple[str, str]:
    found = row.ratio(rival)
    return rate(row.of[rival] if rival else None), NONE if found is None else number(found)


def _together(rows: Sequence[CapacityRow], sharing: set[str]) -> Table:
    with_sharing = [row for row in rows if row.setting.name in sharing]
    without = [row for row in rows if row.setting.name not in sharing]
    lines = [
        ("with sharing", "best other", "1.3", [row.ratio(row.best_rival) for row in with_sharing]),
        ("without sharing", "best cache-blind", "0.98", [r.ratio(r.best_blind) for r in without]),
    ]
    return Table(
        title="All workloads together",
        text="Geometric mean of preble's capacity over that of the best of the others, a different"
        " one per workload, and the lowest ratio.",
        columns=("Workloads", "Against", "Number", "Geo. mean", "Lowest", "Aim"),
        rows=[
            Row((name, against, str(len(known)), number(geometric_mean(known)), low, f"≥ {aim}"))
            for name, against, aim, ratios in lines
            if (known := [found for found in ratios if found is not None])
            and (low := number(min(known)))
        ],
        num_names=2,
    )


def _against_each(rows: Sequence[CapacityRow], sharing: set[str]) -> Table:
    with_sharing = [row for row in rows if row.setting.name in sharing]
    rivals = {policy for row in with_sharing for policy in row.of if not is_own(policy)}
    ratios = {
        rival: [
            found
            for row in with_sharing
            if rival in row.of and (found := row.ratio(rival)) is not None
        ]
        for rival in rivals
    }
    means = {rival: geometric_mean(known) for rival, known in ratios.items() if known}
    return Table(
        title="Against each policy alone",
        text="A cluster runs one policy, whatever comes. Geometric mean of preble's capacity over"
        " that policy's on the workloads with sharing, and the lowest and highest ratio. Where one"
        " of the two is only a bound, so is the ratio, from below or above as the bound is.",
        columns=("Policy", "Number", "Geo. mean", "Lowest", "Highest"),
        rows=[
            Row((rival, str(len(known)), number(mean), number(min(known)), number(max(known))))
            for rival, mean in sorted(means.items(), key=lambda item: item[1])
            for known in (ratios[rival],)
        ],
        num_names=1,
    )


def _every_capacity(rows: Sequence[CapacityRow]) -> Table:
    return Table(
        title="Capacity of every policy",
        text="Requests/s of the whole cluster, the highest first.",
        columns=("Workload", "Section", "Cost model", "Policy", "Workers", "Capacity"),
        rows=[
            Row(
                (
                    row.setting.name,
                    row.setting.section,
                    row.setting.cost_model,
                    policy,
                    str(row.setting.num_workers),
                    rate(found),
                ),
                strong=policy == OURS,
            )
            for row in rows
            for policy, found in sorted(row.of.items(), key=lambda item: -item[1].rate.mean)
        ],
        num_names=4,
        is_detail=True,
    )
