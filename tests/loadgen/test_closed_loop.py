"""Turns that wait for answers: which for which, and that a replay has them wait."""

from pathlib import Path

import pytest
from loadgen_helpers import FakeOpenAI, serving_openai, write_lines

from preble_loadgen.closed_loop import next_turns
from preble_loadgen.progress import Progress
from preble_loadgen.replay import ReplayOptions, replay
from preble_loadgen.traces import load_trace

LATE = 10_000.0
"""Seconds: a replay that went by the estimates would not end."""


def turn(session: str, number: int, at: float, think: float | None = None) -> dict[str, object]:
    row: dict[str, object] = {
        "at": at,
        "segments": [[1, 20]],
        "output_tokens": 2,
        "session": session,
        "turn": number,
    }
    return row if think is None else row | {"think_seconds": think}


def trace_file(path: Path, *rows: dict[str, object]) -> Path:
    return write_lines(path, [{"preble_trace": 1}, *rows])


def test_who_waits_for_whom(tmp_path: Path) -> None:
    path = trace_file(
        tmp_path / "t",
        turn("a", 0, 0),
        turn("b", 0, 0),
        turn("a", 1, 1, 0.5),
        turn("b", 1, 1),
        turn("b", 2, 2, 0.0),
        {"at": 3, "segments": [[1, 20]], "output_tokens": 2},
    )
    requests = load_trace(path).requests
    following = {index: request.index for index, request in next_turns(requests).items()}
    assert following == {0: 2, 3: 4}
    # What began before the part that is looked at is not waited for.
    assert {i: r.index for i, r in next_turns(requests[2:]).items()} == {3: 4}


@pytest.mark.parametrize("mode", ["ok", "refuse"])
async def test_a_turn_leaves_after_the_answer_and_the_think_time(tmp_path: Path, mode: str) -> None:
    path = trace_file(
        tmp_path / "t",
        turn("a", 0, 0),
        turn("b", 0, 0),
        turn("a", 1, LATE, 0.05),
        turn("b", 1, LATE, 0.0),
        turn("a", 2, 2 * LATE, 0.02),
    )
    progress = Progress()
    async with serving_openai(FakeOpenAI(mode=mode, piece_seconds=0.01)) as url:
        report = await replay(ReplayOptions(trace=path, url=url, timeout=20.0), progress=progress)
    # A session goes on even where an answer failed.
    assert (report.num_complete, report.num_failed) == ((5, 0) if mode == "ok" else (0, 5))
    records = {record.index: record for record in progress.records}
    thinks = {2: (0, 0.05), 3: (1, 0.0), 4: (2, 0.02)}
    for index, (before, think) in thinks.items():
        assert records[index].scheduled_at >= records[before].ended_at + think
        assert records[index].sent_at >= records[index].scheduled_at
