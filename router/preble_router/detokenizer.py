"""Token ids to text, one token at a time, in constant time and never half a character.

A token of a byte-level or SentencePiece vocabulary adds the same bytes wherever it stands (but for
a blank at the very start), so the text of an output is the UTF-8 reading of its tokens' bytes. A
vocabulary that joins tokens in some other way is decoded through a short window of its own decoder.
"""

import codecs
import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WINDOW_TOKENS = 8


class IncrementalDecoder(Protocol):
    """The text of one output as its tokens come. Special tokens and unknown ids add nothing."""

    def push(self, token_id: int) -> str:
        """The characters that became complete with this token, often one word, maybe none."""

    def push_all(self, token_ids: Iterable[int]) -> str:
        """The characters that became complete with these tokens."""

    def finish(self) -> str:
        """What an output that ends here still owes: a replacement character for a broken one."""


class Detokenizer:
    """Makes the decoder that fits a vocabulary.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces = _pieces_of(tokenizer)
        self._special = _special_ids(tokenizer)

    def stream(self) -> IncrementalDecoder:
        if self._pieces is None:
            return _WindowDecoder(self._tokenizer)
        return _BytesDecoder(self._pieces)

    def token_bytes(self, token_id: int) -> bytes | None:
        """What the token adds to a text; None for a special or unknown one, which adds nothing."""
        if self._tokenizer.id_to_token(token_id) is None or token_id in self._special:
            return None
        if self._pieces is None:
            text: str = self._tokenizer.decode([token_id])
            return text.encode()
        return self._pieces[token_id]

    def token_name(self, token_id: int) -> str:
        """How the vocabulary writes the token; "" for an unknown one."""
        return self._tokenizer.id_to_token(token_id) or ""


class _Pieces(dict[int, bytes]):
    """The bytes each token adds, computed when first asked for.

    Attributes:
        blanks_stripped: how many blanks the text as a whole loses at its start.
        first_loses_blanks: the first token loses all its blanks.
    """

    def __init__(
        self,
        tokenizer: Any,
        bytes_of: Callable[[str], bytes],
        *,
        blanks_stripped: int = 0,
        first_loses_blanks: bool = False,
    ) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._bytes_of = bytes_of
        self._special = _special_ids(tokenizer)
        self.blanks_stripped = blanks_stripped
        self.first_loses_blanks = first_loses_blanks

    def __missing__(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""  # Not remembered: ids without a token are without number.
        piece = b"" if token_id in self._special else self._bytes_of(token)
        self[token_id] = piece
        return piece

    def skips(self, token_id: int) -> bool:
        """Whether the text is the same as if the token were not there."""
        return token_id in self._special or self._tokenizer.id_to_token(token_id) is None


def _byte_level(token: str) -> bytes:
    """Every character of a token stands for one byte (GPT-2, Llama 3, Qwen)."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:  # An added token, written as it is.
        return token.encode()


def _sentence_piece(token: str) -> bytes:
    """Text with ▁ for a blank, and <0xAB> for single bytes (Llama 2, Mistral, Gemma)."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return token.encode()
    return token.replace("▁", " ").encode()


class _BytesDecoder:
    def __init__(self, pieces: _Pieces) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._blanks_to_strip = pieces.blanks_stripped
        self._is_first = pieces.first_loses_blanks

    def push(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        if self._is_first and not self._pieces.skips(token_id):
            self._is_first = False
            piece = piece.replace(b" ", b"")
        text = self._utf8.decode(piece)
        return self._stripped(text) if self._blanks_to_strip else text

    def push_all(self, token_ids: Iterable[int]) -> str:
        return "".join([self.push(token_id) for token_id in token_ids])

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)

    def _stripped(self, text: str) -> str:
        while self._blanks_to_strip and text:
            if text[0] != " ":
                self._blanks_to_strip = 0
                break
            self._blanks_to_strip -= 1
            text = text[1:]
        return text


class _WindowDecoder:
    """Decodes new tokens together with those of the last piece of text, their context."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = _special_ids(tokenizer)
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._context + self._pending)
        if text.endswith(_REPLACEMENT) and len(self._pending) < _WINDOW_TOKENS:
            return ""
        return self._emit(text)

    def push_all(self, token_ids: Iterable[int]) -> str:
        return "".join([self.push(token_id) for token_id in token_ids])

    def finish(self) -> str:
        return self._emit(self._tokenizer.decode(self._context + self._pending))

    def _emit(self, text: str) -> str:
        new = text[len(self._context_text) :]
        if new:
            self._context, self._pending = self._pending, []
            self._context_text = self._tokenizer.decode(self._context)
        return new


def _pieces_of(tokenizer: Any) -> _Pieces | None:
    """The vocabulary's bytes, or None where a token's text depends on its neighbours."""
    if tokenizer.decoder is None:
        return None
    steps = _decoder_steps(json.loads(tokenizer.decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _Pieces(tokenizer, _byte_level)
    if kinds == ["Metaspace"] and steps[0]["replacement"] == "▁":
        keeps = steps[0].get("prepend_scheme", "always") == "never"
        return _Pieces(tokenizer, _sentence_piece, first_loses_blanks=not keeps)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and _is_blank(steps[0]):
        if len(steps) == 3:
            return _Pieces(tokenizer, _sentence_piece)
        if kinds[3:] == ["Strip"] and steps[3]["content"] == " " and not steps[3]["stop"]:
            return _Pieces(tokenizer, _sentence_piece, blanks_stripped=steps[3]["start"])
    return None


def _decoder_steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _decoder_steps(inner)]


def _is_blank(replace: dict[str, Any]) -> bool:
    return (replace["pattern"], replace["content"]) == ({"String": "▁"}, " ")


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _byte_of_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table


_BYTE_OF = _byte_of_characters()
