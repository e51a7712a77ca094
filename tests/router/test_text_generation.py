"""Text out of tokens: whole characters, stop strings, counts."""

import asyncio

import pytest
from gateway_helpers import EOS, FakeDispatcher, Script, byte_level_core, chat_tokenizer, packed
from hypothesis import given
from hypothesis import strategies as st

from preble.errors import PromptTooLong, WorkerFailed
from preble.types import FinishReason, SamplingParams, Usage
from preble_router.generation import GenerationRequest
from preble_router.stop_strings import StopStrings
from preble_router.text_generation import TextGeneration, output_budget


def generate(script, *, stop=(), collect=True):
    """All deltas of a generation that plays `script`, and the dispatcher it ran on."""

    async def run():
        dispatcher = FakeDispatcher(script=lambda _: script)
        request = GenerationRequest(
            request_id="r", tokens=packed([1, 2, 3]), sampling=SamplingParams(max_tokens=1000)
        )
        generation = TextGeneration(dispatcher.start(request), chat_tokenizer(), stop=stop)
        deltas = [delta async for delta in generation]
        return deltas, dispatcher

    return asyncio.run(run())


def whole(deltas):
    return "".join(delta.text for delta in deltas)


def test_text_tokens_and_usage():
    ids = byte_level_core().encode("The quick brown fox 世界").ids
    deltas, dispatcher = generate(Script([packed([i]) for i in ids]))
    assert whole(deltas) == "The quick brown fox 世界"
    assert b"".join(delta.tokens for delta in deltas) == packed(ids)
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert deltas[-1].usage == Usage(
        prompt_tokens=3,
        completion_tokens=len(ids),
        cached_tokens=3,  # capped: a worker cannot have cached more than the prompt
        predicted_cached_tokens=48,
    )
    assert dispatcher.cancelled == []


def test_no_delta_ends_within_a_character():
    ids = byte_level_core().encode("世界é🙂").ids
    deltas, _ = generate(Script([packed([i]) for i in ids]))
    assert all("\ufffd" not in delta.text for delta in deltas)
    assert whole(deltas) == "世界é🙂"


def test_an_output_cut_within_a_character_ends_with_a_replacement():
    ids = byte_level_core().encode("ok世").ids[:-1]
    deltas, _ = generate(Script([packed(ids)]))
    assert whole(deltas) == "ok\ufffd"


def test_the_end_token_is_counted_and_not_shown():
    core = byte_level_core()
    ids = core.encode("fox").ids
    for end in (core.token_to_id(EOS), core.encode("!").ids[0]):
        deltas, _ = generate(Script([packed([*ids, end])], FinishReason.STOP))
        assert whole(deltas) == "fox"
        assert deltas[-1].usage.completion_tokens == len(ids) + 1


def test_errors_pass_through_after_the_text():
    async def run():
        script = Script([packed(byte_level_core().encode("fox").ids)], WorkerFailed("died"))
        dispatcher = FakeDispatcher(script=lambda _: script)
        request = GenerationRequest(
            request_id="r", tokens=packed([1]), sampling=SamplingParams(max_tokens=9)
        )
        generation = TextGeneration(dispatcher.start(request), chat_tokenizer())
        assert (await anext(generation)).text == "fox"
        with pytest.raises(WorkerFailed):
            await anext(generation)

    asyncio.run(run())


def test_a_stop_string_ends_the_text_before_it_and_cancels():
    core = byte_level_core()
    ids = core.encode("The quick brown fox jumps over").ids
    # It hangs at the end: only a cancellation lets the test end.
    deltas, dispatcher = generate(Script([packed([i]) for i in ids], None), stop=["brown fox"])
    assert whole(deltas) == "The quick "
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert dispatcher.cancelled == ["r"]
    counted = deltas[-1].usage.completion_tokens
    assert b"".join(delta.tokens for delta in deltas) == packed(ids[:counted])
    assert "brown fox" in core.decode(ids[:counted])
    assert "brown fox" not in core.decode(ids[: counted - 1])


def test_stop_strings_do_not_depend_on_how_tokens_arrive():
    ids = byte_level_core().encode("The quick brown fox jumps over").ids
    for size in (1, 2, 3, 5, 100):
        steps = [packed(ids[i : i + size]) for i in range(0, len(ids), size)]
        deltas, _ = generate(Script(steps, FinishReason.LENGTH), stop=["x jum", "never"])
        assert whole(deltas) == "The quick brown fo"
        assert deltas[-1].finish_reason is FinishReason.STOP
        assert b"".join(d.tokens for d in deltas) == packed(
            ids[: deltas[-1].usage.completion_tokens]
        )


def test_the_beginning_of_a_stop_string_comes_out_in_the_end():
    ids = byte_level_core().encode("The quick br").ids
    deltas, _ = generate(Script([packed([i]) for i in ids]), stop=["brown"])
    assert whole(deltas) == "The quick br"
    assert deltas[-1].finish_reason is FinishReason.LENGTH


# Stop strings alone, against a search through the text character by character.

letters = st.text(alphabet="ab", max_size=30)
stops_of = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4)


def first_stop(text, stops):
    """The text before the stop string that is complete first, or None."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))]
    return None


@given(st.lists(letters, max_size=8), stops_of)
def test_stop_strings_equal_a_plain_search(pieces, stops):
    search, given_out, text = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        match = search.push(piece)
        given_out += match.text
        if match.stopped:
            assert given_out == first_stop(text, stops)
            return
        assert first_stop(text, stops) is None
        # What is held back is the longest end of the text that begins a stop string, no more.
        held = len(text) - len(given_out)
        assert held == max(n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n]))
    assert given_out + search.finish() == text


@pytest.mark.parametrize(
    ("requested", "prompt", "context", "expected"),
    [
        (None, 10, 100, 20),
        (None, 95, 100, 5),
        (None, 10, None, 20),
        (7, 10, None, 7),
        (90, 10, 100, 90),
    ],
)
def test_output_budget(requested, prompt, context, expected):
    budget = output_budget(requested, default=20, num_prompt_tokens=prompt, context_tokens=context)
    assert budget == expected


@pytest.mark.parametrize(("requested", "prompt"), [(None, 100), (1, 100), (91, 10), (None, 500)])
def test_output_budget_refuses_what_cannot_fit(requested, prompt):
    with pytest.raises(PromptTooLong) as caught:
        output_budget(requested, default=20, num_prompt_tokens=prompt, context_tokens=100)
    assert caught.value.max_tokens == 100
    assert caught.value.num_tokens == prompt + (requested or 1)
