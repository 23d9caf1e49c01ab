"""A model's tokenizer, from its tokenizer.json, through the `tokenizers` library alone.

Scope: text <-> ids, without special tokens in text. Knows no roles and no prompts. For a base that ships only a
tokenizer.model, sentencepiece.py writes a tokenizer.json first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from qlora_chat.models import ModelError
from qlora_chat.models.trust import TOKENIZER_FILE, own_file
from qlora_chat.text import replace_surrogates

_SENTINELS = ("\n", "\x01", ".")
_CACHE_SIZE = 256
"""Pieces of text whose ids the library caches for good: role markers are among the first. Its default of 10,000 would be
28 MiB of what people typed."""


class _ReadablePanics:
    """Turns a panic of the library, which is no Exception, into a ModelError: a foreign tokenizer.json can cause one."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, _: object) -> None:
        if kind is not None and kind.__name__ == "PanicException":
            reason = str(problem).strip().split("\n")[0][:200]
            raise ModelError(f"the tokenizers library fails on it ({reason}); use another copy of the base") from problem


_readable_panics = _ReadablePanics()


class ModelTokenizer:
    """Encodes without ever reading special tokens out of text; decodes without ever writing them into it."""

    def __init__(self, tokenizer: Tokenizer, bos_id: int | None) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # a typed "</s>" is five characters, not an end
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if resize := getattr(tokenizer.model, "_resize_cache", None):  # there is no public way
            resize(_CACHE_SIZE)
        self.bos_id = bos_id
        self.embeddings: int | None = None
        """Number of the model's embeddings, once it is known: ids beyond have none."""
        self._lead = self.encode("a")  # not a byte token, which would join with bytes that follow
        self._lead_text = self._tokenizer.decode(self._lead)
        self.size: int = tokenizer.get_vocab_size()
        self.longest_token = max(map(len, tokenizer.get_vocab()), default=1)
        """Characters."""

    @staticmethod
    def read(folder: Path, bos_id: int | None) -> ModelTokenizer:
        """Read folder/tokenizer.json. ModelError if it is missing, broken, too large or a link out of its folder."""
        path = folder / "tokenizer.json"
        try:
            with _readable_panics:
                return ModelTokenizer(Tokenizer.from_file(str(own_file(path, TOKENIZER_FILE))), bos_id)
        except Exception as problem:
            raise ModelError(f"the tokenizer {path} cannot be read ({problem})") from problem

    def encode(self, text: str) -> list[int]:
        """Ids of text that begins a sequence, without BOS."""
        return self._encode(text).ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of text that begins a sequence, without BOS, and the span of characters (begin, end) of each."""
        encoded = self._encode(text)
        return encoded.ids, encoded.offsets

    def _encode(self, text: str, special: bool = False) -> Encoding:
        with _readable_panics:
            return self._tokenizer.encode(replace_surrogates(text), add_special_tokens=special)

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of text that follows other text: no dummy space in front (SentencePiece adds one to every beginning)."""
        for sentinel in _SENTINELS:
            lead, whole = self.encode(sentinel), self.encode(sentinel + text)
            if whole[: len(lead)] == lead:
                return whole[len(lead) :]
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that follow other text: a first token's space stays; special tokens have no text."""
        with _readable_panics:
            return self._tokenizer.decode([*self._lead, *ids]).removeprefix(self._lead_text)

    def leading_id(self) -> int | None:
        """Id that the tokenizer's own post-processing puts in front of a text; None if it adds none."""
        plain, whole = self.encode("a"), self._encode("a", special=True).ids
        return whole[0] if whole[1 : 1 + len(plain)] == plain else None

    def largest_id(self) -> int:
        """Largest id that a text can become. Special tokens cannot be typed, so theirs do not count."""
        plain = self._tokenizer.get_vocab(with_added_tokens=False)
        added = {number: token.special for number, token in self._tokenizer.get_added_tokens_decoder().items()}
        typed = [number for number, special in added.items() if not special]
        return max([*(number for number in plain.values() if not added.get(number)), *typed], default=0)

    def token_id(self, token: str) -> int | None:
        """Id of a token by its name; None if the vocabulary lacks it."""
        return self._tokenizer.token_to_id(token)

    def written_bos(self) -> str:
        """BOS as text, for other readers of this tokenizer.json, who recognise special tokens in text; "" without BOS.

        A space follows it if such a reader would otherwise drop the space that begins a text.
        """
        if self.bos_id is None or not (name := self._tokenizer.id_to_token(self.bos_id)):
            return ""
        written, sample = (name, f"{name} "), "### a"
        expected = [self.bos_id, *self.encode(sample)]
        with _readable_panics:
            reader = Tokenizer.from_str(self._tokenizer.to_str())
            reader.encode_special_tokens = False
            same = [each for each in written if reader.encode(each + sample, add_special_tokens=False).ids == expected]
        return same[0] if same else name

    def vocabulary(self) -> dict[str, int]:
        """Ids of all tokens by name, added ones included."""
        return self._tokenizer.get_vocab()

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return self._tokenizer.to_str()

    def special_tokens(self) -> dict[int, str]:
        """Names of the special tokens by id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {number: token.content for number, token in added.items() if token.special}

    @property
    def special_names(self) -> tuple[str, ...]:
        """Special tokens as text, longest first: other tokenizers may recognise them in text."""
        return tuple(sorted(self.special_tokens().values(), key=len, reverse=True))
