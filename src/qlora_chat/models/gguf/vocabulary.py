"""tokenizer.json -> GGUF metadata of a tokenizer: the inverse of tokenizer.py.

Scope: byte-level BPE and BPE with byte fallback, each read back and compared before it is used. Knows nothing of weights.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.merge_loss import dialogues
from qlora_chat.models.gguf.describe import REMEDY
from qlora_chat.models.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    tokenizer_of,
)

_SAMPLES = (
    "Grüße, 世界! 🙂 naïve",
    "two  spaces\n\nand\ttabs \r\n x",
    "def f(x):\n    return x ** 2  # 12345 and 3.14",
    "I'll say WE'RE there'S  ... \n \n  end",
    "\uff11\uff12\uff13 ½ Ⅷ عربي हिन्दी ไทย",
)
"""None begins with a space, to which SentencePiece adds another and some tokenizer.json do not: no prompt begins so."""
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0
"""Scores that llama.cpp's converter gives to added and to unused tokens."""


def vocabulary_of(tokenizer_json: str, rows: int) -> dict[str, Any]:
    """Metadata of the tokenizer, a token for each of `rows` embeddings.

    ModelError for a kind that llama.cpp has no name for, and where it would give other ids.
    """
    described: dict[str, Any] = json.loads(tokenizer_json)
    model = described["model"]
    if model.get("type") != "BPE":
        raise _refused(f"it is of kind {model.get('type')}, and BPE can be written")
    original = Tokenizer.from_str(tokenizer_json)
    tokens, types = _tokens(described, rows)
    candidates = _sentencepiece(model, types, tokens) if model.get("byte_fallback") else _byte_level(original, model)
    differences: list[str] = []
    for candidate in candidates:
        metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, **candidate}
        if (difference := _difference(original, metadata)) is None:
            return metadata
        differences.append(difference)
    raise _refused(f"read back from the file, it would give other ids for {differences[0]!r}")


def _refused(reason: str) -> ModelError:
    return ModelError(f"the tokenizer cannot be written as GGUF ({reason}); {REMEDY}")


def _tokens(described: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and type of each token by id."""
    named = {int(number): text for text, number in described["model"]["vocab"].items() if number < rows}
    kinds = dict.fromkeys(named, NORMAL)
    for added in described.get("added_tokens") or ():
        if added["id"] < rows:
            named[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    used = set(named.values())
    free = (name for number in itertools.count() if (name := f"[PAD{number}]") not in used)  # llama.cpp wants a name for each
    tokens = [named[number] if number in named else next(free) for number in range(rows)]
    return tokens, [kinds.get(number, UNUSED) for number in range(rows)]


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs in their order; files write a pair as a list, or as a text with a space."""
    pairs = (each.split(" ", 1) if isinstance(each, str) else each for each in model["merges"])
    return [(left, right) for left, right in pairs]


def _byte_level(original: Tokenizer, model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Metadata for each name of llama.cpp's that splits text as the tokenizer does."""
    names = [name for name in PRE_TOKENIZERS if _splits_alike(original, name)]
    if not names:
        raise _refused("it splits text into words in a way that llama.cpp has no name for here")
    merges = [f"{left} {right}" for left, right in _merges(model)]
    for name in names:
        yield {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}


def _splits_alike(original: Tokenizer, name: str) -> bool:
    own, named = original.pre_tokenizer, PRE_TOKENIZERS[name]()
    return own is not None and all(own.pre_tokenize_str(each) == named.pre_tokenize_str(each) for each in _SAMPLES)


def _sentencepiece(model: dict[str, Any], types: list[int], tokens: list[str]) -> Iterator[dict[str, Any]]:
    """Metadata with a space in front of a text, and without."""
    unknown = model.get("unk_token")
    for number, token in enumerate(tokens):
        if token == (unknown or "<unk>"):
            types[number] = UNKNOWN
        elif types[number] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[number] = BYTE
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(model)):
        ranks.setdefault(left + right, rank)
    scores = [_score(token, kind, ranks) for token, kind in zip(tokens, types, strict=True)]
    for space in (True, False):
        yield {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.add_space_prefix": space,
        }


def _score(token: str, kind: int, ranks: dict[str, int]) -> float:
    """Score of a piece: what is merged first has the highest; pieces that nothing merges into come last."""
    if kind == USER_DEFINED:
        return _ADDED_SCORE
    if kind == UNUSED:
        return _UNUSED_SCORE
    return float(-ranks.get(token, len(ranks))) if kind == NORMAL else 0.0


def _difference(original: Tokenizer, metadata: dict[str, Any]) -> str | None:
    """The beginning of the first text that gets other ids from the file than from the tokenizer."""
    written = tokenizer_of(metadata, "the file")
    original.encode_special_tokens = written.encode_special_tokens = True
    texts = (text for dialogue in dialogues() for turn in dialogue for text in turn)
    for text in (*texts, *_SAMPLES):
        if written.encode(text, add_special_tokens=False).ids != original.encode(text, add_special_tokens=False).ids:
            return text[:40]
    return None
