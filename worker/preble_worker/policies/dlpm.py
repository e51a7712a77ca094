"""Deficit longest prefix match (after arXiv 2501.14312): locality, and fairness among tenants.

credit of a tenant
SAVINGS ┬ who was not served of late, or is new     comes first, and is given places
        │ …
      Q ┤ tenants that always have requests         most cached tokens first
      0 ┴ waiting take turns here
  debt  ┴ who was just served                       comes last
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil, inf
from operator import attrgetter

from preble.fair_share import OUTPUT_WEIGHT, SAVINGS_TOKENS
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

QUANTUM_TOKENS = 512.0
"""What credit is granted in, and what it must differ by to count."""
MAX_TENANTS = 10_000
"""More than that: those without live requests are forgotten."""

_arrived_at, _cached_tokens = attrgetter("arrived_at"), attrgetter("cached_tokens")


@dataclass(slots=True)
class Standing:
    """What the books have of a request that was started.

    Attributes:
        num_generated: tokens of output it had when it was last charged.
        forgiven: of what is missing of its prompt, what its tenant need not pay for.
        refunded: what its tenant got back when it lost its place, and pays when it starts again.
    """

    num_generated: int
    forgiven: float = 0.0
    refunded: float | None = None


class Dlpm:
    """Most cached tokens first among the requests of the tenants with the most quanta of credit.

    A tenant pays for the prompt tokens that have to be computed, when a request starts, and for its
    output as it comes; it gets back what is not computed when its place is taken, and does not pay
    twice for what is. Who is served beyond its credit owes the rest. Whenever a request starts
    whose tenant has no credit, nobody who has some could: then all get as many quanta as it lacks,
    and save no more than `SAVINGS_TOKENS`. When none of those who wait was there before, nobody has
    lost anything by what others got: then the books begin anew with what runs.

    So who asks for less than its share has the most credit whenever it comes. Nor need it wait for
    a place: it takes that of the newest request of whom it has more than a quantum on. Its prompt
    is computed before what is left of others' that have begun, as far as they have got more.

    Bounds: two tenants that always have requests waiting differ in service by at most a quantum,
    one largest request and what their running requests put out; who comes, or comes back, has at
    most `SAVINGS_TOKENS` on the others; nobody loses the last place to another. Who has the most
    credit waits for the step under way only.
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
        queues = {t: _in_turn(queue, old)[::-1] for t, queue in _by_tenant(candidates).items()}
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
        credit = self.credit(candidate.tenant)
        if credit <= 0.0:
            self._granted += QUANTUM_TOKENS * (1.0 - _quanta(credit))
        self._charge(candidate.tenant, prefill_charge(candidate))
        if candidate.standing is None:
            candidate.standing = Standing(candidate.num_generated)
        candidate.standing.refunded = None

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        self._charge_output(candidate)

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        """Charge for what was generated, or begin anew if all who wait have only just come."""
        for candidate in running:
            self._charge_output(candidate)
        for candidate in waiting:
            if candidate.standing is not None:
                self._refund(candidate)
        if all(candidate.arrived_at > self._observed_at for candidate in waiting):
            self._begin_anew(running)
        elif len(self._spent) > MAX_TENANTS:
            live = {candidate.tenant for candidate in (*waiting, *running)}
            self._spent = {t: spent for t, spent in self._spent.items() if t in live}
        self._observed_at = now

    def dispensable(self, running: Sequence[C], *, now: float) -> list[C]:
        """All but the oldest of each tenant: what they computed stays in the cache. Of the tenant
        with the least credit first, newest first."""
        kept: set[str] = set()
        spare: list[C] = []
        for candidate in sorted(running, key=lambda c: c.arrived_at):
            if candidate.tenant in kept:
                spare.append(candidate)
            kept.add(candidate.tenant)
        return sorted(spare, key=lambda c: (_quanta(self.credit(c.tenant)), -c.arrived_at))

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        """Who has more than a quantum more of credit."""
        return _quanta(self.credit(waiting.tenant)) > self._rank(running)

    def outrank_any(self, waiting: Sequence[C], running: Sequence[C]) -> bool:
        """A matter of tenants, of whom there are fewer than requests."""
        tenants = {candidate.tenant for candidate in waiting}
        highest = max((_quanta(self.credit(tenant)) for tenant in tenants), default=-inf)
        return any(highest > self._rank(candidate) for candidate in running)

    def overtakes(self, waiting: Candidate, running: Candidate) -> bool:
        """Who has more credit, not counting what the other has paid for but not yet got."""
        if waiting.tenant == running.tenant:
            return False
        credit = self.credit(running.tenant) + _unearned(running)
        return self.credit(waiting.tenant) > credit

    def _rank(self, running: Candidate) -> int:
        """In quanta: whoever has more takes its place."""
        return _quanta(self.credit(running.tenant) + _unearned(running)) + 1

    def _begin_anew(self, running: Sequence[C]) -> None:
        """Only what runs is counted, and nobody left in debt for it."""
        charged: dict[str, float] = {}
        for candidate in running:
            tokens = _own_tokens(candidate) + OUTPUT_WEIGHT * candidate.num_generated
            before = charged.get(candidate.tenant, 0.0)
            charged[candidate.tenant] = before + tokens
            beyond = before + tokens - SAVINGS_TOKENS
            if candidate.standing is not None:
                candidate.standing.forgiven = min(max(beyond, 0.0), candidate.num_missing)
        savings = self._granted - SAVINGS_TOKENS
        self._spent = {t: savings + min(c, SAVINGS_TOKENS) for t, c in charged.items()}

    def _refund(self, candidate: Candidate) -> None:
        """It waits: if it ran before, its tenant does not pay for what it has not got."""
        standing: Standing = candidate.standing
        if standing.refunded is not None:
            return
        standing.refunded = max(candidate.num_missing - standing.forgiven, 0.0)
        standing.forgiven = 0.0
        self._charge(candidate.tenant, -standing.refunded)

    def _charge_output(self, candidate: Candidate) -> None:
        standing: Standing | None = candidate.standing
        if standing is not None:
            new = candidate.num_generated - standing.num_generated
            standing.num_generated = candidate.num_generated
            self._charge(candidate.tenant, OUTPUT_WEIGHT * new)

    def _charge(self, tenant: str, tokens: float) -> None:
        self._spent[tenant] = self._granted - self.credit(tenant) + tokens


def prefill_charge(candidate: Candidate) -> float:
    """At least one: the last token of a prompt is always computed. Of one that lost its place,
    what was refunded: what others made it compute again is not its debt."""
    standing: Standing | None = candidate.standing
    if standing is not None:
        return standing.refunded or 0.0
    return _own_tokens(candidate)


def _own_tokens(candidate: Candidate) -> float:
    """Of its prompt, those that no other had computed before."""
    return float(max(1, candidate.num_tokens - candidate.cached_tokens))


def _unearned(candidate: Candidate) -> float:
    """What its tenant paid for and has not got."""
    standing: Standing | None = candidate.standing
    return max(candidate.num_missing - standing.forgiven, 0.0) if standing else 0.0


def _quanta(credit: float) -> int:
    """1 for the last quantum above zero, 0 or less for debts."""
    return ceil(credit / QUANTUM_TOKENS)


def _by_tenant(candidates: Sequence[C]) -> dict[str, list[C]]:
    queues: dict[str, list[C]] = {}
    for candidate in candidates:
        queues.setdefault(candidate.tenant, []).append(candidate)
    return queues


def _in_turn(queue: list[C], old: float) -> list[C]:
    """By `_turn`, one tenant's requests, which come oldest first."""
    num_old = bisect_right(queue, old, key=_arrived_at)
    return queue[:num_old] + sorted(queue[num_old:], key=_cached_tokens, reverse=True)


def _turn(candidate: Candidate, old: float) -> tuple[int, float, float]:
    """Within a tenant: who came before `old` first, then most cached tokens, then the oldest."""
    if candidate.arrived_at <= old:
        return -1, candidate.arrived_at, 0.0
    return 0, -candidate.cached_tokens, candidate.arrived_at
