"""Loss of a merge: a merged model against the unmerged adapter on its NF4 base, on the answers of held-out text.

Scope: the text (dialogues.json, written for this measurement); logits in, numbers out. Knows nothing of loading models.

Shapes: N counted tokens, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qlora_chat.models import ModelError
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

Dialogue = Sequence[tuple[str, str]]
"""(user, assistant) a turn."""

MAX_KL = 0.02
MIN_TOP1 = 0.97
"""A merge beyond either limit is refused: people would notice that it is another model."""
SAME_KL = 0.0005
"""Nats. Two merges closer than this differ by no more than bf16 rounding does."""


@cache
def dialogues() -> tuple[Dialogue, ...]:
    """Conversations written for this measurement: enough tokens that a share of one per cent is more than one or two."""
    text = Path(__file__).with_name("dialogues.json").read_text(encoding="utf-8")
    return tuple(tuple((user, assistant) for user, assistant in dialogue) for dialogue in json.loads(text))


@dataclass(frozen=True)
class Passage:
    """One sequence of held-out text."""

    ids: tuple[int, ...]
    """(T,), BOS included."""
    counted: tuple[bool, ...]
    """(T,): True for tokens that a model is measured on; never the first."""

    @property
    def inputs(self) -> list[int]:
        """Input of the model: all ids but the last."""
        return list(self.ids[:-1])

    @property
    def rows(self) -> list[int]:
        """Indices of the inputs whose logits predict a counted token."""
        return [index for index, counts in enumerate(self.counted[1:]) if counts]

    @property
    def targets(self) -> list[int]:
        """The counted tokens."""
        return [self.ids[index + 1] for index in self.rows]


@dataclass(frozen=True)
class HeldOut:
    """Text that the measured models were not trained on, in ids."""

    passages: tuple[Passage, ...]

    def __post_init__(self) -> None:
        if not self.targets:
            raise ModelError("the text has no token to measure on; give a file with a few dialogues that have answers")

    @property
    def targets(self) -> list[int]:
        """(N,)."""
        return [target for passage in self.passages for target in passage.targets]


def builtin_dialogues(tokenizer: ModelTokenizer, bos: int | None, window: int) -> HeldOut:
    """The dialogues in a model's ids; answers count."""
    return HeldOut(tuple(passage(dialogue, tokenizer, bos, window) for dialogue in dialogues()))


def passage(dialogue: Dialogue, tokenizer: ModelTokenizer, bos: int | None, window: int) -> Passage:
    """A dialogue in Guanaco's prompt format, cut after `window` tokens; answers count."""
    ids: list[int] = [] if bos is None else [bos]
    counted = [False] * len(ids)
    for user, assistant in dialogue:
        encode = tokenizer.encode_continuation if len(ids) > 1 else tokenizer.encode
        for text, is_answer in ((f"### Human: {user}### Assistant:", False), (f" {assistant}", True)):
            new = encode(text) if not is_answer else tokenizer.encode_continuation(text)
            ids += new
            counted += [is_answer] * len(new)
    return Passage(tuple(ids[: window + 1]), tuple(counted[: window + 1]))


@dataclass(frozen=True)
class MergeLoss:
    """Distance of a model from its reference."""

    kl: float
    """Mean KL(reference || model), in nats a token."""
    top1: float
    """Share of tokens for which both rank the same token first, 0 to 1."""
    tokens: int
    perplexity: float
    """The model's own, on the counted tokens."""

    @property
    def acceptable(self) -> bool:
        """True within both limits."""
        return self.kl <= MAX_KL and self.top1 >= MIN_TOP1

    def check(self, name: str, instead: str) -> None:
        """Check the limits of the best merge. ModelError that names it and what to do `instead` of writing it with --force."""
        if not self.acceptable:
            raise ModelError(
                f"nothing was written: {name} has KL {self.kl} nats a token from the unmerged adapter and agrees with it at "
                f"{self.top1:.1%} of {self.tokens} tokens, and {MAX_KL} and {MIN_TOP1:.0%} are the limits; {instead}, or write "
                "it all the same with --force"
            )

    def __str__(self) -> str:
        return (
            f"requantizing the merged weights to NF4 cost KL {self.kl:.2f} nats a token and changed the first choice at "
            f"{1 - self.top1:.1%} of {self.tokens} tokens of a test dialogue's answers (against the unmerged adapter)"
        )


def compare(reference: Tensor, logits: Tensor, targets: Sequence[int]) -> MergeLoss:
    """MergeLoss of logits (N, V) against reference (N, V), both in float32; targets (N,) are what the text says."""
    kl, agreed = 0.0, 0
    for expected, actual in zip(
        reference.split(256), logits.split(256), strict=True
    ):  # rows are as wide as the vocabulary: not all at once
        first, second = torch.log_softmax(expected, dim=-1), torch.log_softmax(actual, dim=-1)
        kl += float((first.exp() * (first - second)).sum())
        agreed += int((expected.argmax(dim=-1) == actual.argmax(dim=-1)).sum())
    count = len(reference)
    return MergeLoss(round(kl / count, 4), round(agreed / count, 4), count, round(perplexity(logits, targets), 3))


def perplexity(logits: Tensor, targets: Iterable[int]) -> float:
    """exp of the mean cross-entropy of targets (N,) under logits (N, V)."""
    return math.exp(min(float(cross_entropy(logits, torch.tensor(list(targets)))), 700.0))
