"""Tokenizer files of a base; tokenizer.model -> tokenizer.json, checked against SentencePiece itself.

Scope: LLaMA bases that were published before tokenizer.json. Transformers 5.23 ranks merges by id where SentencePiece
ranks them by score, which gives other ids for two spaces in LLaMA's own vocabulary; this conversion does not. Imports
no torch unless a tokenizer has to be converted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from qlora_chat.models import ModelError
from qlora_chat.models.cache import Cache, key_of, sha256
from qlora_chat.models.folders import has_tokenizer, token_text
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.trust import TOKENIZER_FILE, own_file, read_json

_SPACE = "▁"
_SAMPLES = ("Grüße, 世界! 🙂", "  two  spaces\n\nand\ttabs ", "def f(x):\n    return x ** 2", " ", "")


def tokenizer_folder(name: str, base: Path, cache: Cache) -> Path:
    """Folder with tokenizer.json: the base's own, or the cached conversion of its tokenizer.model.

    ModelError if there is neither, or if the conversion cannot be saved.
    """
    if (base / "tokenizer.json").is_file():
        return base
    if not has_tokenizer(base):
        raise ModelError(f"{base} holds neither tokenizer.json nor tokenizer.model; fetch the base again")
    sources = {"model": sha256(own_file(base / "tokenizer.model", TOKENIZER_FILE))}
    if added := added_tokens(base):
        sources |= {"added": [[number, str(token), token.special] for number, token in added]}
    key = key_of(name, sources)
    if (entry := cache.find("tokenizers", key)) is not None:
        return entry.folder
    cache.notify(f"{name} comes with a tokenizer.model only: converting it once")
    return cache.write("tokenizers", key, partial(convert_tokenizer, base)).folder


def convert_tokenizer(base: Path, folder: Path) -> dict[str, Any]:
    """Write tokenizer.json into `folder`; returns the record. ModelError if the two would tokenize differently."""
    from qlora_chat.models.adapter.merge_loss import dialogues

    source = base / "tokenizer.model"
    try:
        original = _read(source)
        tokenizer = byte_fallback_bpe(_pieces(original))
        _add(tokenizer, added_tokens(base))
        tokenizer.save(str(folder / "tokenizer.json"))
    except Exception as problem:  # the two libraries raise their own errors for a broken file
        raise ModelError(f"{source} cannot be read ({problem}); fetch it again") from problem
    converted = ModelTokenizer.read(folder, None)
    for text in (*(text for turn in dialogues()[0] for text in turn), *_SAMPLES):
        if converted.encode(text) != original.encode(text):
            raise ModelError(
                f"{source} does not convert faithfully ({text[:40]!r} gives other ids); "
                "use a copy of the base that holds a tokenizer.json"
            )
    return {"converted_from": "tokenizer.model"}


def added_tokens(base: Path) -> list[tuple[int, AddedToken]]:
    """Tokens that added_tokens.json or tokenizer_config.json adds to a tokenizer.model, by id.

    As in Transformers, one is special if tokenizer_config.json says so, or if it is the bos, eos, pad or unk token.
    """
    config, names = read_json(base / "tokenizer_config.json"), read_json(base / "special_tokens_map.json")
    special = {token_text(value) for source in (config, names) for key, value in source.items() if key.endswith("_token")}
    found = {int(number): str(text) for text, number in read_json(base / "added_tokens.json").items()}
    described = {int(number): entry for number, entry in (config.get("added_tokens_decoder") or {}).items()}
    found |= {number: token_text(entry) for number, entry in described.items()}
    special |= {token_text(entry) for entry in described.values() if isinstance(entry, dict) and entry.get("special")}
    special |= {token_text(each) for each in names.get("additional_special_tokens") or ()}
    return [(number, AddedToken(text, normalized=False, special=text in special)) for number, text in sorted(found.items())]


def _add(tokenizer: Tokenizer, tokens: list[tuple[int, AddedToken]]) -> None:
    """Add the tokens that the vocabulary lacks. ValueError if one would get another id than its own."""
    for number, token in tokens:
        if tokenizer.token_to_id(token.content) == number:
            continue
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise ValueError(f"added token {token.content!r} has id {number}, and the ids before it are not all in use")


def _read(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=str(path))


@dataclass(frozen=True)
class Pieces:
    """The vocabulary of a SentencePiece model, by id."""

    texts: Sequence[str]
    scores: Sequence[float]
    """Pieces with a higher one are merged first."""
    special: Set[int]
    """Ids of control pieces such as `<s>`, and of the unknown one."""
    bytes: Set[int]
    """Ids of pieces such as `<0x0A>`."""
    bos: int
    """Id in front of a text; -1 without one."""


def _pieces(original: Any) -> Pieces:
    ids = list(range(len(original)))
    special = {each for each in ids if original.is_control(each) or original.is_unknown(each)}
    is_byte = {each for each in ids if original.is_byte(each)}
    return Pieces(original.id_to_piece(ids), original.get_score(ids), special, is_byte, original.bos_id())


def byte_fallback_bpe(pieces: Pieces, space_in_front: bool = True) -> Tokenizer:
    """A tokenizer with the ids of SentencePiece, and `<s>` in front of a text as LLaMA was trained."""
    vocabulary = {text: number for number, text in enumerate(pieces.texts)}
    tokenizer = Tokenizer(BPE(vocabulary, _merges(pieces, vocabulary), fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if space_in_front else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_in_front else steps)
    tokenizer.add_special_tokens([AddedToken(pieces.texts[each], normalized=False) for each in sorted(pieces.special)])
    if pieces.bos >= 0:
        put_in_front(tokenizer, pieces.texts[pieces.bos], pieces.bos)
    return tokenizer


def put_in_front(tokenizer: Tokenizer, name: str, number: int) -> None:
    """Let a tokenizer put a special token in front of every text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[name, "$A"], pair=[name, "$A", "$B"], special_tokens=[(name, number)]
    )


def _merges(pieces: Pieces, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, in SentencePiece's order of the wholes: by score."""
    unmerged = pieces.special | pieces.bytes
    whole = [(text, number) for text, number in vocabulary.items() if number not in unmerged]
    merges: list[tuple[str, str]] = []
    for text, _ in sorted(whole, key=lambda each: -pieces.scores[each[1]]):
        splits = ((text[:at], text[at:]) for at in range(1, len(text)))
        halves = (split for split in splits if split[0] in vocabulary and split[1] in vocabulary)
        merges += sorted(halves, key=lambda split: (vocabulary[split[0]], vocabulary[split[1]]))
    return merges
