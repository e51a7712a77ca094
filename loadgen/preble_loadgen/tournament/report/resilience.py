"""The chapters on size and on faults: scaling, robustness. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.capacity import capacities
from preble_loadgen.tournament.report.document import (
    NONE,
    Chapter,
    Row,
    Table,
    number,
    ratio,
    with_interval,
)
from preble_loadgen.tournament.report.duels import paired
from preble_loadgen.tournament.report.groups import (
    MEASURES,
    OURS,
    Seeds,
    Setting,
    by_setting,
    in_sections,
    over_seeds,
    rank,
)

FALL_MAX = 0.10
"""By which capacity per worker may fall from the smallest to the largest cluster."""


def scaling_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """Clusters of different sizes."""
    own = in_sections(cells, "scaling")
    if not own:
        return None
    tables = [table for table in (_capacity_per_worker(own), _at_load(own)) if table.rows]
    return Chapter(
        anchor="scaling",
        title="Scaling",
        text="The same workload with its number of requests, prefixes and its rate in proportion"
        " to the number of workers, so that a load means the same for every cluster.",
        tables=tables,
    )


def capacity_per_worker(
    cells: Sequence[CellFigures],
) -> dict[tuple[Setting, str], dict[int, float]]:
    """(setting of any size, policy) → workers → requests/s per worker, where rates are swept."""
    found: dict[tuple[Setting, str], dict[int, float]] = {}
    for row in capacities(cells):
        for policy, capacity in row.of.items():
            place = found.setdefault((replace(row.setting, num_workers=0), policy), {})
            place[row.setting.num_workers] = capacity.rate.mean / row.setting.num_workers
    return found


def _capacity_per_worker(cells: Sequence[CellFigures]) -> Table:
    found = capacity_per_worker(cells)
    sizes = sorted({size for by_size in found.values() for size in by_size})
    rows = []
    for (setting, policy), by_size in sorted(
        found.items(), key=lambda item: (item[0][0], rank(item[0][1]))
    ):
        first, last = by_size[min(by_size)], by_size[max(by_size)]
        change = last / first - 1.0 if len(by_size) > 1 and first else None
        rows.append(
            Row(
                (
                    setting.name,
                    policy,
                    *(number(by_size[size]) if size in by_size else NONE for size in sizes),
                    NONE if change is None else f"{change:+.1%}".replace("%", " %"),
                    NONE if change is None else "yes" if change >= -FALL_MAX else "no",
                ),
                strong=policy == OURS,
            )
        )
    return Table(
        title="Capacity per worker",
        text="Requests/s per worker at the SLO, by number of workers; the last columns compare the"
        " largest cluster with the smallest. Up to 10 % less is the aim.",
        columns=("Workload", "Policy", *(f"{n} workers" for n in sizes), "Change", "Within 10 %"),
        rows=rows,
        num_names=2,
    )


def _at_load(cells: Sequence[CellFigures]) -> Table:
    rows = [
        Row(
            (
                setting.name,
                policy,
                str(setting.num_workers),
                setting.at_load,
                with_interval(
                    over_seeds(seeds, lambda cell: cell.requests_per_second / cell.key.num_workers)
                ),
                *(
                    with_interval(over_seeds(seeds, MEASURES[name]))
                    for name in ("mean TTFT", "p99 TTFT")
                ),
                f"{over_seeds(seeds, lambda cell: cell.cached_share).mean:.1%}".replace("%", " %"),
                number(over_seeds(seeds, lambda cell: cell.busy_imbalance).mean),
            ),
            strong=policy == OURS,
        )
        for setting, policies in sorted(
            by_setting(cells).items(),
            key=lambda item: (item[0].name, item[0].load, item[0].num_workers),
        )
        for policy, seeds in policies.items()
    ]
    return Table(
        title="At the same load",
        text="Requests/s per worker that were answered, seconds to the first token, cached share"
        " of the prompt tokens, largest over mean busy time.",
        columns=(
            "Workload",
            "Policy",
            "Workers",
            "Load",
            "Requests/s per worker",
            "mean TTFT",
            "p99 TTFT",
            "Hits",
            "Imbalance",
        ),
        rows=rows,
        num_names=2,
    )


def robustness_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """What each fault costs each policy."""
    settings = by_setting(cells)
    rows = []
    for setting, policies in settings.items():
        if setting.section != "robustness" or not setting.faults:
            continue
        sound = without_faults(setting, settings)
        rows += [
            _fault_row(setting, policy, seeds, sound.get(policy, {}))
            for policy, seeds in policies.items()
        ]
    if not rows:
        return None
    return Chapter(
        anchor="robustness",
        title="Robustness",
        text="Each fault's cost: the figure with the fault over that of the same policy, workload,"
        " rate and seed without it, paired by seed with 95 % intervals. 1 means that the fault"
        " costs nothing.",
        tables=[
            Table(
                title="Cost of each fault",
                text="The seconds are with the fault; hits are the change of the cached share, in"
                " percentage points; failed counts all seeds.",
                columns=(
                    "Fault",
                    "Workload",
                    "Policy",
                    "Workers",
                    "Load",
                    "Mean TTFT, ratio",
                    "p99 TTFT, ratio",
                    "p99 E2E, ratio",
                    "Mean TTFT",
                    "Hits",
                    "Failed",
                ),
                rows=sorted(rows, key=lambda row: (*row.cells[:2], row.cells[4], not row.strong)),
                num_names=3,
            )
        ],
    )


def without_faults(
    setting: Setting, settings: Mapping[Setting, dict[str, dict[int, CellFigures]]]
) -> dict[str, dict[int, CellFigures]]:
    """The same setting without faults; if its section has none, that of the peers."""
    for section in (setting.section, "peers"):
        sound = replace(setting, section=section, faults=())
        if sound in settings:
            return settings[sound]
    return {}


def _fault_row(setting: Setting, policy: str, seeds: Seeds, sound: Seeds) -> Row:
    both = sorted(seeds.keys() & sound.keys())
    hits = sum(seeds[s].cached_share - sound[s].cached_share for s in both) / max(len(both), 1)
    return Row(
        (
            ", ".join(setting.faults),
            setting.name,
            policy,
            str(setting.num_workers),
            setting.at_load,
            *(
                ratio(paired(seeds, sound, MEASURES[name]))
                for name in ("mean TTFT", "p99 TTFT", "p99 E2E")
            ),
            with_interval(over_seeds(seeds, MEASURES["mean TTFT"])),
            f"{100.0 * hits:+.1f}" if both else NONE,
            str(sum(cell.num_failed for cell in seeds.values())),
        ),
        strong=policy == OURS,
    )
