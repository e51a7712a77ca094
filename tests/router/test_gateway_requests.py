"""What bodies the gateway accepts, and how it says what is wrong with the others."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preble.errors import InvalidRequest
from preble.page_keys import pack_tokens
from preble_router.gateway.fields import Fields
from preble_router.gateway.requests import read_chat, read_completion

VOCAB = 500
MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields):
    return read_chat(copy.deepcopy({"messages": MESSAGES} | fields))


def completion(**fields):
    return read_completion(copy.deepcopy({"prompt": "Hi"} | fields), vocab_size=VOCAB)


def refused(read, **fields):
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    return caught.value


def test_defaults_are_openai_s():
    common = chat().common
    assert common.sampling.temperature == 1.0
    assert common.sampling.top_p == 1.0
    assert common.sampling.top_k == 0
    assert (common.max_tokens, common.stop, common.stream) == (None, (), False)
    assert (common.namespace, common.priority, common.model) == ("", 0, "")


def test_a_missing_seed_is_drawn_anew():
    assert len({chat().common.sampling.seed for _ in range(20)}) == 20
    assert chat(seed=5).common.sampling.seed == 5
    assert chat(seed=-1).common.sampling.seed == 2**64 - 1


def test_values_arrive():
    common = completion(
        model="m",
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=40,
        stop=["a", "b"],
        stop_token_ids=[3],
        ignore_eos=True,
        stream=True,
        stream_options={"include_usage": True},
        priority=-2,
        cache_salt="tenant",
        user="eve",
        ttft_slo_seconds=0.5,
        tbt_slo_seconds=1,
    ).common
    sampling = common.sampling
    assert (common.model, common.max_tokens, common.stop) == ("m", 7, ("a", "b"))
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 40)
    assert (sampling.stop_token_ids, sampling.ignore_eos) == ((3,), True)
    assert (common.stream, common.include_usage) == (True, True)
    assert (common.priority, common.namespace, common.user) == (-2, "tenant", "eve")
    assert (common.ttft_slo_seconds, common.tbt_slo_seconds) == (0.5, 1.0)
    assert completion().common.ttft_slo_seconds is None
    assert completion(stop="x").common.stop == ("x",)
    assert completion(top_k=-1).common.sampling.top_k == 0
    assert completion(max_completion_tokens=9).common.max_tokens == 9
    assert completion(max_completion_tokens=9, max_tokens=9).common.max_tokens == 9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("stream", "true"),
        ("stream", 1),
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("max_tokens", 2.0),
        ("max_tokens", True),
        ("max_completion_tokens", 0),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("seed", 2**64),
        ("presence_penalty", 2.1),
        ("presence_penalty", "1"),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", True),
        ("n", 0),
        ("n", 129),
        ("n", True),
        ("seed", -(2**63) - 1),
        ("seed", "x"),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", [""]),
        ("stop", "x" * 2000),
        ("stop", ["x"] * 17),
        ("stop_token_ids", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["x"]),
        ("ignore_eos", "no"),
        ("priority", 2**31),
        ("priority", 0.5),
        ("ttft_slo_seconds", 0),
        ("ttft_slo_seconds", "1"),
        ("tbt_slo_seconds", -0.1),
        ("tbt_slo_seconds", 86_401),
        ("user", "x" * 300),
        ("cache_salt", 7),
        ("stream_options", {"include_usage": True}),  # without stream
    ],
)
def test_wrong_types_and_ranges_name_the_field_and_the_value(field, value):
    for read in (chat, completion):
        error = refused(read, **{field: value})
        assert error.field == field
        assert field in str(error)


def test_contradicting_limits_are_refused():
    assert refused(chat, max_tokens=1, max_completion_tokens=2).field == "max_completion_tokens"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"5": 1}),
        ("top_logprobs", 3),  # without logprobs
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("reasoning_effort", "high"),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("surprise", 1),
        ("surprise", None),
    ],
)
def test_what_is_not_supported_is_refused_by_name(field, value):
    error = refused(chat, **{field: value})
    assert error.field == field
    assert field in str(error)


@pytest.mark.parametrize(
    ("field", "value"), [("echo", True), ("best_of", 2), ("suffix", "end"), ("logprobs", 21)]
)
def test_completions_refuse_theirs_too(field, value):
    assert refused(completion, **{field: value}).field == field


def test_neutral_values_are_accepted():
    chat(
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias=None,
        logprobs=False,
        top_logprobs=None,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        store=False,
        parallel_tool_calls=True,
        service_tier="auto",
        max_tokens=None,
        temperature=None,
        stop=None,
        stream_options=None,
        user=None,
    )
    completion(n=1, echo=False, best_of=1, suffix=None, logprobs=None)


def test_choices_of_several_prompts_are_bounded_together():
    assert chat(n=128).common.num_choices == 128
    assert completion(prompt=["a", "b"], n=64).common.num_choices == 64
    error = refused(completion, prompt=["a", "b"], n=65)
    assert error.field == "n"
    assert "from 1 to 64 for each of 2 prompts" in str(error)


def test_penalties_reach_the_sampling():
    sampling = chat(presence_penalty=2, frequency_penalty=-0.5).common.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (2.0, -0.5)
    assert not chat(presence_penalty=0).common.sampling.penalizes


def test_log_probabilities_are_asked_for_in_two_ways():
    assert chat().common.sampling.top_logprobs is None
    assert chat(logprobs=True).common.sampling.top_logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).common.sampling.top_logprobs == 20
    assert refused(chat, logprobs=True, top_logprobs=21).field == "top_logprobs"
    assert refused(chat, logprobs=3).field == "logprobs"
    assert completion().common.sampling.top_logprobs is None
    assert completion(logprobs=0).common.sampling.top_logprobs == 0
    assert completion(logprobs=5).common.sampling.top_logprobs == 5
    assert refused(completion, logprobs=True).field == "logprobs"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", ["Hi"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [pack_tokens([1, 2])]),
        ([[1], [2, 3]], [pack_tokens([1]), pack_tokens([2, 3])]),
        ([0, VOCAB - 1], [pack_tokens([0, VOCAB - 1])]),
    ],
)
def test_prompts(prompt, expected):
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (None, "prompt"),
        ("", "prompt"),
        ([], "prompt"),
        (5, "prompt"),
        ({}, "prompt"),
        (["a", ""], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([1, True], "prompt[1]"),
        ([3, 2.0], "prompt[1]"),
        ([1, 2, VOCAB], "prompt[2]"),
        ([-1], "prompt[0]"),
        ([[1], [2, VOCAB]], "prompt[1][1]"),
        (["a", [1], None], "prompt[2]"),
        ([1, [2]], "prompt[1]"),
        (["a"] * 129, "prompt"),
    ],
)
def test_wrong_prompts_name_the_place(prompt, field):
    error = refused(completion, prompt=prompt)
    assert error.field == field
    assert field in str(error)


def test_messages_become_role_and_text():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        # As the client library gives back what it got.
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "tool", "content": "d", "tool_call_id": "x", "name": "n"},
    ]
    assert chat(messages=messages).messages == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "tool", "content": "d", "tool_call_id": "x", "name": "n"},
    ]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hi", "messages"),
        (["Hi"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "x", "weight": 1}], "messages[0].weight"),
        (
            [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [{}]}],
            "messages[1].tool_calls",
        ),
    ],
)
def test_wrong_messages_name_the_place(messages, field):
    error = refused(chat, messages=messages)
    assert error.field == field
    assert field in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(
    ["model", "stream", "stop", "seed", "top_k", "n", "tools", "user", "stream_options", "x"]
)


@given(json_values, st.dictionaries(names, json_values))
def test_any_json_is_read_or_refused(value, fields):
    for read, name in ((chat, "messages"), (completion, "prompt")):
        try:
            read(**fields | {name: value})
        except InvalidRequest as error:
            assert str(error)


def test_fields_left_over_are_found_even_if_null():
    with pytest.raises(InvalidRequest):
        Fields({"x": None}).finish({})
    Fields({"x": None}).finish({"x": ()})
