"""`preble demo`: real processes under two policies, and what it refuses before any is started."""

from pathlib import Path

import pytest
from deploy_helpers import refusal, run_here

from preble_deploy.commands import demo


def test_two_policies_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "demo.html"
    words = ("--workers", "2", "--seconds", "3", "--rate", "4", "--html", str(page))
    policies = ("--policy", "round_robin", "--policy", "preble")
    outcome = run_here(capsys, "demo", *policies, *words)
    assert outcome.status == 0, outcome.err
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if line.strip()}
    assert rows["round_robin"][-1] == rows["preble"][-1] == "0"
    assert str(page) in outcome.err
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 2 and 'data-policy="round_robin"' in html


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--policy", "nonsense"), "round_robin"),
        (("--workload", "nonsense"), "tool_use"),
        (("--cost-model", "llama-9"), "mistral-7b-a6000"),
        (("--cost-model", "demo-cpu"), "no KV capacity is known"),
        (("--html", "/no/such/folder/x.html"), "/no/such/folder is no directory"),
    ],
)
def test_options_that_cannot_be_used(
    words: tuple[str, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert says in refusal(capsys, monkeypatch, (demo, "_shown"), "demo", *words)
