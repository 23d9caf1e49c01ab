"""Where a base's tokenizer.json is: beside it, or made once from its tokenizer.model and kept.

Scope: files. Imports no torch unless a tokenizer has to be converted.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qlora_chat.models import ModelError, Notify
from qlora_chat.models.cache import Cache, CacheUnusable, key_of, sha256
from qlora_chat.models.folders import has_tokenizer


def tokenizer_folder(name: str, base: Path, cache: Cache, notify: Notify) -> Path:
    """The folder that holds tokenizer.json. ModelError where there is nothing to make it from, or nowhere to keep it."""
    if (base / "tokenizer.json").is_file():
        return base
    if not has_tokenizer(base):
        raise ModelError(f"{base} holds neither tokenizer.json nor tokenizer.model; fetch the base again")
    key = key_of(name, {"model": sha256(base / "tokenizer.model")})
    if (entry := cache.find("tokenizers", key)) is not None:
        return entry.folder
    from qlora_chat.models.tokenizer.sentencepiece import convert_tokenizer

    notify(f"{name} comes with a tokenizer.model only: converting it once")
    try:
        return cache.write("tokenizers", key, partial(convert_tokenizer, base)).folder
    except CacheUnusable as problem:
        raise ModelError(
            f"the converted tokenizer could not be kept: {problem}; set QLORA_CHAT_CACHE to another folder"
        ) from problem
