"""The tournament's report: figures against brute force, and pages that stand on their own."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev

import pytest
from tournament_helpers import make_cell

from preble.errors import ConfigError
from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report import write_report
from preble_loadgen.tournament.report.capacity import capacities
from preble_loadgen.tournament.report.chapters import chapters
from preble_loadgen.tournament.report.document import Chapter, Table
from preble_loadgen.tournament.report.duels import Verdict, duels, standing
from preble_loadgen.tournament.report.groups import is_own, names_with_sharing
from preble_loadgen.tournament.report.statistics import estimate, ratio_estimate, t_quantile

CIRCUMSTANCES = {"command": "preble tournament <all>", "versions": {"python": "3.11"}}


def duel_cells(ours: list[float], theirs: list[float], **fields: object) -> list[CellFigures]:
    """Mean TTFT of `preble` and of `e2`, a pair per seed."""
    return [
        make_cell(policy=policy, seed=seed, mean=value, **fields)  # type: ignore[arg-type]
        for policy, values in (("preble", ours), ("e2", theirs))
        for seed, value in enumerate(values)
    ]


def sweep(policy: str, tails: dict[float, float], **fields: object) -> list[CellFigures]:
    """p99 TTFT by rate; the SLO is 2 s."""
    return [
        make_cell(policy=policy, rate=rate, p99=p99, **fields)  # type: ignore[arg-type]
        for rate, p99 in tails.items()
    ]


def chapter(cells: list[CellFigures], anchor: str) -> Chapter:
    return {chapter.anchor: chapter for chapter in chapters(cells)}[anchor]


def rows(table: Table) -> list[tuple[str, ...]]:
    return [row.cells for row in table.rows]


def test_an_interval_is_students() -> None:
    sample = [1.0, 2.0, 4.0, 4.5]
    value = estimate(sample)
    half = 3.182 * stdev(sample) / math.sqrt(4)
    assert value.mean == pytest.approx(mean(sample))
    assert (value.low, value.high) == pytest.approx((mean(sample) - half, mean(sample) + half))
    assert value.n == 4


def test_one_seed_has_no_width() -> None:
    value = estimate([3.0])
    assert (value.low, value.mean, value.high, value.n) == (3.0, 3.0, 3.0, 1)


def test_t_falls_towards_the_normal_quantile_without_a_step() -> None:
    quantiles = [t_quantile(degrees) for degrees in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert t_quantile(60) == pytest.approx(2.0003, abs=2e-4)
    assert t_quantile(100_000) == pytest.approx(1.96, abs=1e-3)


def test_ratios_are_averaged_geometrically() -> None:
    value = ratio_estimate([0.5, 2.0])
    assert value.mean == pytest.approx(1.0)
    assert value.low * value.high == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.2, 1.8], Verdict.WIN),
        ([2.0, 2.2, 1.8], [1.0, 1.1, 0.9], Verdict.LOSS),
        ([1.0, 1.1, 0.9], [1.01, 1.1, 0.9], Verdict.TIE),
        ([1.0, 3.0, 0.5], [0.5, 1.0, 1.5], Verdict.TIE),  # twice as slow, or not: noise
        ([1.01], [1.0], Verdict.TIE),
        ([1.03], [1.0], Verdict.LOSS),
    ],
)
def test_verdicts(ours: list[float], theirs: list[float], verdict: Verdict) -> None:
    (duel,) = (duel for duel in duels(duel_cells(ours, theirs)) if duel.measure == "mean TTFT")
    assert duel.verdict is verdict


def test_duels_are_paired_by_seed() -> None:
    """Seeds differ tenfold, the policies by exactly 5 %: only pairs show it."""
    ours, theirs = [0.1, 1.0, 10.0], [0.105, 1.05, 10.5]
    (duel,) = (duel for duel in duels(duel_cells(ours, theirs)) if duel.measure == "mean TTFT")
    assert duel.ratio.mean == pytest.approx(1.0 / 1.05)
    assert duel.ratio.high == pytest.approx(1.0 / 1.05)
    assert duel.verdict is Verdict.WIN


def test_only_equal_settings_meet_and_only_seeds_that_both_have() -> None:
    cells = [make_cell(seed=0), make_cell(seed=1), make_cell(policy="e2", seed=1)]
    assert {duel.ratio.n for duel in duels(cells)} == {1}
    apart = [make_cell(), make_cell(policy="e2", rate=11.0), make_cell(policy="e2", workload="x")]
    assert duels(apart) == []


def test_a_policy_does_not_meet_itself_without_a_term() -> None:
    assert duels([make_cell(), make_cell(policy="preble:plan=0")]) == []
    assert is_own("preble:plan=0")
    assert is_own("preble-no-plan")
    assert not is_own("prefix_score")


def test_a_standing_counts_and_names_the_worst() -> None:
    cells = [
        *duel_cells([1.0], [2.0], workload="a"),
        *duel_cells([2.0], [1.0], workload="b"),
        *duel_cells([1.0], [1.0], workload="c"),
    ]
    of = standing([duel for duel in duels(cells) if duel.measure == "mean TTFT"])
    assert [of.verdicts[verdict] for verdict in Verdict] == [1, 1, 1]
    assert of.geometric_mean == pytest.approx(1.0)
    assert (of.worst.setting.workload, of.worst.ratio.mean) == ("b", pytest.approx(2.0))


def test_capacity_is_interpolated_on_the_logarithm_of_the_tail() -> None:
    """1 s at 10/s, 4 s at 20/s: on a logarithmic scale the SLO of 2 s lies half way."""
    (row,) = capacities(sweep("preble", {10.0: 1.0, 20.0: 4.0}))
    capacity = row.of["preble"]
    assert capacity.rate.mean == pytest.approx(15.0)
    assert not capacity.at_least
    assert not capacity.at_most


def test_capacity_ends_where_the_first_of_both_limits_is_crossed() -> None:
    """The share falls from 100 to 50 %: it is at 90 % after a fifth of the way."""
    cells = [
        make_cell(rate=10.0, p99=1.0, within=1.0),
        make_cell(rate=20.0, p99=4.0, within=0.5),
    ]
    (row,) = capacities(cells)
    assert row.of["preble"].rate.mean == pytest.approx(12.0)


def test_a_share_alone_can_end_the_capacity() -> None:
    cells = [
        make_cell(rate=10.0, p99=1.0, within=0.95),
        make_cell(rate=20.0, p99=1.0, within=0.85),
    ]
    (row,) = capacities(cells)
    assert row.of["preble"].rate.mean == pytest.approx(15.0)


def test_capacity_beyond_the_sweep_is_a_bound() -> None:
    (row,) = capacities(
        [
            *sweep("preble", {10.0: 1.0, 20.0: 1.5}),
            *sweep("e2", {10.0: 3.0, 20.0: 9.0}),
        ]
    )
    ours, theirs = row.of["preble"], row.of["e2"]
    assert (ours.rate.mean, ours.at_least, ours.at_most) == (20.0, True, False)
    assert (theirs.rate.mean, theirs.at_least, theirs.at_most) == (10.0, False, True)


def test_capacity_is_the_highest_rate_that_is_kept() -> None:
    (row,) = capacities(sweep("preble", {10.0: 3.0, 20.0: 1.0, 30.0: 4.0}))
    assert row.of["preble"].rate.mean == pytest.approx(25.0)


def test_capacity_over_seeds_and_the_best_rivals() -> None:
    tails = {10.0: 1.0, 20.0: 4.0}
    cells = [
        *sweep("preble", tails, seed=0),
        *sweep("preble", {10.0: 1.0, 20.0: 1.0, 30.0: 4.0}, seed=1),
        *sweep("e2", tails),
        *sweep("least_loaded", {10.0: 1.0, 20.0: 16.0}),
        *sweep("round_robin", {10.0: 1.0, 20.0: 256.0}),
    ]
    (row,) = capacities(cells)
    assert row.of["preble"].rate.mean == pytest.approx((15.0 + 25.0) / 2)
    assert (row.best_rival, row.best_blind) == ("e2", "least_loaded")
    assert row.ratio("e2") == pytest.approx(20.0 / 15.0)
    assert row.ratio("least_loaded") == pytest.approx(20.0 / 12.5)


def test_two_bounds_on_the_same_side_tell_no_ratio() -> None:
    """A sweep that began at a higher rate makes nobody better who misses every rate."""
    cells = [
        *sweep("preble", {5.0: 3.0, 10.0: 9.0, 20.0: 9.0}),
        *sweep("sticky", {10.0: 3.0, 20.0: 9.0}),
    ]
    (row,) = capacities(cells)
    assert row.best_rival == "sticky" and row.ratio("sticky") is None
    (row,) = capacities([*cells, *sweep("e2", {5.0: 1.0, 10.0: 9.0})])
    assert row.best_rival == "e2" and row.ratio("e2") == pytest.approx(5.0 / row.of["e2"].rate.mean)
    (row,) = capacities(
        [*sweep("preble", {5.0: 1.0, 9.0: 1.0}), *sweep("e2", {5.0: 1.0, 8.0: 1.0})]
    )
    assert row.ratio("e2") is None


def test_one_rate_is_no_sweep_and_a_closed_loop_is_none_either() -> None:
    assert capacities([make_cell(rate=10.0)]) == []
    assert capacities([make_cell(rate=0.0), make_cell(rate=0.0, load=2.0)]) == []


def test_sharing_is_seen_in_the_hits() -> None:
    cells = [
        make_cell(workload="shared", policy="e2", cached=0.4),
        make_cell(workload="shared", policy="random", cached=0.0),
        make_cell(workload="apart", cached=0.01),
    ]
    assert names_with_sharing(cells) == {"shared"}


def test_capacity_over_all_workloads_is_a_geometric_mean() -> None:
    cells = []
    for workload, ours in (("a", 64.0), ("b", 4.0)):
        cells += sweep("preble", {10.0: 1.0, 20.0: ours}, workload=workload)
        cells += sweep("e2", {10.0: 1.0, 20.0: 4.0}, workload=workload)
    together = chapter(cells, "capacity").tables[1]
    ratios = [(10 + 10 * math.log(2) / math.log(64)) / 15.0, 1.0]
    assert rows(together) == [
        (
            "with sharing",
            "best other",
            "2",
            f"{math.sqrt(ratios[0] * ratios[1]):.3g}",
            f"{ratios[0]:.3g}",
            "≥ 1.3",
        )
    ]


def test_capacity_over_each_policy_takes_all_workloads_that_tell() -> None:
    cells = []
    for workload, theirs in (("a", 4.0), ("b", 64.0)):
        cells += sweep("preble", {10.0: 1.0, 20.0: 4.0}, workload=workload)
        cells += sweep("e2", {10.0: 1.0, 20.0: theirs}, workload=workload)
    cells += sweep("random", {10.0: 3.0, 20.0: 64.0}, workload="a")
    ratio = 15.0 / (10 + 10 * math.log(2) / math.log(64))
    assert rows(chapter(cells, "capacity").tables[2]) == [
        ("e2", "2", f"{math.sqrt(ratio):.3g}", "1", f"{ratio:.3g}"),
        ("random", "1", "1.5", "1.5", "1.5"),
    ]


def test_reproduction_sets_gains_beside_the_published_ones() -> None:
    cells = [
        make_cell(section="reproduction", policy="round_robin", e2e=20.0),
        make_cell(section="reproduction", policy="e2", e2e=10.0),
    ]
    (row,) = rows(chapter(cells, "reproduction").tables[0])
    assert row[5:9] == ("2", "within", "2", "within")


def test_a_fault_is_set_beside_the_same_cell_without_it() -> None:
    faults = ("lost:0.01",)
    cells = [
        make_cell(section="robustness", mean=1.0, cached=0.6, workload="own"),
        make_cell(section="robustness", mean=1.5, cached=0.5, workload="own", faults=faults),
        make_cell(section="peers", mean=1.0, workload="peers"),
        make_cell(section="robustness", mean=3.0, workload="peers", faults=faults, failed=2),
        make_cell(section="robustness", mean=3.0, workload="alone", faults=faults),
    ]
    found = {row[1]: row for row in rows(chapter(cells, "robustness").tables[0])}
    assert found["own"][5] == "1.5"
    assert found["own"][9] == "-10.0"
    assert (found["peers"][5], found["peers"][10]) == ("3", "2")
    assert found["alone"][5] == "–"


def test_a_term_that_helps_has_a_ratio_above_one() -> None:
    cells = [
        make_cell(section="ablation", mean=1.0),
        make_cell(section="ablation", policy="preble:plan=0", mean=1.3),
        make_cell(section="peers", workload="other", mean=1.0),
        make_cell(section="ablation", policy="preble:plan=0", workload="other", mean=1.3),
    ]
    row = rows(chapter(cells, "ablation").tables[0])[0]
    assert row[:4] == ("preble:plan=0", "mean TTFT", "2", "1.3")


def test_scaling_compares_the_largest_cluster_with_the_smallest() -> None:
    cells = [
        *sweep("preble", {10.0: 1.0, 20.0: 4.0}, section="scaling", num_workers=8),
        *sweep("preble", {80.0: 1.0, 128.0: 4.0}, section="scaling", num_workers=64),
    ]
    (row,) = rows(chapter(cells, "scaling").tables[0])
    assert row == ("tool_use", "preble", "1.88", "1.62", "-13.3 %", "no")


class Page(HTMLParser):
    """Everything that a page would load, every id and every link within it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in {"href", "xlink:href"} and (value or "").startswith("#"):
                self.links.add((value or "")[1:])
            elif name in {"src", "href", "xlink:href"}:
                self.loaded.append(value or "")


def written(cells: list[CellFigures], folder: Path) -> tuple[str, str]:
    html, markdown = folder / "out" / "report.html", folder / "report.md"
    write_report(cells, html=html, markdown=markdown, circumstances=CIRCUMSTANCES)
    return html.read_text(), markdown.read_text()


def some_cells() -> list[CellFigures]:
    cells = []
    for policy, better in (("preble", 0.8), ("e2", 1.0), ("unheard_of", 1.2)):
        for seed in (1, 2):
            cells += sweep(policy, {10.0: better, 20.0: 4.0 * better}, seed=seed)
    samples = tuple((float(at), (at * 1.0, 2.0, 3.0, 4.0)) for at in range(5))
    cells[0] = replace(cells[0], load_over_time=samples)
    faulty = make_cell(section="robustness", faults=("lost:0.01",))
    term = make_cell(section="ablation", policy="preble:plan=0")
    return [
        *cells,
        faulty,
        replace(faulty, key=replace(faulty.key, faults=())),
        term,
        replace(term, key=replace(term.key, policy="preble")),
        make_cell(section="failures", rate=0.0, load=1.0, workload="hot <prefix>"),
    ]


def test_the_page_loads_nothing_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    html, _ = written(some_cells(), tmp_path)
    page = Page(html)
    assert page.loaded == []
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)
    assert page.links <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)), "two plots share an id"
    assert html.count("<figure") >= 5
    assert html.count("<figure") == html.count("</svg>")


def test_both_forms_name_the_command_and_escape_it(tmp_path: Path) -> None:
    html, markdown = written(some_cells(), tmp_path)
    assert "preble tournament &lt;all&gt;" in html
    assert "hot &lt;prefix&gt;" in html
    assert "<prefix>" not in html
    assert "- command: `preble tournament <all>`" in markdown
    assert "- python: `3.11`" in markdown


def test_markdown_tables_are_whole_and_short(tmp_path: Path) -> None:
    _, markdown = written(some_cells(), tmp_path)
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block
    assert "All cells" not in markdown
    assert "**preble**" in markdown


@pytest.mark.parametrize(
    "section",
    ["peers", "capacity", "reproduction", "scaling", "robustness", "ablation", "local", "failures"],
)
def test_any_section_can_stand_alone_with_one_cell(section: str, tmp_path: Path) -> None:
    faults = ("lost:0.01",) if section == "robustness" else ()
    html, markdown = written([make_cell(section=section, faults=faults)], tmp_path)
    assert section in html
    assert section in markdown


def test_the_order_of_the_cells_does_not_matter(tmp_path: Path) -> None:
    cells = some_cells()
    assert written(cells, tmp_path) == written(cells[::-1], tmp_path)


def test_no_cells_and_no_place_to_write_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cells"):
        written([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        written([make_cell()], tmp_path / "file")
