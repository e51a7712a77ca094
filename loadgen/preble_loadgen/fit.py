"""From measured steps to a cost model. Pure.

Both forms of `preble.cost.CostModel` are fitted by least squares with coefficients that are never
negative. What is minimised is the relative error, since a step of 2 ms matters as much as one of
200 ms, and at last its fourth power, since the worst step judges a fit. Steps that the fit has not
seen decide between the forms, and whether either is any good.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from preble.cost import CostModel
from preble_worker.kv_form import KvForm

WORST_ERROR_MAX = 0.15
"""Of a fit that may be used: relative, over the steps held out."""

MEASURED_MIN = 1e-12
"""Seconds per token of a form that costs nothing; 0 would say that nobody measured it."""

HELD_OUT_EVERY = 4
EVEN_ROUNDS = 30
EXACT_ERROR = 1e-6
ROUNDS_MAX = 20
"""Of guessing which side of the roof steps are on; it settles in a few."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """One kind of step and how long it takes.

    Attributes:
        kind: for people, such as "decode".
        prefill_tokens, attention, decodes, context_tokens, hidden_tokens, int8_tokens, products:
            P, A, D, K, H, Q and N of the cost model.
    """

    kind: str
    prefill_tokens: float
    attention: float
    decodes: float
    context_tokens: float
    seconds: float
    products: float = 0.0
    hidden_tokens: float = 0.0
    int8_tokens: float = 0.0

    def predicted(self, cost: CostModel) -> float:
        """Seconds according to `cost`."""
        return cost.step_seconds(
            prefill_tokens=self.prefill_tokens,
            attention=self.attention,
            decodes=self.decodes,
            context_tokens=self.context_tokens,
            products=self.products,
            hidden_tokens=self.hidden_tokens,
            int8_tokens=self.int8_tokens,
        )

    def error(self, cost: CostModel) -> float:
        """Relative error of `cost`: (predicted - measured) / measured."""
        return self.predicted(cost) / self.seconds - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A cost model and how well it does.

    Attributes:
        steps: those it was fitted to.
        held_out: those it was not.
        r_squared: of the seconds of all steps: the share of their variance it explains.
        worst: the step held out that it misses by most.
    """

    cost: CostModel
    steps: tuple[MeasuredStep, ...]
    held_out: tuple[MeasuredStep, ...]
    r_squared: float
    worst: MeasuredStep

    @property
    def form(self) -> str:
        return "roofline" if self.cost.roofline else "linear"

    @property
    def worst_error(self) -> float:
        """Largest relative error over the steps held out."""
        return abs(self.worst.error(self.cost))

    @property
    def median_error(self) -> float:
        """Median relative error over the steps held out."""
        return float(np.median([abs(step.error(self.cost)) for step in self.held_out]))

    @property
    def is_usable(self) -> bool:
        return self.worst_error <= WORST_ERROR_MAX


def fit_both(steps: Sequence[MeasuredStep], *, name: str, source: str) -> tuple[Fit, Fit]:
    """The linear and the roofline fit, the one that misses held-out steps by less first.

    Every fourth step is held out.
    """
    assert len(steps) >= 2 * HELD_OUT_EVERY, "too few steps to fit six coefficients"
    held_out = tuple(steps[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY])
    seen = tuple(s for i, s in enumerate(steps) if i % HELD_OUT_EVERY != HELD_OUT_EVERY // 2)
    fits = [
        _judge(replace(form(seen), name=name, source=source), seen, held_out)
        for form in (fit_linear, fit_roofline)
    ]
    # Of equals the simpler form is first, and the sort is stable.
    better, other = sorted(fits, key=lambda fit: fit.worst_error)
    return better, other


def with_compact_form(cost: CostModel, steps: Sequence[MeasuredStep], form: KvForm) -> CostModel:
    """`cost` with the c5 or c7 that one of `steps`, all in `form`, says and that suits all best.

    Below the roof the form does not show, so that a step there says too little.
    """
    found = [
        _compact_seconds(cost, step) / (step.hidden_tokens + step.int8_tokens) for step in steps
    ]
    models = [_with_seconds(cost, form, max(seconds, MEASURED_MIN)) for seconds in found]
    return min(models, key=lambda model: _squared_error(model, steps), default=cost)


def _with_seconds(cost: CostModel, form: KvForm, seconds: float) -> CostModel:
    if form is KvForm.HIDDEN:
        return replace(cost, per_hidden_token=seconds)
    return replace(cost, per_int8_token=seconds)


def in_full_form(step: MeasuredStep) -> MeasuredStep:
    """The same step, had its requests no compact form."""
    return replace(step, hidden_tokens=0.0, int8_tokens=0.0)


def _compact_seconds(cost: CostModel, step: MeasuredStep) -> float:
    """What the compact form must have taken, if `cost` is right in all else."""
    plain = in_full_form(step)
    missing = step.seconds - plain.predicted(cost)
    if missing <= 0.0:
        return 0.0
    if cost.roofline:  # What is computed below the roof does not show.
        computing = replace(cost, weight_read=0.0, per_context_token=0.0)
        missing += plain.predicted(cost) - plain.predicted(computing)
    return missing


def fit_linear(steps: Sequence[MeasuredStep]) -> CostModel:
    """t = fixed + c6·N + c1·P + c2·A + c3·D + c4·K."""
    begun, compute, traffic = _terms(steps)
    c = _fit_evenly(np.hstack([begun, compute, traffic[:, 1:]]), steps)
    return _model(begun=c[:2], compute=c[2:5], traffic=(0.0, c[5]), roofline=False)


def fit_roofline(steps: Sequence[MeasuredStep]) -> CostModel:
    """t = fixed + c6·N + max(c1·P + c2·A + c3·D, weights + c4·K).

    Which side of the roof each step is on is guessed, fitted and corrected until nothing changes,
    from several first guesses; the best end counts.
    """
    candidates = [_fit_sides(steps, guess) for guess in _first_guesses(steps)]
    best = min(candidates, key=lambda cost: _squared_error(cost, steps))
    begun, compute, traffic = _terms(steps)
    by_memory = traffic @ (best.weight_read, best.per_context_token) > compute @ (
        best.per_prefill_token,
        best.per_attention,
        best.per_decode,
    )
    c = _fit_evenly(_sides(begun, compute, traffic, by_memory), steps)
    even = _model(begun=c[:2], compute=c[2:5], traffic=(c[5], c[6]), roofline=True)
    return min(best, even, key=lambda cost: _worst_error(cost, steps))


def non_negative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """argmin |matrix · x - target|² over x >= 0.

    At the optimum the positive entries are the plain least-squares solution over their columns.
    A cost model has so few columns that all sets of them can be tried.

    Args:
        matrix: (n, at most 8).
        target: (n,).
    """
    num_columns = matrix.shape[1]
    assert num_columns <= 8, "the number of sets of columns doubles with each"
    best, best_error = np.zeros(num_columns), float(target @ target)
    # Columns differ by many orders of magnitude; rank is judged on equal terms.
    scales = np.linalg.norm(matrix, axis=0)
    present = np.flatnonzero(scales).tolist()  # of a column of zeros nothing can be told
    scaled = matrix / np.where(scales > 0.0, scales, 1.0)
    for size in range(1, len(present) + 1):
        for columns in map(list, combinations(present, size)):
            solution = np.linalg.lstsq(scaled[:, columns], target, rcond=None)[0]
            residual = scaled[:, columns] @ solution - target
            error = float(residual @ residual)
            if (solution >= 0.0).all() and error < best_error:
                best, best_error = np.zeros(num_columns), error
                best[columns] = solution / scales[columns]
    return best


def _judge(
    cost: CostModel, steps: tuple[MeasuredStep, ...], held_out: tuple[MeasuredStep, ...]
) -> Fit:
    everything = (*steps, *held_out)
    seconds = np.array([step.seconds for step in everything])
    residual = seconds - [step.predicted(cost) for step in everything]
    variance = float(((seconds - seconds.mean()) ** 2).sum())
    return Fit(
        cost=cost,
        steps=steps,
        held_out=held_out,
        r_squared=1.0 - float((residual**2).sum()) / variance if variance else 1.0,
        worst=max(held_out, key=lambda step: abs(step.error(cost))),
    )


def _terms(steps: Sequence[MeasuredStep]) -> tuple[Floats, Floats, Floats]:
    """Columns (1, N), (P, A, D) and (1, K)."""
    begun = np.array([(1.0, s.products) for s in steps])
    compute = np.array([(s.prefill_tokens, s.attention, s.decodes) for s in steps])
    traffic = np.array([(1.0, s.context_tokens) for s in steps])
    return begun, compute, traffic


def _fit_relative(matrix: Floats, steps: Sequence[MeasuredStep]) -> Floats:
    seconds = np.array([step.seconds for step in steps])
    return non_negative_least_squares(matrix / seconds[:, None], np.ones(len(steps)))


def _fit_evenly(matrix: Floats, steps: Sequence[MeasuredStep]) -> Floats:
    """Least fourth powers of the relative errors: least squares whose weights are the errors.

    Newton's method on the fourth power takes a third of the way to each weighted solution.
    """
    seconds = np.array([step.seconds for step in steps])
    relative = matrix / seconds[:, None]
    found = non_negative_least_squares(relative, np.ones(len(steps)))
    for _ in range(EVEN_ROUNDS):
        errors = np.abs(relative @ found - 1.0)
        if not errors.max() > EXACT_ERROR:
            break
        weights = np.maximum(errors / errors.max(), EXACT_ERROR)
        weighted = non_negative_least_squares(relative * weights[:, None], weights)
        found = found + (weighted - found) / 3.0
    return found


def _first_guesses(steps: Sequence[MeasuredStep]) -> list[npt.NDArray[np.bool_]]:
    """Which steps are bound by memory: those without prefill, or with at most so many tokens."""
    tokens = np.array([step.prefill_tokens + step.decodes for step in steps])
    limits = np.unique(np.quantile(tokens, (0.1, 0.25, 0.5, 0.75)))
    decoding = np.array([step.prefill_tokens == 0 for step in steps])
    return [decoding, *(tokens <= limit for limit in limits)]


def _fit_sides(steps: Sequence[MeasuredStep], by_memory: npt.NDArray[np.bool_]) -> CostModel:
    begun, compute, traffic = _terms(steps)
    best: CostModel | None = None
    for _ in range(ROUNDS_MAX):
        c = _fit_relative(_sides(begun, compute, traffic, by_memory), steps)
        cost = _model(begun=c[:2], compute=c[2:5], traffic=(c[5], c[6]), roofline=True)
        if best is None or _squared_error(cost, steps) < _squared_error(best, steps):
            best = cost
        seen, by_memory = by_memory, traffic @ c[5:] > compute @ c[2:5]
        if (seen == by_memory).all():
            break
    assert best is not None
    return best


def _sides(
    begun: Floats, compute: Floats, traffic: Floats, by_memory: npt.NDArray[np.bool_]
) -> Floats:
    """Each step's columns on the other side of the roof are zero."""
    return np.hstack([begun, compute * ~by_memory[:, None], traffic * by_memory[:, None]])


def _model(
    *, begun: Floats, compute: Floats, traffic: tuple[float, float], roofline: bool
) -> CostModel:
    per_prefill_token, per_attention, per_decode = map(float, compute)
    return CostModel(
        name="",
        fixed=float(begun[0]),
        per_prefill_token=per_prefill_token,
        per_attention=per_attention,
        per_decode=per_decode,
        per_context_token=float(traffic[1]),
        weight_read=float(traffic[0]),
        per_product=float(begun[1]),
        roofline=roofline,
    )


def _worst_error(cost: CostModel, steps: Sequence[MeasuredStep]) -> float:
    return max(abs(step.error(cost)) for step in steps)


def _squared_error(cost: CostModel, steps: Sequence[MeasuredStep]) -> float:
    errors = np.array([step.error(cost) for step in steps])
    return float(errors @ errors)
