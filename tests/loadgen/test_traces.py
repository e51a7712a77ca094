"""Trace files: what is read from them, and what is said of those that cannot be read."""

from pathlib import Path

import pytest
from loadgen_helpers import SHARED_TRACES, call, mooncake, write_lines

from preble.errors import ConfigError
from preble.page_keys import unpack_tokens
from preble_loadgen.scaling import prompt_tokens
from preble_loadgen.trace_request import PRIVATE_ID, Segment
from preble_loadgen.traces import FORMATS, load_trace, save_trace

HEADER = {"preble_trace": 1, "salt": 9}
GOOD = {"at": 0.5, "segments": [[3, 20], [None, 5]], "output_tokens": 2}


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "no-suffix"])
def test_mooncake(tmp_path: Path, name: str) -> None:
    rows = [mooncake(0, [0, 1, 2], tail=7, output=9), mooncake(3000, [0]), mooncake(5999, [0, 5])]
    trace = load_trace(write_lines(tmp_path / name, rows))
    assert (trace.format, trace.block_tokens) == ("mooncake", 512)
    first, second, third = trace.requests
    assert first.segments == (Segment(0, 512), Segment(1, 512), Segment(PRIVATE_ID + 1, 7))
    assert (first.output_tokens, prompt_tokens(first)) == (9, 1031)
    assert second.segments == (Segment(0, 512),)
    assert [r.at for r in trace.requests] == [0.0, 3.0, 5.999]
    assert third.index == 2


def test_requests_of_one_tick_are_spread_over_it(tmp_path: Path) -> None:
    rows = [mooncake(t, [i]) for i, t in enumerate([0] * 50 + [3000] * 50 + [90_000] * 50)]
    path = write_lines(tmp_path / "t.jsonl", rows)
    times = [request.at for request in load_trace(path).requests]
    assert times == sorted(times)
    assert len(set(times)) == 150
    assert times[0] > 0 and times[49] < 3.0 <= times[50] and times[99] < 6.0
    assert times[100] >= 90 and times[149] < 93
    # Spread, not bunched: every third of the tick has some.
    assert all(any(third <= at < third + 1 for at in times[:50]) for third in (0, 1, 2))
    assert [request.at for request in load_trace(path).requests] == times
    assert [request.at for request in load_trace(path, limit=30).requests] == times[:30]


def test_own_format(tmp_path: Path) -> None:
    rows = [
        HEADER,
        GOOD | {"session": "s", "namespace": "n"},
        {"at": 2, "token_ids": [5, 6, 2**32 - 1], "output_tokens": 1},
    ]
    trace = load_trace(write_lines(tmp_path / "t", rows))
    assert (trace.format, trace.salt, trace.block_tokens) == ("preble", 9, 0)
    first, second = trace.requests
    assert first.segments == (Segment(3, 20), Segment(PRIVATE_ID + 2, 5))
    assert (first.at, first.session, first.namespace) == (0.0, "s", "n")
    assert (second.at, second.session) == (1.5, "")
    assert unpack_tokens(second.token_ids).tolist() == [5, 6, 2**32 - 1]


def test_closed_loop_sessions(tmp_path: Path) -> None:
    first, second = GOOD | {"session": "s"}, GOOD | {"session": "s", "turn": 1}
    rows = [HEADER, first, GOOD | {"at": 1}, second | {"at": 2, "think_seconds": 1.5}]
    trace = load_trace(write_lines(tmp_path / "t", rows))
    assert [(r.session, r.turn, r.think_seconds) for r in trace.requests] == [
        ("s", 0, None),
        ("", 0, None),
        ("s", 1, 1.5),
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_azure(tmp_path: Path, name: str) -> None:
    lines = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16 18:17:05.4799600,3180,8",
        "",
        "2023-11-16 18:17:04.9799600+00:00,110,27",
    ]
    trace = load_trace(write_lines(tmp_path / name, lines))
    assert trace.format == "azure"
    assert [prompt_tokens(request) for request in trace.requests] == [4808, 110, 3180]
    assert [round(request.at, 6) for request in trace.requests] == [0.0, 1.0, 1.5]
    nodes = {segment.id for request in trace.requests for segment in request.segments}
    assert len(nodes) == 3


def test_azure_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    lines = ["GeneratedTokens,Other,TIMESTAMP,ContextTokens", "3,x,2023-11-16 18:17:03,40"]
    (request,) = load_trace(write_lines(tmp_path / "t", lines)).requests
    assert (prompt_tokens(request), request.output_tokens) == (40, 3)


def test_servegen(tmp_path: Path) -> None:
    lines = ["t_s,client,input_tokens,output_tokens", "0.5,3,10,2", "0.75,4,11,5"]
    trace = load_trace(write_lines(tmp_path / "t.csv.gz", lines))
    assert trace.format == "servegen"
    assert [(r.at, r.namespace, prompt_tokens(r), r.output_tokens) for r in trace.requests] == [
        (0.0, "3", 10, 2),
        (0.25, "4", 11, 5),
    ]


def test_agent_sessions(tmp_path: Path) -> None:
    rows = [
        call(7, 0, runs=[[0, 2]], tail=2),
        call(7, 1, runs=[[0, 1], [1, 1], [50, 3]], tail=0, t=9.0, think=2.5),
        call(7, 2, runs=[[0, 1]], tail=0, t=4.0),
        call(8, 0, runs=[[0, 2], [70, 1]], tail=1) | {"out": 0},
    ]
    trace = load_trace(write_lines(tmp_path / "t", rows))
    by_line = {request.line: request for request in trace.requests}
    first, second, third, other = (by_line[line] for line in (1, 2, 3, 4))
    assert trace.format == "agents"
    assert first.segments == (Segment(0, 128), Segment(PRIVATE_ID + 1, 2))
    assert second.segments == (Segment(0, 128), Segment(50, 192))
    assert third.segments == (Segment(0, 64),)
    assert [(r.turn, r.think_seconds) for r in (first, second, third, other)] == [
        (0, None),
        (1, 2.5),
        (2, 0.0),
        (0, None),
    ]
    assert other.output_tokens == 1
    assert {first.session, second.session, third.session} == {"7"} and other.session == "8"
    # A call of a helper, whose clock began anew, still follows what it waits for.
    assert (first.at, second.at, third.at) == (0.0, 9.0, 9.0)
    assert [request.index for request in trace.requests] == [0, 1, 2, 3]


def test_agent_sessions_without_a_clock(tmp_path: Path) -> None:
    rows = [call(0, k, t=None, think=None, block=16) for k in range(3)]
    trace = load_trace(write_lines(tmp_path / "t", rows))
    assert [request.at for request in trace.requests] == [0.0, 1.0, 2.0]
    assert [request.think_seconds for request in trace.requests] == [None, 0.0, 0.0]
    assert trace.requests[0].segments[0].length == 32


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, name: str) -> None:
    rows = [
        HEADER,
        GOOD | {"session": "s", "namespace": "n"},
        GOOD | {"at": 0.7, "session": "s", "turn": 1, "think_seconds": 0.125},
        GOOD | {"at": 0.8, "tenant": "a", "ttft_slo_seconds": 0.5, "tbt_slo_seconds": 0.25},
        {"at": 2.0000001, "token_ids": [5, 6, 2**32 - 1], "output_tokens": 1},
    ]
    trace = load_trace(write_lines(tmp_path / "t", rows))
    assert [(r.tenant, r.ttft_slo_seconds, r.tbt_slo_seconds) for r in trace.requests[1:3]] == [
        ("", None, None),
        ("a", 0.5, 0.25),
    ]
    save_trace(trace, tmp_path / name)
    loaded = load_trace(tmp_path / name)
    assert (loaded.requests, loaded.salt) == (trace.requests, 9)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    trace = load_trace(write_lines(tmp_path / "t", [HEADER, GOOD]))
    with pytest.raises(ConfigError, match=r"cannot write .*No such file"):
        save_trace(trace, tmp_path / "no" / "where")


BAD_MOONCAKE = [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ({"timestamp": 0, "output_length": 1, "hash_ids": []}, "input_length is missing"),
    (mooncake(0, [0]) | {"input_length": 513}, "1 blocks of 512"),
    (mooncake(0, [0]) | {"input_length": 0}, "input_length must lie in"),
    (mooncake(0, [0]) | {"input_length": 1.5}, "input_length must be an integer"),
    (mooncake(0, [0]) | {"output_length": 0}, "output_length must lie in"),
    (mooncake(0, [-1]), "hash_ids must lie in"),
    (mooncake(0, [2**31]), "hash_ids must lie in"),
    (mooncake(0, [0]) | {"hash_ids": 5}, "hash_ids must be a list"),
    (mooncake(-5, [0]), "timestamp must be a number of at least 0"),
    (mooncake(0, [0]) | {"timestamp": True}, "timestamp must be a number"),
]
BAD_OWN = [
    (GOOD | {"at": "x"}, "at must be a number"),
    (GOOD | {"priority": 1}, "unknown field 'priority'"),
    (GOOD | {"token_ids": [1]}, "either segments or token_ids"),
    ({"at": 0, "output_tokens": 1}, "either segments or token_ids"),
    (GOOD | {"segments": []}, "segments must be a list"),
    (GOOD | {"segments": [[1, 0]]}, "length must lie in"),
    (GOOD | {"segments": [[1]]}, "segment 1 must be"),
    (GOOD | {"segments": [[None, 1], [2, 2]]}, "only the last"),
    (GOOD | {"segments": [[2**31, 1]]}, "id must lie in"),
    ({"at": 0, "token_ids": [-1], "output_tokens": 1}, "token_ids must lie in"),
    ({"at": 0, "token_ids": [], "output_tokens": 1}, "token_ids must be a list"),
    (GOOD | {"session": 5}, "session must be text"),
    (GOOD | {"session": "s", "turn": -1}, "turn must lie in"),
    (GOOD | {"session": "s", "turn": 1, "think_seconds": -1}, "think_seconds must be a number"),
    (GOOD | {"session": "s", "turn": 1, "think_seconds": 1}, "no turn 0 of its session"),
    (GOOD | {"think_seconds": 1}, "no turn -1 of its session"),
    (GOOD | {"at": 0.1}, "arrives before"),
]
BAD_AZURE = [
    ("XXX,42,285", "TIMESTAMP is not a date"),
    ("2023-11-16 18:17:03,42", "2 cells"),
    ("2023-11-16 18:17:03,-1,5", "ContextTokens must be an integer"),
    ("2023-11-16 18:17:03,0,5", "ContextTokens must lie in"),
]
BAD_AGENTS = [
    (call(0, 1) | {"out": -1}, "out must lie in"),
    (call(0, 1) | {"h": [[0, 3]]}, "h has 3 blocks, of 64 or 16 tokens, for 130 tokens"),
    (call(0, 1) | {"h": [[0]]}, "h has [first, number]"),
    (call(0, 1) | {"h": 4}, "h must be a list"),
    (call(0, 1) | {"th": "x"}, "th must be a number"),
    (call(0, 2), "turn 2 of its session follows turn 0"),
]
BAD_SERVEGEN = [
    ("x,1,5,5", "t_s must be a number"),
    ("nan,1,5,5", "t_s must be a number"),
    ("1.0,1,5", "3 cells"),
    ("1.0,1,0,5", "input_tokens must lie in"),
]
FILES = {
    "agents": [call(0, 0), None, call(1, 0)],
    "servegen": ["t_s,client,input_tokens,output_tokens", "0.5,3,10,2", None, "0.5,4,11,2"],
    "mooncake": [mooncake(0, [0]), None, mooncake(0, [1])],
    "preble": [HEADER, GOOD, None, GOOD | {"at": 1}],
    "azure": [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03,42,3",
        None,
        "2023-11-16 18:17:04,42,3",
    ],
}
BAD_LINES = [
    (format, line, reason)
    for format, lines in {
        "mooncake": BAD_MOONCAKE,
        "preble": BAD_OWN,
        "agents": BAD_AGENTS,
        "azure": BAD_AZURE,
        "servegen": BAD_SERVEGEN,
    }.items()
    for line, reason in lines
]


@pytest.mark.parametrize(("format", "bad", "reason"), BAD_LINES)
def test_a_bad_line_is_named_or_skipped(
    tmp_path: Path, format: str, bad: object, reason: str
) -> None:
    lines = [bad if line is None else line for line in FILES[format]]
    path = write_lines(tmp_path / "trace", lines)
    number = lines.index(bad) + 1
    with pytest.raises(ConfigError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}:{number}: ")
    assert reason in str(caught.value)
    trace = load_trace(path, skip_bad_lines=True)
    assert (len(trace.requests), trace.num_skipped) == (2, 1)
    assert trace.first_skipped == str(caught.value)
    assert [request.index for request in trace.requests] == [0, 1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello\n", "no known format"),
        (b'{"preble_trace": 2}\n', "version 2"),
        (b'{"preble_trace": 1, "vocab": 3}\n', "unknown field 'vocab'"),
        (b'{"preble_trace": 1}\n', "no requests"),
        (b"\x1f\x8b\x08\x00broken", "gzip"),
        (b"\xff\xfe\x00\n", "no known format"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_file(tmp_path: Path, content: bytes, reason: str, skip: bool) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_trace(path, skip_bad_lines=skip)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_trace(tmp_path / "nothing")


def test_a_truncated_gzip_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.gz", [mooncake(0, [i]) for i in range(500)])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ConfigError, match="gzip"):
        load_trace(path)


def test_the_format_may_be_given(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t", ["{broken", mooncake(0, [0])])
    with pytest.raises(ConfigError, match="--format"):
        load_trace(path)
    trace = load_trace(path, format="mooncake", skip_bad_lines=True)
    assert (len(trace.requests), trace.num_skipped) == (1, 1)
    with pytest.raises(ConfigError, match="--format takes mooncake"):
        load_trace(path, format="moon")
    assert set(FORMATS) == {"mooncake", "preble", "agents", "azure", "servegen"}


@pytest.mark.parametrize(
    ("name", "format", "num_requests"),
    [
        ("mooncake_conversation_first40min.jsonl.gz", "mooncake", 7851),
        ("azure2023_code.csv.gz", "azure", 8819),
        ("azure2024_thinned_sample.csv.gz", "azure", 5880),
        ("derived_cc_v6_global.jsonl.gz", "agents", 7677),
        ("derived_agent_tau_airline.jsonl.gz", "agents", 2454),
        ("derived_servegen_m-small_1h.csv.gz", "servegen", 71997),
    ],
)
def test_real_traces(name: str, format: str, num_requests: int) -> None:
    path = SHARED_TRACES / name
    if not path.exists():
        pytest.skip("the real traces are not beside this checkout")
    trace = load_trace(path)
    assert (trace.format, len(trace.requests)) == (format, num_requests)
    times = [request.at for request in trace.requests]
    assert times == sorted(times) and times[0] < 3


def test_mooncake_fitted_to_a_small_model() -> None:
    path = SHARED_TRACES / "mooncake_conversation_first40min.jsonl.gz"
    if not path.exists():
        pytest.skip("the real traces are not beside this checkout")
    trace = load_trace(path, limit=300).fitted(8192)
    assert trace.factor == 16
    assert {s.length for r in trace.requests for s in r.segments if s.id < PRIVATE_ID} == {32}
    longest = max(prompt_tokens(r) + r.output_tokens for r in trace.requests)
    assert 7000 < longest <= 8192
