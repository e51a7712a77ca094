"""Each tenant's uncached work is spread over the workers, and follows its prefixes within that."""

import random
from collections import Counter

from routing_helpers import pages, synced_scheduler

from preble.fair_share import OUTPUT_WEIGHT
from preble.types import LoadReport
from preble_router.policies.d2lpm import MAX_TENANTS, QUANTUM_TOKENS, DoubleDeficit
from preble_router.stimuli import Progress, RequestFinished, RouteRequest, StepReport

RNG = random.Random(0)


OUTPUT_TOKENS = 10
OUTPUT_CHARGE = OUTPUT_TOKENS * OUTPUT_WEIGHT


def ask(request_id: str, page_keys: bytes, *, tenant: str = "a", own: int = 5) -> RouteRequest:
    return RouteRequest(
        request_id=request_id,
        page_keys=page_keys,
        num_tokens=len(page_keys) // 8 * 16 + own,
        max_tokens=OUTPUT_TOKENS,
        tenant=tenant,
    )


def test_a_prefix_is_followed_while_there_is_credit_and_no_longer() -> None:
    scheduler = synced_scheduler("d2lpm", ["w0", "w1"])
    shared = pages(RNG, 32)
    own = 100
    placed = [scheduler.place(ask(f"r{i}", shared, own=own), now=0.0).worker_id for i in range(120)]
    scheduler.check()
    each = own + OUTPUT_CHARGE
    alone = (QUANTUM_TOKENS - 512) / each
    assert set(placed[: int(alone)]) == {placed[0]}
    charged = Counter(placed)
    assert abs(charged["w0"] - charged["w1"]) * each <= QUANTUM_TOKENS + 512 + each


def test_what_nobody_has_cached_is_spread_whatever_others_have_queued_where() -> None:
    """Else a new tenant would go with all of its prefixes where the least of others' is queued."""
    scheduler = synced_scheduler("d2lpm", ["w0", "w1", "w2"])
    for i in range(20):
        scheduler.place(ask(f"a{i}", pages(RNG, 32)), now=0.0)
    scheduler.place(ask("a20", b""), now=0.0)
    placed = [
        scheduler.place(ask(f"b{i}", pages(RNG, 12), tenant="b"), now=0.0).worker_id
        for i in range(6)
    ]
    assert set(Counter(placed).values()) == {2}


def test_one_tenant_does_not_use_up_the_credit_of_another() -> None:
    scheduler = synced_scheduler("d2lpm", ["w0", "w1"])
    shared, other = pages(RNG, 32), pages(RNG, 32)
    home = scheduler.place(ask("b", shared, tenant="b"), now=0.0).worker_id
    for i in range(70):
        scheduler.place(ask(f"a{i}", other, own=100), now=0.0)
    assert scheduler.place(ask("b2", shared, tenant="b"), now=0.0).worker_id == home


def test_output_is_charged_as_predicted_until_it_was_made() -> None:
    policy = DoubleDeficit()
    scheduler = synced_scheduler(policy, ["w0", "w1"])
    placed = scheduler.place(ask("r", pages(RNG, 4)), now=0.0)
    slot = int(placed.worker_id[1])
    assert policy.credit["a"][slot] == QUANTUM_TOKENS - 69 - OUTPUT_CHARGE
    report = StepReport(
        worker_id=placed.worker_id, load=LoadReport(), progress=(Progress("r", 1, 7, 0),)
    )
    scheduler.observe(report, now=0.1)
    scheduler.observe(RequestFinished("r", 1, 7), now=0.1)
    assert policy.credit["a"][slot] == QUANTUM_TOKENS - 69 - 7 * OUTPUT_WEIGHT
    assert policy.credit["a"][1 - slot] == QUANTUM_TOKENS


def test_tenants_are_forgotten_beyond_a_number() -> None:
    policy = DoubleDeficit()
    scheduler = synced_scheduler(policy, ["w0"])
    for i in range(MAX_TENANTS + 5):
        scheduler.place(ask(f"r{i}", b"", tenant=f"t{i}"), now=0.0)
        scheduler.observe(RequestFinished(f"r{i}", 1, 1), now=0.0)
    assert len(policy.credit) == MAX_TENANTS and "t0" not in policy.credit
