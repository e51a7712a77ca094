"""What `preble profile` prints: how the forms compare, and the coefficients of the better one."""

from collections import defaultdict
from collections.abc import Sequence

from preble.cost import CostModel
from preble_loadgen.fit import WORST_ERROR_MAX, Fit, MeasuredStep, in_full_form
from preble_worker.kv_form import KvForm

UNITS = {
    "fixed": "s per step",
    "weight_read": "s per step",
    "per_prefill_token": "s per prompt token",
    "per_attention": "s per pair of a prompt token and an earlier one",
    "per_decode": "s per decode",
    "per_context_token": "s per context token of the decodes",
    "per_hidden_token": "s per context token in the hidden form",
    "per_int8_token": "s per context token in int8",
    "per_product": "s per attention product beyond the step's first",
}


def compare(fits: Sequence[Fit]) -> str:
    """A table with one row per form; the first is the one that is used."""
    lines = [f"{'form':<10}{'R²':>8}{'median error':>14}{'worst error':>13}  worst step"]
    for fit in fits:
        worst = fit.worst
        lines.append(
            f"{fit.form:<10}{fit.r_squared:>8.4f}{fit.median_error:>14.1%}{fit.worst_error:>13.1%}"
            f"  {worst.kind}: {worst.prefill_tokens:g} new, {worst.decodes:g} decodes, "
            f"{worst.context_tokens:.0f} in context: {worst.seconds * 1e3:.2f} ms, predicted "
            f"{worst.predicted(fit.cost) * 1e3:.2f} ms"
        )
    return "\n".join(lines)


def describe_compact(cost: CostModel, steps: Sequence[MeasuredStep], form: KvForm) -> str:
    """What the form costs, and how well the model says so."""
    slower = [step.seconds / in_full_form(step).predicted(cost) for step in steps]
    errors = [abs(step.error(cost)) for step in steps]
    name, seconds = "int8", cost.per_int8_token
    if form is KvForm.HIDDEN:
        name, seconds = "hidden form", cost.per_hidden_token
    return (
        f"  {name}: {seconds:.4g} s per context token and step; a decode step "
        f"takes {min(slower):.2f} to {max(slower):.2f} times as long; mean error of "
        f"{len(steps)} steps {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}"
    )


def describe(fit: Fit) -> str:
    """The coefficients, and the errors of each kind of step."""
    lines = [
        f"\n{fit.form}, fitted to {len(fit.steps)} steps, judged by {len(fit.held_out)} others "
        f"(worst error at most {WORST_ERROR_MAX:.0%})"
    ]
    for name, unit in UNITS.items():
        lines.append(f"  {name:<18}{getattr(fit.cost, name):>12.4g}  {unit}")
    errors: dict[str, list[float]] = defaultdict(list)
    for step in (*fit.steps, *fit.held_out):
        errors[step.kind].append(abs(step.error(fit.cost)))
    for kind, values in errors.items():
        mean = sum(values) / len(values)
        lines.append(f"  {kind:<18}mean error {mean:.1%}, worst {max(values):.1%}, all steps")
    return "\n".join(lines)
