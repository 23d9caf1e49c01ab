"""Differences of an adapter from its base in text: other tokens, other ends of answers.

Scope: tokenizer files and configs. Several adapters over one base share its tokenizer and its ends, so an adapter with its own
can only be served alone. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qlora_chat.models.cache import sha256
from qlora_chat.models.folders import Base
from qlora_chat.models.tokenizer.sentencepiece import added_tokens
from qlora_chat.models.tokenizer.special_tokens import special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.trust import TOKENIZER_FILE, own_file


def own_text(folder: Path, base: Base, tokenizer: ModelTokenizer, stops: Collection[int]) -> str | None:
    """The first thing that an adapter brings and its base lacks, None for an adapter that shares the base's text.

    `tokenizer` and `stops` are those that all adapters share. ModelError for a file that cannot be read.
    """
    if token := _other_token(folder, base, tokenizer):
        return f"a tokenizer of its own ({token})"
    special = special_ids(folder.name, base.configs.with_adapter(folder), tokenizer)
    if ends := sorted(special.stops - set(stops)):
        return f"its own end of an answer (id {ends[0]})"
    return None


def _other_token(folder: Path, base: Base, tokenizer: ModelTokenizer) -> str | None:
    """A difference between two tokenizers, in words."""
    shared = tokenizer.vocabulary()
    if (folder / "tokenizer.json").is_file():
        own = ModelTokenizer.read(folder, None).vocabulary()
        different = sorted(each for each in own.keys() | shared.keys() if own.get(each) != shared.get(each))
        return f"{len(different):,} tokens differ, such as {different[0]!r}" if different else None
    for number, token in added_tokens(folder):
        if shared.get(token.content) != number:
            return f"it adds {token.content!r}"
    own_model, base_model = folder / "tokenizer.model", base.folder / "tokenizer.model"
    if own_model.is_file() and base_model.is_file():
        digests = {sha256(own_file(each, TOKENIZER_FILE)) for each in (own_model, base_model)}
        return "its tokenizer.model is another one" if len(digests) > 1 else None
    return None
