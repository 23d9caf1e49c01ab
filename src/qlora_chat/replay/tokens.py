"""Probabilities of the tokens of an answer, and of those that could have stood there instead.

Scope: one answer through an engine, a token at a time after the tokens that were chosen, so that neither seed nor settings
matter. The KV cache serves all but the last of them. Knows no pages and no stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qlora_chat.engines import Engine, EngineError
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

ALTERNATIVES = 8
"""Likeliest tokens that are reported at each place."""
MOST_TOKENS = 600
"""Tokens of an answer that are examined; each costs a forward pass."""
_REPORTED = 20
_ASK = Sampling(temperature=0.0, max_new_tokens=1, logprobs=_REPORTED)


@dataclass(frozen=True)
class Alternative:
    """A token that could stand at a place."""

    id: int
    text: str
    probability: float
    """Before temperature and the other settings apply."""


@dataclass(frozen=True)
class ExaminedToken:
    """A token of an answer."""

    id: int
    text: str
    probability: float | None
    """None if it is not among the 20 likeliest."""
    alternatives: tuple[Alternative, ...]
    """The likeliest tokens, best first; the token itself may be among them."""


def examine_tokens(
    engine: Engine, prompt_ids: Sequence[int], answer_ids: Sequence[int], adapter: str | None = None
) -> Iterator[ExaminedToken]:
    """Each token of an answer, at most MOST_TOKENS. EngineError where the engine reports no probabilities."""
    for index, token in enumerate(answer_ids[:MOST_TOKENS]):
        before = answer_ids[:index]
        ids = (*prompt_ids, *before)
        top = top_logprobs(engine, ids, adapter)
        probabilities = {each: math.exp(logprob) for each, logprob in top}
        alternatives = tuple(
            Alternative(each, text_after(engine, before, each), probabilities[each]) for each, _ in top[:ALTERNATIVES]
        )
        yield ExaminedToken(token, text_after(engine, before, token), probabilities.get(token), alternatives)


def text_after(engine: Engine, before: Sequence[int], token: int) -> str:
    """Text of a token after others; decoded alone it may lose its leading space."""
    context = list(before[-8:])
    return engine.tokenizer.decode([*context, token])[len(engine.tokenizer.decode(context)) :]


def top_logprobs(engine: Engine, ids: Sequence[int], adapter: str | None = None) -> Sequence[tuple[int, float]]:
    """The likeliest tokens after `ids`, with their log probabilities. EngineError where the engine reports none."""
    stream = engine.stream(Prompt("", tuple(ids)), _ASK, Stops(), adapter)
    top = next((piece.top_logprobs for piece in stream if piece.top_logprobs), ())
    if not top:
        raise EngineError("this engine reports no probabilities of tokens")
    return top
