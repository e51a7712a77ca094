"""Deficit longest prefix match (after arXiv 2501.14312): locality, and fairness among tenants.

credit of a tenant
SAVINGS ┬ who was not served of late, or is new     comes first, and is given places
        │ …
      Q ┤ tenants that always have requests         most cached tokens first
      0 ┴ waiting take turns here
  debt  ┴ who was just served                       comes last
"""

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from math import ceil

from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

QUANTUM_TOKENS = 512.0
"""What credit is granted in, and what it must differ by to count."""
SAVINGS_TOKENS = 4096.0
"""Most credit that a tenant can have, and what a new one has."""
OUTPUT_WEIGHT = 2.0
"""An output token in units of a prompt token that has to be computed."""
MAX_TENANTS = 10_000
"""More than that: those without live requests are forgotten."""


class Dlpm:
    """Most cached tokens first among the requests of the tenants with the most quanta of credit.

    A tenant pays for the prompt tokens that have to be computed, when a request starts, and for its
    output as it comes. Who is served beyond its credit owes the rest. Whenever a request starts
    whose tenant has no credit, nobody who has some could: then all get as many quanta as it lacks,
    and save no more than `SAVINGS_TOKENS`. When none of those who wait was there before, nobody has
    lost anything by what others got: then the books begin anew with what runs.

    So who asks for less than its share has the most credit whenever it comes. Nor need it wait for
    a place: it takes that of the newest decoding request of whom it has more than a quantum on.

    Bounds: two tenants that always have requests waiting differ in service by at most a quantum,
    one largest request and what their running requests put out; who comes, or comes back, has at
    most `SAVINGS_TOKENS` on the others; nobody loses the last place to another. Who has the most
    credit waits for the step under way and the rest of a prompt that has begun, which goes first.
    Within a tenant, who waited `age_escape_seconds` comes first, oldest first.
    """

    window = WIDE_WINDOW
    bounds_waits = True

    def __init__(self, options: PolicyOptions) -> None:
        self._granted = 0.0  # tokens, to every tenant
        self._spent: dict[str, float] = {}  # of what was granted; by those without full savings
        self._observed_at = float("-inf")
        self._age_escape_seconds = options.age_escape_seconds

    def credit(self, tenant: str) -> float:
        """In tokens, negative for debts."""
        spent = self._spent.get(tenant)
        return SAVINGS_TOKENS if spent is None else min(self._granted - spent, SAVINGS_TOKENS)

    def order(self, candidates: Sequence[C], *, now: float) -> Iterator[C]:
        """What this order would cost is booked in a copy; the books change with `started`."""
        old = now - self._age_escape_seconds
        queues: dict[str, list[C]] = {}
        for candidate in sorted(candidates, key=lambda c: _turn(c, old), reverse=True):
            queues.setdefault(candidate.tenant, []).append(candidate)
        credit = {tenant: self.credit(tenant) for tenant in queues}
        tenants = [(-_quanta(credit[t]), _turn(queue[-1], old), t) for t, queue in queues.items()]
        heapify(tenants)
        while tenants:
            _, _, tenant = heappop(tenants)
            candidate = queues[tenant].pop()
            credit[tenant] -= prefill_charge(candidate)
            if queue := queues[tenant]:
                heappush(tenants, (-_quanta(credit[tenant]), _turn(queue[-1], old), tenant))
            yield candidate

    def started(self, candidate: Candidate) -> None:
        if candidate.standing is None:
            candidate.standing = candidate.num_generated
        credit = self.credit(candidate.tenant)
        if credit <= 0.0:
            self._granted += QUANTUM_TOKENS * (1.0 - _quanta(credit))
        self._charge(candidate.tenant, prefill_charge(candidate))

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        self._charge_output(candidate)

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        """Charge for what was generated, or begin anew if all who wait have only just come."""
        for candidate in running:
            self._charge_output(candidate)
        if all(candidate.arrived_at > self._observed_at for candidate in waiting):
            self._begin_anew(running)
        elif len(self._spent) > MAX_TENANTS:
            live = {candidate.tenant for candidate in (*waiting, *running)}
            self._spent = {t: spent for t, spent in self._spent.items() if t in live}
        self._observed_at = now

    def dispensable(self, running: Sequence[C], *, now: float) -> list[C]:
        """Those that decode, but for the oldest of each tenant: what they computed stays in the
        cache. Of the tenant with the least credit first, newest first."""
        kept: set[str] = set()
        spare: list[C] = []
        for candidate in sorted(running, key=lambda c: c.arrived_at):
            if candidate.tenant in kept and not candidate.num_missing:
                spare.append(candidate)
            kept.add(candidate.tenant)
        return sorted(spare, key=lambda c: (_quanta(self.credit(c.tenant)), -c.arrived_at))

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        """Who has more than a quantum more of credit."""
        return _quanta(self.credit(waiting.tenant)) > _quanta(self.credit(running.tenant)) + 1

    def _begin_anew(self, running: Sequence[C]) -> None:
        """Only what runs is counted, and nobody left in debt for it."""
        charged: dict[str, float] = {}
        for candidate in running:
            tokens = prefill_charge(candidate) + OUTPUT_WEIGHT * candidate.num_generated
            charged[candidate.tenant] = charged.get(candidate.tenant, 0.0) + tokens
        savings = self._granted - SAVINGS_TOKENS
        self._spent = {t: savings + min(c, SAVINGS_TOKENS) for t, c in charged.items()}

    def _charge_output(self, candidate: Candidate) -> None:
        """`standing` is how many tokens of output it had when it was last charged, None before it
        first ran."""
        if candidate.standing is not None:
            new = candidate.num_generated - candidate.standing
            candidate.standing = candidate.num_generated
            self._charge(candidate.tenant, OUTPUT_WEIGHT * new)

    def _charge(self, tenant: str, tokens: float) -> None:
        self._spent[tenant] = self._granted - self.credit(tenant) + tokens


def prefill_charge(candidate: Candidate) -> float:
    """At least one: the last token of a prompt is always computed."""
    return float(max(1, candidate.num_tokens - candidate.cached_tokens))


def _quanta(credit: float) -> int:
    """1 for the last quantum above zero, 0 or less for debts."""
    return ceil(credit / QUANTUM_TOKENS)


def _turn(candidate: Candidate, old: float) -> tuple[int, float, float]:
    """Within a tenant: who came before `old` first, then most cached tokens, then the oldest."""
    if candidate.arrived_at <= old:
        return -1, candidate.arrived_at, 0.0
    return 0, -candidate.cached_tokens, candidate.arrived_at
