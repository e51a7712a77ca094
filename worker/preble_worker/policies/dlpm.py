"""Deficit longest prefix match (arXiv 2501.14312): locality, and fairness among tenants."""

from collections.abc import Iterator, Sequence

from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

QUANTUM_TOKENS = 4096.0
"""Credit that each waiting tenant gets when none has any."""
OUTPUT_WEIGHT = 2.0
"""An output token in units of a prompt token that has to be computed."""
MAX_TENANTS = 10_000
"""More than that: those without live requests are forgotten."""


class Dlpm:
    """Most cached tokens first among the requests of tenants with credit.

    A tenant pays for the prompt tokens that have to be computed, when a request starts, and for its
    output as it comes. Who is served beyond its credit owes the rest. When no waiting tenant has
    credit, all waiting ones get a quantum more, as often as it takes.

    Bounds: two tenants that always have requests waiting differ in service by at most a quantum and
    one largest request, because neither gets a refill while the other has credit. Within a tenant,
    who waited `age_escape_seconds` comes first, oldest first.

    Attributes:
        credit: in tokens by tenant, negative for debts.
    """

    window = WIDE_WINDOW
    bounds_waits = True

    def __init__(self, options: PolicyOptions) -> None:
        self.credit: dict[str, float] = {}
        self._age_escape_seconds = options.age_escape_seconds

    def order(self, candidates: Sequence[C], *, now: float) -> Iterator[C]:
        """What this order would cost is booked in a copy; the books change with `started`."""
        credit = {c.tenant: self.credit.get(c.tenant, 0.0) for c in candidates}
        old = now - self._age_escape_seconds
        left = sorted(
            candidates,
            key=lambda c: (-1, c.arrived_at) if c.arrived_at <= old else (0, -c.cached_tokens),
        )
        while left:
            if all(credit[tenant] <= 0.0 for tenant in {c.tenant for c in left}):
                _refill(credit, {c.tenant for c in left})
            passed_over = []
            for candidate in left:
                if credit[candidate.tenant] <= 0.0:
                    passed_over.append(candidate)
                    continue
                credit[candidate.tenant] -= prefill_charge(candidate)
                yield candidate
            left = passed_over

    def started(self, candidate: Candidate) -> None:
        self._charge(candidate, prefill_charge(candidate))

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        self._charge_output(candidate)

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        """Charge for what was generated, and refill if no waiting tenant has credit."""
        for candidate in running:
            self._charge_output(candidate)
        tenants = {candidate.tenant for candidate in waiting}
        if tenants and all(self.credit.get(tenant, 0.0) <= 0.0 for tenant in tenants):
            _refill(self.credit, tenants)
        if len(self.credit) > MAX_TENANTS:
            live = tenants | {candidate.tenant for candidate in running}
            self.credit = {t: credit for t, credit in self.credit.items() if t in live}

    def dispensable(self, running: Sequence[C], *, now: float) -> list[C]:
        """None: fairness is in who starts."""
        return []

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        return False

    def _charge_output(self, candidate: Candidate) -> None:
        """`standing` is how many tokens of output it was charged for."""
        new = candidate.num_generated - (candidate.standing or 0)
        if new > 0:
            candidate.standing = candidate.num_generated
            self._charge(candidate, OUTPUT_WEIGHT * new)

    def _charge(self, candidate: Candidate, tokens: float) -> None:
        self.credit[candidate.tenant] = self.credit.get(candidate.tenant, 0.0) - tokens


def prefill_charge(candidate: Candidate) -> float:
    """At least one: the last token of a prompt is always computed."""
    return float(max(1, candidate.num_tokens - candidate.cached_tokens))


def _refill(credit: dict[str, float], tenants: set[str]) -> None:
    """As many quanta for each as the first of them needs to have credit again."""
    least_debt = max(credit.get(tenant, 0.0) for tenant in tenants)
    quanta = 1.0 + (-least_debt) // QUANTUM_TOKENS
    for tenant in tenants:
        credit[tenant] = credit.get(tenant, 0.0) + quanta * QUANTUM_TOKENS
