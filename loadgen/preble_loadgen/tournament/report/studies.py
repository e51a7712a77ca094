"""The chapters of one question each: reproduction, ablation, local policies, scenarios. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.document import (
    NONE,
    Chapter,
    Row,
    Table,
    number,
    ratio,
    share,
    with_interval,
)
from preble_loadgen.tournament.report.duels import paired
from preble_loadgen.tournament.report.groups import (
    MEASURES,
    OURS,
    Seeds,
    by_setting,
    in_sections,
    is_own,
    over_seeds,
)
from preble_loadgen.tournament.report.statistics import Estimate, estimate, geometric_mean

PUBLISHED_MEAN = (1.5, 14.5)
PUBLISHED_P99 = (2.0, 10.0)
"""Round robin's latency over E2's, as published (arXiv 2407.00023)."""
BASE, FAITHFUL = "round_robin", "e2"
COMPARED = ("mean TTFT", "p99 TTFT")


def reproduction_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """`e2` against `round_robin` under the published set-up."""
    rows = []
    for setting, policies in by_setting(in_sections(cells, "reproduction")).items():
        if BASE not in policies or FAITHFUL not in policies:
            continue
        gains = {
            (policy, name): paired(policies[BASE], policies.get(policy, {}), MEASURES[name])
            for policy in (FAITHFUL, OURS)
            for name in ("mean E2E", "p99 E2E")
        }
        mean, p99 = gains[FAITHFUL, "mean E2E"], gains[FAITHFUL, "p99 E2E"]
        rows.append(
            Row(
                (
                    setting.name,
                    setting.cost_model,
                    str(setting.num_workers),
                    setting.at_load,
                    number(setting.rate),
                    ratio(mean),
                    _against(mean, PUBLISHED_MEAN),
                    ratio(p99),
                    _against(p99, PUBLISHED_P99),
                    ratio(gains[OURS, "mean E2E"]),
                    ratio(gains[OURS, "p99 E2E"]),
                )
            )
        )
    if not rows:
        return None
    return Chapter(
        anchor="reproduction",
        title="Reproduction: E2 against round robin",
        text="How many times longer requests take, from sending to the last token, under"
        " round_robin than under e2 (and, beside it, than under preble), paired by seed with 95 %"
        " intervals. Published: 1.5 to 14.5 times on the mean, 2 to 10 times on p99.",
        tables=[
            Table(
                title="Gain over round robin by workload and rate",
                text="More is better; the rate is requests/s of the whole cluster.",
                columns=(
                    "Workload",
                    "Cost model",
                    "Workers",
                    "Load",
                    "Rate",
                    "Mean, e2",
                    "1.5–14.5",
                    "p99, e2",
                    "2–10",
                    "Mean, preble",
                    "p99, preble",
                ),
                rows=rows,
                num_names=2,
            )
        ],
    )


def _against(gain: Estimate | None, published: tuple[float, float]) -> str:
    if gain is None:
        return NONE
    low, high = published
    return "below" if gain.mean < low else "above" if gain.mean > high else "within"


def ablation_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """What each term of `preble` is worth."""
    settings = by_setting(in_sections(cells, "ablation", "peers"))
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    details = []
    for setting, policies in settings.items():
        peers = settings.get(replace(setting, section="peers"), {})
        whole = policies.get(OURS) or peers.get(OURS) or {}
        for policy, seeds in policies.items():
            if policy == OURS or not is_own(policy):
                continue
            ratios = [paired(seeds, whole, MEASURES[name]) for name in COMPARED]
            details.append(
                Row(
                    (
                        policy,
                        setting.name,
                        str(setting.num_workers),
                        setting.at_load,
                        *(ratio(value) for value in ratios),
                    )
                )
            )
            for name, value in zip(COMPARED, ratios, strict=True):
                if value is not None:
                    place = f"{setting.name}, load {setting.at_load}"
                    found.setdefault(policy, {}).setdefault(name, []).append((place, value.mean))
    if not found:
        return None
    return Chapter(
        anchor="ablation",
        title="Ablation: each term switched off",
        text="The figure without the term over the figure of the whole policy, paired by seed:"
        " above 1 the term helps, below 1 it harms.",
        tables=[
            Table(
                title="By term",
                text="Geometric mean over all settings, and the setting in which the term is worth"
                " most and least.",
                columns=("Policy", "Figure", "Settings", "Ratio", "Most", "Least"),
                rows=[
                    _term(policy, name, places)
                    for policy in sorted(found)
                    for name, places in found[policy].items()
                ],
                num_names=2,
            ),
            Table(
                title="By term and setting",
                text="Ratios with 95 % intervals.",
                columns=("Policy", "Workload", "Workers", "Load", *COMPARED),
                rows=sorted(details, key=lambda row: row.cells[:2]),
                num_names=2,
                is_detail=True,
            ),
        ],
    )


def _term(policy: str, name: str, places: Sequence[tuple[str, float]]) -> Row:
    most, least = (pick(places, key=lambda place: place[1]) for pick in (max, min))
    return Row(
        (
            policy,
            name,
            str(len(places)),
            number(geometric_mean([value for _, value in places])),
            f"{number(most[1])} ({most[0]})",
            f"{number(least[1])} ({least[0]})",
        )
    )


def local_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """The workers' own queues."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for setting, policies in by_setting(in_sections(cells, "local")).items():
        place = (setting.name, str(setting.num_workers), setting.at_load)
        for policy, seeds in policies.items():
            figures = (
                *(over_seeds(seeds, measure) for measure in MEASURES.values()),
                over_seeds(seeds, lambda cell: cell.gap.p99),
            )
            groups.setdefault((policy, *place), []).append(
                Row(
                    (
                        setting.name,
                        policy,
                        setting.local_policy,
                        str(setting.num_workers),
                        setting.at_load,
                        *(with_interval(value) for value in figures),
                        share(over_seeds(seeds, lambda cell: cell.cached_share).mean),
                        share(over_seeds(seeds, lambda cell: cell.within_slo).mean),
                    )
                )
            )
    if not groups:
        return None
    return Chapter(
        anchor="local",
        title="Local policies",
        text="The order in which a worker takes the requests of its queue, under the same routing.",
        tables=[
            Table(
                title="By workload and load",
                text="Seconds, means over seeds with 95 % intervals; gap is the time between two"
                " pieces of an answer.",
                columns=(
                    "Workload",
                    "Routing",
                    "Local policy",
                    "Workers",
                    "Load",
                    *MEASURES,
                    "Gap p99",
                    "Hits",
                    "Within SLO",
                ),
                rows=[row for rows in groups.values() for row in rows],
                num_names=3,
            )
        ],
    )


def failures_chapter(cells: Sequence[CellFigures]) -> Chapter | None:
    """Scenarios in which prefix-aware routers are known to fail."""
    rows = []
    for setting, policies in by_setting(in_sections(cells, "failures")).items():
        ordered = sorted(
            policies.items(), key=lambda item: over_seeds(item[1], MEASURES["p99 TTFT"]).mean
        )
        rows += [
            Row(
                (
                    setting.name,
                    policy,
                    str(setting.num_workers),
                    setting.at_load,
                    share(over_seeds(seeds, lambda cell: cell.largest_share).mean),
                    _meeting(seeds),
                    share(over_seeds(seeds, lambda cell: cell.cached_share).mean),
                    *(with_interval(over_seeds(seeds, MEASURES[name])) for name in COMPARED),
                ),
                strong=policy == OURS,
            )
            for policy, seeds in ordered
        ]
    if not rows:
        return None
    return Chapter(
        anchor="failures",
        title="Scenarios in which routers fail",
        text="One hot prefix, a system prompt that all share, a burst after a quiet warm-up,"
        " families with 91 % of their prompts in common. Largest share is the share of all"
        " requests that the busiest worker got: even would be one over the number of workers."
        " Meeting is the share of the requests that went where most of their family goes.",
        tables=[
            Table(
                title="By scenario, the lowest p99 first",
                text="Seconds, means over seeds with 95 % intervals; hits are the cached share of"
                " prompt tokens.",
                columns=(
                    "Scenario",
                    "Policy",
                    "Workers",
                    "Load",
                    "Largest share",
                    "Meeting",
                    "Hits",
                    *COMPARED,
                ),
                rows=rows,
                num_names=2,
            )
        ],
    )


def _meeting(seeds: Seeds) -> str:
    shares = [cell.meeting_share for cell in seeds.values() if cell.meeting_share is not None]
    return share(estimate(shares).mean) if shares else NONE
