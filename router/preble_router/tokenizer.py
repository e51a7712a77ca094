"""Text to token ids and back, as the model's own files say, without transformers.

`tokenizer.json` gives the vocabulary, `tokenizer_config.json` and `chat_template.jinja` the chat
template and the special tokens, `generation_config.json` or `config.json` the end tokens. What an
encoding costs, and on which thread it should run, is the business of `prompt_encoding`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from preble.errors import ConfigError, InvalidRequest
from preble.page_keys import pack_tokens, unpack_tokens
from preble_router.chat_template import ChatTemplate
from preble_router.detokenizer import Detokenizer, IncrementalDecoder

_SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Tokenizer:
    """One model's tokenizer. Immutable in what it answers; safe to use from several threads.

    Attributes:
        vocab_size: token ids are below it.
        eos_token_ids: tokens that end an output, sorted.
        chat_template: None for a model that was not made for chat.

    Args:
        core: a `tokenizers.Tokenizer`.
        special_tokens: text of `bos_token`, `eos_token` and so on, as the template knows them.
        vocab_size: of the model, which may have more ids than the tokenizer has tokens; 0 where
            nothing is known of the model.
    """

    def __init__(
        self,
        core: Any,
        *,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        vocab_size: int = 0,
    ) -> None:
        core.no_padding()
        core.no_truncation()
        self._core = core
        self._detokenizer = Detokenizer(core)
        self.vocab_size = vocab_size or core.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = tuple(sorted(eos_token_ids))
        self.chat_template: ChatTemplate | None = None
        if chat_template is not None:
            self.chat_template = ChatTemplate(chat_template, special_tokens or {})

    @classmethod
    def from_directory(cls, path: Path | str) -> "Tokenizer":
        """The tokenizer of the model in directory `path`.

        Raises:
            ConfigError: `tokenizer.json` is missing, or a file cannot be understood.
        """
        directory = Path(path)
        core = _load_core(directory / "tokenizer.json")
        options = _read_json(directory / "tokenizer_config.json")
        special = _read_json(directory / "special_tokens_map.json") | options
        texts = {
            name: _token_text(special[name]) for name in _SPECIAL_TOKEN_NAMES if name in special
        }
        present = {name: text for name, text in texts.items() if text is not None}
        config = _read_json(directory / "config.json")
        vocab_size = config.get("text_config", config).get("vocab_size")
        return cls(
            core,
            chat_template=_find_chat_template(directory, options),
            special_tokens=present,
            eos_token_ids=_find_eos_token_ids(directory, config, core, present),
            vocab_size=vocab_size if isinstance(vocab_size, int) else 0,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> bytes:
        """Packed tokens of `text`.

        Args:
            add_special_tokens: add what the model's tokenizer adds by itself, e.g. a BOS token.
        """
        # The batch form lets go of the interpreter lock, and tracks no offsets.
        (encoding,) = self._core.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return pack_tokens(encoding.ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template_variables: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Packed tokens of the prompt that `messages` (role and content each) make.

        Raises:
            InvalidRequest: the model has no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise InvalidRequest(
                "this model has no chat template, so it cannot take messages; "
                "send a prompt to /v1/completions instead",
                field="messages",
            )
        text = self.chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, variables=template_variables
        )
        # The template has already written the special tokens that belong there.
        return self.encode(text, add_special_tokens=False)

    def decode(self, tokens: bytes) -> str:
        """The text of packed `tokens`: special tokens left out, broken characters replaced."""
        decoder = self.stream()
        return decoder.push_all(unpack_tokens(tokens).tolist()) + decoder.finish()

    def token_bytes(self, token_id: int) -> bytes | None:
        """What one token adds to a text, maybe a part of a character; None if it is special or
        unknown and adds nothing.
        """
        return self._detokenizer.token_bytes(token_id)

    def token_name(self, token_id: int) -> str:
        """How the vocabulary writes a token; "" for an unknown one."""
        return self._detokenizer.token_name(token_id)

    def stream(self) -> IncrementalDecoder:
        """Decodes one output token by token, to the same text as `decode` of the whole."""
        return self._detokenizer.stream()


def _load_core(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path} not found: the model's directory must hold a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare Exception for files it cannot read.
        raise ConfigError(f"{path} is no tokenizer: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file, empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def _token_text(token: Any) -> str | None:
    """A special token is written as its text, or as an object with `content`, or null."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _find_chat_template(directory: Path, options: dict[str, Any]) -> str | None:
    """The template file goes before the one in `tokenizer_config.json`, of a list the default."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(directory / "chat_template.json").get("chat_template")
    template = template or options.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not isinstance(template, str):
        raise ConfigError(f"chat_template in {directory} must be text or a list of named texts")
    return template


def _find_eos_token_ids(
    directory: Path, config: dict[str, Any], core: Any, special_tokens: Mapping[str, str]
) -> list[int]:
    generation = _read_json(directory / "generation_config.json")
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    if ids is None:
        ids = core.token_to_id(special_tokens.get("eos_token", ""))
    if isinstance(ids, int):
        return [ids]
    return list(ids or ())
