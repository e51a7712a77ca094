"""The picture of a fit: predicted against measured, and the relative error of every step."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from preble_loadgen.fit import WORST_ERROR_MAX, Fit

COLOURS = {"prefill": "tab:blue", "decode": "tab:orange", "mixed": "tab:green"}
DOTS_PER_INCH = 120


def plot_residuals(fit: Fit, path: Path) -> None:
    """Write a PNG to `path`. Steps held out are drawn as circles, the others as dots."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    scatter, errors = figure.subplots(1, 2)
    for axes in (scatter, errors):
        axes.set_xscale("log")
        _label(axes.xaxis)
        axes.set_xlabel("measured (ms)")
        axes.grid(alpha=0.3)
    scatter.set_yscale("log")
    _label(scatter.yaxis)
    scatter.set_ylabel("predicted (ms)")
    _draw(fit, scatter, errors)
    ends = [min(s.seconds for s in fit.steps) * 1e3, max(s.seconds for s in fit.steps) * 1e3]
    scatter.plot(ends, ends, color="grey", linewidth=1)
    for bound in (-WORST_ERROR_MAX, 0.0, WORST_ERROR_MAX):
        errors.axhline(100 * bound, color="grey", linewidth=1, linestyle="-" if not bound else ":")
    errors.set_ylabel("(predicted - measured) / measured (%)")
    scatter.legend(fontsize="small")
    figure.suptitle(
        f"{fit.cost.name}: {fit.form}, R² {fit.r_squared:.4f}, "
        f"worst held-out error {fit.worst_error:.1%}"
    )
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def _label(axis: Axis) -> None:
    """1, 2, 5, 10, 20: the default writes powers of ten into each other."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw(fit: Fit, scatter: Axes, errors: Axes) -> None:
    for steps, label in ((fit.steps, "fitted"), (fit.held_out, "held out")):
        for kind, colour in COLOURS.items():
            chosen = [step for step in steps if step.kind == kind]
            measured = [step.seconds * 1e3 for step in chosen]
            predicted = [step.predicted(fit.cost) * 1e3 for step in chosen]
            relative = [100.0 * step.error(fit.cost) for step in chosen]
            for axes, heights in ((scatter, predicted), (errors, relative)):
                axes.scatter(
                    measured,
                    heights,
                    s=22,
                    edgecolors=colour,
                    facecolors=colour if label == "fitted" else "none",
                    label=f"{kind}, {label}",
                )
