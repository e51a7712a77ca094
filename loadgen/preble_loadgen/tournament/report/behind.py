"""The chapter on local policies behind the router. Pure."""

from collections.abc import Sequence

from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.document import NONE, Chapter, Row, Table, number
from preble_loadgen.tournament.report.groups import MEASURES, in_sections
from preble_loadgen.tournament.report.statistics import geometric_mean
from preble_loadgen.tournament.scheduling.plan import BEHIND

BASELINE = "fcfs"
Place = tuple[str, float, int]


def behind_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """Eight workers behind `preble`, with each local policy."""
    found: dict[Place, dict[str, CellFigures]] = {}
    for cell in in_sections(cells, BEHIND):
        place = (cell.key.workload, cell.key.load, cell.key.seed)
        found.setdefault(place, {})[cell.key.local_policy] = cell
    complete = {place: by for place, by in sorted(found.items()) if BASELINE in by}
    if not complete:
        return None
    policies = list(dict.fromkeys(policy for by in complete.values() for policy in by))
    rows = []
    for at in sorted({load for _, load, _ in complete}):
        there = {place: by for place, by in complete.items() if place[1] == at}
        known = [policy for policy in policies if any(policy in by for by in there.values())]
        rows += [_over_baseline(policy, at, there) for policy in known]
    return Chapter(
        anchor="behind",
        title="Local policies behind the router",
        text="Eight workers behind preble, workloads that share prefixes.",
        tables=[
            Table(
                title=f"Over {BASELINE}",
                text="Geometric means, over all places where both were run, of the ratio of each"
                " figure to its; below 1 is better.",
                columns=("Load", "Local policy", "Places", *MEASURES, "Worst p99 TTFT"),
                rows=rows,
                num_names=2,
            ),
            Table(
                title="By workload and load",
                text="Mean / p99 time to first token in seconds, and within the SLOs.",
                columns=("Workload", "Load", "Seed", *policies),
                rows=[_figures(place, by, policies) for place, by in complete.items()],
                num_names=3,
            ),
        ],
    )


def _over_baseline(policy: str, load: float, places: dict[Place, dict[str, CellFigures]]) -> Row:
    pairs = [(by[policy], by[BASELINE]) for by in places.values() if policy in by]
    means = [
        number(geometric_mean([measure(ours) / measure(theirs) for ours, theirs in pairs]))
        for measure in MEASURES.values()
    ]
    worst = max(ours.ttft.p99 / theirs.ttft.p99 for ours, theirs in pairs)
    cells = (f"{load:g}", policy, str(len(pairs)), *means, number(worst))
    return Row(cells, strong=policy == BASELINE)


def _figures(place: Place, by: dict[str, CellFigures], policies: Sequence[str]) -> Row:
    workload, load, seed = place
    return Row((workload, f"{load:g}", str(seed), *(_cell(by.get(policy)) for policy in policies)))


def _cell(cell: CellFigures | None) -> str:
    if cell is None:
        return NONE
    return f"{number(cell.ttft.mean)} / {number(cell.ttft.p99)}, {cell.within_slo:.0%}"
