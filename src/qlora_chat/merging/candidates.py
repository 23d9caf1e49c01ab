"""The merges that could be written, and the rule by which one of them is.

Scope: names, figures and the choice. Makes and measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_chat.merging import MergeRefused
from qlora_chat.models.adapter.merge_loss import LEAST_TOP1, MOST_KL, Loss
from qlora_chat.models.weights.shards import Stored

Origin = Literal["nf4", "original"]
"""What the adapter is added to: the base as training saw it, dequantised from NF4, or the base in its own 16 bits."""
Form = Literal["auto", "bf16", "int8", "nf4"]
FORMS: tuple[Stored, ...] = ("bf16", "int8", "nf4")
SAME_KL = 0.0005
"""Nats. Two merges closer than this differ by no more than bf16 rounding does."""
RULE = (
    f"the smallest KL from the unmerged adapter on its NF4 base; merges within {SAME_KL} nats of it count as equal, and of "
    f"those the one of the fewest bytes. Refused above KL {MOST_KL} or below {LEAST_TOP1:.0%} agreement."
)


@dataclass(frozen=True)
class Candidate:
    """One way to merge, with what it costs."""

    origin: Origin
    form: Stored
    loss: Loss
    bytes: int
    """Of the weights on disk."""
    tokens_per_s: float
    """One chat in this program, on the machine that measured."""

    @property
    def name(self) -> str:
        """In words."""
        origin = "dequantised NF4" if self.origin == "nf4" else "original 16-bit"
        form = {"bf16": "bf16", "int8": "8 bits", "nf4": "NF4"}[self.form]
        return f"{origin} + adapter, {form}"


@dataclass(frozen=True)
class Reference:
    """The unmerged adapter on the NF4 base."""

    tokens: int
    perplexity: float
    bytes: int
    tokens_per_s: float | None
    """None for an adapter that this program cannot hold unmerged."""


def pick(candidates: Sequence[Candidate], form: Form) -> Candidate:
    """The one that RULE names among those in the form asked for."""
    asked = [each for each in candidates if form in ("auto", each.form)] or list(candidates)  # none yet, in mid-measurement
    least = min(each.loss.kl for each in asked)
    return min((each for each in asked if each.loss.kl <= least + SAME_KL), key=lambda each: (each.bytes, each.loss.kl))


def check(chosen: Candidate, *, force: bool) -> None:
    """MergeRefused where the best is not good enough, unless it is forced."""
    if chosen.loss.acceptable or force:
        return
    raise MergeRefused(
        f"nothing was written: the best merge ({chosen.name}) has KL {chosen.loss.kl} nats a token from the unmerged adapter "
        f"and agrees with it at {chosen.loss.top1:.1%} of {chosen.loss.tokens} tokens, and {MOST_KL} and {LEAST_TOP1:.0%} are "
        "the limits. Take another --form, serve the adapter unmerged (serve --base --adapter), or write it all the same with "
        "--force"
    )
