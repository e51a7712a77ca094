"""Tokenizers of every kind, against the library that defines them; chat templates, likewise."""

import json

import pytest
from gateway_helpers import EOS, TEMPLATE, byte_level_core, chat_tokenizer, packed
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from preble.errors import ConfigError, InvalidRequest
from preble.page_keys import unpack_tokens
from preble_router.prompt_encoding import INLINE_CHARS, PromptEncoder
from preble_router.tokenizer import Tokenizer

TEXTS = [
    "Hello, world!",
    "  two blanks  and\n\tmore ",
    "Grüße, 世界, привет, مرحبا, 🙂👍🏽",
    "<|im_start|>user\nhi<|im_end|>",
    "",
]
MESSAGES = [
    {"role": "system", "content": "You are <terse> & 'exact'."},
    {"role": "user", "content": "Hi\nthere"},
    {"role": "assistant", "content": " Hello! "},
    {"role": "user", "content": "世界?"},
]


def sentencepiece_core(*, strip: bool, prepend: bool) -> Core:
    """As Llama 2 and Mistral have it (or, without the blank in front, Gemma)."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    pieces += ["▁", "▁the", "▁fox", "fox", "the", *"abcdefghijklmnopqrstuvwxyz", "世", "."]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    core = Core(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    steps = [normalizers.Prepend("▁")] if prepend else []
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tail = [decoders.Strip(" ", 1, 0)] if strip else []
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return core


def metaspace_core(prepend_scheme: str) -> Core:
    vocab = [
        (piece, -1.0) for piece in ["<unk>", "▁", "▁the", "▁fox", "fox", "▁▁", "the", *"abcef"]
    ]
    core = Core(models.Unigram(vocab, 0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return core


def wordpiece_core() -> Core:
    vocab = {piece: i for i, piece in enumerate(["[UNK]", "the", "fox", "##es", "##y", "and"])}
    core = Core(models.WordPiece(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(cleanup=False)
    return core


CORES = {
    "byte level": byte_level_core(),
    "sentencepiece": sentencepiece_core(strip=True, prepend=True),
    "sentencepiece without strip": sentencepiece_core(strip=False, prepend=False),
    "metaspace": metaspace_core("always"),
    "metaspace first": metaspace_core("first"),
    "metaspace never": metaspace_core("never"),
    "wordpiece": wordpiece_core(),
}
TOKENIZERS = {kind: Tokenizer(core) for kind, core in CORES.items()}
kinds = pytest.mark.parametrize("kind", CORES)


def one_by_one(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream()
    return [*[decoder.push(i) for i in ids], decoder.finish()]


def has_broken_bytes(core: Core, ids: list[int]) -> bool:
    return "\ufffd" in core.decode(ids)


@kinds
@given(st.data())
def test_decoding_one_by_one_equals_the_library_s_whole(kind, data):
    core, tokenizer = CORES[kind], TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, core.get_vocab_size() - 1), max_size=40))
    pieces = one_by_one(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(packed(ids))
    # For broken bytes SentencePiece decoders write one mark per byte of the whole run, which
    # cannot be known before the run ends; Preble writes one per broken character.
    if kind == "byte level" or not has_broken_bytes(core, ids):
        assert "".join(pieces) == core.decode(ids)


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece", "sentencepiece without strip"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_texts_come_back_in_whole_characters(kind, text):
    core, tokenizer = CORES[kind], TOKENIZERS[kind]
    ids = core.encode(text, add_special_tokens=False).ids
    pieces = one_by_one(tokenizer, ids)
    assert "".join(pieces) == core.decode(ids)
    broken = "\ufffd" in text or "\ufffd" in core.decode(ids)
    assert broken or all("\ufffd" not in piece for piece in pieces)


@kinds
def test_ids_without_a_token_add_nothing(kind):
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.decode(packed([10**6, 10**6 + 1])) == ""
    assert one_by_one(tokenizer, [10**6, 4]) == ["", tokenizer.decode(packed([4])), ""]


def test_special_tokens_are_left_out_and_other_added_tokens_kept():
    core = Core.from_str(byte_level_core().to_str())
    core.add_tokens([AddedToken("<think hard>", special=False)])
    tokenizer = Tokenizer(core)
    ids = core.encode("a<think hard>é<|im_end|>b").ids
    assert tokenizer.decode(packed(ids)) == "a<think hard>éb" == core.decode(ids)


@kinds
@pytest.mark.parametrize("text", TEXTS)
def test_encoding_equals_the_library_s(kind, text):
    core, tokenizer = CORES[kind], TOKENIZERS[kind]
    for special in (True, False):
        expected = core.encode(text, add_special_tokens=special).ids
        encoded = tokenizer.encode(text, add_special_tokens=special)
        assert unpack_tokens(encoded).tolist() == expected


def test_a_tokenizer_that_pads_or_cuts_is_made_not_to():
    core = Core.from_str(byte_level_core().to_str())
    core.enable_padding(length=50)
    core.enable_truncation(3)
    assert Tokenizer(core).encode(TEXTS[0]) == chat_tokenizer().encode(TEXTS[0])


# Chat templates, as transformers renders them.

TEMPLATES = {
    "demo": TEMPLATE,
    "llama 3": (
        "{{- bos_token }}\n{%- for message in messages %}\n"
        "    {{- '<|im_start|>' + message['role'] + '<|x|>\n\n' + message.content | trim }}\n"
        "    {{- '<|eot|>' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant<|x|>' }}\n{%- endif %}\n"
    ),
    "whitespace control": (
        "{% for message in messages %}\n  {% if message.role == 'system' %}\n"
        "    {% set system = message.content %}\n    {% continue %}\n  {% endif %}\n"
        "  {{ loop.index }}: {{ message | tojson }}\n"
        "  {% if loop.index > 3 %}{% break %}{% endif %}\n{% endfor %}\n"
    ),
    "generation tag": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    ),
    "no tools": "{% if tools %}T{% endif %}{% if documents is not none %}D{% endif %}"
    "{{ messages[-1].content }}{{ tools is none }}",
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }} {{ messages | map(attribute='role') | join(',') }} {{ messages[1:] | length }}"
        "{{ strftime_now('%Y') }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_templates_render_as_transformers_renders_them(name, add_generation_prompt):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_core(), bos_token="<|endoftext|>", eos_token=EOS
    )
    theirs.chat_template = TEMPLATES[name]
    tokens = {"bos_token": "<|endoftext|>", "eos_token": EOS}
    ours = Tokenizer(byte_level_core(), chat_template=TEMPLATES[name], special_tokens=tokens)
    expected = theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert expected == ours.chat_template.render(
        MESSAGES, add_generation_prompt=add_generation_prompt
    )
    encoded = ours.encode_chat(MESSAGES, add_generation_prompt=add_generation_prompt)
    assert encoded == ours.encode(expected, add_special_tokens=False)


def test_chats_get_no_special_tokens_beyond_the_template_s():
    core = CORES["sentencepiece"]
    tokenizer = Tokenizer(
        core, chat_template="{{ bos_token }}{{ messages[0].content }}",
        special_tokens={"bos_token": "<s>"},
    )  # fmt: skip
    ids = unpack_tokens(tokenizer.encode_chat([{"role": "user", "content": "fox"}])).tolist()
    assert ids.count(core.token_to_id("<s>")) == 1
    assert unpack_tokens(tokenizer.encode("fox")).tolist()[0] == core.token_to_id("<s>")


def test_developer_is_system_to_templates_that_do_not_know_it():
    messages = [{"role": "developer", "content": "x"}]
    assert "<|im_start|>system" in chat_tokenizer().chat_template.render(messages)
    knowing = chat_tokenizer("{% if messages[0].role == 'developer' %}yes{% endif %}")
    assert knowing.chat_template.render(messages) == "yes"
    assert messages == [{"role": "developer", "content": "x"}]


def test_variables_reach_the_template_and_cannot_replace_what_is_its_own():
    template = chat_tokenizer("{{ 'on' if enable_thinking else 'off' }}").chat_template
    assert template.render(MESSAGES, variables={"enable_thinking": True}) == "on"
    assert template.render(MESSAGES) == "off"
    for name in ("messages", "tools", "add_generation_prompt", "eos_token"):
        with pytest.raises(InvalidRequest, match=name):
            template.render(MESSAGES, variables={name: "x"})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 5 }}", "template"),
        ("{{ messages.append(1) }}", "template"),
        ("{{ ''.__class__.__mro__ }}", "template"),
        ("{{ nothing.at.all }}", "template"),
        ("{{ 1 / 0 }}", "template"),
    ],
)
def test_a_template_that_fails_is_a_wrong_request(source, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        chat_tokenizer(source).encode_chat(MESSAGES)
    assert caught.value.field == "messages"


def test_without_a_template_chat_is_refused():
    with pytest.raises(InvalidRequest, match="no chat template"):
        chat_tokenizer(None).encode_chat(MESSAGES)


# Directories.


@pytest.fixture
def directory(tmp_path):
    byte_level_core().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(directory, name, value):
    (directory / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_a_bare_directory(directory):
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.vocab_size == byte_level_core().get_vocab_size()
    assert tokenizer.eos_token_ids == ()
    assert tokenizer.chat_template is None
    assert tokenizer.encode("fox") == chat_tokenizer().encode("fox")


def test_a_whole_directory(directory):
    eos = byte_level_core().token_to_id(EOS)
    write(directory, "config.json", {"vocab_size": 512, "eos_token_id": 0})
    write(directory, "generation_config.json", {"eos_token_id": [eos, 0]})
    options = {"bos_token": {"content": "<|endoftext|>"}, "eos_token": EOS, "pad_token": None}
    write(directory, "tokenizer_config.json", options | {"chat_template": "{{ bos_token }}A"})
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.vocab_size == 512
    assert tokenizer.eos_token_ids == (0, eos)
    assert tokenizer.chat_template.render(MESSAGES) == "<|endoftext|>A"
    (directory / "generation_config.json").unlink()
    assert Tokenizer.from_directory(directory).eos_token_ids == (0,)
    (directory / "config.json").unlink()
    assert Tokenizer.from_directory(directory).eos_token_ids == (eos,)


def test_where_templates_are_found(directory):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write(directory, "tokenizer_config.json", {"chat_template": named})
    assert Tokenizer.from_directory(directory).chat_template.render(MESSAGES) == "D"
    write(directory, "chat_template.json", {"chat_template": "J"})
    assert Tokenizer.from_directory(directory).chat_template.render(MESSAGES) == "J"
    write(directory, "chat_template.jinja", "F")
    assert Tokenizer.from_directory(directory).chat_template.render(MESSAGES) == "F"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
        ("config.json", "[]"),
        ("chat_template.jinja", "{% if %}"),
        ("tokenizer_config.json", '{"chat_template": 5}'),
    ],
)
def test_broken_files_are_named(directory, name, content):
    write(directory, name, content)
    with pytest.raises(ConfigError):
        Tokenizer.from_directory(directory)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json not found"):
        Tokenizer.from_directory(tmp_path)


async def test_long_prompts_encode_as_short_ones_do():
    encoder = PromptEncoder(chat_tokenizer())
    for size in (10, INLINE_CHARS + 1):
        text = ("The quick brown fox. " * size)[:size]
        assert await encoder.encode(text) == encoder.tokenizer.encode(text)
        messages = [{"role": "user", "content": text}]
        tokens = await encoder.encode_chat(messages)
        assert tokens == encoder.tokenizer.encode_chat(messages)
        assert await encoder.decode(tokens) == encoder.tokenizer.decode(tokens)
    encoder.close()
