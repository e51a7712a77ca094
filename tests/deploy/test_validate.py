"""`preble validate`: what it refuses before anything is started."""

import pytest
from deploy_helpers import refusal

from preble_deploy.commands import validate


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("llama-9",), "demo-cpu"),
        (("--workload", "nonsense"), "tool_use"),
        (("--out", "/no/such/folder/x.md"), "/no/such/folder is no directory"),
        (("--trace", "/no/such/trace.jsonl"), "/no/such/trace.jsonl"),
        (("--policy", "nonsense"), "round_robin"),
        (("--workers", "0"), "--workers"),
    ],
)
def test_options_that_cannot_be_used(
    words: tuple[str, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert says in refusal(capsys, monkeypatch, (validate, "_validate"), "validate", *words)
