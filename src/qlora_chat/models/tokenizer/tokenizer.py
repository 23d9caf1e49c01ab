"""A model's tokenizer, from its tokenizer.json, through the `tokenizers` library alone.

Scope: text <-> ids where text is only ever text. Knows no roles and no prompts. A base that ships only a
tokenizer.model is converted when its weights are prepared (models/prepare.py), so tokenizer.json is always there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from qlora_chat.models import ModelError
from qlora_chat.text import replace_surrogates

_SENTINELS = ("\n", "\x01", ".")
_REMEMBERED = 256
"""Pieces of text whose ids the library remembers, never to forget them: role markers are among the first. Its own 10,000 are
28 MiB of what people typed."""


class ModelTokenizer:
    """Encodes without ever reading special tokens out of text; decodes without ever writing them into it."""

    def __init__(self, tokenizer: Tokenizer, bos_id: int | None) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # a typed "</s>" is five characters, not an end
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if resize := getattr(tokenizer.model, "_resize_cache", None):  # there is no public way
            resize(_REMEMBERED)
        self.bos_id = bos_id
        self._lead = self.encode("a")  # not a byte token, which would melt into bytes that follow
        self._lead_text = self._tokenizer.decode(self._lead)
        self.size: int = tokenizer.get_vocab_size()

    @staticmethod
    def read(folder: Path, bos_id: int | None) -> ModelTokenizer:
        """From folder/tokenizer.json. ModelError if it is missing or broken."""
        path = folder / "tokenizer.json"
        try:
            return ModelTokenizer(Tokenizer.from_file(str(path)), bos_id)
        except Exception as problem:
            raise ModelError(f"the tokenizer {path} cannot be read ({problem})") from problem

    def encode(self, text: str) -> list[int]:
        """Ids of text that begins a sequence, without BOS."""
        return self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of text that begins a sequence, without BOS, and the characters (begin, end) that each stands for."""
        encoded = self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of text that follows other text: no dummy space in front (SentencePiece adds one to every beginning)."""
        for sentinel in _SENTINELS:
            lead, whole = self.encode(sentinel), self.encode(sentinel + text)
            if whole[: len(lead)] == lead:
                return whole[len(lead) :]
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that follow other text: the space a first token stands for is kept; special tokens give none."""
        return self._tokenizer.decode([*self._lead, *ids]).removeprefix(self._lead_text)

    def leading_id(self) -> int | None:
        """Id that the tokenizer's own post-processing puts in front of a text, or None."""
        plain, whole = self.encode("a"), self._tokenizer.encode("a", add_special_tokens=True).ids
        return whole[0] if whole[1 : 1 + len(plain)] == plain else None

    def token_id(self, token: str) -> int | None:
        """Id of a token by its name, or None where the vocabulary lacks it."""
        return self._tokenizer.token_to_id(token)

    def written_bos(self) -> str:
        """How BOS is written in front of a text for other readers of this tokenizer.json, who read special tokens out of
        text; "" where nothing begins a text. Some of them give a text no space of its own after a special token."""
        if self.bos_id is None or not (name := self._tokenizer.id_to_token(self.bos_id)):
            return ""
        reader, sample = Tokenizer.from_str(self._tokenizer.to_str()), "### a"
        reader.encode_special_tokens = False
        wanted = [self.bos_id, *self.encode(sample)]
        fitting = (each for each in (name, f"{name} ") if reader.encode(each + sample, add_special_tokens=False).ids == wanted)
        return next(fitting, name)

    @property
    def special_names(self) -> tuple[str, ...]:
        """How the special tokens are written, longest first: other tokenizers may read them out of text."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return tuple(sorted((each.content for each in added if each.special), key=len, reverse=True))
