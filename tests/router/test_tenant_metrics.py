"""What tenants are charged, as the router's metrics show it."""

from gateway_helpers import FakeDispatcher, gateway, spoken

from preble.fair_share import OUTPUT_WEIGHT
from preble.types import Usage
from preble_router.metrics import MAX_TENANTS, Metrics
from preble_router.tenants import charged_tokens

NAME = "preble_router_tenant_charged_tokens_total"


def charged(metrics: Metrics, tenant: str) -> float | None:
    return metrics.registry.get_sample_value(NAME, {"tenant": tenant})


def test_a_tenant_is_charged_for_what_was_computed() -> None:
    def usage(prompt: int, output: int, cached: int) -> Usage:
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output,
            cached_tokens=cached,
            predicted_cached_tokens=0,
        )

    assert charged_tokens(usage(100, 10, 64)) == 36 + 10 * OUTPUT_WEIGHT
    assert charged_tokens(usage(64, 1, 64)) == 1 + OUTPUT_WEIGHT
    assert charged_tokens(usage(100, 0, 0)) == 0


def test_no_more_tenants_have_a_series_than_so_many() -> None:
    metrics = Metrics()
    for number in range(MAX_TENANTS + 5):
        metrics.tenant_charged(f"t{number}", 2.0)
    metrics.tenant_charged("t3", 5.0)
    assert charged(metrics, "t3") == 7.0
    assert charged(metrics, f"t{MAX_TENANTS}") is None
    assert charged(metrics, "(others)") == 10.0


async def test_requests_are_charged_to_their_namespace() -> None:
    async with gateway(FakeDispatcher(script=lambda _: spoken("Hello, world!"))) as served:
        chat = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
        answer = await served.post("/v1/chat/completions", chat | {"cache_salt": "acme"})
        usage = answer.json()["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        expected = usage["prompt_tokens"] - cached + OUTPUT_WEIGHT * usage["completion_tokens"]
        text = (await served.http.get("/metrics")).text
        assert f'{NAME}{{tenant="acme"}} {expected}' in text.splitlines()
