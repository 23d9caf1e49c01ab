"""The merges that could be written, and the rule that picks one of them.

Scope: names, figures and the rule. Merges and measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_chat.models.adapter.merge_loss import MAX_KL, MIN_TOP1, SAME_KL, MergeLoss
from qlora_chat.models.weights.shards import StoredFormat

Origin = Literal["nf4", "original"]
"""Base of the merge: dequantized from NF4, as training saw it, or in its own 16 bits."""
Form = Literal["auto", "bf16", "int8", "nf4"]
FORMS: tuple[StoredFormat, ...] = ("bf16", "int8", "nf4")
RULE = (
    f"the smallest KL from the unmerged adapter on its NF4 base; merges within {SAME_KL} nats of it count as equal, and of "
    f"those the one of the fewest bytes. Refused above KL {MAX_KL} or below {MIN_TOP1:.0%} agreement."
)


@dataclass(frozen=True)
class Candidate:
    """One way to merge, with its figures."""

    origin: Origin
    form: StoredFormat
    loss: MergeLoss
    bytes: int
    """Size of the weights on disk."""
    tokens_per_s: float
    """One chat in this program, on the machine that measured."""

    @property
    def name(self) -> str:
        """Name in reports."""
        origin = "dequantised NF4" if self.origin == "nf4" else "original 16-bit"  # spelled as in records of earlier versions
        form = {"bf16": "bf16", "int8": "8 bits", "nf4": "NF4"}[self.form]
        return f"{origin} + adapter, {form}"


@dataclass(frozen=True)
class Reference:
    """The unmerged adapter on the NF4 base."""

    tokens: int
    perplexity: float
    bytes: int
    tokens_per_s: float | None
    """None for an adapter that this program cannot apply unmerged."""


def pick(candidates: Sequence[Candidate], form: Form) -> Candidate:
    """The best by RULE among those in this form; among all while none of this form is measured yet."""
    allowed = [each for each in candidates if form in ("auto", each.form)] or list(candidates)
    least = min(each.loss.kl for each in allowed)
    return min((each for each in allowed if each.loss.kl <= least + SAME_KL), key=lambda each: (each.bytes, each.loss.kl))
