"""Ids that begin and end a text, as a tokenizer and its configs declare them, with old mistakes repaired.

Scope: ids only. Early LLaMA conversions said bos and eos are 0; LLaMA's vocabulary says `<unk>` 0, `<s>` 1, `</s>` 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_chat.models import ModelError
from qlora_chat.models.folders import ModelConfigs, as_list, token_text
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

LLAMA_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}


@dataclass(frozen=True)
class SpecialIds:
    """Beginning of a prompt and ends of an answer."""

    bos: int | None
    """None if the tokenizer puts nothing in front of a text."""
    stops: frozenset[int]
    config: Mapping[str, Any]
    """bos, eos and pad ids for config.json, repaired."""
    generation: Mapping[str, Any]
    """generation_config.json, repaired."""
    notices: tuple[str, ...] = ()
    eos: int | None = None
    """The end of an answer that the tokenizer names, or else the first that the configs name; training ends a text with it."""


def special_ids(name: str, configs: ModelConfigs, tokenizer: ModelTokenizer, vocabulary: int | None = None) -> SpecialIds:
    """Check and repair the declared ids: those beyond the vocabulary, and 0 or 1 as an end in LLaMA's vocabulary.

    `name` is the model's, for the notices; `vocabulary` is the number of embeddings, if not that of config.json.
    """
    config, generation, settings = configs.model, configs.generation, configs.tokenizer
    llama = all(tokenizer.token_id(token) == number for token, number in LLAMA_IDS.items())
    size = vocabulary or int(config["vocab_size"])

    def is_wrong_end(number: Any) -> bool:
        return not _is_id(number, size) or (llama and number in (0, 1))

    listed = [*as_list(generation.get("eos_token_id")), *as_list(config.get("eos_token_id"))]
    declared = [_id_of(each, tokenizer) for each in listed]
    wrong = [number for number in declared if is_wrong_end(number)]
    named = tokenizer.token_id(token_text(settings.get("eos_token")))
    stops = {number for number in declared if number not in wrong} | ({2} if llama else set())
    stops |= {named} if named is not None and not is_wrong_end(named) else set()
    wrong_bos = llama and config.get("bos_token_id", 1) not in (1, None)
    notices = _notices(name, [*wrong, *([config["bos_token_id"]] if wrong_bos else [])], stops, llama)
    ends = _repaired(config, stops, llama, size)
    return SpecialIds(
        bos=_bos(settings, tokenizer, llama, size),
        stops=frozenset(stops),
        config=ends,
        generation={**generation, **ends, "pad_token_id": None},
        notices=notices,
        eos=next((each for each in (named, *declared) if each in stops), min(stops, default=None)),
    )


def _id_of(token: Any, tokenizer: ModelTokenizer) -> Any:
    """The id of an end that a config writes as text; anything else as it is."""
    number = tokenizer.token_id(token) if isinstance(token, str) else None
    return token if number is None else number


def check_ids(tokenizer: ModelTokenizer, vocabulary: int) -> None:
    """ModelError if text can become an id that has no embedding; special tokens, which nobody can type, may be such.

    A chat template may write those; opening it checks them against the number of embeddings, which the tokenizer gets here.
    """
    tokenizer.embeddings = vocabulary
    largest = tokenizer.largest_id()
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer gives ids up to {largest:,}, and the base has embeddings for {vocabulary:,} tokens (ids up to "
            f"{vocabulary - 1:,}); use the tokenizer that came with the base"
        )


def _bos(settings: Mapping[str, Any], tokenizer: ModelTokenizer, llama: bool, size: int) -> int | None:
    adds = settings.get("add_bos_token")
    if adds is False:
        return None
    named = tokenizer.token_id(token_text(settings.get("bos_token")))
    own = 1 if llama else named if _is_id(named, size) else None
    if adds is True or llama:  # a LLaMA was trained with <s> in front, even if its conversion does not say so
        return own
    return tokenizer.leading_id()


def _repaired(config: Mapping[str, Any], stops: set[int], llama: bool, size: int) -> dict[str, Any]:
    """bos, eos and pad ids that Transformers can work with."""
    bos, pad = (1 if llama else config.get("bos_token_id")), config.get("pad_token_id")
    ends: int | list[int] | None = sorted(stops) if len(stops) > 1 else next(iter(stops), None)
    return {"bos_token_id": bos, "eos_token_id": ends, "pad_token_id": pad if _is_id(pad, size) else None}


def _notices(name: str, wrong: list[Any], stops: set[int], llama: bool) -> tuple[str, ...]:
    if wrong:
        listed = ", ".join(dict.fromkeys(map(str, wrong)))
        repaired = "LLaMA's <s> 1 and </s> 2" if llama else f"{sorted(stops)}"
        return (f"{name} names wrong ids for the beginning or end of a text ({listed}); repaired to {repaired}",)
    if not stops:
        return (f"{name} names no id that ends a text; answers end at a role marker or at the length limit",)
    return ()


def _is_id(number: Any, size: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < size
